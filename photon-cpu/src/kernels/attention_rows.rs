//! Rows of a cache as they are read by one token's attention: some positions, all heads of them, and those that will be
//! needed next.
use std::ops::Range;

use super::attention_pack::{Words, load_scaled, load_tail};
use crate::{
    elements::{CacheRows, Cached},
    simd::{MAX_LANES, Simd, load, store},
};

/// Stands for a position that cannot be seen.
pub(super) const UNSEEN: usize = usize::MAX;

/// Rows of a cache: [`UNSEEN`] and empty for positions that are not there.
pub(super) struct CacheBlock<'a, T, const N: usize> {
    pub(super) slots: [usize; N],
    pub(super) rows: [&'a [T]; N],
}

impl<T: Cached, const N: usize> CacheBlock<'_, T, N> {
    /// Has some row stand in for those of the first `count` that are not there; false if none is.
    #[inline(always)]
    pub(super) fn fill(&mut self, count: usize) -> bool {
        let Some(some) = self.slots.iter().position(|&slot| slot != UNSEEN) else { return false };
        for i in 0..count {
            if self.slots[i] == UNSEEN {
                (self.slots[i], self.rows[i]) = (self.slots[some], self.rows[some]);
            }
        }
        true
    }

    /// What the first `count` rows count times, in a head. None of them may be missing.
    #[inline(always)]
    pub(super) fn scales(
        &self,
        cache: &CacheRows<'_, T>,
        kv_head: usize,
        count: usize,
    ) -> [f32; N] {
        let mut scales = [1.0; N];
        if T::SCALE_LEN > 0 {
            for (scale, &slot) in scales[..count].iter_mut().zip(&self.slots) {
                *scale = cache.scale(slot, kv_head);
            }
        }
        scales
    }
}

/// The rows that will be needed next, asked for line by line as they lie in memory, in step with what is read now:
/// more at a time than the processor can have under way would hold up the work.
pub(super) struct Ahead<'a, T> {
    rows: std::slice::Iter<'a, &'a [T]>,
    row: &'a [T],
}

impl<'a, T> Ahead<'a, T> {
    #[inline(always)]
    pub(super) fn new(rows: &'a [&'a [T]]) -> Self {
        Ahead { rows: rows.iter(), row: &[] }
    }

    /// Asks for `count` more lines.
    #[inline(always)]
    pub(super) fn lines<S: Simd>(&mut self, s: S, count: usize) {
        for _ in 0..count {
            if self.row.is_empty() {
                let Some(row) = self.rows.next() else { return };
                self.row = row;
            }
            s.prefetch(self.row.as_ptr());
            self.row = &self.row[self.row.len().min(64 / size_of::<T>())..];
        }
    }
}

/// A head's part of rows.
pub(super) struct Lines<'a, 'b, T, F> {
    pub(super) factors: F,
    pub(super) rows: &'a [&'b [T]],
    pub(super) scales: &'a [f32],
    pub(super) columns: Range<usize>,
    pub(super) ahead: &'a mut Ahead<'b, T>,
}

impl<T: Cached, F: Words<T>> Lines<'_, '_, T, F> {
    /// Scores of two vectors of positions: `scores[u] = sum_d query[d] rows[u][columns.start + d]`, `d` ascending.
    #[inline(always)]
    pub(super) fn score<S: Simd>(&mut self, s: S, query: &[f32], scores: &mut [f32]) {
        let (factors, columns) = (self.factors, self.columns.clone());
        let mut acc = [s.splat(0.0); 2];
        let step = S::LANES * F::PER_WORD;
        let body = columns.len() - columns.len() % step;
        for (first, query) in (0..body).step_by(step).zip(query.chunks_exact(S::LANES)) {
            // One tile at a time: two would not fit in sixteen registers.
            for (half, acc) in acc.iter_mut().enumerate() {
                let rows = self.rows[half * S::LANES..].iter().zip(&self.scales[half * S::LANES..]);
                self.ahead.lines(s, S::LANES);
                let mut tile = [s.splat(0.0); MAX_LANES];
                for (v, (row, scale)) in tile[..S::LANES].iter_mut().zip(rows) {
                    *v = factors.words(s, &row[columns.start + first..], *scale);
                }
                let tile = s.transpose(tile);
                for (&x, v) in query.iter().zip(tile) {
                    *acc = factors.multiply(s, s.splat(x), v, *acc);
                }
            }
        }
        if body < columns.len() {
            let words = (columns.len() - body).div_ceil(F::PER_WORD);
            let query = &query[body / F::PER_WORD..][..words];
            for (half, acc) in acc.iter_mut().enumerate() {
                let rows = self.rows[half * S::LANES..].iter().zip(&self.scales[half * S::LANES..]);
                let mut tile = [s.splat(0.0); MAX_LANES];
                for (v, (row, scale)) in tile[..S::LANES].iter_mut().zip(rows) {
                    *v = factors.last_words(s, &row[columns.start + body..columns.end], *scale);
                }
                let tile = s.transpose(tile);
                for (&x, v) in query.iter().zip(tile) {
                    *acc = factors.multiply(s, s.splat(x), v, *acc);
                }
            }
        }
        for (scores, acc) in scores.chunks_exact_mut(S::LANES).zip(acc) {
            store(s, scores, acc);
        }
    }

    /// `out += sum_u shares[u] rows[u][columns]`, `u` ascending.
    #[inline(always)]
    pub(super) fn add_values<S: Simd>(&mut self, s: S, shares: &[f32], out: &mut [f32]) {
        let vectors = self.columns.len() / S::LANES;
        let mut at = 0;
        while at < vectors {
            let out = &mut out[at * S::LANES..];
            match vectors - at {
                8.. => at += self.add_columns::<S, 8, false>(s, at, shares, out),
                4.. => at += self.add_columns::<S, 4, false>(s, at, shares, out),
                2.. => at += self.add_columns::<S, 2, false>(s, at, shares, out),
                _ => at += self.add_columns::<S, 1, false>(s, at, shares, out),
            }
        }
        if !self.columns.len().is_multiple_of(S::LANES) {
            self.add_columns::<S, 1, true>(s, vectors, shares, &mut out[vectors * S::LANES..]);
        }
    }

    /// [`Self::add_values`] for `W` vectors of columns from the `at`th on; returns `W`. `PART` says that the columns are
    /// fewer than a vector.
    #[inline(always)]
    fn add_columns<S: Simd, const W: usize, const PART: bool>(
        &mut self,
        s: S,
        at: usize,
        shares: &[f32],
        out: &mut [f32],
    ) -> usize {
        let start = self.columns.start + at * S::LANES;
        let columns = start..self.columns.end.min(start + W * S::LANES);
        let mut acc = [s.splat(0.0); W];
        for (j, acc) in acc.iter_mut().enumerate() {
            *acc = load(s, &out[j * S::LANES..]);
        }
        let rows = self.rows.chunks_exact(F::PER_WORD).zip(self.scales.chunks_exact(F::PER_WORD));
        for ((rows, scales), &share) in rows.zip(shares) {
            let (first, second) =
                (&rows[0][columns.clone()], &rows[F::PER_WORD - 1][columns.clone()]);
            let (scales, share) = ((scales[0], scales[F::PER_WORD - 1]), s.splat(share));
            self.ahead.lines(s, W);
            for (j, acc) in acc.iter_mut().enumerate() {
                let (first, second) = match PART {
                    true => (load_tail(s, first, scales.0), load_tail(s, second, scales.1)),
                    false => (
                        load_scaled(s, &first[j * S::LANES..], scales.0),
                        load_scaled(s, &second[j * S::LANES..], scales.1),
                    ),
                };
                *acc = self.factors.multiply(s, share, self.factors.join(s, first, second), *acc);
            }
        }
        for (j, acc) in acc.iter().enumerate() {
            store(s, &mut out[j * S::LANES..], *acc);
        }
        W
    }
}
