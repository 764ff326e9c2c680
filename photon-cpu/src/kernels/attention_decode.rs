//! Paged attention of one token: keys and values are read once, so they go from the cache's type to
//! registers without being packed.
//!
//! Heads that are neighbors in the cache are taken together, a few positions at a time: a row of one
//! head is a cache line or two, too little for the memory to stream. Every sum has the order of
//! [`super::attention_core`], so a token decoded alone has the bits it would have in a prompt.
use std::ops::Range;

use super::attention_core::{Work, grow, load_scaled, load_tail, multiply, softmax};
use crate::{
    elements::{CacheRows, Cached},
    simd::{MAX_LANES, Op, Simd, load, store},
};

/// Positions whose values are added before the next head's.
const VALUE_BLOCK: usize = 32;
/// Stands for a position that cannot be seen.
pub(super) const UNSEEN: usize = usize::MAX;

/// One token's attention for neighboring heads of keys and the query heads that use them.
///
/// `work.query` holds the queries, `[heads * group, padded dim]`, and then the results;
/// `work.answered` says where there are any.
pub(super) struct Decode<'a, T> {
    pub(super) k: CacheRows<'a, T>,
    pub(super) v: CacheRows<'a, T>,
    /// The cache row of each position the token sees, or [`UNSEEN`].
    pub(super) slots: &'a [usize],
    /// Positions that are [`UNSEEN`], in order.
    pub(super) unseen: &'a [Range<usize>],
    /// Heads of keys.
    pub(super) heads: Range<usize>,
    /// Query heads per head of keys.
    pub(super) group: usize,
    pub(super) dim: usize,
    /// Multiplies scores.
    pub(super) scale: f32,
    pub(super) work: &'a mut Work,
}

impl<T: Cached> Op for Decode<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Decode { k, v, slots, unseen, heads, group, dim, scale, work } = self;
        let padded = dim.next_multiple_of(S::LANES);
        let (count, panel_len) = (heads.len() * group, 2 * S::LANES);
        let stride = slots.len().next_multiple_of(panel_len);
        let Work { query, answered, scores, sums, out, .. } = work;
        let (query, out) = (grow(query, count * padded), grow(out, count * padded));
        let (scores, sums) = (grow(scores, count * stride), grow(sums, count));
        answered.clear();
        answered.resize(count, false);
        // Stands in for positions that are not there; what it yields is masked.
        let Some(some_slot) = slots.iter().copied().find(|&slot| slot != UNSEEN) else { return };

        multiply(s, query, scale * std::f32::consts::LOG2_E);
        let slot_of = |u: usize| match slots.get(u) {
            Some(&slot) if slot != UNSEEN => slot,
            _ => some_slot,
        };
        let all_heads = heads.start * dim..heads.end * dim;
        for first in (0..slots.len()).step_by(panel_len) {
            let mut rows: [&[T]; 2 * MAX_LANES] = [&[]; 2 * MAX_LANES];
            let mut next = rows;
            for i in 0..panel_len {
                rows[i] = k.part(slot_of(first + i), all_heads.clone());
                next[i] = k.part(slot_of(first + panel_len + i), all_heads.clone());
            }
            for head in 0..heads.len() {
                for row in &next[..panel_len] {
                    prefetch(s, &row[head * dim..(head + 1) * dim]);
                }
                let mut scales = [1.0; 2 * MAX_LANES];
                if T::SCALE_LEN > 0 {
                    for (i, scale) in scales[..panel_len].iter_mut().enumerate() {
                        *scale = k.scale(slot_of(first + i), heads.start + head);
                    }
                }
                for i in head * group..(head + 1) * group {
                    let query = &query[i * padded..(i + 1) * padded];
                    let scores = &mut scores[i * stride + first..][..panel_len];
                    score_panel(s, query, &rows, &scales, head * dim..(head + 1) * dim, scores);
                }
            }
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            let row = &mut scores[i * stride..(i + 1) * stride];
            for range in unseen {
                let end = range.end.min(slots.len());
                row[range.start.min(end)..end].fill(f32::NEG_INFINITY);
            }
            *sum = softmax(s, row, slots.len(), !unseen.is_empty());
        }
        out.fill(0.0);
        let value = |u: usize| match slots.get(u) {
            Some(&slot) if slot != UNSEEN => Some(v.part(slot, all_heads.clone())),
            _ => None,
        };
        for first in (0..slots.len()).step_by(VALUE_BLOCK) {
            let rows: [_; VALUE_BLOCK] = std::array::from_fn(|i| value(first + i));
            let next: [_; VALUE_BLOCK] = std::array::from_fn(|i| value(first + VALUE_BLOCK + i));
            for head in 0..heads.len() {
                let columns = head * dim..(head + 1) * dim;
                for row in next.iter().flatten() {
                    prefetch(s, &row[columns.clone()]);
                }
                let mut scales = [1.0; VALUE_BLOCK];
                if T::SCALE_LEN > 0 {
                    for (&slot, scale) in slots[first..].iter().zip(&mut scales) {
                        if slot != UNSEEN {
                            *scale = v.scale(slot, heads.start + head);
                        }
                    }
                }
                for i in head * group..(head + 1) * group {
                    let shares = &scores[i * stride..(i + 1) * stride][first..];
                    let out = &mut out[i * padded..(i + 1) * padded];
                    add_values(s, &rows, &scales, columns.clone(), shares, out);
                }
            }
        }
        for (i, &sum) in sums.iter().enumerate() {
            answered[i] = sum != 0.0;
            let row = &mut query[i * padded..(i + 1) * padded];
            row.copy_from_slice(&out[i * padded..(i + 1) * padded]);
            multiply(s, row, sum.recip());
        }
    }
}

#[inline(always)]
fn prefetch<S: Simd, T>(s: S, row: &[T]) {
    for line in row.chunks(64 / size_of::<T>()) {
        s.prefetch(line.as_ptr());
    }
}

/// Scores of two vectors of positions: `scores[u] = sum_d query[d] rows[u][columns.start + d]`, `d`
/// ascending.
#[inline(always)]
fn score_panel<S: Simd, T: Cached>(
    s: S,
    query: &[f32],
    rows: &[&[T]; 2 * MAX_LANES],
    scales: &[f32; 2 * MAX_LANES],
    columns: Range<usize>,
    scores: &mut [f32],
) {
    let mut acc = [s.splat(0.0); 2];
    let tail = columns.len() % S::LANES;
    let body = columns.len() - tail;
    for first in (0..body).step_by(S::LANES) {
        // One tile at a time: two would not fit in sixteen registers.
        for (half, acc) in acc.iter_mut().enumerate() {
            let rows = rows[half * S::LANES..].iter().zip(&scales[half * S::LANES..]);
            let mut tile = [s.splat(0.0); MAX_LANES];
            for (v, (row, scale)) in tile[..S::LANES].iter_mut().zip(rows) {
                *v = load_scaled(s, &row[columns.start + first..], *scale);
            }
            let tile = s.transpose(tile);
            for (&x, v) in query[first..first + S::LANES].iter().zip(tile) {
                *acc = s.fma(s.splat(x), v, *acc);
            }
        }
    }
    if tail > 0 {
        for (half, acc) in acc.iter_mut().enumerate() {
            let rows = rows[half * S::LANES..].iter().zip(&scales[half * S::LANES..]);
            let mut tile = [s.splat(0.0); MAX_LANES];
            for (v, (row, scale)) in tile[..S::LANES].iter_mut().zip(rows) {
                *v = load_tail(s, &row[columns.start + body..columns.end], *scale);
            }
            let tile = s.transpose(tile);
            for (&x, v) in query[body..columns.len()].iter().zip(tile) {
                *acc = s.fma(s.splat(x), v, *acc);
            }
        }
    }
    for (scores, acc) in scores.chunks_exact_mut(S::LANES).zip(acc) {
        store(s, scores, acc);
    }
}

/// `out += sum_u shares[u] rows[u]`, `u` ascending, for those that are there.
#[inline(always)]
fn add_values<S: Simd, T: Cached>(
    s: S,
    rows: &[Option<&[T]>; VALUE_BLOCK],
    scales: &[f32; VALUE_BLOCK],
    columns: Range<usize>,
    shares: &[f32],
    out: &mut [f32],
) {
    let vectors = columns.len() / S::LANES;
    let mut at = 0;
    while at < vectors {
        let from = columns.start + at * S::LANES;
        let out = &mut out[at * S::LANES..];
        match vectors - at {
            8.. => at += add_columns::<S, T, 8>(s, rows, scales, from, shares, out),
            4.. => at += add_columns::<S, T, 4>(s, rows, scales, from, shares, out),
            2.. => at += add_columns::<S, T, 2>(s, rows, scales, from, shares, out),
            _ => at += add_columns::<S, T, 1>(s, rows, scales, from, shares, out),
        }
    }
    if !columns.len().is_multiple_of(S::LANES) {
        let out = &mut out[vectors * S::LANES..];
        let mut acc = load(s, out);
        for ((row, &scale), &share) in rows.iter().zip(scales).zip(shares) {
            if let Some(row) = row {
                let row = &row[columns.start + vectors * S::LANES..columns.end];
                let tail = load_tail(s, row, scale);
                acc = s.fma(s.splat(share), tail, acc);
            }
        }
        store(s, out, acc);
    }
}

/// [`add_values`] for `W` vectors of columns; returns `W`.
#[inline(always)]
fn add_columns<S: Simd, T: Cached, const W: usize>(
    s: S,
    rows: &[Option<&[T]>; VALUE_BLOCK],
    scales: &[f32; VALUE_BLOCK],
    from: usize,
    shares: &[f32],
    out: &mut [f32],
) -> usize {
    let mut acc = [s.splat(0.0); W];
    for (j, acc) in acc.iter_mut().enumerate() {
        *acc = load(s, &out[j * S::LANES..]);
    }
    for ((row, &scale), &share) in rows.iter().zip(scales).zip(shares) {
        let Some(row) = row else { continue };
        let row = &row[from..from + W * S::LANES];
        let share = s.splat(share);
        for (j, acc) in acc.iter_mut().enumerate() {
            let value = load_scaled(s, &row[j * S::LANES..], scale);
            *acc = s.fma(share, value, *acc);
        }
    }
    for (j, acc) in acc.iter().enumerate() {
        store(s, &mut out[j * S::LANES..], *acc);
    }
    W
}
