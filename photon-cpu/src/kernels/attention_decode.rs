//! Paged attention of one token: keys and values are read once, so they go from the cache's type to
//! registers without being packed.
//!
//! Heads that are neighbors in the cache are taken together, a few positions at a time: a row of one
//! head is a cache line or two, too little for the memory to stream. Every sum has the order of
//! [`super::attention_core`], so a token decoded alone has the bits it would have in a prompt.
use std::ops::Range;

use super::{
    attention_core::{Work, grow, multiply, softmax},
    attention_pack::{Layout, Words, load_scaled, load_tail},
};
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
/// `work.query` holds the queries, `[heads * group, padded words]`, and `work.out` then the results;
/// `work.answered` says where there are any.
pub(super) struct Decode<'a, T, F> {
    pub(super) factors: F,
    pub(super) layout: Layout,
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

impl<T: Cached, F: Words<T>> Op for Decode<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Decode { factors, layout, k, v, slots, unseen, heads, group, dim, scale, work } = self;
        let (padded, words) = (layout.padded(), layout.padded_words());
        let (count, panel_len) = (heads.len() * group, 2 * S::LANES);
        let stride = slots.len().next_multiple_of(panel_len);
        let Work { query, answered, scores, sums, out, .. } = work;
        let (query, out) = (&query[..count * words], grow(out, count * padded));
        let (scores, sums) = (grow(scores, count * stride), grow(sums, count));
        answered.clear();
        answered.resize(count, false);
        // Stands in for positions that are not there; what it yields is masked.
        let Some(some_slot) = slots.iter().copied().find(|&slot| slot != UNSEEN) else { return };

        // With log2(e) in the scale, the softmax can use powers of two.
        let scale = scale * std::f32::consts::LOG2_E;
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
                for row in share_of(&next[..panel_len], head, heads.len()) {
                    prefetch(s, row);
                }
                let mut scales = [1.0; 2 * MAX_LANES];
                if T::SCALE_LEN > 0 {
                    for (i, scale) in scales[..panel_len].iter_mut().enumerate() {
                        *scale = k.scale(slot_of(first + i), heads.start + head);
                    }
                }
                for i in head * group..(head + 1) * group {
                    let query = &query[i * words..(i + 1) * words];
                    let scores = &mut scores[i * stride + first..][..panel_len];
                    let columns = head * dim..(head + 1) * dim;
                    score_panel(s, factors, query, &rows, &scales, columns, scores);
                    multiply(s, scores, scale);
                }
            }
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            let row = &mut scores[i * stride..(i + 1) * stride];
            for range in unseen {
                let end = range.end.min(slots.len());
                row[range.start.min(end)..end].fill(f32::NEG_INFINITY);
            }
            *sum = softmax(s, factors, row, slots.len(), !unseen.is_empty());
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
                for row in share_of(&next, head, heads.len()).iter().flatten() {
                    prefetch(s, row);
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
                    let shares = &scores[i * stride..(i + 1) * stride][first / F::PER_WORD..];
                    let out = &mut out[i * padded..(i + 1) * padded];
                    add_values(s, factors, &rows, &scales, columns.clone(), shares, out);
                }
            }
        }
        for ((out, answered), &sum) in out.chunks_exact_mut(padded).zip(answered).zip(&*sums) {
            *answered = sum != 0.0;
            multiply(s, out, sum.recip());
        }
    }
}

/// What is asked for along with the `i`th of `count` heads. Rows one by one, as they lie in memory: what the next
/// heads need of all of them would be a line or two of each page, far slower.
#[inline(always)]
fn share_of<T>(rows: &[T], i: usize, count: usize) -> &[T] {
    &rows[i * rows.len() / count..(i + 1) * rows.len() / count]
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
fn score_panel<S: Simd, T: Cached, F: Words<T>>(
    s: S,
    factors: F,
    query: &[f32],
    rows: &[&[T]; 2 * MAX_LANES],
    scales: &[f32; 2 * MAX_LANES],
    columns: Range<usize>,
    scores: &mut [f32],
) {
    let mut acc = [s.splat(0.0); 2];
    let step = S::LANES * F::PER_WORD;
    let tail = columns.len() % step;
    let body = columns.len() - tail;
    for (first, query) in (0..body).step_by(step).zip(query.chunks_exact(S::LANES)) {
        // One tile at a time: two would not fit in sixteen registers.
        for (half, acc) in acc.iter_mut().enumerate() {
            let rows = rows[half * S::LANES..].iter().zip(&scales[half * S::LANES..]);
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
    if tail > 0 {
        let query = &query[body / F::PER_WORD..][..tail.div_ceil(F::PER_WORD)];
        for (half, acc) in acc.iter_mut().enumerate() {
            let rows = rows[half * S::LANES..].iter().zip(&scales[half * S::LANES..]);
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

/// `out += sum_u shares[u] rows[u]`, `u` ascending, for those that are there.
#[inline(always)]
fn add_values<S: Simd, T: Cached, F: Words<T>>(
    s: S,
    factors: F,
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
            8.. => at += add_columns::<S, T, F, 8>(s, factors, rows, scales, from, shares, out),
            4.. => at += add_columns::<S, T, F, 4>(s, factors, rows, scales, from, shares, out),
            2.. => at += add_columns::<S, T, F, 2>(s, factors, rows, scales, from, shares, out),
            _ => at += add_columns::<S, T, F, 1>(s, factors, rows, scales, from, shares, out),
        }
    }
    if !columns.len().is_multiple_of(S::LANES) {
        let out = &mut out[vectors * S::LANES..];
        let mut acc = [load(s, out)];
        let columns = columns.start + vectors * S::LANES..columns.end;
        sum_values::<S, T, F, 1, true>(s, factors, rows, scales, columns, shares, &mut acc);
        store(s, out, acc[0]);
    }
}

/// [`add_values`] for `W` vectors of columns; returns `W`.
#[inline(always)]
fn add_columns<S: Simd, T: Cached, F: Words<T>, const W: usize>(
    s: S,
    factors: F,
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
    let columns = from..from + W * S::LANES;
    sum_values::<S, T, F, W, false>(s, factors, rows, scales, columns, shares, &mut acc);
    for (j, acc) in acc.iter().enumerate() {
        store(s, &mut out[j * S::LANES..], *acc);
    }
    W
}

/// `acc += sum_u shares[u] rows[u][columns]`, a word of positions at a time. `PART` says that the columns are fewer
/// than a vector.
#[inline(always)]
fn sum_values<S: Simd, T: Cached, F: Words<T>, const W: usize, const PART: bool>(
    s: S,
    factors: F,
    rows: &[Option<&[T]>; VALUE_BLOCK],
    scales: &[f32; VALUE_BLOCK],
    columns: Range<usize>,
    shares: &[f32],
    acc: &mut [S::V; W],
) {
    let words = rows.chunks_exact(F::PER_WORD).zip(scales.chunks_exact(F::PER_WORD));
    for ((rows, scales), &share) in words.zip(shares) {
        let Some(some) = rows.iter().flatten().next() else { continue };
        // Of a word that is not all there the rest is zero.
        let lacks = (rows[0].is_none(), rows[F::PER_WORD - 1].is_none());
        let first = &rows[0].unwrap_or(some)[columns.clone()];
        let second = &rows[F::PER_WORD - 1].unwrap_or(some)[columns.clone()];
        let (scales, share) = ((scales[0], scales[F::PER_WORD - 1]), s.splat(share));
        for (j, acc) in acc.iter_mut().enumerate() {
            let mut values = match PART {
                true => [load_tail(s, first, scales.0), load_tail(s, second, scales.1)],
                false => [
                    load_scaled(s, &first[j * S::LANES..], scales.0),
                    load_scaled(s, &second[j * S::LANES..], scales.1),
                ],
            };
            if lacks.0 {
                values[0] = s.splat(0.0);
            }
            if lacks.1 {
                values[1] = s.splat(0.0);
            }
            *acc = factors.multiply(s, share, factors.join(s, values[0], values[1]), *acc);
        }
    }
}
