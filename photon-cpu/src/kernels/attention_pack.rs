//! How queries, keys, shares and values lie when they are multiplied.
//!
//! Keys: panels of [`Layout::positions`] positions, `[words, positions]` each, so that a score tile
//! reads vectors of positions. Values: blocks of positions, in each block panels of up to
//! [`TILE_WIDTH`] vectors of columns, `[positions, columns]` each. The unit of what is summed over, dims
//! for scores and positions for values, is a word: see [`Factors`].
#![allow(unsafe_code, reason = "pairs of bf16 are read as words")]

use std::ops::Range;

use half::bf16;

use super::attention_core::multiply_each;
use crate::{
    Isa,
    elements::{Cached, Code},
    simd::{MAX_LANES, Op, Readable, Simd, dispatch, dispatch_pairs, load, store},
};

/// Vectors in the width of a register tile: see [`super::attention_core`].
pub(super) const TILE_WIDTH: usize = 2;
/// How many rows ahead of use they are asked for.
const AHEAD: usize = 16;

/// What is multiplied: floats, or pairs of bf16 where queries are bf16, keys bf16 or codes, and the processor has an
/// instruction for it. A word is as large as a float either way.
///
/// Codes are multiplied as they are. What a head of a position counts times is applied to scores, and to shares
/// before they meet values: see [`weigh`].
pub(super) trait Factors: Copy + Send + Sync + 'static {
    /// Elements of a word.
    const PER_WORD: usize;
    /// Runs `op` with the instructions for it.
    fn dispatch<O: Op>(self, isa: Isa, op: O) -> O::Output;
    /// `acc` plus the product of two words.
    fn multiply<S: Simd>(self, s: S, a: S::V, b: S::V, acc: S::V) -> S::V;
    /// One word of each column, from its values at as many positions.
    fn join<S: Simd>(self, s: S, first: S::V, second: S::V) -> S::V;
    /// A word without its second element.
    fn first_only<S: Simd>(self, s: S, word: S::V) -> S::V;
    /// Turns shares, floats, into words at the row's beginning.
    fn shares<S: Simd>(self, s: S, row: &mut [f32]);
}

/// [`Factors`] that can be made of rows of `T`.
pub(super) trait Words<T: Readable>: Factors {
    /// The first words of `x`, which has as many.
    fn words<S: Simd>(self, s: S, x: &[T]) -> S::V;
    /// All of `x`, fewer elements than a vector of words, with zeros after them.
    #[inline(always)]
    fn last_words<S: Simd>(self, s: S, x: &[T]) -> S::V {
        let mut all = [T::default(); 2 * MAX_LANES];
        all[..x.len()].copy_from_slice(x);
        self.words(s, &all)
    }
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
    fn join<S: Simd>(self, _: S, first: S::V, _: S::V) -> S::V {
        first
    }
    #[inline(always)]
    fn first_only<S: Simd>(self, _: S, word: S::V) -> S::V {
        word
    }
    #[inline(always)]
    fn shares<S: Simd>(self, _: S, _: &mut [f32]) {}
}

impl<T: Cached> Words<T> for Floats {
    #[inline(always)]
    fn words<S: Simd>(self, s: S, x: &[T]) -> S::V {
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
    fn join<S: Simd>(self, s: S, first: S::V, second: S::V) -> S::V {
        s.pair(first, second)
    }
    #[inline(always)]
    fn first_only<S: Simd>(self, s: S, word: S::V) -> S::V {
        s.pair(s.lower(word), s.splat(0.0))
    }
    #[inline(always)]
    fn shares<S: Simd>(self, s: S, row: &mut [f32]) {
        for i in (0..row.len()).step_by(S::LANES) {
            // What is written ends before what will be read next.
            let shares = load(s, &row[i..]);
            store(s, &mut bytemuck::cast_slice_mut::<f32, bf16>(row)[i..], shares);
        }
    }
}

impl Words<bf16> for Pairs {
    #[inline(always)]
    fn words<S: Simd>(self, s: S, x: &[bf16]) -> S::V {
        let x = &x[..2 * S::LANES];
        // SAFETY: `LANES` pairs of bf16 are as large as so many f32, and the load need not be aligned.
        unsafe { s.read_f32(x.as_ptr().cast()) }
    }
}

impl<T: Code> Words<T> for Pairs {
    #[inline(always)]
    fn words<S: Simd>(self, s: S, x: &[T]) -> S::V {
        s.neighbors(load(s, x), load(s, &x[S::LANES..]))
    }
}

/// Shares with what their values count times, as words at the beginning of `row`, which are some whole vectors.
/// `scales` may be empty; from the `len`th share on there is none.
#[inline(always)]
pub(super) fn weigh<S: Simd, F: Factors>(
    s: S,
    factors: F,
    row: &mut [f32],
    scales: &[f32],
    len: usize,
) {
    multiply_each(s, row, scales);
    // Also where it would count NaN times.
    row[len..].fill(0.0);
    factors.shares(s, row);
}

/// Sizes of packed keys and values.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    lanes: usize,
    dim: usize,
    per_word: usize,
}

impl Layout {
    pub(super) fn new<F: Factors>(_: F, lanes: usize, dim: usize) -> Self {
        Layout { lanes, dim, per_word: F::PER_WORD }
    }

    /// Columns of values, rounded up to whole vectors.
    #[inline(always)]
    pub(super) fn padded(&self) -> usize {
        self.dim.next_multiple_of(self.lanes)
    }

    /// Words of a query or key.
    #[inline(always)]
    pub(super) fn words(&self) -> usize {
        self.dim.div_ceil(self.per_word)
    }

    /// The same, rounded up to whole vectors.
    #[inline(always)]
    pub(super) fn padded_words(&self) -> usize {
        self.words().next_multiple_of(self.lanes)
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

/// Packs a query: words, with zeros up to `out`'s length.
pub(super) struct PackQuery<'a, T, F> {
    pub(super) factors: F,
    pub(super) x: &'a [T],
    pub(super) out: &'a mut [f32],
}

impl<T: Readable, F: Words<T>> Op for PackQuery<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        write_words(s, self.factors, self.x, self.out);
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
    pub(super) lines: &'a mut [f32],
}

impl<T: Cached, F: Factors> Op for PackValues<'_, '_, T, F> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let PackValues { factors, layout, row, len, positions, capacity, out, lines } = self;
        let capacity = capacity / F::PER_WORD;
        let (first, second) = lines.split_at_mut(layout.padded());
        let second = &mut second[..layout.padded()];
        for (i, position) in positions.clone().step_by(F::PER_WORD).enumerate() {
            for (line, position) in
                [&mut *first, second].into_iter().zip(position..).take(F::PER_WORD)
            {
                prefetch(s, row, position + AHEAD, len);
                match if position < positions.end { row(position) } else { None } {
                    Some(value) => write_words(s, Floats, value, line),
                    None => line.fill(0.0),
                }
            }
            for vectors in layout.column_panels() {
                let width = vectors.len() * S::LANES;
                let to = capacity * vectors.start * S::LANES + i * width;
                for j in (0..width).step_by(S::LANES) {
                    let at = vectors.start * S::LANES + j;
                    let word = factors.join(s, load(s, &first[at..]), load(s, &second[at..]));
                    store(s, &mut out[to + j..], word);
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
