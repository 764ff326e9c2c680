//! How queries, keys, shares and values lie when they are multiplied.
//!
//! Keys: panels of [`Layout::positions`] positions, `[words, positions]` each, so that a score tile
//! reads vectors of positions. Values: blocks of positions, in each block panels of up to
//! [`TILE_WIDTH`] vectors of columns, `[positions, columns]` each. The unit of what is summed over, dims
//! for scores and positions for values, is a word: see [`Factors`].
#![allow(unsafe_code, reason = "pairs of bf16 are read as words")]

use std::ops::Range;

use half::bf16;

use super::attention_core::{SUM_BLOCK, multiply_each};
use crate::{
    Isa,
    elements::Cached,
    simd::{
        Fp8, MAX_LANES, Op, QUAD_BIAS, Readable, Simd, dispatch, dispatch_pairs, dispatch_product,
        load, magnitude, store, sum_of_lanes,
    },
};

/// Vectors in the width of a register tile: see [`super::attention_core`].
pub(super) const TILE_WIDTH: usize = 2;
/// How many rows ahead of use they are asked for.
const AHEAD: usize = 16;

/// What is multiplied: floats; pairs of bf16 where queries are bf16, keys bf16 or e4m3, and the processor has an
/// instruction for it; or bytes in fours, where queries are bf16 and keys int8. A word is as large as a float in each case.
///
/// Codes are multiplied as they are. What a head of a position counts times is applied to scores, and to shares
/// before they meet values: see [`weigh`].
pub(super) trait Factors: Copy + Send + Sync + 'static {
    /// Elements of a word.
    const PER_WORD: usize;
    /// Words of a query, or of shares, for each word of keys, or of values: one for each digit of its numbers, the
    /// highest first. They lie apart, what all numbers have of a digit together.
    const DIGITS: usize = 1;
    /// What else there is behind the digits of a query or of a block's shares.
    const TAIL: usize = 0;
    /// Vectors of words that are joined together.
    const UNIT: usize = 1;
    /// Runs `op` with the instructions for it.
    fn dispatch<O: Op>(self, isa: Isa, op: O) -> O::Output;
    /// `acc` plus the product of two words, the first of a query or of shares.
    fn multiply<S: Simd>(self, s: S, a: S::V, b: S::V, acc: S::V) -> S::V;
    /// `UNIT` vectors, a word of each column, from what [`Words::line`] read at `PER_WORD` positions. Columns are in
    /// an order of their own.
    fn join<S: Simd>(self, s: S, lines: [S::V; 4]) -> [S::V; 4];
    /// What belongs to columns as [`Self::join`] has them, in order.
    #[inline(always)]
    fn in_order<S: Simd>(self, _: S, columns: [S::V; 4]) -> [S::V; 4] {
        columns
    }
    /// A word without its second element, which may be NaN although its share is zero.
    #[inline(always)]
    fn first_only<S: Simd>(self, _: S, word: S::V) -> S::V {
        word
    }
    /// Turns the shares of a block, floats, into words at its beginning.
    fn shares<S: Simd>(self, s: S, block: &mut [f32]);
    /// What a sum of products begins with, for a digit and what stands behind the words.
    #[inline(always)]
    fn start<S: Simd>(self, s: S, _: &[f32], _: usize) -> S::V {
        s.splat(0.0)
    }
    /// What sums of products amount to, a sum for each digit.
    #[inline(always)]
    fn total<S: Simd>(self, _: S, sums: [S::V; 2], _: &[f32]) -> S::V {
        sums[0]
    }
}

/// [`Factors`] that can be made of queries of `T`.
pub(super) trait QueryWords<T: Readable>: Factors {
    /// Writes a query as words, with zeros up to `stride` for each digit, and what else there is.
    fn query<S: Simd>(self, s: S, x: &[T], out: &mut [f32], stride: usize);
}

/// [`Factors`] that can be made of a cache's rows of `T`.
pub(super) trait Words<T: Readable>: Factors {
    /// The first words of `x`, which has as many.
    fn words<S: Simd>(self, s: S, x: &[T]) -> S::V;
    /// `UNIT` vectors of elements, as many as `x` has at least, to be joined.
    fn line<S: Simd>(self, s: S, x: &[T]) -> S::V;
    /// All of `x`, fewer elements than a vector of words, with zeros after them.
    #[inline(always)]
    fn last_words<S: Simd>(self, s: S, x: &[T]) -> S::V {
        self.words(s, &padded(x))
    }
    /// All of `x`, fewer elements than `UNIT` vectors, with zeros after them.
    #[inline(always)]
    fn last_line<S: Simd>(self, s: S, x: &[T]) -> S::V {
        self.line(s, &padded(x))
    }
}

#[inline(always)]
fn padded<T: Readable>(x: &[T]) -> [T; 4 * MAX_LANES] {
    let mut all = [T::default(); 4 * MAX_LANES];
    all[..x.len()].copy_from_slice(x);
    all
}

/// Everything is a float.
#[derive(Clone, Copy)]
pub(super) struct Floats;

impl Factors for Floats {
    const PER_WORD: usize = 1;

    fn dispatch<O: Op>(self, isa: Isa, op: O) -> O::Output {
        dispatch(isa, op)
    }
    #[inline(always)]
    fn multiply<S: Simd>(self, s: S, a: S::V, b: S::V, acc: S::V) -> S::V {
        s.fma(a, b, acc)
    }
    #[inline(always)]
    fn join<S: Simd>(self, _: S, lines: [S::V; 4]) -> [S::V; 4] {
        lines
    }
    #[inline(always)]
    fn shares<S: Simd>(self, _: S, _: &mut [f32]) {}
}

impl<T: Cached> QueryWords<T> for Floats {
    #[inline(always)]
    fn query<S: Simd>(self, s: S, x: &[T], out: &mut [f32], _: usize) {
        write_words(s, self, x, out);
    }
}

impl<T: Cached> Words<T> for Floats {
    #[inline(always)]
    fn words<S: Simd>(self, s: S, x: &[T]) -> S::V {
        load(s, x)
    }
    #[inline(always)]
    fn line<S: Simd>(self, s: S, x: &[T]) -> S::V {
        load(s, x)
    }
}

/// Two bf16 beside each other: dims of a query or key, positions of shares or values. Shares are rounded to bf16.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

impl Factors for Pairs {
    const PER_WORD: usize = 2;

    fn dispatch<O: Op>(self, isa: Isa, op: O) -> O::Output {
        dispatch_pairs(isa, op)
    }
    #[inline(always)]
    fn multiply<S: Simd>(self, s: S, a: S::V, b: S::V, acc: S::V) -> S::V {
        s.dot_pairs(acc, a, b)
    }
    #[inline(always)]
    fn join<S: Simd>(self, s: S, lines: [S::V; 4]) -> [S::V; 4] {
        [s.pair(lines[0], lines[1]); 4]
    }
    #[inline(always)]
    fn first_only<S: Simd>(self, s: S, word: S::V) -> S::V {
        s.pair(s.lower(word), s.splat(0.0))
    }
    #[inline(always)]
    fn shares<S: Simd>(self, s: S, block: &mut [f32]) {
        for i in (0..block.len()).step_by(S::LANES) {
            // What is written ends before what will be read next.
            let shares = load(s, &block[i..]);
            store(s, &mut bytemuck::cast_slice_mut::<f32, bf16>(block)[i..], shares);
        }
    }
}

impl QueryWords<bf16> for Pairs {
    #[inline(always)]
    fn query<S: Simd>(self, s: S, x: &[bf16], out: &mut [f32], _: usize) {
        write_words(s, self, x, out);
    }
}

impl Words<bf16> for Pairs {
    #[inline(always)]
    fn words<S: Simd>(self, s: S, x: &[bf16]) -> S::V {
        let x = &x[..2 * S::LANES];
        // SAFETY: `LANES` pairs of bf16 are as large as so many f32, and the load need not be aligned.
        unsafe { s.read_f32(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn line<S: Simd>(self, s: S, x: &[bf16]) -> S::V {
        load(s, x)
    }
}

/// What a code of e4m3 stands for without its scale, bf16 holds exactly.
impl Words<Fp8> for Pairs {
    #[inline(always)]
    fn words<S: Simd>(self, s: S, x: &[Fp8]) -> S::V {
        s.neighbors(load(s, x), load(s, &x[S::LANES..]))
    }
    #[inline(always)]
    fn line<S: Simd>(self, s: S, x: &[Fp8]) -> S::V {
        load(s, x)
    }
}

/// Four codes of int8 beside each other. A query's numbers, and a block's shares with what their values count times,
/// are rounded to integers of 15 bits with a scale for all, which are multiplied digit by digit. Sums are integers, so
/// their order does not matter.
#[derive(Clone, Copy)]
pub(super) struct Quads;

impl Quads {
    /// What the highest digit counts times.
    const BASE: f32 = 128.0;
    /// The largest of the integers.
    const LARGEST: f32 = Self::BASE * Self::BASE - 1.0;

    /// Writes `x` as digits, with zeros up to `stride` words each, and behind them its scale, which is NaN if not all
    /// of `x` is finite, and what sums begin with: codes have [`QUAD_BIAS`] on top.
    #[inline(always)]
    fn digits<S: Simd, T: Readable>(s: S, x: &[T], out: &mut [f32], stride: usize) {
        // Adding this leaves the nearest integer in the low bits of the mantissa.
        const ROUND: f32 = 12_582_912.0;
        let whole = x.len() / S::LANES * S::LANES;
        let last = padded(&x[whole..]);
        let last = (whole < x.len()).then_some(&last[..S::LANES]);
        let vectors = x[..whole].chunks_exact(S::LANES).chain(last);
        let largest = magnitude(s, vectors.clone());
        // What is smaller counts as nothing: there is no factor for it.
        let factor = if largest > 1e-30 { Self::LARGEST / largest } else { 0.0 };
        let (words, tail) = out.split_at_mut(2 * stride);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
        bytes.fill(0);
        let (high_bytes, low_bytes) = bytes.split_at_mut(4 * stride);
        let mut sums = [s.splat(0.0); 2];
        for (i, x) in vectors.enumerate() {
            let shifted = s.fma(load(s, x), s.splat(factor), s.splat(ROUND));
            let x = s.sub(shifted, s.splat(ROUND));
            // Rounded down: the lower digit is none below zero.
            let below = s.sub(x, s.splat(Self::BASE / 2.0 - 0.5));
            let shifted = s.fma(below, s.splat(Self::BASE.recip()), s.splat(ROUND));
            let high = s.sub(shifted, s.splat(ROUND));
            let low = s.fma(high, s.splat(-Self::BASE), x);
            sums = [s.add(sums[0], high), s.add(sums[1], low)];
            for (digit, out) in [(high, &mut *high_bytes), (low, &mut *low_bytes)] {
                let out = &mut out[i * S::LANES..(i + 1) * S::LANES];
                // SAFETY: `out` has as many bytes as a vector has elements.
                unsafe { s.write_low_bytes(out.as_mut_ptr(), s.add(digit, s.splat(ROUND))) };
            }
        }
        tail[0] = largest / Self::LARGEST;
        for (sum, start) in sums.into_iter().zip(&mut tail[1..]) {
            let sum = sum_of_lanes(s, sum) as i32;
            *start = f32::from_bits((-i32::from(QUAD_BIAS) * sum) as u32);
        }
    }
}

impl Factors for Quads {
    const PER_WORD: usize = 4;
    const DIGITS: usize = 2;
    const TAIL: usize = 3;
    const UNIT: usize = 4;

    fn dispatch<O: Op>(self, isa: Isa, op: O) -> O::Output {
        dispatch_product(isa, op)
    }
    #[inline(always)]
    fn multiply<S: Simd>(self, s: S, a: S::V, b: S::V, acc: S::V) -> S::V {
        s.dot_quads(acc, a, b)
    }
    #[inline(always)]
    fn join<S: Simd>(self, s: S, lines: [S::V; 4]) -> [S::V; 4] {
        s.quads(lines)
    }
    #[inline(always)]
    fn in_order<S: Simd>(self, s: S, columns: [S::V; 4]) -> [S::V; 4] {
        s.quads_in_order(columns)
    }
    #[inline(always)]
    fn shares<S: Simd>(self, s: S, block: &mut [f32]) {
        let mut shares = [0.0; SUM_BLOCK];
        shares.copy_from_slice(block);
        Self::digits(s, &shares, block, SUM_BLOCK / Self::PER_WORD);
    }
    #[inline(always)]
    fn start<S: Simd>(self, s: S, tail: &[f32], digit: usize) -> S::V {
        s.splat(tail[1 + digit])
    }
    #[inline(always)]
    fn total<S: Simd>(self, s: S, sums: [S::V; 2], tail: &[f32]) -> S::V {
        let sum = s.fma(s.to_float(sums[0]), s.splat(Self::BASE), s.to_float(sums[1]));
        s.mul(sum, s.splat(tail[0]))
    }
}

impl QueryWords<bf16> for Quads {
    #[inline(always)]
    fn query<S: Simd>(self, s: S, x: &[bf16], out: &mut [f32], stride: usize) {
        Self::digits(s, x, out, stride);
    }
}

impl Words<i8> for Quads {
    #[inline(always)]
    fn words<S: Simd>(self, s: S, x: &[i8]) -> S::V {
        let x = &x[..4 * S::LANES];
        // SAFETY: there are as many bytes.
        unsafe { s.read_quads(x.as_ptr()) }
    }
    #[inline(always)]
    fn line<S: Simd>(self, s: S, x: &[i8]) -> S::V {
        self.words(s, x)
    }
}

/// Shares with what their values count times, as words at the beginning of each block of `row`. `scales` may be empty;
/// from the `len`th share on there is none.
#[inline(always)]
pub(super) fn weigh<S: Simd, F: Factors>(
    s: S,
    factors: F,
    row: &mut [f32],
    scales: &[f32],
    len: usize,
) {
    let row = &mut row[..len.next_multiple_of(SUM_BLOCK)];
    multiply_each(s, &mut row[..len.next_multiple_of(S::LANES)], scales);
    // Also where it would count NaN times.
    row[len..].fill(0.0);
    for block in row.chunks_exact_mut(SUM_BLOCK) {
        factors.shares(s, block);
    }
}

/// Sizes of packed keys and values.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    lanes: usize,
    dim: usize,
    per_word: usize,
    digits: usize,
    tail: usize,
}

impl Layout {
    pub(super) fn new<F: Factors>(_: F, lanes: usize, dim: usize) -> Self {
        Layout { lanes, dim, per_word: F::PER_WORD, digits: F::DIGITS, tail: F::TAIL }
    }

    /// Columns of values, rounded up to whole vectors.
    #[inline(always)]
    pub(super) fn padded(&self) -> usize {
        self.dim.next_multiple_of(self.lanes)
    }

    /// Words of a key, and of each digit of a query.
    #[inline(always)]
    pub(super) fn words(&self) -> usize {
        self.dim.div_ceil(self.per_word)
    }

    /// The same, rounded up to whole vectors.
    #[inline(always)]
    pub(super) fn padded_words(&self) -> usize {
        self.words().next_multiple_of(self.lanes)
    }

    /// Floats of a packed query: words, rounded up, of all digits and what else there is.
    #[inline(always)]
    pub(super) fn query_len(&self) -> usize {
        self.digits * self.padded_words() + self.tail
    }

    /// Positions in a panel of keys.
    #[inline(always)]
    pub(super) fn positions(&self) -> usize {
        TILE_WIDTH * self.lanes
    }

    /// Words of a panel of keys.
    #[inline(always)]
    pub(super) fn panel_len(&self) -> usize {
        self.words() * self.positions()
    }

    /// Panels that hold `positions` keys.
    #[inline(always)]
    pub(super) fn panels(&self, positions: usize) -> usize {
        positions.div_ceil(self.positions())
    }

    /// Words of a block of values that has room for `positions`, whole words.
    #[inline(always)]
    pub(super) fn block_len(&self, positions: usize) -> usize {
        positions / self.per_word * self.padded()
    }

    /// Words needed to pack a few rows.
    pub(super) fn lines_len(&self) -> usize {
        MAX_LANES * self.padded()
    }

    /// The panels of value columns, as ranges of vectors, as even as possible.
    #[inline(always)]
    pub(super) fn column_panels(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let vectors = self.dim.div_ceil(self.lanes);
        let panels = vectors.div_ceil(TILE_WIDTH);
        (0..panels).map(move |i| i * vectors / panels..(i + 1) * vectors / panels)
    }
}

/// The row of a cache or of qkv that holds a position, unscaled; `None` for one that cannot be seen.
pub(super) type RowAt<'a, 't, T> = &'a dyn Fn(usize) -> Option<&'t [T]>;

/// Packs a query.
pub(super) struct PackQuery<'a, T, F> {
    pub(super) factors: F,
    pub(super) layout: Layout,
    pub(super) x: &'a [T],
    /// [`Layout::query_len`] floats.
    pub(super) out: &'a mut [f32],
}

impl<T: Readable, F: QueryWords<T>> Op for PackQuery<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        self.factors.query(s, self.x, self.out, self.layout.padded_words());
    }
}

/// Packs one panel of keys. Positions from `len` on are not needed by anyone.
pub(super) struct PackKeys<'a, 't, T, F> {
    pub(super) factors: F,
    pub(super) layout: Layout,
    pub(super) row: RowAt<'a, 't, T>,
    pub(super) len: usize,
    pub(super) panel: usize,
    pub(super) out: &'a mut [f32],
    pub(super) lines: &'a mut [f32],
}

impl<T: Readable, F: Words<T>> Op for PackKeys<'_, '_, T, F> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let PackKeys { factors, layout, row, len, panel, out, lines } = self;
        let (padded, stride) = (layout.padded_words(), layout.positions());
        for group in 0..TILE_WIDTH {
            let first = panel * stride + group * S::LANES;
            if first >= len {
                break;
            }
            for (lane, line) in lines.chunks_exact_mut(padded).enumerate().take(S::LANES) {
                let position = first + lane;
                prefetch(s, row, position + AHEAD, len);
                match if position < len { row(position) } else { None } {
                    Some(key) => write_words(s, factors, key, line),
                    None => line.fill(0.0),
                }
            }
            for word in (0..layout.words()).step_by(S::LANES) {
                let mut tile = [s.splat(0.0); MAX_LANES];
                for (lane, v) in tile.iter_mut().enumerate().take(S::LANES) {
                    *v = load(s, &lines[lane * padded + word..]);
                }
                let columns =
                    s.transpose(tile).into_iter().take(S::LANES.min(layout.words() - word));
                for (i, column) in columns.enumerate() {
                    store(s, &mut out[(word + i) * stride + group * S::LANES..], column);
                }
            }
        }
    }
}

/// Packs the values of `positions`, of `len` in all, into a block that has room for `capacity`.
pub(super) struct PackValues<'a, 't, T, F> {
    pub(super) factors: F,
    pub(super) layout: Layout,
    pub(super) row: RowAt<'a, 't, T>,
    pub(super) len: usize,
    pub(super) positions: Range<usize>,
    pub(super) capacity: usize,
    pub(super) out: &'a mut [f32],
}

impl<T: Readable, F: Words<T>> Op for PackValues<'_, '_, T, F> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let PackValues { factors, layout, row, len, positions, capacity, out } = self;
        let capacity = capacity / F::PER_WORD;
        for (i, position) in positions.clone().step_by(F::PER_WORD).enumerate() {
            let mut rows = [None; 4];
            for (value, position) in rows.iter_mut().zip(position..).take(F::PER_WORD) {
                prefetch(s, row, position + AHEAD, len);
                *value = if position < positions.end { row(position) } else { None };
            }
            let mut words = [s.splat(0.0); 4];
            for vectors in layout.column_panels() {
                let width = vectors.len() * S::LANES;
                let to = capacity * vectors.start * S::LANES + i * width;
                for (j, v) in vectors.enumerate() {
                    if v % F::UNIT == 0 {
                        let mut lines = [s.splat(0.0); 4];
                        for (line, value) in lines.iter_mut().zip(rows) {
                            let Some(value) = value else { continue };
                            let value = &value[v * S::LANES..];
                            *line = match value.len() >= F::UNIT * S::LANES {
                                true => factors.line(s, value),
                                false => factors.last_line(s, value),
                            };
                        }
                        words = factors.in_order(s, factors.join(s, lines));
                    }
                    store(s, &mut out[to + j * S::LANES..], words[v % F::UNIT]);
                }
            }
        }
    }
}

/// Rows lie kilobytes apart, where the processor does not prefetch on its own.
#[inline(always)]
fn prefetch<S: Simd, T>(s: S, row: RowAt<'_, '_, T>, position: usize, len: usize) {
    if position < len
        && let Some(row) = row(position)
    {
        for line in row.chunks(64 / size_of::<T>()) {
            s.prefetch(line.as_ptr());
        }
    }
}

/// Writes a row as words, with zeros up to `out`'s length.
#[inline(always)]
fn write_words<S: Simd, T: Readable, F: Words<T>>(s: S, factors: F, x: &[T], out: &mut [f32]) {
    let mut whole = x.chunks_exact(S::LANES * F::PER_WORD);
    let mut out = out.chunks_exact_mut(S::LANES);
    // In this order: the first of the two loses nothing at the end.
    for (x, out) in whole.by_ref().zip(out.by_ref()) {
        store(s, out, factors.words(s, x));
    }
    let rest = whole.remainder();
    if let Some(out) = out.next().filter(|_| !rest.is_empty()) {
        store(s, out, factors.last_words(s, rest));
    }
    for out in out {
        out.fill(0.0);
    }
}
