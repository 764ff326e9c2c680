//! The operations that move rows: [`Tile`], [`Gather`], [`Scatter`] and [`Copy`]; exact to the bit.
use photon_core::{Copy, DType, Gather, Kernels, Scatter, Tile};

use crate::{
    Options,
    cases::{RAGGED, poisoned},
    rig::{Gaps, Label, Rig, Want},
    rng::Rng,
};

fn label(op: &'static str, shape: &str, x: DType, out: DType, seed: u64) -> Label {
    Label { op, about: format!("{shape}; x {x}, out {out}"), seed }
}

/// Every pair of types, numbers of rows that are and are not multiples of the period.
pub(crate) fn tile<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 50_000;
    for (x_type, out_type) in options.pairs() {
        for (rows, period, dim) in
            [(1, 1, 1), (7, 7, 33), (33, 7, 65), (7, 33, 7), (65, 1, 720), (66, 33, 16)]
        {
            seed += 1;
            let shape = format!("rows {rows}, period {period}, dim {dim}");
            let label = label("tile", &shape, x_type, out_type, seed);
            let values = Rng::new(seed).floats(period * dim, 3.0);
            let x = rig.input("x", [period, dim], x_type, &values);
            let mut out = rig.output("out", [rows, dim], out_type, Gaps::NONE);
            rig.record(|cx| cx.tile(Tile { out: &mut out.t, x: &x.t }));
            let xs = x.values();
            rig.check(&label, &out, |i, j| Want::Exact(xs[i % period * dim + j] as f32));
            rig.unchanged(&label, &[&x]);
        }
    }
}

/// The real table: 729 positions over several crops.
pub(crate) fn tile_of_positions<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let (period, dim, rows) = (729, 1152, 2 * 729);
    let (x_type, out_type) = (options.float(0), options.float(2));
    let label = label("tile", "the position table over two crops", x_type, out_type, 51_000);
    let x = rig.input("x", [period, dim], x_type, &Rng::new(51_000).floats(period * dim, 1.0));
    let mut out = rig.output("out", [rows, dim], out_type, Gaps::NONE);
    rig.record(|cx| cx.tile(Tile { out: &mut out.t, x: &x.t }));
    let xs = x.values();
    rig.check(&label, &out, |i, j| Want::Exact(xs[i % period * dim + j] as f32));
}

/// `count` indices into `rows`: any, first and last among them, or distinct ones.
fn indices(rng: &mut Rng, count: usize, rows: usize, distinct: bool) -> Vec<i32> {
    if distinct {
        return rng.permutation(rows)[..count].iter().map(|&i| i as i32).collect();
    }
    let mut ids: Vec<i32> = (0..count).map(|_| rng.below(rows) as i32).collect();
    ids[0] = rows as i32 - 1;
    ids[count - 1] = 0;
    ids
}

/// Puts every kind of bad index somewhere, as far as there is room.
fn poison(rng: &mut Rng, ids: &mut [i32], rows: usize) {
    for (bad, at) in poisoned(rows).into_iter().zip(rng.permutation(ids.len())) {
        ids[at] = bad;
    }
}

fn check_gather<D: Kernels>(
    rig: &mut Rig<'_, D>,
    [count, rows, dim]: [usize; 3],
    (x_type, out_type): (DType, DType),
    poisoned: bool,
    seed: u64,
) {
    let shape = format!("count {count}, rows {rows}, dim {dim}, poisoned {poisoned}");
    let label = label("gather", &shape, x_type, out_type, seed);
    let rng = &mut Rng::new(seed);
    let mut ids = indices(rng, count, rows, false);
    if poisoned {
        poison(rng, &mut ids, rows);
    }
    let x = rig.input("x", [rows, dim], x_type, &rng.floats(rows * dim, 3.0));
    let index = rig.indices("indices", [count], &ids);
    let mut out = rig.output("out", [count, dim], out_type, Gaps::NONE);
    rig.record(|cx| cx.gather(Gather { out: &mut out.t, x: &x.t, indices: &index.t }));
    let xs = x.values();
    rig.check(&label, &out, |i, j| match usize::try_from(ids[i]) {
        Ok(row) if row < rows => Want::Exact(xs[row * dim + j] as f32),
        _ => Want::Stays,
    });
    rig.unchanged(&label, &[&x, &index]);
}

/// Every pair of types over ragged shapes, indices repeated.
pub(crate) fn gather<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 52_000;
    for types in options.pairs() {
        for (count, rows) in [(1, 1), (7, 33), (65, 7), (33, 729)] {
            for dim in RAGGED.into_iter().chain([720]) {
                seed += 1;
                check_gather(rig, [count, rows, dim], types, false, seed);
            }
        }
    }
}

/// Rows with a bad index stay as they are.
pub(crate) fn gather_poisoned<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    for (i, types) in options.pairs().enumerate() {
        for (j, shape) in [[1, 1, 7], [7, 5, 33], [65, 33, 720]].into_iter().enumerate() {
            check_gather(rig, shape, types, true, 53_000 + (10 * i + j) as u64);
        }
    }
}

fn check_scatter<D: Kernels>(
    rig: &mut Rig<'_, D>,
    [count, rows, dim]: [usize; 3],
    (x_type, out_type): (DType, DType),
    poisoned: bool,
    seed: u64,
) {
    let shape = format!("count {count}, rows {rows}, dim {dim}, poisoned {poisoned}");
    let label = label("scatter", &shape, x_type, out_type, seed);
    let rng = &mut Rng::new(seed);
    let mut ids = indices(rng, count, rows, true);
    if poisoned {
        poison(rng, &mut ids, rows);
    }
    let x = rig.input("x", [count, dim], x_type, &rng.floats(count * dim, 3.0));
    let index = rig.indices("indices", [count], &ids);
    let mut out = rig.output("out", [rows, dim], out_type, Gaps::NONE);
    rig.record(|cx| cx.scatter(Scatter { out: &mut out.t, x: &x.t, indices: &index.t }));
    let xs = x.values();
    let source: Vec<Option<usize>> =
        (0..rows).map(|row| ids.iter().position(|&id| id == row as i32)).collect();
    rig.check(&label, &out, |row, j| match source[row] {
        Some(i) => Want::Exact(xs[i * dim + j] as f32),
        None => Want::Stays,
    });
    rig.unchanged(&label, &[&x, &index]);
}

/// Every pair of types over ragged shapes; rows not named stay.
pub(crate) fn scatter<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 54_000;
    for types in options.pairs() {
        for (count, rows) in [(1, 1), (7, 33), (33, 33), (65, 729)] {
            for dim in RAGGED.into_iter().chain([720]) {
                seed += 1;
                check_scatter(rig, [count, rows, dim], types, false, seed);
            }
        }
    }
}

/// A bad index writes nowhere.
pub(crate) fn scatter_poisoned<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    for (i, types) in options.pairs().enumerate() {
        for (j, shape) in [[1, 1, 7], [7, 9, 33], [65, 65, 720]].into_iter().enumerate() {
            check_scatter(rig, shape, types, true, 55_000 + (10 * i + j) as u64);
        }
    }
}

/// Every pair of types, either side whole or a column view.
pub(crate) fn copy<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 56_000;
    let views = [Gaps::NONE, Gaps { before: 3, after: 6 }];
    for (x_type, out_type) in options.pairs() {
        for (rows, dim) in [(1, 1), (7, 33), (33, 7), (65, 65), (3, 720), (5, 2048)] {
            for (x_gaps, out_gaps) in views.iter().flat_map(|a| views.iter().map(move |b| (*a, *b)))
            {
                seed += 1;
                let shape = format!("rows {rows}, dim {dim}, x {x_gaps:?}, out {out_gaps:?}");
                let label = label("copy", &shape, x_type, out_type, seed);
                let values = Rng::new(seed).floats(rows * dim, 3.0);
                let x = rig.view("x", [rows, dim], x_type, x_gaps, &values);
                let mut out = rig.output("out", [rows, dim], out_type, out_gaps);
                rig.record(|cx| cx.copy(Copy { out: &mut out.t, x: &x.t }));
                let xs = x.values();
                rig.check(&label, &out, |i, j| Want::Exact(xs[i * dim + j] as f32));
                rig.unchanged(&label, &[&x]);
            }
        }
    }
}

/// Zeros of both signs, infinities, NaN, ties, overflow to infinity, and f16's subnormals. Subnormals
/// of f32 and bf16 are left out: a device may flush them.
pub(crate) fn copy_special_values<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let values = [
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        1.0 + 1.0 / 2048.0,
        1.0 + 3.0 / 2048.0,
        65504.0,
        65519.0,
        65520.0,
        -1e9,
        3.4e38,
        2f32.powi(-14),
        2f32.powi(-24),
        3.0 * 2f32.powi(-25),
        2f32.powi(-25),
        2f32.powi(-26),
        -(2f32.powi(-20)) * 1.3,
        2f32.powi(-100),
    ];
    for (i, (x_type, out_type)) in options.pairs().enumerate() {
        let label = label("copy", "special values", x_type, out_type, i as u64);
        // Every value at every place of a vector, and in the tail.
        let rows = 17;
        let all: Vec<f32> = (0..rows * values.len())
            .map(|i| values[(i + i / values.len()) % values.len()])
            .collect();
        let x = rig.input("x", [rows, values.len()], x_type, &all);
        let mut out = rig.output("out", [rows, values.len()], out_type, Gaps::NONE);
        rig.record(|cx| cx.copy(Copy { out: &mut out.t, x: &x.t }));
        let xs = x.values();
        rig.check(&label, &out, |i, j| Want::Exact(xs[i * values.len() + j] as f32));
    }
}

/// Tensors of one type, whatever it is, are copied bit for bit: random bytes, signaling NaNs among them.
/// Both sides lie in one tensor, as the blocks of a cache do.
pub(crate) fn copy_keeps_bits<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let mut seed = 57_000;
    for dtype in options.floats.iter().copied().chain([DType::I32, DType::U8]) {
        for (rows, dim) in [(1, 1), (1, 7), (7, 33), (33, 7), (16, 2048)] {
            for gaps in [Gaps::NONE, Gaps { before: 3, after: 6 }] {
                seed += 1;
                let shape = format!("bits of {rows} rows, dim {dim}, {gaps:?}");
                let label = label("copy", &shape, dtype, dtype, seed);
                let rng = &mut Rng::new(seed);
                let size = dtype.size();
                let bytes: Vec<u8> =
                    (0..(2 * rows + 1) * dim * size).map(|_| rng.bits() as u8).collect();
                let cache = rig.raw("x and out", [2 * rows + 1, dim], dtype, gaps, &bytes);
                let (mut out, x) = (cache.t.row_range(0..rows), cache.t.row_range(rows..2 * rows));
                rig.record(|cx| cx.copy(Copy { out: &mut out, x: &x }));
                let (copied, rest) = bytes.split_at(rows * dim * size);
                let want = [&rest[..copied.len()], rest].concat();
                assert!(rig.read(&label, &cache) == want, "{label}: bits differ");
            }
        }
    }
}
