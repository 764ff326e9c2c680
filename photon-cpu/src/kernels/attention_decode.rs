//! Paged attention of one token of each sequence: keys and values are read once, so they go from the cache's type to
//! registers without being packed.
//!
//! Memory bounds it, and what a position has of one head is a cache line or two. So work is divided by positions:
//! a task reads whole rows, as they lie in memory, and asks for lines a while before it needs them. Divided by heads,
//! two threads would read halves of the same rows, at half to all of the speed, by where pages lie.
//!
//! Of a sequence that is one of many, a task does everything, and what it writes stays in its processor's caches. Of
//! the others scores, softmax, values and what they add up to are a loop each. Every sum has the order of
//! [`super::attention_core`], so a token decoded alone has the bits it would have in a prompt.
#![allow(unsafe_code, reason = "tasks write parts of what they share")]

use std::ops::Range;

use super::{
    attention::{Lanes, Paged, Row},
    attention_core::{SUM_BLOCK, multiply, multiply_each, softmax},
    attention_pack::{Layout, PackQuery, QueryWords, Words, weigh},
    attention_rows::{Ahead, CacheBlock, Lines},
};
use crate::{
    elements::{CacheRows, Cached, Float},
    pool::{Parts, Pool},
    scratch::with_scratch,
    simd::{Convert, MAX_LANES, Op, Simd, dispatch, load, store},
};

/// A sequence that is more than one part in so many per thread of all that is to be read is cut into pieces.
const PARTS_PER_THREAD: usize = 4;
/// Pieces per thread, so that the last ones to finish are not waited for long. The first rows of a thread's next piece
/// are asked for at the end of the one before, which is only a guess at who takes it.
const PIECES_PER_THREAD: usize = 2;
/// Positions whose scores are computed together, two vectors of the longest kind.
const PANEL: usize = 2 * MAX_LANES;

/// The attention of one token.
struct Decode<'a, T, U, F> {
    paged: &'a Paged<'a, T, U, F>,
    layout: Layout,
    row: &'a Row<'a>,
    /// Positions that it sees.
    len: usize,
    /// Blocks of the first piece.
    first_piece: usize,
    /// `[heads, query length]`.
    queries: &'a [f32],
    /// `[heads, stride]`: scores, then shares.
    scores: Parts<'a, f32>,
    stride: usize,
    /// `[heads]`: what the shares add up to; 0 where nothing is seen.
    totals: Parts<'a, f32>,
    /// `[1 + later blocks, heads, padded]`: sums of values; the first of all blocks of the first piece.
    sums: Parts<'a, f32>,
}

/// Answers the only tokens of `rows`.
pub(super) fn decode<T, U, F>(paged: &Paged<'_, T, U, F>, pool: &Pool, rows: &[&Row<'_>])
where
    T: Float,
    U: Cached,
    F: QueryWords<T> + Words<U>,
{
    let len = |row: &Row<'_>| row.visible(row.tokens.start);
    let all: usize = rows.iter().map(|row| len(row)).sum();
    let is_long = |row: &&&Row<'_>| len(row) * PARTS_PER_THREAD * pool.threads() > all;
    let (long, whole): (Vec<&Row<'_>>, Vec<_>) = rows.iter().partition(is_long);
    for row in long {
        let blocks = len(row).div_ceil(SUM_BLOCK);
        let count = blocks.min(PIECES_PER_THREAD * pool.threads());
        let pieces: Vec<_> =
            (0..count).map(|i| i * blocks / count..(i + 1) * blocks / count).collect();
        Decode::with(paged, row, pieces[0].end, |decode| decode.run_pieces(pool, &pieces));
    }
    let begin = |cache, row| Begin { cache, row, block: 0 };
    pool.run(whole.len(), &|i| {
        let row = whole[i];
        // Threads take rows in turn.
        let next = whole.get(i + pool.threads()).map(|row| begin(paged.k_cache, row));
        let blocks = 0..len(row).div_ceil(SUM_BLOCK);
        Decode::with(paged, row, blocks.end, |decode| {
            let all = [
                Phase::Scores(blocks.clone(), Some(begin(paged.v_cache, row))),
                Phase::Softmax(0..paged.kv_heads),
                Phase::Values(blocks.clone(), next),
                Phase::Finish(0..paged.kv_heads),
            ];
            decode.run(&all);
        });
    });
}

/// Blocks to be read, or heads to be done.
#[derive(Clone)]
enum Phase<'a, U> {
    Scores(Range<usize>, Option<Begin<'a, U>>),
    Softmax(Range<usize>),
    Values(Range<usize>, Option<Begin<'a, U>>),
    Finish(Range<usize>),
}

/// Where a thread will probably go on reading when it has read what it was told to.
#[derive(Clone, Copy)]
struct Begin<'a, U> {
    cache: CacheRows<'a, U>,
    row: &'a Row<'a>,
    block: usize,
}

/// Some phases of it.
struct Task<'a, T, U, F> {
    decode: &'a Decode<'a, T, U, F>,
    phases: &'a [Phase<'a, U>],
}

impl<T: Float, U: Cached, F: QueryWords<T> + Words<U>> Op for Task<'_, T, U, F> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        for phase in self.phases {
            match phase {
                Phase::Scores(blocks, next) => self.decode.scores(s, blocks, *next),
                Phase::Softmax(kv_heads) => self.decode.softmax(s, kv_heads),
                Phase::Values(blocks, next) => self.decode.values(s, blocks, *next),
                Phase::Finish(kv_heads) => self.decode.finish(s, kv_heads),
            }
        }
    }
}

impl<'a, T: Float, U: Cached, F: QueryWords<T> + Words<U>> Decode<'a, T, U, F> {
    /// Calls `f` with what a token needs, `first_piece` blocks of it being the first piece.
    fn with(
        paged: &Paged<'_, T, U, F>,
        row: &Row<'_>,
        first_piece: usize,
        f: impl FnOnce(Decode<'_, T, U, F>),
    ) {
        let layout = Layout::new(paged.factors, dispatch(paged.isa, Lanes), paged.head_dim);
        let (heads, token) = (paged.kv_heads * paged.group, row.tokens.start);
        let len = row.visible(token);
        let stride = len.next_multiple_of(layout.positions());
        let num_sums = 1 + len.div_ceil(SUM_BLOCK) - first_piece;
        let sizes = [layout.query_len(), stride, num_sums * layout.padded(), 1];
        with_scratch(heads * sizes.iter().sum::<usize>(), |scratch| {
            let (queries, scratch) = scratch.split_at_mut(heads * sizes[0]);
            let (scores, scratch) = scratch.split_at_mut(heads * sizes[1]);
            let (sums, totals) = scratch.split_at_mut(heads * sizes[2]);
            for (head, out) in queries.chunks_exact_mut(layout.query_len()).enumerate() {
                let (factors, x) = (paged.factors, paged.q.part(token, paged.columns(head)));
                factors.dispatch(paged.isa, PackQuery { factors, layout, x, out });
            }
            let (scores, totals, sums) = (Parts::new(scores), Parts::new(totals), Parts::new(sums));
            f(Decode {
                paged,
                layout,
                row,
                len,
                first_piece,
                queries,
                scores,
                stride,
                totals,
                sums,
            });
        });
    }

    fn run(&self, phases: &[Phase<'_, U>]) {
        let Paged { isa, factors, .. } = *self.paged;
        factors.dispatch(isa, Task { decode: self, phases });
    }

    /// Every phase as a loop.
    fn run_pieces(&self, pool: &Pool, pieces: &[Range<usize>]) {
        let (threads, kv_heads) = (pool.threads(), self.paged.kv_heads);
        let per_thread = pieces.len().div_ceil(threads);
        let begin = |cache, block| Some(Begin { cache, row: self.row, block });
        // Threads take indices in turn. What a thread takes should be pieces that follow each other.
        let whole = pieces.len() == per_thread * threads;
        let piece = |i: usize| if whole { i % threads * per_thread + i / threads } else { i };
        let is_last = |i: usize| i + threads >= pieces.len();
        pool.run(pieces.len(), &|i| {
            let next = match is_last(i) {
                true => begin(self.paged.v_cache, pieces[piece(i % threads)].start),
                false => begin(self.paged.k_cache, pieces[piece(i + threads)].start),
            };
            self.run(&[Phase::Scores(pieces[piece(i)].clone(), next)]);
        });
        pool.run(kv_heads, &|i| self.run(&[Phase::Softmax(i..i + 1)]));
        pool.run(pieces.len(), &|i| {
            let next = match is_last(i) {
                true => None,
                false => begin(self.paged.v_cache, pieces[piece(i + threads)].start),
            };
            self.run(&[Phase::Values(pieces[piece(i)].clone(), next)]);
        });
        pool.run(kv_heads, &|i| self.run(&[Phase::Finish(i..i + 1)]));
    }

    fn positions(&self, blocks: &Range<usize>) -> Range<usize> {
        blocks.start * SUM_BLOCK..(blocks.end * SUM_BLOCK).min(self.len)
    }

    /// The query heads of heads of keys.
    fn group(&self, kv_heads: &Range<usize>) -> Range<usize> {
        kv_heads.start * self.paged.group..kv_heads.end * self.paged.group
    }

    /// The cache's rows of `positions`, at most `N`; of nothing, those that come `next`.
    #[inline(always)]
    fn rows<const N: usize>(
        &self,
        cache: CacheRows<'a, U>,
        positions: Range<usize>,
        next: Option<Begin<'a, U>>,
    ) -> CacheBlock<'a, U, N> {
        let (cache, row, positions) = match next.filter(|_| positions.is_empty()) {
            Some(Begin { cache, row, block }) => {
                let (first, len) = (block * SUM_BLOCK, row.visible(row.tokens.start));
                (cache, row, first..len.min(first + N))
            }
            None => (cache, self.row, positions),
        };
        CacheBlock::new(&cache, positions.map(|position| self.paged.slot(row, position)))
    }

    /// Scores of all heads at the positions of `blocks`.
    #[inline(always)]
    fn scores<S: Simd>(&self, s: S, blocks: &Range<usize>, after: Option<Begin<'a, U>>) {
        let Paged { factors, head_dim: dim, kv_heads, k_cache, .. } = *self.paged;
        let positions = self.positions(blocks);
        let (query_len, panel_len) = (self.layout.query_len(), 2 * S::LANES);
        // With log2(e) in the scale, the softmax can use powers of two.
        let scale = self.paged.scale * std::f32::consts::LOG2_E;
        let end = |first: usize| positions.end.min(first + panel_len);
        let panel = |first| self.rows::<PANEL>(k_cache, first..end(first), after);
        let mut next = panel(positions.start);
        Ahead::new(&next).ask_all(s);
        let mut all_scales = Vec::new();
        for first in positions.clone().step_by(panel_len) {
            let mut block = next;
            next = panel(first + panel_len);
            // What stands in yields scores that are masked, or behind the last.
            if !block.fill(panel_len) {
                continue;
            }
            block.scales(s, kv_heads, &mut all_scales);
            let mut ahead = Ahead::new(&next);
            for kv_head in 0..kv_heads {
                let scales = all_scales.get(kv_head * PANEL..).unwrap_or_default();
                let columns = kv_head * dim..(kv_head + 1) * dim;
                let mut lines = Lines::new(factors, &block, columns, &mut ahead);
                for head in self.group(&(kv_head..kv_head + 1)) {
                    let at = head * self.stride + first;
                    // SAFETY: tasks differ in positions, and so do panels.
                    let scores = unsafe { self.scores.part(at..at + panel_len) };
                    let query = &self.queries[head * query_len..(head + 1) * query_len];
                    lines.score(s, query, self.layout.padded_words(), scores);
                    multiply(s, scores, scale);
                    multiply_each(s, scores, scales);
                }
            }
        }
    }

    /// Turns the scores of some heads into shares.
    #[inline(always)]
    fn softmax<S: Simd>(&self, s: S, kv_heads: &Range<usize>) {
        for head in self.group(kv_heads) {
            let at = head * self.stride;
            // SAFETY: tasks differ in heads.
            let row = unsafe { self.scores.part(at..at + self.stride) };
            for range in &self.row.unseen {
                row[range.start.min(self.len)..range.end.min(self.len)].fill(f32::NEG_INFINITY);
            }
            // SAFETY: as above.
            let total = unsafe { self.totals.part(head..head + 1) };
            let masked = !self.row.unseen.is_empty();
            total[0] = softmax(s, row, self.len, masked);
        }
    }

    /// Sums of the values of all heads, block by block.
    #[inline(always)]
    fn values<S: Simd>(&self, s: S, blocks: &Range<usize>, after: Option<Begin<'a, U>>) {
        let Paged { factors, head_dim: dim, kv_heads, v_cache, .. } = *self.paged;
        let end = self.positions(blocks).end;
        let positions = |block: usize| block * SUM_BLOCK..((block + 1) * SUM_BLOCK).min(end);
        let rows = |block| self.rows::<SUM_BLOCK>(v_cache, positions(block), after);
        let mut next = rows(blocks.start);
        Ahead::new(&next).ask_all(s);
        let mut all_scales = Vec::new();
        for block in blocks.clone() {
            let mut here = next;
            next = rows(block + 1);
            let sums = self.block_sums(block);
            // What stands in has a share of zero; with nobody to stand in there is nothing to add.
            let count = positions(block).len();
            let num_words = count.div_ceil(F::PER_WORD);
            if !here.fill(num_words * F::PER_WORD) {
                continue;
            }
            here.scales(s, kv_heads, &mut all_scales);
            let mut ahead = Ahead::new(&next);
            for kv_head in 0..kv_heads {
                let scales = all_scales.get(kv_head * SUM_BLOCK..).unwrap_or_default();
                let columns = kv_head * dim..(kv_head + 1) * dim;
                let mut lines = Lines::new(factors, &here, columns, &mut ahead);
                for head in self.group(&(kv_head..kv_head + 1)) {
                    let at = head * self.stride + block * SUM_BLOCK;
                    let mut words = [0.0; SUM_BLOCK];
                    // SAFETY: nobody writes shares while values are added.
                    words[..count].copy_from_slice(unsafe { self.scores.part(at..at + count) });
                    weigh(s, factors, &mut words, scales, count);
                    let padded = self.layout.padded();
                    let sums = &mut sums[head * padded..(head + 1) * padded];
                    lines.add_values(s, &words, num_words, sums);
                }
            }
        }
    }

    /// Where the sums of a block go, of all heads: to those of the blocks before it if they are the same piece's.
    #[expect(clippy::mut_from_ref, reason = "see Safety")]
    fn block_sums(&self, block: usize) -> &mut [f32] {
        let (place, begun) = match block.checked_sub(self.first_piece) {
            Some(later) => (1 + later, false),
            None => (0, block > 0),
        };
        let len = self.paged.kv_heads * self.paged.group * self.layout.padded();
        // SAFETY: tasks differ in blocks, and blocks that share sums are one task's, one after the other.
        let sums = unsafe { self.sums.part(place * len..(place + 1) * len) };
        if !begun {
            sums.fill(0.0);
        }
        sums
    }

    /// Adds the sums of some heads up and writes the answer.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, kv_heads: &Range<usize>) {
        let (padded, num_blocks) = (self.layout.padded(), self.len.div_ceil(SUM_BLOCK));
        let heads = self.paged.kv_heads * self.paged.group;
        for head in self.group(kv_heads) {
            let part = |i: usize| {
                let at = (i * heads + head) * padded;
                // SAFETY: tasks differ in heads, and the parts used together in `i`.
                unsafe { self.sums.part(at..at + padded) }
            };
            // SAFETY: as above.
            let total = unsafe { self.totals.part(head..head + 1) }[0];
            if total == 0.0 {
                continue;
            }
            let all = part(0);
            for i in 1..1 + num_blocks - self.first_piece {
                add_to(s, all, part(i));
            }
            multiply(s, all, total.recip());
            // SAFETY: as above.
            let out =
                unsafe { self.paged.out.part(self.row.tokens.start, self.paged.columns(head)) };
            Convert { out, x: &all[..self.paged.head_dim] }.call(s);
        }
    }
}

/// `sums += x`, for whole vectors.
#[inline(always)]
fn add_to<S: Simd>(s: S, sums: &mut [f32], x: &[f32]) {
    for (sums, x) in sums.chunks_exact_mut(S::LANES).zip(x.chunks_exact(S::LANES)) {
        let sum = s.add(load(s, sums), load(s, x));
        store(s, sums, sum);
    }
}
