//! [`PagedAttention`]: shuffled blocks, masks, ragged batches, and memory that must not matter.
//!
//! Every slot of the caches that no row reaches holds NaN: blocks of nobody, the rest of a last block,
//! and the block that table entries past the context name. One look at any of them shows in the output.
use std::ops::Range;

use photon_core::{DType, Kernels, PagedAttention, kv};

use crate::{
    Options,
    cache::Cache,
    oracle,
    rig::{Gaps, Label, Probe, Rig, Want, skip},
    rng::Rng,
};

/// One row of a batch.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// Tokens of this step.
    new: usize,
    /// Positions in the cache, those included.
    context: usize,
    /// Positions that attend both ways: a picture's.
    span: (usize, usize),
}

/// A row in which everything is causal.
const fn row(new: usize, context: usize) -> Row {
    with_span(new, context, 0, 0)
}

const fn with_span(new: usize, context: usize, start: usize, end: usize) -> Row {
    Row { new, context, span: (start, end) }
}

impl Row {
    /// How many first positions the token at `position` sees.
    fn visible(&self, position: usize) -> i32 {
        let (start, end) = self.span;
        let last = if start <= position && position < end { end.min(self.context) } else { 0 };
        last.max(position + 1) as i32
    }
}

#[derive(Clone, Debug)]
struct Config {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    rows: Vec<Row>,
    q: DType,
    cache: DType,
    /// Size of the elements of q; those of k and v are 1.
    sharpness: f32,
    /// Compute the oracle for one token in so many.
    sparse: usize,
    seed: u64,
}

impl Config {
    fn label(&self, what: &str) -> Label {
        let Config { heads, kv_heads, head_dim, block_size, rows, q, cache, .. } = self;
        let rows: Vec<String> = rows
            .iter()
            .take(9)
            .map(|r| format!("{} of {} span {:?}", r.new, r.context, r.span))
            .collect();
        let about = format!(
            "{what}heads {heads}, kv_heads {kv_heads}, head_dim {head_dim}, block_size {block_size}; \
             rows: {}; q {q}, cache {cache}",
            rows.join(", ")
        );
        Label { op: "paged_attention", about, seed: self.seed }
    }

    fn cache(&self, num_blocks: usize) -> Cache {
        let &Config { kv_heads, head_dim, cache: dtype, .. } = self;
        Cache { num_slots: num_blocks * self.block_size, kv_heads, head_dim, dtype }
    }
}

/// A batch on the device, and the integers that describe it.
struct Batch<D: Kernels> {
    c: Config,
    q: Probe<D>,
    k: Probe<D>,
    v: Probe<D>,
    num_blocks: usize,
    max_blocks: usize,
    tables: Vec<i32>,
    starts: Vec<i32>,
    /// Of each token.
    visible: Vec<i32>,
}

impl<D: Kernels> Batch<D> {
    fn new(rig: &mut Rig<'_, D>, c: &Config) -> Self {
        let rng = &mut Rng::new(c.seed);
        let used: Vec<usize> = c.rows.iter().map(|r| r.context.div_ceil(c.block_size)).collect();
        // One block more than the longest row needs, and two that belong to nobody.
        let max_blocks = used.iter().max().expect("a row") + 1;
        let num_blocks = used.iter().sum::<usize>() + 2;
        let mut free = rng.permutation(num_blocks);
        let stale = free.pop().expect("two spare blocks") as i32;
        let mut tables = Vec::new();
        let mut is_reached = vec![false; num_blocks * c.block_size];
        for (row, &blocks) in c.rows.iter().zip(&used) {
            let own = free.split_off(free.len() - blocks);
            for u in 0..row.context {
                is_reached[own[u / c.block_size] * c.block_size + u % c.block_size] = true;
            }
            tables.extend(own.iter().map(|&b| b as i32));
            tables.extend((blocks..max_blocks).map(|_| stale));
        }
        let mut starts = vec![0i32];
        for row in &c.rows {
            starts.push(starts[starts.len() - 1] + row.new as i32);
        }
        let tokens = starts[starts.len() - 1] as usize;
        let (q_dim, kv_dim) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let cache = c.cache(num_blocks);
        let k = cache.input(rig, "k_cache", rng, &is_reached);
        let v = cache.input(rig, "v_cache", rng, &is_reached);
        // q as the models have it: the first columns of qkv.
        let gaps = Gaps { before: 0, after: 2 * kv_dim };
        let q = rig.view("q", [tokens, q_dim], c.q, gaps, &rng.floats(tokens * q_dim, c.sharpness));
        let rows = c.rows.iter();
        let tokens_of = |row: &Row| row.context - row.new..row.context;
        let visible = rows.flat_map(|row| tokens_of(row).map(|p| row.visible(p))).collect();
        Batch { c: c.clone(), q, k, v, num_blocks, max_blocks, tables, starts, visible }
    }

    fn tokens(&self) -> usize {
        self.q.t.rows()
    }

    /// Runs rows `rows` of the batch by themselves and returns the output.
    fn run(&self, rig: &mut Rig<'_, D>, rows: Range<usize>, label: &Label) -> Probe<D> {
        let first = self.starts[rows.start];
        let tokens = first as usize..self.starts[rows.end] as usize;
        let starts: Vec<i32> =
            self.starts[rows.start..=rows.end].iter().map(|s| s - first).collect();
        self.run_tokens(rig, rows, tokens, &starts, label)
    }

    /// Runs tokens `tokens` as those of rows `rows`, divided by `starts`.
    fn run_tokens(
        &self,
        rig: &mut Rig<'_, D>,
        rows: Range<usize>,
        tokens: Range<usize>,
        starts: &[i32],
        label: &Label,
    ) -> Probe<D> {
        let count = rows.len();
        let tables = &self.tables[rows.start * self.max_blocks..rows.end * self.max_blocks];
        let tables = rig.indices("block_tables", [count, self.max_blocks], tables);
        let starts = rig.indices("row_starts", [count + 1], starts);
        let visible = rig.indices("visible", [tokens.len()], &self.visible[tokens.clone()]);
        let c = &self.c;
        let mut out = rig.output("out", [tokens.len(), c.heads * c.head_dim], c.q, Gaps::NONE);
        rig.record(|cx| {
            cx.paged_attention(PagedAttention {
                out: &mut out.t,
                q: &self.q.t.row_range(tokens),
                k_cache: &self.k.t,
                v_cache: &self.v.t,
                block_tables: &tables.t,
                row_starts: &starts.t,
                visible: &visible.t,
                block_size: c.block_size,
                heads: c.heads,
                kv_heads: c.kv_heads,
                scale: self.scale(),
            });
        });
        rig.unchanged(label, &[&tables, &starts, &visible, &self.q, &self.k, &self.v]);
        out
    }

    fn scale(&self) -> f32 {
        1.0 / (self.c.head_dim as f32).sqrt()
    }

    /// The cache rows that token `t` sees, in order.
    fn seen(&self, t: usize) -> Vec<usize> {
        let c = &self.c;
        let row = (0..c.rows.len())
            .find(|&r| self.starts[r] as usize <= t && t < self.starts[r + 1] as usize)
            .expect("every token has a row");
        // What lies past the table lies in no block.
        let end = usize::try_from(self.visible[t]).unwrap_or(0).min(self.max_blocks * c.block_size);
        let slot = |u: usize| {
            let block = self.tables[row * self.max_blocks + u / c.block_size];
            let block = usize::try_from(block).ok().filter(|&b| b < self.num_blocks)?;
            Some(block * c.block_size + u % c.block_size)
        };
        (0..end).filter_map(slot).collect()
    }

    fn check(&self, rig: &mut Rig<'_, D>, what: &str) {
        let label = self.c.label(what);
        let out = self.run(rig, 0..self.c.rows.len(), &label);
        let Config { heads, kv_heads, head_dim, sparse, .. } = self.c;
        let cache = self.c.cache(self.num_blocks);
        let (q, k, v) = (self.q.values(), cache.values(&self.k), cache.values(&self.v));
        let width = heads * head_dim;
        let mut want = vec![Want::Stays; self.tokens() * width];
        for t in 0..self.tokens() {
            let slots = self.seen(t);
            if slots.is_empty() {
                continue;
            }
            let whole = t % sparse == 0 || self.starts.contains(&(t as i32 + 1));
            for head in 0..heads {
                let at = (t * heads + head) * head_dim;
                if !whole {
                    want[at..at + head_dim].fill(Want::Finite);
                    continue;
                }
                let part = |slot: &usize| {
                    let at = (slot * kv_heads + head / (heads / kv_heads)) * head_dim;
                    (&k[at..at + head_dim], &v[at..at + head_dim])
                };
                let seen: Vec<_> = slots.iter().map(part).collect();
                let rounding = rig.options.attention_rounding(self.c.q, self.c.cache);
                let query = &q[at..at + head_dim];
                let row = oracle::attend(query, &seen, f64::from(self.scale()), rounding);
                for (d, value) in row.into_iter().enumerate() {
                    want[at + d] = Want::Near(value);
                }
            }
        }
        rig.check(&label, &out, |t, j| want[t * width + j]);
    }
}

const HEADS: [(usize, usize, usize); 5] =
    [(1, 1, 7), (2, 2, 64), (4, 2, 33), (6, 1, 64), (3, 3, 72)];

fn each<D: Kernels>(
    rig: &mut Rig<'_, D>,
    what: &str,
    first_seed: u64,
    batches: &[Vec<Row>],
    mut spoil: impl FnMut(&mut Batch<D>),
) {
    let mut seed = first_seed;
    for (q, cache) in rig.options.cache_pairs() {
        for block_size in [1, 16, 64] {
            for rows in batches {
                seed += 1;
                let (heads, kv_heads, head_dim) = HEADS[seed as usize % HEADS.len()];
                let c = Config {
                    heads,
                    kv_heads,
                    head_dim,
                    block_size,
                    rows: rows.clone(),
                    q,
                    cache,
                    sharpness: 3.0,
                    sparse: 1,
                    seed,
                };
                let mut batch = Batch::new(rig, &c);
                spoil(&mut batch);
                batch.check(rig, what);
            }
        }
    }
}

/// One token a row: contexts around the block borders, alone and in a batch.
pub(crate) fn decode<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let alone = |context| vec![row(1, context)];
    let together = [1, 2, 15, 16, 17, 33, 64, 65, 100].map(|context| row(1, context));
    let batches = [alone(1), alone(16), alone(65), together.to_vec()];
    each(rig, "", 80_000, &batches, |_| ());
}

/// Chunks of many lengths, at the start of a context and further in, mixed with decoding rows and
/// with rows that have no tokens in this step.
pub(crate) fn prefill_and_decode<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let batches = [
        vec![row(33, 33)],
        vec![row(7, 7), row(1, 20), row(17, 49)],
        vec![row(0, 5), row(16, 16), row(1, 1), row(0, 0), row(5, 70), row(0, 9)],
    ];
    each(rig, "", 81_000, &batches, |_| ());
}

/// Pictures attend both ways: at the start, in the middle and at the end of a chunk, alone in it, many
/// of them, and chunks that begin inside of a picture or after it.
pub(crate) fn spans<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let at_start = [1, 2, 19, 20].map(|end| with_span(20, 20, 0, end));
    let later = [(20, 30), (21, 30), (22, 29), (23, 24), (0, 21), (18, 26)];
    let later = later.map(|(start, end)| with_span(9, 30, start, end));
    let long = [with_span(1, 30, 0, 29), with_span(35, 67, 0, 48), with_span(60, 67, 20, 61)];
    let batches = [at_start.to_vec(), later.to_vec(), long.to_vec()];
    each(rig, "", 82_000, &batches, |_| ());
    // Two pictures one after the other, text, and a third one that ends the chunk.
    let several = [vec![row(50, 50), with_span(3, 40, 0, 0)]];
    each(rig, "several pictures; ", 82_500, &several, |b| {
        for (start, end) in [(0, 9), (9, 20), (33, 50)] {
            b.visible[start..end].fill(end as i32);
        }
    });
}

/// Tokens of a row may see in any order of lengths, whatever models ask for.
pub(crate) fn any_order<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let batches = [vec![row(40, 70), row(5, 64), row(1, 20)]];
    each(rig, "any order; ", 82_900, &batches, |b| {
        let rng = &mut Rng::new(b.c.seed ^ 1);
        let ends = b.c.rows.iter().flat_map(|row| std::iter::repeat_n(row.context, row.new));
        for (visible, context) in b.visible.iter_mut().zip(ends) {
            *visible = rng.below(context + 1) as i32;
        }
    });
}

/// Blocks that are negative or out of range hide their positions. A token that sees nothing stays.
pub(crate) fn poisoned_tables<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let batches = [
        vec![row(1, 70), row(1, 100), row(9, 80), with_span(70, 70, 0, 50), row(1, 1)],
        vec![row(3, 3), row(1, 65), row(20, 90)],
    ];
    each(rig, "poisoned tables; ", 83_000, &batches, |b| {
        let bad = [-1, i32::MIN, i32::MAX, b.num_blocks as i32, -(b.num_blocks as i32)];
        let rng = &mut Rng::new(b.c.seed ^ 1);
        // One row loses all its blocks, the others one in three.
        let (lost, max_blocks) = (rng.below(b.c.rows.len()), b.max_blocks);
        for (r, table) in b.tables.chunks_exact_mut(max_blocks).enumerate() {
            for block in table {
                if r == lost || rng.below(3) == 0 {
                    *block = bad[rng.below(bad.len())];
                }
            }
        }
    });
}

/// Numbers of visible positions that are zero, negative or longer than the table. The tables here name
/// only good blocks, all of whose slots hold numbers.
pub(crate) fn poisoned_lengths<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let capacity = |b: &Batch<D>| (b.max_blocks * b.c.block_size) as i32;
    let batches = [vec![row(1, 64), row(1, 64), row(5, 64), row(3, 64), row(1, 64), row(4, 64)]];
    each(rig, "poisoned visible; ", 84_000, &batches, |b| {
        let full = 64 / b.c.block_size as i32;
        let max_blocks = b.max_blocks as i32;
        // The spare entry of each table, which names a block of NaN, becomes a bad one.
        for table in b.tables.chunks_exact_mut(max_blocks as usize) {
            table[full as usize..].fill(-1);
        }
        let absurd = [0, -1, i32::MIN, capacity(b) + 1, i32::MAX];
        let (repeated, mixed) = b.visible.split_at_mut(11);
        let rows = [1, 1, 5, 3, 1].into_iter().zip(absurd);
        let rows = rows.flat_map(|(new, visible)| std::iter::repeat_n(visible, new));
        repeated.iter_mut().zip(rows).for_each(|(old, visible)| *old = visible);
        mixed.copy_from_slice(&[i32::MAX, -1, 7, i32::MIN]);
    });
}

/// Rows that share blocks, as the prefix cache makes them.
pub(crate) fn shared_blocks<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let batches = [vec![row(1, 64), row(7, 70), row(1, 99)]];
    each(rig, "shared blocks; ", 85_000, &batches, |b| {
        let shared = 64 / b.c.block_size;
        let (first, rest) = b.tables.split_at_mut(b.max_blocks);
        for table in rest.chunks_exact_mut(b.max_blocks) {
            table[..shared].copy_from_slice(&first[..shared]);
        }
    });
}

/// Scores far beyond what an exponential can hold.
pub(crate) fn large_scores<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    for (i, (q, cache)) in options.cache_pairs().enumerate() {
        for (j, sharpness) in [0.0, 50.0, 300.0].into_iter().enumerate() {
            let c = Config {
                heads: 4,
                kv_heads: 2,
                head_dim: 64,
                block_size: 16,
                rows: vec![row(1, 99), with_span(20, 20, 0, 10)],
                q,
                cache,
                sharpness,
                sparse: 1,
                seed: 86_000 + (10 * i + j) as u64,
            };
            Batch::new(rig, &c).check(rig, "large scores; ");
        }
    }
}

/// 32 heads of 64: a picture's 730 positions, and a batch of decoding rows behind it.
pub(crate) fn real_shapes<D: Kernels>(device: &D, options: &Options) {
    let rig = &mut Rig::new(device, options);
    let prefill = (vec![with_span(730, 730, 0, 730)], 163);
    let mixed = (vec![row(1, 731), row(1, 800), row(12, 742), row(1, 1023)], 1);
    let dtype = options.float(options.floats.len() - 1);
    let mixed_in_8_bits = options.caches.iter().filter(|dtype| kv::is_scaled(**dtype));
    let mixed_in_8_bits = mixed_in_8_bits.map(|&cache| (mixed.clone(), cache));
    let batches = [(prefill, dtype), (mixed.clone(), dtype)].into_iter().chain(mixed_in_8_bits);
    for (i, ((rows, sparse), cache)) in batches.enumerate() {
        let c = Config {
            heads: 32,
            kv_heads: 32,
            head_dim: 64,
            block_size: 16,
            rows,
            q: dtype,
            cache,
            sharpness: 3.0,
            sparse,
            seed: 87_000 + i as u64,
        };
        Batch::new(rig, &c).check(rig, "");
    }
}

/// Every pair of types: with heads of 64, for which backends have kernels of their own, and with any.
fn pairs_with_heads(
    options: &Options,
) -> impl Iterator<Item = (DType, DType, (usize, usize, usize))> + use<> {
    let pairs = options.cache_pairs().enumerate();
    let heads = |i: usize| [HEADS[1 + i % 2 * 2], HEADS[i % HEADS.len()]];
    pairs.flat_map(move |(i, (q, cache))| heads(i).map(|heads| (q, cache, heads)))
}

/// A row alone has the bits it has among others.
pub(crate) fn batch_invariance<D: Kernels>(device: &D, options: &Options) {
    if !options.batch_invariant {
        return skip("paged_attention_batch_invariance", &device.name(), "not promised");
    }
    let rig = &mut Rig::new(device, options);
    let mixed = vec![row(1, 65), with_span(9, 40, 31, 38), row(1, 1), row(1, 300), row(33, 33)];
    let decode = (0..17).map(|i| row(1, 1 + 37 * i)).collect();
    for (i, rows) in [mixed, decode].into_iter().enumerate() {
        for (j, (q, cache, (heads, kv_heads, head_dim))) in pairs_with_heads(options).enumerate() {
            let seed = 88_000 + (30 * i + j) as u64;
            let c = Config {
                heads,
                kv_heads,
                head_dim,
                block_size: 16,
                rows: rows.clone(),
                q,
                cache,
                sharpness: 3.0,
                sparse: 1,
                seed,
            };
            let batch = Batch::new(rig, &c);
            let label = c.label("alone and in a batch; ");
            let out = batch.run(rig, 0..rows.len(), &label);
            let together = rig.read(&label, &out);
            let token_bytes = heads * head_dim * q.size();
            for r in 0..rows.len() {
                let out = batch.run(rig, r..r + 1, &label);
                let alone = rig.read(&label, &out);
                let at = batch.starts[r] as usize * token_bytes;
                assert!(alone == together[at..at + alone.len()], "{label}: row {r} differs");
            }
        }
    }
}

/// A token has the bits it has when its row is computed at once, however the row is cut into chunks.
pub(crate) fn chunk_invariance<D: Kernels>(device: &D, options: &Options) {
    if !options.chunk_invariant {
        return skip("paged_attention_chunk_invariance", &device.name(), "not promised");
    }
    let rig = &mut Rig::new(device, options);
    for (i, (len, span)) in [(70, 0..0), (150, 0..33), (300, 70..113)].into_iter().enumerate() {
        for (j, (q, cache, (heads, kv_heads, head_dim))) in pairs_with_heads(options).enumerate() {
            let seed = 89_000 + (30 * i + j) as u64;
            let c = Config {
                heads,
                kv_heads,
                head_dim,
                block_size: 16,
                rows: vec![with_span(len, len, span.start, span.end)],
                q,
                cache,
                sharpness: 3.0,
                sparse: 1,
                seed,
            };
            let batch = Batch::new(rig, &c);
            let label = c.label("at once and in chunks; ");
            let out = batch.run(rig, 0..1, &label);
            let at_once = rig.read(&label, &out);
            let token_bytes = heads * head_dim * q.size();
            let rng = &mut Rng::new(seed ^ 1);
            let mut start = 0;
            while start < len {
                // The picture is never cut; else chunks of many sizes, single tokens among them.
                let size = [1, 1, 2, 7, 16, 31, 64][rng.below(7)];
                let mut end = (start + size).min(len);
                if span.contains(&end) {
                    end = if start < span.start { span.start } else { span.end };
                }
                let starts = [0, (end - start) as i32];
                let out = batch.run_tokens(rig, 0..1, start..end, &starts, &label);
                let chunk = rig.read(&label, &out);
                let want = &at_once[start * token_bytes..end * token_bytes];
                assert!(chunk == want, "{label}: tokens {start}..{end} differ");
                start = end;
            }
        }
    }
}
