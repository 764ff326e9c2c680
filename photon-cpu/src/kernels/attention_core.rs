//! `softmax(q K^T) V` for a block of query rows of one head; sums are f32, of products of floats, of pairs
//! of bf16 or of bytes in fours ([`super::attention_pack`]).
//!
//! # Order of summation
//! What comes out of a query row depends on that row, its keys and its values alone: scores sum over
//! the head's dims in ascending order, the softmax has two passes over all positions with lanes that
//! belong to positions, values are summed over the positions of a [`SUM_BLOCK`] in ascending order, and what
//! blocks have is added up in ascending order. So it does not matter how rows are grouped into blocks, whether keys are packed in advance or on the fly, or how many
//! threads there are; a prompt may be computed in chunks, or token by token, with equal bits.
//! A masked position is left out of every sum.
use std::ops::Range;

use super::attention_pack::{Factors, Layout, TILE_WIDTH, weigh};
use crate::simd::{Op, Simd, load, max_of_lanes, store, sum_of_lanes};

/// Query rows handled together. Their scores against 729 positions are 105 KiB, which leaves the
/// second-level cache room for what streams by.
pub(super) const BLOCK_ROWS: usize = 36;
/// Positions whose values are summed before they are added to those before them: a task of their own may do it. A
/// multiple of a panel's positions, and few enough that a panel of values stays in the first-level cache.
pub(super) const SUM_BLOCK: usize = 64;
/// Query rows, or digits of some, in a register tile, of [`TILE_WIDTH`] vectors: of 16 registers 12 sums, two columns, one
/// row and one to spare. (4 rows of 3 vectors fill all 16, and the compiler spills.)
const TILE_ROWS: usize = 6;
/// Rows of a tile of one vector: fewer sums would wait for each other.
const TALL_TILE_ROWS: usize = 2 * TILE_ROWS;
/// Rows of the tile for what is left over.
const SMALL_TILE_ROWS: usize = 3;

/// Where a block of query rows finds packed keys and values.
pub(super) trait Source {
    /// Panel `i` of keys.
    fn keys(&mut self, i: usize) -> &[f32];
    /// Block `i` of values, [`SUM_BLOCK`] positions, of which `len` positions are needed.
    fn values(&mut self, i: usize, len: usize) -> &[f32];
}

/// What a block of query rows needs.
#[derive(Default)]
pub(super) struct Work {
    /// `[rows, query length]`: queries.
    pub(super) query: Vec<f32>,
    /// Per row: how many of the first positions it sees.
    pub(super) visible: Vec<usize>,
    /// Per row: whether it saw anything, so that there is a result.
    pub(super) answered: Vec<bool>,
    pub(super) scores: Vec<f32>,
    pub(super) sums: Vec<f32>,
    /// `[rows, padded dim]`: results.
    pub(super) out: Vec<f32>,
}

pub(super) fn grow(v: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if v.len() < len {
        v.resize(len, 0.0);
    }
    &mut v[..len]
}

/// Answers the queries in `work`, as many as `work.visible` has entries.
pub(super) struct AttendBlock<'a, F> {
    pub(super) factors: F,
    pub(super) layout: Layout,
    pub(super) source: &'a mut dyn Source,
    /// Positions that nobody sees, in order; their keys and values are zeros.
    pub(super) unseen: &'a [Range<usize>],
    /// Multiplies scores.
    pub(super) scale: f32,
    /// What keys and values count times, up to whole panels; empty if nothing.
    pub(super) scales: [&'a [f32]; 2],
    pub(super) work: &'a mut Work,
}

impl<F: Factors> Op for AttendBlock<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let AttendBlock { factors, layout, source, unseen, scale, scales, work } = self;
        let Work { query, visible, answered, scores, sums, out } = work;
        let (count, padded) = (visible.len(), layout.padded());
        let longest = visible.iter().copied().max().unwrap_or(0);
        let stride = longest.next_multiple_of(SUM_BLOCK);
        let scores = grow(scores, count * stride);
        let sums = grow(sums, count);
        let out = grow(out, count * padded);

        let (a_stride, digit) = (layout.query_len(), layout.padded_words());
        for panel in 0..layout.panels(longest) {
            let first = panel * layout.positions();
            let b = source.keys(panel);
            let mut tiles = Tiles { factors, a: query, a_stride, digit, b, out: scores, stride };
            let scales = (scale, scales[0].get(first..).unwrap_or_default());
            match (longest - first).div_ceil(S::LANES) {
                1 => tiles.scores::<S, 1>(s, &layout, visible, scales, first),
                _ => tiles.scores::<S, TILE_WIDTH>(s, &layout, visible, scales, first),
            }
        }
        for (i, &len) in visible.iter().enumerate() {
            let row = &mut scores[i * stride..(i + 1) * stride];
            for range in unseen {
                row[range.start.min(len)..range.end.min(len)].fill(f32::NEG_INFINITY);
            }
            sums[i] = softmax(s, row, len, !unseen.is_empty());
            weigh(s, factors, row, scales[1], len);
        }
        out.fill(0.0);
        for block in 0..longest.div_ceil(SUM_BLOCK) {
            let positions = block * SUM_BLOCK..((block + 1) * SUM_BLOCK).min(longest);
            let values = source.values(block, positions.len());
            for vectors in layout.column_panels() {
                let start = SUM_BLOCK / F::PER_WORD * vectors.start * S::LANES;
                let (b, digit) = (&values[start..], SUM_BLOCK / F::PER_WORD);
                let mut tiles =
                    Tiles { factors, a: scores, a_stride: stride, digit, b, out, stride: padded };
                let to = vectors.start * S::LANES;
                match vectors.len() {
                    1 => tiles.values::<S, 1>(s, visible, &positions, to),
                    _ => tiles.values::<S, TILE_WIDTH>(s, visible, &positions, to),
                }
            }
        }
        answered.clear();
        for (out, &sum) in out.chunks_exact_mut(padded).zip(&*sums) {
            // The largest term of a sum is 1, so 0 stands for a row that saw nothing.
            answered.push(sum != 0.0);
            multiply(s, out, sum.recip());
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

/// `x *= factors`, for whole vectors, as many as both have.
#[inline(always)]
pub(super) fn multiply_each<S: Simd>(s: S, x: &mut [f32], factors: &[f32]) {
    for (x, factors) in x.chunks_exact_mut(S::LANES).zip(factors.chunks_exact(S::LANES)) {
        let product = s.mul(load(s, x), load(s, factors));
        store(s, x, product);
    }
}

/// Turns `row[..len]` into powers of two relative to the largest and returns their sum; 0 if there is nothing to see.
/// What is behind them in the last vector of positions becomes zero.
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
    let pair = |a, b| s.max(largest[a], largest[b]);
    let max = max_of_lanes(s, s.max(pair(0, 1), pair(2, 3)));
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
    sum_of_lanes(s, sum)
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
struct Tiles<'a, F> {
    factors: F,
    a: &'a [f32],
    a_stride: usize,
    /// Words of a digit of a row, which follow each other.
    digit: usize,
    b: &'a [f32],
    out: &'a mut [f32],
    stride: usize,
}

impl<'a, F: Factors> Tiles<'a, F> {
    /// `out[i, to..] = scales.0 * scales.1[..] * sum_d a[i, d] b[d, ..]` over a head's dims, for the rows that see
    /// position `to` and some others. Nothing in the second scales counts once.
    #[inline(always)]
    fn scores<S: Simd, const W: usize>(
        &mut self,
        s: S,
        layout: &Layout,
        visible: &[usize],
        scales: (f32, &[f32]),
        to: usize,
    ) {
        let rows = visible.len();
        // Mostly visibility does not decrease, so rows to be left out come first.
        let mut i = visible.iter().position(|&len| len > to).unwrap_or(rows);
        while let Some(count) = tile_rows::<F, W>(rows - i) {
            match count * F::DIGITS {
                TALL_TILE_ROWS if W == 1 => {
                    self.score_tile::<S, TALL_TILE_ROWS, W>(s, i, layout, scales, to);
                }
                TILE_ROWS => self.score_tile::<S, TILE_ROWS, W>(s, i, layout, scales, to),
                SMALL_TILE_ROWS if F::DIGITS == 1 => {
                    self.score_tile::<S, SMALL_TILE_ROWS, W>(s, i, layout, scales, to);
                }
                2 if F::DIGITS == 2 => self.score_tile::<S, 2, W>(s, i, layout, scales, to),
                _ => self.score_tile::<S, 1, W>(s, i, layout, scales, to),
            }
            i += count;
        }
    }

    /// Rows `row ..` of [`Self::scores`], whose digits are `M`.
    #[inline(always)]
    fn score_tile<S: Simd, const M: usize, const W: usize>(
        &mut self,
        s: S,
        row: usize,
        layout: &Layout,
        scales: (f32, &[f32]),
        to: usize,
    ) {
        let mut acc = [[s.splat(0.0); W]; M];
        for (i, acc) in acc.iter_mut().enumerate() {
            *acc = [self.factors.start(s, self.tail(row + i / F::DIGITS, 0), i % F::DIGITS); W];
        }
        let a = self.words(row * F::DIGITS, 0);
        self.add(s, a, self.b, layout.positions(), layout.words(), &mut acc);
        // With log2(e) in the scale, the softmax can use powers of two.
        let scale = s.splat(scales.0 * std::f32::consts::LOG2_E);
        for (i, sums) in acc.chunks_exact(F::DIGITS).enumerate() {
            let tail = self.tail(row + i, 0);
            let out = &mut self.out[(row + i) * self.stride + to..][..W * S::LANES];
            for (j, out) in out.chunks_exact_mut(S::LANES).enumerate() {
                let sums = [sums[0][j], sums[F::DIGITS - 1][j]];
                let mut score = s.mul(self.factors.total(s, sums, tail), scale);
                if !scales.1.is_empty() {
                    score = s.mul(score, load(s, &scales.1[j * S::LANES..]));
                }
                store(s, out, score);
            }
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
        let mut i = 0;
        while let Some(count) = tile_rows::<F, W>(visible.len() - i) {
            match count * F::DIGITS {
                TALL_TILE_ROWS if W == 1 => {
                    self.value_tile::<S, TALL_TILE_ROWS, W>(s, i, visible, positions, to);
                }
                TILE_ROWS => self.value_tile::<S, TILE_ROWS, W>(s, i, visible, positions, to),
                SMALL_TILE_ROWS if F::DIGITS == 1 => {
                    self.value_tile::<S, SMALL_TILE_ROWS, W>(s, i, visible, positions, to);
                }
                2 if F::DIGITS == 2 => self.value_tile::<S, 2, W>(s, i, visible, positions, to),
                _ => self.value_tile::<S, 1, W>(s, i, visible, positions, to),
            }
            i += count;
        }
    }

    /// Rows `row ..` of [`Self::values`], whose digits are `M`.
    #[inline(always)]
    fn value_tile<S: Simd, const M: usize, const W: usize>(
        &mut self,
        s: S,
        row: usize,
        visible: &[usize],
        positions: &Range<usize>,
        to: usize,
    ) {
        let (rows, at) = (M / F::DIGITS, positions.start);
        let end = |i: usize| visible[i].clamp(positions.start, positions.end);
        let least = (row..row + rows).map(end).min().unwrap_or(at);
        let mut acc = [[s.splat(0.0); W]; M];
        for (i, acc) in acc.iter_mut().enumerate() {
            *acc = [self.factors.start(s, self.tail(row + i / F::DIGITS, at), i % F::DIGITS); W];
        }
        // What all rows of the tile see, in whole words, then each row's own.
        let (width, common) = (W * S::LANES, (least - at) / F::PER_WORD);
        let a = self.words(row * F::DIGITS, at);
        self.add(s, a, self.b, width, common, &mut acc);
        for (i, acc) in acc.iter_mut().enumerate() {
            let end = end(row + i / F::DIGITS) - at;
            self.add_own(s, row * F::DIGITS + i, at, common, end, acc);
        }
        for (i, sums) in acc.chunks_exact(F::DIGITS).enumerate() {
            if end(row + i) == at {
                continue;
            }
            let tail = self.tail(row + i, at);
            let out = &mut self.out[(row + i) * self.stride + to..];
            for (j, out) in out.chunks_exact_mut(S::LANES).take(W).enumerate() {
                let total = self.factors.total(s, [sums[0][j], sums[F::DIGITS - 1][j]], tail);
                let sum = s.add(load(s, out), total);
                store(s, out, sum);
            }
        }
    }

    /// `acc += sum_u a[line, at + u] b[u, ..]` over the positions of the words from `first` on that end before `end`.
    /// Of a word that ends behind them only the beginning counts.
    #[inline(always)]
    fn add_own<S: Simd, const W: usize>(
        &self,
        s: S,
        line: usize,
        at: usize,
        first: usize,
        end: usize,
        acc: &mut [S::V; W],
    ) {
        if end <= first * F::PER_WORD {
            return;
        }
        let (whole, width) = (end / F::PER_WORD, W * S::LANES);
        let mut own = [*acc];
        let a = self.words(line, at);
        self.add(s, &a[first..], &self.b[first * width..], width, whole - first, &mut own);
        if !end.is_multiple_of(F::PER_WORD) {
            let share = s.splat(a[whole]);
            for (j, own) in own[0].iter_mut().enumerate() {
                let word = load(s, &self.b[whole * width + j * S::LANES..]);
                *own = self.factors.multiply(s, share, self.factors.first_only(s, word), *own);
            }
        }
        *acc = own[0];
    }

    /// The words of a digit of a row, from `at` on.
    #[inline(always)]
    fn words(&self, line: usize, at: usize) -> &'a [f32] {
        let a = self.a;
        &a[line / F::DIGITS * self.a_stride + line % F::DIGITS * self.digit + at..]
    }

    /// What stands behind the words of a row that begin at `at`.
    #[inline(always)]
    fn tail(&self, row: usize, at: usize) -> &'a [f32] {
        let a = self.a;
        match F::TAIL {
            0 => &[],
            len => &a[row * self.a_stride + at + F::DIGITS * self.digit..][..len],
        }
    }

    /// `acc[i] += sum_k a[i, k] b[k, ..]` for `depth` words, one by one, `a` beginning with a digit of [`Self::words`]
    /// and the others following.
    #[inline(always)]
    fn add<S: Simd, const M: usize, const W: usize>(
        &self,
        s: S,
        a: &[f32],
        b: &[f32],
        b_stride: usize,
        depth: usize,
        acc: &mut [[S::V; W]; M],
    ) {
        if depth == 0 {
            return;
        }
        let line = |i: usize| i / F::DIGITS * self.a_stride + i % F::DIGITS * self.digit;
        assert!((0..M).all(|i| line(i) + depth <= a.len()), "tile: a");
        assert!((depth - 1) * b_stride + W * S::LANES <= b.len(), "tile: b");
        // In registers, which `acc` itself need not be.
        let mut sums = *acc;
        for k in 0..depth {
            let mut words = [s.splat(0.0); W];
            for (j, word) in words.iter_mut().enumerate() {
                let p = b.as_ptr().wrapping_add(k * b_stride + j * S::LANES);
                // SAFETY: `k` is below the depth, so this ends inside `b`: asserted above.
                *word = unsafe { s.read_f32(p) };
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `i < M` and `k` is below the depth: inside `a`, as asserted.
                let x = s.splat(unsafe { *a.get_unchecked(line(i) + k) });
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum = self.factors.multiply(s, x, word, *sum);
                }
            }
        }
        *acc = sums;
    }
}

/// Rows of the next tile of `W` vectors, of so many that are left.
#[inline(always)]
fn tile_rows<F: Factors, const W: usize>(left: usize) -> Option<usize> {
    let (whole, tall) = (TILE_ROWS / F::DIGITS, TALL_TILE_ROWS / F::DIGITS);
    match left {
        0 => None,
        left if W == 1 && left >= tall => Some(tall),
        left if left >= whole => Some(whole),
        left if F::DIGITS == 1 && left >= SMALL_TILE_ROWS => Some(SMALL_TILE_ROWS),
        _ => Some(1),
    }
}
