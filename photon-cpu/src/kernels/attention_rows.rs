//! Rows of a cache as they are read by one token's attention: some positions, all heads of them, and those that will be
//! needed next.
//!
//! What a loop does beside loads, shuffles and products is kept small, so that the processor looks far enough ahead to
//! work at several tiles at once: the products of one wait for each other.
#![allow(unsafe_code, reason = "bounds are checked once for all rows")]

use std::ops::Range;

use super::attention_pack::{Floats, Words};
use crate::{
    elements::{CacheRows, Cached},
    simd::{MAX_LANES, Op, Simd, load, store},
};

/// Rows of a cache, scales included.
pub(super) struct CacheBlock<'a, T, const N: usize> {
    /// Empty for positions that are not there; the others are `width` long.
    rows: [&'a [T]; N],
    width: usize,
    /// So many of the first rows are there.
    present: usize,
}

impl<'a, T: Cached, const N: usize> CacheBlock<'a, T, N> {
    /// The rows of some slots, at most `N`; `None` for a position that cannot be seen.
    #[inline(always)]
    pub(super) fn new(
        cache: &CacheRows<'a, T>,
        slots: impl Iterator<Item = Option<usize>>,
    ) -> Self {
        let mut block = CacheBlock { rows: [&[]; N], width: cache.cols(), present: 0 };
        for (row, slot) in block.rows.iter_mut().zip(slots) {
            *row = slot.map_or(&[], |slot| cache.row(slot));
        }
        block
    }

    /// Has some row stand in for those of the first `count` that are not there; false if none is.
    #[inline(always)]
    pub(super) fn fill(&mut self, count: usize) -> bool {
        let Some(&some) = self.rows.iter().find(|row| !row.is_empty()) else { return false };
        for row in &mut self.rows[..count] {
            if row.is_empty() {
                *row = some;
            }
        }
        self.present = count;
        true
    }

    /// What the rows that are present count times, `[kv_heads, N]`; empty if nothing.
    #[inline(always)]
    pub(super) fn scales(&self, kv_heads: usize, out: &mut Vec<f32>) {
        out.clear();
        if T::SCALE_LEN == 0 {
            return;
        }
        out.resize(kv_heads * N, 1.0);
        for (i, row) in self.rows[..self.present].iter().enumerate() {
            let scales = row[self.width - kv_heads * T::SCALE_LEN..].chunks_exact(T::SCALE_LEN);
            for (out, scale) in out.chunks_exact_mut(N).zip(scales) {
                out[i] = T::scale(scale);
            }
        }
    }

    /// # Safety
    /// Row `i` is present and has these columns.
    #[inline(always)]
    unsafe fn part(&self, i: usize, columns: Range<usize>) -> &'a [T] {
        // SAFETY: the caller vouches for both.
        unsafe { self.rows[i].get_unchecked(columns) }
    }
}

/// The rows that will be needed next, asked for line by line as they lie in memory, in step with what is read now:
/// more at a time than the processor can have under way would hold up the work.
pub(super) struct Ahead<'a, T> {
    rows: std::slice::Iter<'a, &'a [T]>,
    /// What is left of a row.
    row: &'a [T],
}

impl<'a, T> Ahead<'a, T> {
    #[inline(always)]
    pub(super) fn new<const N: usize>(block: &'a CacheBlock<'_, T, N>) -> Self {
        Ahead { rows: block.rows.iter(), row: &[] }
    }

    /// Asks for as many lines as hold so many elements. As far as the second-level cache: rows lie a multiple of its
    /// sets apart, but not of those of the first, where they would drive each other out before they are needed.
    #[inline(always)]
    pub(super) fn ask<S: Simd>(&mut self, s: S, elements: usize) {
        let line = 64 / size_of::<T>();
        let elements = elements.next_multiple_of(line);
        if elements <= self.row.len() {
            let (now, later) = self.row.split_at(elements);
            self.row = later;
            return ask(s, now);
        }
        self.ask_across(s, elements);
    }

    /// [`Self::ask`] where a row ends.
    #[cold]
    #[inline(never)]
    fn ask_across<S: Simd>(&mut self, s: S, mut elements: usize) {
        while elements > 0 {
            if self.row.is_empty() {
                let Some(row) = self.rows.next() else { return };
                self.row = row;
            }
            let (now, later) = self.row.split_at(elements.min(self.row.len()));
            self.row = later;
            elements -= now.len();
            ask(s, now);
        }
    }

    /// Asks for everything.
    #[inline(always)]
    pub(super) fn ask_all<S: Simd>(mut self, s: S) {
        for row in self.rows.by_ref() {
            ask(s, row);
        }
    }
}

#[inline(always)]
fn ask<S: Simd, T>(s: S, x: &[T]) {
    for line in x.chunks(64 / size_of::<T>()) {
        s.prefetch_second(line.as_ptr());
    }
}

/// A head's part of rows.
pub(super) struct Lines<'a, 'b, T, F, const N: usize> {
    factors: F,
    block: &'a CacheBlock<'b, T, N>,
    columns: Range<usize>,
    ahead: &'a mut Ahead<'b, T>,
}

impl<'a, 'b, T: Cached, F: Words<T>, const N: usize> Lines<'a, 'b, T, F, N> {
    /// # Panics
    /// If rows do not have `columns`.
    #[inline(always)]
    pub(super) fn new(
        factors: F,
        block: &'a CacheBlock<'b, T, N>,
        columns: Range<usize>,
        ahead: &'a mut Ahead<'b, T>,
    ) -> Self {
        assert!(columns.start <= columns.end && columns.end <= block.width, "columns of a row");
        Lines { factors, block, columns, ahead }
    }

    /// Scores of two vectors of positions: `scores[u] = sum_d query[d] rows[u][columns.start + d]`, `d` ascending.
    #[inline(always)]
    pub(super) fn score<S: Simd>(&mut self, s: S, query: &[f32], scores: &mut [f32]) {
        s.run(Score { lines: self, query, scores });
    }

    /// `out += sum_u shares[u] rows[u][columns]`, what is added being summed by itself, `u` ascending.
    #[inline(always)]
    pub(super) fn add_values<S: Simd>(&mut self, s: S, shares: &[f32], out: &mut [f32]) {
        let vectors = self.columns.len() / S::LANES;
        let mut at = 0;
        while at < vectors {
            let (lines, out) = (&mut *self, &mut out[at * S::LANES..]);
            match vectors - at {
                8.. => at += s.run(AddColumns::<_, _, N, 8, false> { lines, at, shares, out }),
                4.. => at += s.run(AddColumns::<_, _, N, 4, false> { lines, at, shares, out }),
                2.. => at += s.run(AddColumns::<_, _, N, 2, false> { lines, at, shares, out }),
                _ => at += s.run(AddColumns::<_, _, N, 1, false> { lines, at, shares, out }),
            }
        }
        if !self.columns.len().is_multiple_of(S::LANES) {
            let (lines, out) = (self, &mut out[vectors * S::LANES..]);
            s.run(AddColumns::<_, _, N, 1, true> { lines, at: vectors, shares, out });
        }
    }
}

/// See [`Lines::score`].
struct Score<'l, 'a, 'b, T, F, const N: usize> {
    lines: &'l mut Lines<'a, 'b, T, F, N>,
    query: &'l [f32],
    scores: &'l mut [f32],
}

impl<T: Cached, F: Words<T>, const N: usize> Op for Score<'_, '_, '_, T, F, N> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Score { lines: Lines { factors, block, columns: all, ahead }, query, scores } = self;
        assert!(2 * S::LANES <= block.present, "rows of a panel");
        let mut acc = [s.splat(0.0); 2];
        let step = S::LANES * F::PER_WORD;
        for first in all.clone().step_by(step) {
            let columns = first..all.end.min(first + step);
            let query = &query[(first - all.start) / F::PER_WORD..];
            // One tile at a time: two would not fit in registers.
            for (half, acc) in acc.iter_mut().enumerate() {
                ahead.ask(s, S::LANES * step);
                let mut tile = [s.splat(0.0); MAX_LANES];
                for (i, v) in tile[..S::LANES].iter_mut().enumerate() {
                    // SAFETY: so many rows are present, as asserted, and have the columns, as `Lines::new` asserted.
                    let row = unsafe { block.part(half * S::LANES + i, columns.clone()) };
                    *v = match columns.len() == step {
                        true => factors.words(s, row),
                        false => factors.last_words(s, row),
                    };
                }
                let tile = s.transpose(tile);
                // Both loops are one, but for how much the compiler knows of the first.
                if columns.len() == step {
                    for (&x, v) in query[..S::LANES].iter().zip(tile) {
                        *acc = factors.multiply(s, s.splat(x), v, *acc);
                    }
                } else {
                    let words = columns.len().div_ceil(F::PER_WORD);
                    for (&x, v) in query[..words].iter().zip(tile) {
                        *acc = factors.multiply(s, s.splat(x), v, *acc);
                    }
                }
            }
        }
        for (scores, acc) in scores.chunks_exact_mut(S::LANES).zip(acc) {
            store(s, scores, acc);
        }
    }
}

/// [`Lines::add_values`] for `W` vectors of columns from the `at`th on; yields `W`. `PART` says that the columns are
/// fewer than a vector.
struct AddColumns<'l, 'a, 'b, T, F, const N: usize, const W: usize, const PART: bool> {
    lines: &'l mut Lines<'a, 'b, T, F, N>,
    at: usize,
    shares: &'l [f32],
    out: &'l mut [f32],
}

impl<T: Cached, F: Words<T>, const N: usize, const W: usize, const PART: bool> Op
    for AddColumns<'_, '_, '_, T, F, N, W, PART>
{
    type Output = usize;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> usize {
        let AddColumns { lines: Lines { factors, block, columns: all, ahead }, at, shares, out } =
            self;
        let start = all.start + at * S::LANES;
        let columns = match PART {
            true => start..all.end,
            false => start..start + W * S::LANES,
        };
        assert!(columns.start <= columns.end && columns.end <= all.end, "columns of a head");
        assert!(shares.len() * F::PER_WORD <= block.present, "rows of shares");
        let mut acc = [s.splat(0.0); W];
        for (i, &share) in shares.iter().enumerate() {
            let i = i * F::PER_WORD;
            // SAFETY: so many rows are present, and they have the columns, as asserted here and by `Lines::new`.
            let first = unsafe { block.part(i, columns.clone()) };
            // SAFETY: as above.
            let second = unsafe { block.part(i + F::PER_WORD - 1, columns.clone()) };
            let share = s.splat(share);
            ahead.ask(s, F::PER_WORD * W * S::LANES);
            for (j, acc) in acc.iter_mut().enumerate() {
                let at = j * S::LANES;
                let (first, second) = match PART {
                    true => (Floats.last_words(s, first), Floats.last_words(s, second)),
                    false => (load(s, &first[at..]), load(s, &second[at..])),
                };
                *acc = factors.multiply(s, share, factors.join(s, first, second), *acc);
            }
        }
        for (j, acc) in acc.into_iter().enumerate() {
            let out = &mut out[j * S::LANES..];
            let sum = s.add(load(s, out), acc);
            store(s, out, sum);
        }
        W
    }
}
