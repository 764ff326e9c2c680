//! Cutting crops into patches, and joining the features of crops.
use photon_core::{Patchify, StitchPool};

use super::for_runs;
use crate::{
    Cpu,
    elements::{Float, Rows, RowsMut, with_float},
    simd::{Convert, Op, Simd, dispatch, load, store},
};

pub(crate) fn patchify(cpu: &Cpu, op: Patchify<'_, Cpu>) {
    let crops = Rows::<u8>::new(op.crops).all();
    let size = op.crops.shape().dims()[1];
    with_float!(op.out.dtype(), T => {
        patchify_rows(cpu, RowsMut::<T>::new(op.out), crops, size, op.patch);
    });
}

fn patchify_rows<T: Float>(
    cpu: &Cpu,
    out: RowsMut<'_, T>,
    crops: &[u8],
    size: usize,
    patch: usize,
) {
    let grid = size / patch;
    let levels: [f32; 256] = std::array::from_fn(|v| (v as f32 / 255.0 - 0.5) / 0.5);
    for_runs(cpu, out.rows(), out.cols() * 8, |rows| {
        let mut row = vec![0.0; 3 * patch * patch];
        for i in rows {
            let (crop, py, px) = (i / (grid * grid), i / grid % grid, i % grid);
            let (red, rest) = row.split_at_mut(patch * patch);
            let (green, blue) = rest.split_at_mut(patch * patch);
            for y in 0..patch {
                let start = ((crop * size + py * patch + y) * size + px * patch) * 3;
                let pixels = crops[start..start + 3 * patch].chunks_exact(3);
                for (x, pixel) in pixels.enumerate() {
                    red[y * patch + x] = levels[usize::from(pixel[0])];
                    green[y * patch + x] = levels[usize::from(pixel[1])];
                    blue[y * patch + x] = levels[usize::from(pixel[2])];
                }
            }
            // SAFETY: runs of rows are disjoint (the partition).
            let out = unsafe { out.row(i) };
            dispatch(cpu.isa(), Convert { out, x: &row });
        }
    });
}

pub(crate) fn stitch_pool(cpu: &Cpu, op: StitchPool<'_, Cpu>) {
    let map = Map { grid: op.grid, margin: op.margin, tiles: op.tiles };
    with_float!(op.out.dtype(), T => with_float!(op.x.dtype(), U => {
        stitch_pool_rows(cpu, RowsMut::<T>::new(op.out), Rows::<U>::new(op.x), &map);
    }));
}

/// The map that local crops are stitched to.
struct Map {
    grid: usize,
    margin: usize,
    tiles: (usize, usize),
}

impl Map {
    /// For one axis: which map positions cell `cell` averages.
    fn covered(&self, cell: usize, tiles: usize) -> std::ops::Range<usize> {
        let side = (self.grid - 2 * self.margin) * tiles + 2 * self.margin;
        cell * side / self.grid..((cell + 1) * side).div_ceil(self.grid)
    }

    /// For one axis: the tile and the patch in it that map position `at` comes from.
    fn origin(&self, at: usize, tiles: usize) -> (usize, usize) {
        let step = self.grid - 2 * self.margin;
        let tile = (at.saturating_sub(self.margin) / step).min(tiles - 1);
        (tile, at - tile * step)
    }
}

fn stitch_pool_rows<T: Float, U: Float>(cpu: &Cpu, out: RowsMut<'_, T>, x: Rows<'_, U>, map: &Map) {
    let (grid, dim) = (map.grid, x.cols());
    // With one crop the local one is the global one.
    let first_local = usize::from(x.rows() > grid * grid);
    for_runs(cpu, out.rows(), dim * 32, |rows| {
        let mut sum = vec![0.0; dim];
        for i in rows {
            // SAFETY: runs of rows are disjoint (the partition).
            let out = unsafe { out.row(i) };
            let (global, pooled) = out.split_at_mut(dim);
            dispatch(cpu.isa(), Convert { out: global, x: x.row(i) });
            sum.fill(0.0);
            let (ys, xs) = (map.covered(i / grid, map.tiles.0), map.covered(i % grid, map.tiles.1));
            for at_y in ys.clone() {
                let (tile_y, y) = map.origin(at_y, map.tiles.0);
                for at_x in xs.clone() {
                    let (tile_x, px) = map.origin(at_x, map.tiles.1);
                    let crop = first_local + tile_y * map.tiles.1 + tile_x;
                    let row = x.row((crop * grid + y) * grid + px);
                    dispatch(cpu.isa(), AddRow { sum: &mut sum, x: row });
                }
            }
            let count = (ys.len() * xs.len()) as f32;
            sum.iter_mut().for_each(|sum| *sum /= count);
            dispatch(cpu.isa(), Convert { out: pooled, x: &sum });
        }
    });
}

/// `sum += x`.
struct AddRow<'a, T> {
    sum: &'a mut [f32],
    x: &'a [T],
}

impl<T: Float> Op for AddRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let mut sums = self.sum.chunks_exact_mut(S::LANES);
        let mut xs = self.x.chunks_exact(S::LANES);
        for (sum, x) in sums.by_ref().zip(xs.by_ref()) {
            let total = s.add(load(s, sum), load(s, x));
            store(s, sum, total);
        }
        let (sum, x) = (sums.into_remainder(), xs.remainder());
        let mut tail = [0.0f32; 16];
        Convert { out: &mut tail[..x.len()], x }.call(s);
        for (sum, x) in sum.iter_mut().zip(tail) {
            *sum += x;
        }
    }
}
