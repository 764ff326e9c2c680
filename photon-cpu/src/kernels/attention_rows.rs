//! Rows of a cache as they are read by one token's attention: some positions, all heads of them, and those that will be
//! needed next.
//!
//! What a loop does beside loads, shuffles and products is kept small, so that the processor looks far enough ahead to
//! work at several tiles at once: the products of one wait for each other.
#![allow(unsafe_code, reason = "bounds are checked once for all rows")]

use std::ops::Range;

use super::{attention_core::SUM_BLOCK, attention_pack::Words};
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
    pub(super) fn scales<S: Simd>(&self, s: S, kv_heads: usize, out: &mut Vec<f32>) {
        out.clear();
        if T::SCALE_LEN == 0 {
            return;
        }
        out.resize(kv_heads * N, 1.0);
        let rows = self.rows.map(|row| row.get(self.width - kv_heads * T::SCALE_LEN..));
        // Tiles of rows and heads are turned over.
        for (i, rows) in rows[..self.present].chunks(S::LANES).enumerate() {
            for first in (0..kv_heads).step_by(S::LANES) {
                let heads = first..kv_heads.min(first + S::LANES);
                let mut tile = [s.splat(1.0); MAX_LANES];
                for (v, row) in tile.iter_mut().zip(rows) {
                    let Some(row) = row else { continue };
                    let row = &row[heads.start * T::SCALE_LEN..heads.end * T::SCALE_LEN];
                    let mut scales = [1.0; MAX_LANES];
                    for (scale, stored) in scales.iter_mut().zip(row.chunks_exact(T::SCALE_LEN)) {
                        *scale = T::scale(stored);
                    }
                    *v = load(s, &scales);
                }
                for (head, v) in heads.zip(s.transpose(tile)) {
                    store(s, &mut out[head * N + i * S::LANES..], v);
                }
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
    #[inline(always)]
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

    /// Scores of two vectors of positions: `scores[u] = sum_d query[d] rows[u][columns.start + d]`, `d` ascending. A
    /// digit of the query has `stride` words.
    #[inline(always)]
    pub(super) fn score<S: Simd>(
        &mut self,
        s: S,
        query: &[f32],
        stride: usize,
        scores: &mut [f32],
    ) {
        s.run(Score { lines: self, query, stride, scores });
    }

    /// `out += sum_u shares[u] rows[u][columns]` for the first `count` words of a block's shares, what is added being
    /// summed by itself, `u` ascending.
    #[inline(always)]
    pub(super) fn add_values<S: Simd>(
        &mut self,
        s: S,
        shares: &[f32; SUM_BLOCK],
        count: usize,
        out: &mut [f32],
    ) {
        let vectors = self.columns.len() / S::LANES;
        let mut at = 0;
        while at + F::UNIT <= vectors {
            let (lines, out) = (&mut *self, &mut out[at * S::LANES..]);
            match vectors - at {
                8.. if F::UNIT == 1 => {
                    at += s.run(AddColumns::<_, _, N, 8, false> { lines, at, shares, count, out });
                }
                4.. => {
                    at += s.run(AddColumns::<_, _, N, 4, false> { lines, at, shares, count, out });
                }
                2.. => {
                    at += s.run(AddColumns::<_, _, N, 2, false> { lines, at, shares, count, out });
                }
                _ => at += s.run(AddColumns::<_, _, N, 1, false> { lines, at, shares, count, out }),
            }
        }
        if at * S::LANES < self.columns.len() {
            let (lines, out) = (self, &mut out[at * S::LANES..]);
            match F::UNIT {
                1 => s.run(AddColumns::<_, _, N, 1, true> { lines, at, shares, count, out }),
                _ => s.run(AddColumns::<_, _, N, 4, true> { lines, at, shares, count, out }),
            };
        }
    }
}

/// See [`Lines::score`].
struct Score<'l, 'a, 'b, T, F, const N: usize> {
    lines: &'l mut Lines<'a, 'b, T, F, N>,
    query: &'l [f32],
    stride: usize,
    scores: &'l mut [f32],
}

impl<T: Cached, F: Words<T>, const N: usize> Op for Score<'_, '_, '_, T, F, N> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Score { lines: Lines { factors, block, columns: all, ahead }, query, stride, scores } =
            self;
        assert!(2 * S::LANES <= block.present, "rows of a panel");
        let (query, tail) = query.split_at(F::DIGITS * stride);
        let mut start = [factors.start(s, tail, 0); 2];
        if F::DIGITS == 2 {
            start[1] = factors.start(s, tail, 1);
        }
        let mut sums = [start; 2];
        let step = S::LANES * F::PER_WORD;
        ahead.ask(s, 2 * S::LANES * T::SCALE_LEN);
        for first in all.clone().step_by(step) {
            let columns = first..all.end.min(first + step);
            let words = (first - all.start) / F::PER_WORD;
            // One tile at a time: two would not fit in registers.
            for (half, sums) in sums.iter_mut().enumerate() {
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
                    let high = &query[words..][..S::LANES];
                    let low = &query[(F::DIGITS - 1) * stride + words..][..S::LANES];
                    for i in 0..S::LANES {
                        sums[0] = factors.multiply(s, s.splat(high[i]), tile[i], sums[0]);
                        if F::DIGITS == 2 {
                            sums[1] = factors.multiply(s, s.splat(low[i]), tile[i], sums[1]);
                        }
                    }
                } else {
                    for (digit, sum) in sums.iter_mut().enumerate().take(F::DIGITS) {
                        let count = columns.len().div_ceil(F::PER_WORD);
                        let query = &query[digit * stride + words..][..count];
                        for (&x, v) in query.iter().zip(tile) {
                            *sum = factors.multiply(s, s.splat(x), v, *sum);
                        }
                    }
                }
            }
        }
        for (scores, sums) in scores.chunks_exact_mut(S::LANES).zip(sums) {
            store(s, scores, factors.total(s, sums, tail));
        }
    }
}

/// [`Lines::add_values`] for `W` vectors of columns from the `at`th on; yields `W`. `PART` says that the columns are
/// fewer.
struct AddColumns<'l, 'a, 'b, T, F, const N: usize, const W: usize, const PART: bool> {
    lines: &'l mut Lines<'a, 'b, T, F, N>,
    at: usize,
    shares: &'l [f32; SUM_BLOCK],
    count: usize,
    out: &'l mut [f32],
}

impl<T: Cached, F: Words<T>, const N: usize, const W: usize, const PART: bool> Op
    for AddColumns<'_, '_, '_, T, F, N, W, PART>
{
    type Output = usize;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> usize {
        let AddColumns { lines, at, shares, count, out } = self;
        let Lines { factors, block, columns: all, ahead } = lines;
        let start = all.start + at * S::LANES;
        let columns = match PART {
            true => start..all.end,
            false => start..start + W * S::LANES,
        };
        assert!(columns.start <= columns.end && columns.end <= all.end, "columns of a head");
        assert!(count * F::PER_WORD <= block.present, "rows of shares");
        let digits = SUM_BLOCK / F::PER_WORD;
        let tail = &shares[(F::DIGITS * digits).min(SUM_BLOCK)..];
        // Two arrays, and indices that are known when this is compiled: anything else is kept in memory.
        let mut high = [factors.start(s, tail, 0); W];
        let mut low = [s.splat(0.0); W];
        if F::DIGITS == 2 {
            low = [factors.start(s, tail, 1); W];
        }
        ahead.ask(s, count * F::PER_WORD * T::SCALE_LEN * W * S::LANES / all.len());
        for word in 0..count {
            ahead.ask(s, F::PER_WORD * W * S::LANES);
            for unit in 0..W / F::UNIT {
                let j = unit * F::UNIT;
                let mut lines = [s.splat(0.0); 4];
                for (i, line) in lines.iter_mut().enumerate().take(F::PER_WORD) {
                    // SAFETY: so many rows are present, and they have the columns, as asserted here and by `Lines::new`.
                    let row = unsafe { block.part(word * F::PER_WORD + i, columns.clone()) };
                    *line = match PART {
                        true => factors.last_line(s, row),
                        false => factors.line(s, &row[j * S::LANES..]),
                    };
                }
                let words = factors.join(s, lines);
                let share = s.splat(shares[word]);
                for i in 0..F::UNIT {
                    high[j + i] = factors.multiply(s, share, words[i], high[j + i]);
                }
                if F::DIGITS == 2 {
                    let share = s.splat(shares[digits + word]);
                    for i in 0..F::UNIT {
                        low[j + i] = factors.multiply(s, share, words[i], low[j + i]);
                    }
                }
            }
        }
        let mut out = out.chunks_exact_mut(S::LANES);
        for unit in 0..W / F::UNIT {
            let j = unit * F::UNIT;
            let mut totals = [s.splat(0.0); 4];
            for i in 0..F::UNIT {
                totals[i] = factors.total(s, [high[j + i], low[j + i]], tail);
            }
            let totals = factors.in_order(s, totals);
            for (total, out) in totals.into_iter().take(F::UNIT).zip(out.by_ref()) {
                let sum = s.add(load(s, out), total);
                store(s, out, sum);
            }
        }
        W
    }
}
