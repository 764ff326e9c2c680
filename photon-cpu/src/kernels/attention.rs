//! The two attentions: dense sequences of equal length, and ragged queries over the paged cache.
//!
//! A task answers some tokens for the heads that share one head of keys. Many tokens have the keys and
//! values packed once in advance; a few (a decode step has one) have them packed as they stream by.
use std::{cell::RefCell, ops::Range};

use half::bf16;
use photon_core::{Attention, DType, PagedAttention};

use super::{
    attention_core::{AttendBlock, BLOCK_ROWS, SUM_BLOCK, Source, Work, grow},
    attention_decode::decode,
    attention_pack::{
        Floats, Layout, PackKeys, PackQuery, PackValues, Pairs, Quads, QueryWords, RowAt, Words,
    },
    index,
};
use crate::{
    Cpu, Isa,
    elements::{CacheRows, Cached, Float, Rows, RowsMut, with_cached, with_float},
    simd::{Convert, Fp8, Op, Simd, dispatch},
};

/// Tasks per thread that make the last ones to finish not worth waiting for.
const TASKS_PER_THREAD: usize = 4;

/// Memory that a thread keeps from task to task.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    lines: Vec<f32>,
    work: Work,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Splits `rows` into at most `parts` pieces of whole blocks. How many does not change any result.
fn pieces(rows: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    let len = rows.div_ceil(parts.max(1)).next_multiple_of(BLOCK_ROWS);
    (0..rows).step_by(len).map(move |start| start..(start + len).min(rows))
}

/// The keys and values of one head.
struct Head<'a, 't, T, F> {
    factors: F,
    layout: Layout,
    /// Positions: nobody sees any from here on.
    len: usize,
    key: RowAt<'a, 't, T>,
    value: RowAt<'a, 't, T>,
    /// What keys and values count times, up to whole panels; empty if nothing.
    scales: [&'a [f32]; 2],
    /// Positions without a key and a value, in order.
    unseen: &'a [Range<usize>],
}

/// Everything was packed in advance, to be used by many blocks of rows.
struct Packed<'a> {
    layout: Layout,
    keys: &'a [f32],
    values: &'a [f32],
}

impl Source for Packed<'_> {
    fn keys(&mut self, i: usize) -> &[f32] {
        let len = self.layout.panel_len();
        &self.keys[i * len..][..len]
    }

    fn values(&mut self, i: usize, _: usize) -> &[f32] {
        let len = self.layout.block_len(SUM_BLOCK);
        &self.values[i * len..][..len]
    }
}

/// Panels are packed when they are asked for: nothing is gained by keeping them for one block.
struct Streamed<'a, 't, T, F> {
    isa: Isa,
    head: &'a Head<'a, 't, T, F>,
    keys: &'a mut [f32],
    values: &'a mut [f32],
    lines: &'a mut [f32],
}

impl<T: Cached, F: Words<T>> Source for Streamed<'_, '_, T, F> {
    fn keys(&mut self, panel: usize) -> &[f32] {
        self.head.pack_keys(self.isa, panel, self.keys, self.lines);
        self.keys
    }

    fn values(&mut self, i: usize, len: usize) -> &[f32] {
        let positions = i * SUM_BLOCK..i * SUM_BLOCK + len;
        self.head.pack_values(self.isa, positions, SUM_BLOCK, self.values);
        self.values
    }
}

impl<T: Cached, F: Words<T>> Head<'_, '_, T, F> {
    fn pack_keys(&self, isa: Isa, panel: usize, out: &mut [f32], lines: &mut [f32]) {
        let Head { factors, layout, key: row, len, .. } = *self;
        factors.dispatch(isa, PackKeys { factors, layout, row, len, panel, out, lines });
    }

    fn pack_values(&self, isa: Isa, positions: Range<usize>, capacity: usize, out: &mut [f32]) {
        let Head { factors, layout, value: row, len, .. } = *self;
        let pack = PackValues { factors, layout, row, len, positions, capacity, out };
        factors.dispatch(isa, pack);
    }

    /// Answers `queries` block by block.
    fn answer<U: Float>(&self, isa: Isa, queries: &Queries<'_, U>)
    where
        F: QueryWords<U>,
    {
        SCRATCH.with_borrow_mut(|Scratch { keys, values, lines, work, .. }| {
            let layout = self.layout;
            let lines = grow(lines, layout.lines_len());
            if queries.count() <= BLOCK_ROWS {
                let keys = grow(keys, layout.panel_len());
                let values = grow(values, layout.block_len(SUM_BLOCK));
                let mut source = Streamed { isa, head: self, keys, values, lines };
                return self.answer_block(isa, queries, 0..queries.count(), &mut source, work);
            }
            let keys = grow(keys, layout.panels(self.len) * layout.panel_len());
            for (i, panel) in keys.chunks_exact_mut(layout.panel_len()).enumerate() {
                self.pack_keys(isa, i, panel, lines);
            }
            let block_len = layout.block_len(SUM_BLOCK);
            let values = grow(values, self.len.div_ceil(SUM_BLOCK) * block_len);
            for (i, block) in values.chunks_exact_mut(block_len).enumerate() {
                let positions = i * SUM_BLOCK..((i + 1) * SUM_BLOCK).min(self.len);
                self.pack_values(isa, positions, SUM_BLOCK, block);
            }
            let mut source = Packed { layout, keys, values };
            for start in (0..queries.count()).step_by(BLOCK_ROWS) {
                let rows = start..(start + BLOCK_ROWS).min(queries.count());
                self.answer_block(isa, queries, rows, &mut source, work);
            }
        });
    }

    fn answer_block<U: Float>(
        &self,
        isa: Isa,
        queries: &Queries<'_, U>,
        rows: Range<usize>,
        source: &mut dyn Source,
        work: &mut Work,
    ) where
        F: QueryWords<U>,
    {
        let Head { factors, layout, scales, unseen, .. } = *self;
        let (query_len, dim) = (layout.query_len(), queries.head_dim);
        work.visible.clear();
        work.visible.extend(rows.clone().map(|i| queries.visible(i)));
        let query = grow(&mut work.query, rows.len() * query_len);
        for (out, i) in query.chunks_exact_mut(query_len).zip(rows.clone()) {
            let (token, cols) = queries.place(i);
            let x = queries.q.part(token, cols);
            factors.dispatch(isa, PackQuery { factors, layout, x, out });
        }
        let scale = queries.scale;
        factors.dispatch(isa, AttendBlock { factors, layout, source, unseen, scale, scales, work });
        let answers = work.out.chunks_exact(layout.padded()).zip(&work.answered).zip(rows);
        for ((row, _), i) in answers.filter(|((_, answered), _)| **answered) {
            let (token, cols) = queries.place(i);
            // SAFETY: tasks differ in their tokens or their heads (the partition).
            let out = unsafe { queries.out.part(token, cols) };
            factors.dispatch(isa, Convert { out, x: &row[..dim] });
        }
    }
}

/// Consecutive tokens for a group of heads that share keys: token by token, then head by head.
struct Queries<'a, T> {
    q: Rows<'a, T>,
    out: RowsMut<'a, T>,
    /// Rows of `q` and `out`.
    tokens: Range<usize>,
    heads: Range<usize>,
    head_dim: usize,
    scale: f32,
    /// How many first positions a token sees.
    visible: &'a dyn Fn(usize) -> usize,
}

impl<T> Queries<'_, T> {
    fn count(&self) -> usize {
        self.tokens.len() * self.heads.len()
    }

    /// Query `i` as a token and columns.
    fn place(&self, i: usize) -> (usize, Range<usize>) {
        let head = self.heads.start + i % self.heads.len();
        (self.tokens.start + i / self.heads.len(), head * self.head_dim..(head + 1) * self.head_dim)
    }

    fn visible(&self, i: usize) -> usize {
        (self.visible)(self.tokens.start + i / self.heads.len())
    }
}

/// The length of a vector.
pub(super) struct Lanes;

impl Op for Lanes {
    type Output = usize;

    #[inline(always)]
    fn call<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

pub(crate) fn attention(cpu: &Cpu, op: Attention<'_, Cpu>) {
    match op.out.dtype() {
        DType::Bf16 if cpu.isa().has_pairs() => dense::<bf16, _>(cpu, Pairs, op),
        dtype => with_float!(dtype, T => dense::<T, _>(cpu, Floats, op)),
    }
}

fn dense<T: Float + Cached, F: QueryWords<T> + Words<T>>(
    cpu: &Cpu,
    factors: F,
    op: Attention<'_, Cpu>,
) {
    let Attention { out, qkv, seq_len, heads, scale } = op;
    let (out, qkv) = (RowsMut::<T>::new(out), Rows::<T>::new(qkv));
    let head_dim = out.cols() / heads;
    let seqs = out.rows() / seq_len;
    let isa = cpu.isa();
    let layout = Layout::new(factors, dispatch(isa, Lanes), head_dim);
    let parts = (TASKS_PER_THREAD * cpu.pool().threads()).div_ceil((seqs * heads).max(1));
    let pieces: Vec<_> = pieces(seq_len, parts).collect();
    cpu.pool().run(seqs * heads * pieces.len(), &|task| {
        let (task, piece) = (task / pieces.len(), &pieces[task % pieces.len()]);
        let (first, head) = (task / heads * seq_len, task % heads);
        let columns = |part: usize| {
            let start = (part * heads + head) * head_dim;
            start..start + head_dim
        };
        let queries = Queries {
            q: qkv,
            out,
            tokens: first + piece.start..first + piece.end,
            heads: head..head + 1,
            head_dim,
            scale,
            visible: &|_| seq_len,
        };
        let head = Head {
            factors,
            layout,
            len: seq_len,
            key: &|u| Some(qkv.part(first + u, columns(1))),
            value: &|u| Some(qkv.part(first + u, columns(2))),
            scales: [&[]; 2],
            unseen: &[],
        };
        head.answer(isa, &queries);
    });
}

pub(crate) fn paged_attention(cpu: &Cpu, op: PagedAttention<'_, Cpu>) {
    match (op.out.dtype(), op.k_cache.dtype()) {
        (DType::Bf16, DType::Bf16) if cpu.isa().has_pairs() => {
            paged::<bf16, bf16, _>(cpu, Pairs, op);
        }
        (DType::Bf16, DType::Int8) if cpu.isa().has_bytes() => {
            paged::<bf16, i8, _>(cpu, Quads, op);
        }
        (DType::Bf16, DType::Fp8) if cpu.isa().has_pairs() => {
            paged::<bf16, Fp8, _>(cpu, Pairs, op);
        }
        (dtype, cache) => {
            with_float!(dtype, T => with_cached!(cache, U => paged::<T, U, _>(cpu, Floats, op)));
        }
    }
}

/// A row of the batch: a sequence's tokens and what they may see.
pub(super) struct Row<'a> {
    pub(super) tokens: Range<usize>,
    /// Of each of the tokens.
    visible: &'a [i32],
    /// Positions that the block table names for the token that sees most.
    len: usize,
    blocks: &'a [i32],
    /// Runs of positions whose block is unusable.
    pub(super) unseen: Vec<Range<usize>>,
}

impl Row<'_> {
    /// How many first positions `token` sees.
    pub(super) fn visible(&self, token: usize) -> usize {
        usize::try_from(self.visible[token - self.tokens.start]).unwrap_or(0).min(self.len)
    }

    /// How many the one of `tokens` sees that sees most.
    fn longest(&self, tokens: Range<usize>) -> usize {
        tokens.map(|token| self.visible(token)).max().unwrap_or(0)
    }
}

/// The rows whose tokens are in order, as they must be for tasks not to overlap.
fn rows_of<'a>(op: &PagedAttention<'a, Cpu>) -> Vec<Row<'a>> {
    let tables = Rows::<i32>::new(op.block_tables);
    let starts = Rows::<i32>::new(op.row_starts).all();
    let visible = Rows::<i32>::new(op.visible).all();
    let (num_tokens, num_blocks) = (op.q.rows(), op.k_cache.rows() / op.block_size);
    let mut rows = Vec::with_capacity(tables.rows());
    let mut done = 0;
    for r in 0..tables.rows() {
        let bounds = index(starts[r], num_tokens + 1).zip(index(starts[r + 1], num_tokens + 1));
        let Some((start, end)) = bounds.filter(|&(start, end)| done <= start && start < end) else {
            continue;
        };
        done = end;
        let visible = &visible[start..end];
        let blocks = tables.row(r);
        let most = visible.iter().copied().max().unwrap_or(0);
        let len = usize::try_from(most).unwrap_or(0).min(blocks.len() * op.block_size);
        let blocks = &blocks[..len.div_ceil(op.block_size)];
        let bad = |&(_, &block): &(usize, &i32)| index(block, num_blocks).is_none();
        let positions = |(i, _)| i * op.block_size..(i + 1) * op.block_size;
        rows.push(Row {
            tokens: start..end,
            visible,
            len,
            blocks,
            unseen: blocks.iter().enumerate().filter(bad).map(positions).collect(),
        });
    }
    rows
}

/// The operation with its tensors opened.
pub(super) struct Paged<'a, T, U, F> {
    pub(super) factors: F,
    pub(super) isa: Isa,
    pub(super) q: Rows<'a, T>,
    pub(super) out: RowsMut<'a, T>,
    pub(super) k_cache: CacheRows<'a, U>,
    pub(super) v_cache: CacheRows<'a, U>,
    block_size: usize,
    num_blocks: usize,
    pub(super) kv_heads: usize,
    /// Query heads per head of keys.
    pub(super) group: usize,
    pub(super) head_dim: usize,
    pub(super) scale: f32,
}

fn paged<T, U, F>(cpu: &Cpu, factors: F, op: PagedAttention<'_, Cpu>)
where
    T: Float,
    U: Cached,
    F: QueryWords<T> + Words<U>,
{
    let rows = rows_of(&op);
    let PagedAttention { block_size, heads, kv_heads, scale, .. } = op;
    let k_cache = CacheRows::<U>::new(op.k_cache, kv_heads);
    let v_cache = CacheRows::<U>::new(op.v_cache, kv_heads);
    let (out, q) = (RowsMut::<T>::new(op.out), Rows::<T>::new(op.q));
    let op = Paged {
        factors,
        isa: cpu.isa(),
        q,
        out,
        k_cache,
        v_cache,
        block_size,
        num_blocks: k_cache.rows() / block_size,
        kv_heads,
        group: heads / kv_heads,
        head_dim: out.cols() / heads,
        scale,
    };
    let wanted = TASKS_PER_THREAD * cpu.pool().threads();
    let (single, many): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.tokens.len() == 1);
    let parts = wanted.div_ceil((many.len() * kv_heads).max(1));
    let pieces: Vec<_> = many
        .iter()
        .flat_map(|row| {
            let start = row.tokens.start;
            pieces(row.tokens.len(), parts)
                .map(move |piece| (row, start + piece.start..start + piece.end))
        })
        .collect();
    cpu.pool().run(pieces.len() * kv_heads, &|task| {
        let (row, tokens) = &pieces[task / kv_heads];
        op.prompt(row, tokens.clone(), task % kv_heads);
    });
    decode(&op, cpu.pool(), &single);
}

impl<'a, T: Float, U: Cached, F: QueryWords<T> + Words<U>> Paged<'a, T, U, F> {
    /// The cache's row of a position, if its block is usable.
    #[inline(always)]
    pub(super) fn slot(&self, row: &Row<'_>, position: usize) -> Option<usize> {
        let block = index(row.blocks[position / self.block_size], self.num_blocks)?;
        Some(block * self.block_size + position % self.block_size)
    }

    /// The columns of a head.
    #[inline(always)]
    pub(super) fn columns(&self, head: usize) -> Range<usize> {
        head * self.head_dim..(head + 1) * self.head_dim
    }

    /// Several tokens of a row, for the query heads of one head of keys.
    fn prompt(&self, row: &Row<'_>, tokens: Range<usize>, kv_head: usize) {
        let (head_dim, columns) = (self.head_dim, self.columns(kv_head));
        let layout = Layout::new(self.factors, dispatch(self.isa, Lanes), head_dim);
        let len = row.longest(tokens.clone());
        let [k_scales, v_scales] = [&self.k_cache, &self.v_cache].map(|cache| {
            let scale = |u| self.slot(row, u).map_or(1.0, |slot| cache.scale(slot, kv_head));
            let mut scales: Vec<f32> =
                (0..if U::SCALE_LEN > 0 { len } else { 0 }).map(scale).collect();
            scales.resize(scales.len().next_multiple_of(layout.positions()), 1.0);
            scales
        });
        let head = Head {
            factors: self.factors,
            layout,
            len,
            key: &|u| Some(self.k_cache.part(self.slot(row, u)?, columns.clone())),
            value: &|u| Some(self.v_cache.part(self.slot(row, u)?, columns.clone())),
            scales: [&k_scales, &v_scales],
            unseen: &row.unseen,
        };
        let queries = Queries {
            q: self.q,
            out: self.out,
            tokens,
            heads: kv_head * self.group..(kv_head + 1) * self.group,
            head_dim,
            scale: self.scale,
            visible: &|token| row.visible(token),
        };
        head.answer(self.isa, &queries);
    }
}
