//! `softmax(q K^T) V` for a block of query rows of one head, in f32.
//!
//! # Order of summation
//! What comes out of a query row depends on that row, its keys and its values alone: scores sum over
//! the head's dims in ascending order, the softmax has two passes over all positions with lanes that
//! belong to positions, values are summed over positions in ascending order. So it does not matter
//! how rows are grouped into blocks, whether keys are packed in advance or on the fly, or how many
//! threads there are; a prompt may be computed in chunks, or token by token, with equal bits.
//! A masked position is left out of every sum.
use std::ops::Range;

use crate::{
    elements::Cached,
    simd::{Convert, MAX_LANES, Op, Simd, load, store},
};

/// Query rows handled together. Their scores against 729 positions are 105 KiB, which leaves the
/// second-level cache room for what streams by.
pub(super) const BLOCK_ROWS: usize = 36;
/// Query rows in a register tile, and vectors in its width: of 16 registers 12 sums, two columns, one
/// row and one to spare. (4 rows of 3 vectors fill all 16, and the compiler spills.)
const TILE_ROWS: usize = 6;
const TILE_WIDTH: usize = 2;
/// Rows of the tile for what is left over.
const SMALL_TILE_ROWS: usize = 3;

/// How many rows ahead of use they are asked for.
const AHEAD: usize = 16;

/// How keys and values are laid out for the register tiles.
///
/// Keys: panels of [`Layout::positions`] positions, `[dim, positions]` each, so that a score tile
/// reads vectors of positions. Values: blocks of positions, in each block panels of up to
/// [`TILE_WIDTH`] vectors of columns, `[positions, columns]` each.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    lanes: usize,
    dim: usize,
}

impl Layout {
    pub(super) fn new(lanes: usize, dim: usize) -> Self {
        Layout { lanes, dim }
    }

    /// `dim` rounded up to whole vectors.
    #[inline(always)]
    pub(super) fn padded(&self) -> usize {
        self.dim.next_multiple_of(self.lanes)
    }

    /// Positions in a panel of keys.
    #[inline(always)]
    fn positions(&self) -> usize {
        TILE_WIDTH * self.lanes
    }

    /// Elements of a panel of keys.
    #[inline(always)]
    pub(super) fn panel_len(&self) -> usize {
        self.dim * self.positions()
    }

    /// Panels that hold `positions` keys.
    #[inline(always)]
    pub(super) fn panels(&self, positions: usize) -> usize {
        positions.div_ceil(self.positions())
    }

    /// Elements needed to pack a few rows.
    pub(super) fn lines_len(&self) -> usize {
        MAX_LANES * self.padded()
    }

    /// The panels of value columns, as ranges of vectors, as even as possible.
    #[inline(always)]
    fn column_panels(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let vectors = self.dim.div_ceil(self.lanes);
        let panels = vectors.div_ceil(TILE_WIDTH);
        (0..panels).map(move |i| i * vectors / panels..(i + 1) * vectors / panels)
    }
}

/// The row of a cache or of qkv that holds a position, and its scale; `None` for one that cannot be
/// seen.
pub(super) type RowAt<'a, 't, T> = &'a dyn Fn(usize) -> Option<(&'t [T], f32)>;

/// Packs one panel of keys. Positions from `len` on are not needed by anyone.
pub(super) struct PackKeys<'a, 't, T> {
    pub(super) layout: Layout,
    pub(super) row: RowAt<'a, 't, T>,
    pub(super) len: usize,
    pub(super) panel: usize,
    pub(super) out: &'a mut [f32],
    pub(super) lines: &'a mut [f32],
}

impl<T: Cached> Op for PackKeys<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let PackKeys { layout, row, len, panel, out, lines } = self;
        let (padded, stride) = (layout.padded(), layout.positions());
        for group in 0..TILE_WIDTH {
            let first = panel * stride + group * S::LANES;
            if first >= len {
                break;
            }
            for (lane, line) in lines.chunks_exact_mut(padded).enumerate().take(S::LANES) {
                let position = first + lane;
                prefetch(s, row, position + AHEAD, len);
                match if position < len { row(position) } else { None } {
                    Some((key, scale)) => widen(s, key, scale, line),
                    None => line.fill(0.0),
                }
            }
            for dim in (0..layout.dim).step_by(S::LANES) {
                let mut tile = [s.splat(0.0); MAX_LANES];
                for (lane, v) in tile.iter_mut().enumerate().take(S::LANES) {
                    *v = load(s, &lines[lane * padded + dim..]);
                }
                let columns = s.transpose(tile).into_iter().take(S::LANES.min(layout.dim - dim));
                for (i, column) in columns.enumerate() {
                    store(s, &mut out[(dim + i) * stride + group * S::LANES..], column);
                }
            }
        }
    }
}

/// Packs the values of `positions`, of `len` in all, into a block that has room for `capacity`.
pub(super) struct PackValues<'a, 't, T> {
    pub(super) layout: Layout,
    pub(super) row: RowAt<'a, 't, T>,
    pub(super) len: usize,
    pub(super) positions: Range<usize>,
    pub(super) capacity: usize,
    pub(super) out: &'a mut [f32],
    pub(super) lines: &'a mut [f32],
}

impl<T: Cached> Op for PackValues<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let PackValues { layout, row, len, positions, capacity, out, lines } = self;
        let line = &mut lines[..layout.padded()];
        for (i, position) in positions.clone().enumerate() {
            prefetch(s, row, position + AHEAD, len);
            match row(position) {
                Some((value, scale)) => widen(s, value, scale, line),
                None => line.fill(0.0),
            }
            for vectors in layout.column_panels() {
                let width = vectors.len() * S::LANES;
                let to = capacity * vectors.start * S::LANES + i * width;
                for j in (0..width).step_by(S::LANES) {
                    let v = load(s, &line[vectors.start * S::LANES + j..]);
                    store(s, &mut out[to + j..], v);
                }
            }
        }
    }
}

/// Rows lie kilobytes apart, where the processor does not prefetch on its own.
#[inline(always)]
fn prefetch<S: Simd, T>(s: S, row: RowAt<'_, '_, T>, position: usize, len: usize) {
    if position < len
        && let Some((row, _)) = row(position)
    {
        for line in row.chunks(64 / size_of::<T>()) {
            s.prefetch(line.as_ptr());
        }
    }
}

/// The first elements of `x`, scaled.
#[inline(always)]
pub(super) fn load_scaled<S: Simd, T: Cached>(s: S, x: &[T], scale: f32) -> S::V {
    match T::SCALE_LEN {
        0 => load(s, x),
        _ => s.mul(load(s, x), s.splat(scale)),
    }
}

/// The elements of `x`, fewer than `LANES`, as a vector with zeros after them.
#[inline(always)]
pub(super) fn load_tail<S: Simd, T: Cached>(s: S, x: &[T], scale: f32) -> S::V {
    let mut wide = [0.0f32; MAX_LANES];
    Convert { out: &mut wide[..x.len()], x }.call(s);
    match T::SCALE_LEN {
        0 => load(s, &wide),
        _ => s.mul(load(s, &wide), s.splat(scale)),
    }
}

/// Converts a row to f32, with zeros up to `out`'s length.
#[inline(always)]
fn widen<S: Simd, T: Cached>(s: S, x: &[T], scale: f32, out: &mut [f32]) {
    let body = x.len() - x.len() % S::LANES;
    for i in (0..body).step_by(S::LANES) {
        store(s, &mut out[i..], load_scaled(s, &x[i..], scale));
    }
    if body < x.len() {
        store(s, &mut out[body..], load_tail(s, &x[body..], scale));
    }
}

/// Where a block of query rows finds packed keys and values.
pub(super) trait Source {
    /// Panel `i` of keys.
    fn keys(&mut self, i: usize) -> &[f32];
    /// Positions per block of values.
    fn block_len(&self) -> usize;
    /// Block `i` of values, of which `len` positions are needed.
    fn values(&mut self, i: usize, len: usize) -> &[f32];
}

/// What a block of query rows needs.
#[derive(Default)]
pub(super) struct Work {
    /// `[rows, padded dim]`: queries, then results.
    pub(super) query: Vec<f32>,
    /// Per row: how many of the first positions it sees.
    pub(super) visible: Vec<usize>,
    /// Per row: whether it saw anything, so that there is a result.
    pub(super) answered: Vec<bool>,
    pub(super) scores: Vec<f32>,
    pub(super) sums: Vec<f32>,
    pub(super) out: Vec<f32>,
}

pub(super) fn grow(v: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if v.len() < len {
        v.resize(len, 0.0);
    }
    &mut v[..len]
}

/// Answers the queries in `work`, as many as `work.visible` has entries.
pub(super) struct AttendBlock<'a> {
    pub(super) layout: Layout,
    pub(super) source: &'a mut dyn Source,
    /// Positions that nobody sees, in order; their keys and values are zeros.
    pub(super) unseen: &'a [Range<usize>],
    /// Multiplies scores.
    pub(super) scale: f32,
    pub(super) work: &'a mut Work,
}

impl Op for AttendBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let AttendBlock { layout, source, unseen, scale, work } = self;
        let Work { query, visible, answered, scores, sums, out } = work;
        let (count, padded) = (visible.len(), layout.padded());
        let longest = visible.iter().copied().max().unwrap_or(0);
        let stride = layout.panels(longest) * layout.positions();
        let query = grow(query, count * padded);
        let scores = grow(scores, count * stride);
        let sums = grow(sums, count);
        let out = grow(out, count * padded);

        // With log2(e) in the scale, the softmax can use powers of two.
        multiply(s, query, scale * std::f32::consts::LOG2_E);
        for panel in 0..layout.panels(longest) {
            let first = panel * layout.positions();
            let keys = source.keys(panel);
            let mut tiles = Tiles { a: query, a_stride: padded, b: keys, out: scores, stride };
            match (longest - first).div_ceil(S::LANES) {
                1 => tiles.scores::<S, 1>(s, &layout, visible, first),
                _ => tiles.scores::<S, TILE_WIDTH>(s, &layout, visible, first),
            }
        }
        for (i, &len) in visible.iter().enumerate() {
            let row = &mut scores[i * stride..(i + 1) * stride];
            for range in unseen {
                row[range.start.min(len)..range.end.min(len)].fill(f32::NEG_INFINITY);
            }
            sums[i] = softmax(s, row, len, !unseen.is_empty());
        }
        out.fill(0.0);
        let block_len = source.block_len();
        for block in 0..longest.div_ceil(block_len) {
            let positions = block * block_len..((block + 1) * block_len).min(longest);
            let values = source.values(block, positions.len());
            for vectors in layout.column_panels() {
                let start = block_len * vectors.start * S::LANES;
                let b = &values[start..][..block_len * vectors.len() * S::LANES];
                let mut tiles = Tiles { a: scores, a_stride: stride, b, out, stride: padded };
                let to = vectors.start * S::LANES;
                match vectors.len() {
                    1 => tiles.values::<S, 1>(s, visible, &positions, to),
                    _ => tiles.values::<S, TILE_WIDTH>(s, visible, &positions, to),
                }
            }
        }
        answered.clear();
        for (i, &sum) in sums.iter().enumerate() {
            // The largest term of a sum is 1, so 0 stands for a row that saw nothing.
            answered.push(sum != 0.0);
            let row = &mut query[i * padded..(i + 1) * padded];
            row.copy_from_slice(&out[i * padded..(i + 1) * padded]);
            multiply(s, row, sum.recip());
        }
    }
}

/// `x *= factor`, for whole vectors.
#[inline(always)]
pub(super) fn multiply<S: Simd>(s: S, x: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    for x in x.chunks_exact_mut(S::LANES) {
        let product = s.mul(load(s, x), factor);
        store(s, x, product);
    }
}

/// Turns `row[..len]` into powers of two relative to the largest, and returns their sum; 0 if there
/// is nothing to see.
#[inline(always)]
pub(super) fn softmax<S: Simd>(s: S, row: &mut [f32], len: usize, masked: bool) -> f32 {
    if len == 0 {
        return 0.0;
    }
    let end = len.next_multiple_of(S::LANES);
    row[len..end].fill(f32::NEG_INFINITY);
    let row = &mut row[..end];
    let mut largest = [s.splat(f32::NEG_INFINITY); 4];
    let mut blocks = row.chunks_exact(4 * S::LANES);
    for block in blocks.by_ref() {
        for (max, x) in largest.iter_mut().zip(block.chunks_exact(S::LANES)) {
            *max = s.max(load(s, x), *max);
        }
    }
    for x in blocks.remainder().chunks_exact(S::LANES) {
        largest[0] = s.max(load(s, x), largest[0]);
    }
    let mut lanes = [f32::NEG_INFINITY; MAX_LANES];
    let pair = |a, b| s.max(largest[a], largest[b]);
    store(s, &mut lanes, s.max(pair(0, 1), pair(2, 3)));
    let max = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if masked && max == f32::NEG_INFINITY {
        return 0.0;
    }
    let max = s.splat(max);
    let mut sum = s.splat(0.0);
    for x in row.chunks_exact_mut(S::LANES) {
        let power = exp2(s, s.sub(load(s, x), max));
        sum = s.add(sum, power);
        store(s, x, power);
    }
    let mut lanes = [0.0f32; MAX_LANES];
    store(s, &mut lanes, sum);
    lanes[..S::LANES].iter().sum()
}

/// `2^x` for `x <= 0` to 2e-7 of its value and 2^-125; exactly 0 for minus infinity, NaN for NaN.
///
/// The polynomial of [`photon_core::sampler::exp2p`].
#[inline(always)]
fn exp2<S: Simd>(s: S, x: S::V) -> S::V {
    // Adding this rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const SMALLEST: f32 = f32::MIN_POSITIVE * 2.0;
    // The order of operands in `max` lets NaN through.
    let x = s.max(s.splat(-126.0), x);
    let shifted = s.add(x, s.splat(ROUND));
    let f = s.sub(x, s.sub(shifted, s.splat(ROUND)));
    let mut p = s.splat(1.540_353e-4);
    for c in [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, 6.931_472e-1, 1.0] {
        p = s.fma(p, f, s.splat(c));
    }
    s.max(s.splat(0.0), s.sub(s.shift_exponent(p, shifted), s.splat(SMALLEST)))
}

/// Products of rows of `a` with a panel `b`, a register tile at a time.
struct Tiles<'a> {
    a: &'a [f32],
    a_stride: usize,
    b: &'a [f32],
    out: &'a mut [f32],
    stride: usize,
}

impl Tiles<'_> {
    /// `out[i, to..] = sum_d a[i, d] b[d, ..]` over a head's dims, for the rows that see position `to`
    /// and some others.
    #[inline(always)]
    fn scores<S: Simd, const W: usize>(
        &mut self,
        s: S,
        layout: &Layout,
        visible: &[usize],
        to: usize,
    ) {
        let (b_stride, rows) = (layout.positions(), visible.len());
        // Mostly visibility does not decrease, so rows to be left out come first.
        let mut i = visible.iter().position(|&len| len > to).unwrap_or(rows);
        let zero = s.splat(0.0);
        while i + TILE_ROWS <= rows {
            self.tile(s, i, b_stride, 0..layout.dim, to, [[zero; W]; TILE_ROWS]);
            i += TILE_ROWS;
        }
        if i + SMALL_TILE_ROWS <= rows {
            self.tile(s, i, b_stride, 0..layout.dim, to, [[zero; W]; SMALL_TILE_ROWS]);
            i += SMALL_TILE_ROWS;
        }
        for i in i..rows {
            self.tile(s, i, b_stride, 0..layout.dim, to, [[zero; W]; 1]);
        }
    }

    /// `out[i, to..] += sum_u a[i, u] b[u - first, ..]` over those `positions` that row `i` sees.
    #[inline(always)]
    fn values<S: Simd, const W: usize>(
        &mut self,
        s: S,
        visible: &[usize],
        positions: &Range<usize>,
        to: usize,
    ) {
        let rows = visible.len();
        let mut i = 0;
        while i + TILE_ROWS <= rows {
            self.value_tile::<S, TILE_ROWS, W>(s, i, visible, positions, to);
            i += TILE_ROWS;
        }
        if i + SMALL_TILE_ROWS <= rows {
            self.value_tile::<S, SMALL_TILE_ROWS, W>(s, i, visible, positions, to);
            i += SMALL_TILE_ROWS;
        }
        for i in i..rows {
            self.value_tile::<S, 1, W>(s, i, visible, positions, to);
        }
    }

    /// Rows `row .. row + M` of [`Self::values`].
    #[inline(always)]
    fn value_tile<S: Simd, const M: usize, const W: usize>(
        &mut self,
        s: S,
        row: usize,
        visible: &[usize],
        positions: &Range<usize>,
        to: usize,
    ) {
        let (width, b) = (W * S::LANES, self.b);
        let end = |i: usize| visible[i].clamp(positions.start, positions.end);
        // What all rows of the tile see, then each row's own.
        let common = positions.start..(row..row + M).map(end).min().unwrap_or(positions.start);
        let acc = self.read::<S, M, W>(s, row, to);
        self.tile(s, row, width, common.clone(), to, acc);
        for i in row..row + M {
            let depth = common.end..end(i);
            if !depth.is_empty() {
                self.b = &b[common.len() * width..];
                let acc = self.read::<S, 1, W>(s, i, to);
                self.tile(s, i, width, depth, to, acc);
                self.b = b;
            }
        }
    }

    #[inline(always)]
    fn read<S: Simd, const M: usize, const W: usize>(
        &self,
        s: S,
        row: usize,
        at: usize,
    ) -> [[S::V; W]; M] {
        let mut acc = [[s.splat(0.0); W]; M];
        for (i, acc) in acc.iter_mut().enumerate() {
            for (j, acc) in acc.iter_mut().enumerate() {
                *acc = load(s, &self.out[(row + i) * self.stride + at + j * S::LANES..]);
            }
        }
        acc
    }

    /// `out[row + i, to..] = acc[i] + sum_k a[row + i, depth.start + k] b[k, ..]`, one by one.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const W: usize>(
        &mut self,
        s: S,
        row: usize,
        b_stride: usize,
        depth: Range<usize>,
        to: usize,
        mut acc: [[S::V; W]; M],
    ) {
        let (a, a_stride, b) = (&self.a[row * self.a_stride..], self.a_stride, self.b);
        if !depth.is_empty() {
            assert!((M - 1) * a_stride + depth.end <= a.len(), "tile: a");
            assert!((depth.len() - 1) * b_stride + W * S::LANES <= b.len(), "tile: b");
        }
        for (k, column) in depth.enumerate() {
            let mut line = [s.splat(0.0); W];
            for (j, line) in line.iter_mut().enumerate() {
                let p = b.as_ptr().wrapping_add(k * b_stride + j * S::LANES);
                // SAFETY: `k` is below the depth's length, so this ends inside `b`: asserted above.
                *line = unsafe { s.read_f32(p) };
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `i < M` and `column` is below the depth's end: inside `a`, as asserted.
                let x = s.splat(unsafe { *a.get_unchecked(i * a_stride + column) });
                for (acc, line) in acc.iter_mut().zip(line) {
                    *acc = s.fma(x, line, *acc);
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                store(s, &mut self.out[(row + i) * self.stride + to + j * S::LANES..], *acc);
            }
        }
    }
}
