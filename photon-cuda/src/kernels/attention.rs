//! Attention, in the vision tower and over the paged cache.
//!
//! # What is promised
//! A token's answer has the same bits whatever else is in the batch and however its row was cut into
//! steps: which kernels may answer a token is decided by types, sizes of heads and alignment alone, and the
//! two that answer the same ones, for many and for few queries, compute the same (`paged_attention.cuh`).
use bytemuck::{Pod, Zeroable};
use photon_core::{Attention, Cx, DType, PagedAttention, kv};

use super::elements::{alignment, type_code, u32_of};
use crate::{
    device::Gpu,
    driver::Driver,
    stream::{COUNTER_BYTES, WORKSPACE_BYTES},
};

/// Queries of a block, and the threads that share its positions, of the kernels for any type.
const ANY_QUERIES: u32 = 16;
const ANY_THREADS: u32 = 128;

/// `AttentionArgs` of `attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct AttentionArgs {
    out: u64,
    qkv: u64,
    seq_len: u32,
    heads: u32,
    head_dim: u32,
    out_stride: u32,
    qkv_stride: u32,
    r#type: u32,
    scale: f32,
    padding: u32,
}

pub(crate) fn attention<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Attention<'_, Gpu<L>>) {
    let Attention { out, qkv, seq_len, heads, scale } = op;
    let head_dim = out.cols() / heads;
    let args = AttentionArgs {
        out: cx.stream.address(out),
        qkv: cx.stream.address(qkv),
        seq_len: u32_of(seq_len),
        heads: u32_of(heads),
        head_dim: u32_of(head_dim),
        out_stride: u32_of(out.row_stride()),
        qkv_stride: u32_of(qkv.row_stride()),
        r#type: type_code(out.dtype()),
        scale,
        padding: 0,
    };
    let num_seqs = u32_of(out.rows() / seq_len);
    let fits = scale > 0.0 && alignment(out) == 16 && alignment(qkv) == 16;
    let kernel = match (out.dtype(), head_dim) {
        _ if !fits => None,
        (DType::Bf16, 32) => Some("attention_bf16_32"),
        (DType::Bf16, 64) => Some("attention_bf16_64"),
        (DType::Bf16, 72) => Some("attention_bf16_72"),
        (DType::F16, 32) => Some("attention_f16_32"),
        (DType::F16, 64) => Some("attention_f16_64"),
        (DType::F16, 72) => Some("attention_f16_72"),
        _ => None,
    };
    match kernel {
        Some(kernel) => {
            let grid = [args.seq_len.div_ceil(128), args.heads, num_seqs];
            cx.stream.launch(kernel, grid, [128, 1, 1], 0, &args);
        }
        None => {
            let columns = args.head_dim.div_ceil(ANY_THREADS);
            let grid = [args.seq_len.div_ceil(ANY_QUERIES), args.heads, num_seqs * columns];
            let shared_bytes = 4 * ANY_QUERIES * args.head_dim;
            cx.stream.launch("attention_any", grid, [ANY_THREADS, 1, 1], shared_bytes, &args);
        }
    }
}

/// `PagedAttentionArgs` of `attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct PagedAttentionArgs {
    out: u64,
    q: u64,
    k_cache: u64,
    v_cache: u64,
    block_tables: u64,
    row_starts: u64,
    visible: u64,
    partials: u64,
    counters: u64,
    rows: u32,
    tokens: u32,
    max_blocks: u32,
    num_blocks: u32,
    block_size: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    out_stride: u32,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
    r#type: u32,
    cache_type: u32,
    least: u32,
    most: u32,
    scale: f32,
    max_tiles: u32,
}

/// Queries of a block of the kernel for many, and of that for few.
const MANY: u32 = 64;
const FEW: u32 = 8;
/// Positions of a tile, and tiles that a block of the kernel for few takes at a time.
const TILE: u32 = 64;
const TILES_AT_A_TIME: u32 = 4;
/// Bytes of a tile's result for a query of 64 columns.
const PARTIAL_BYTES: u64 = 4 * (64 + 4);
/// Blocks of the kernel for few that a multiprocessor holds.
const RESIDENT: u32 = 2;

impl PagedAttentionArgs {
    /// Queries that share a head of keys, of all tokens.
    fn queries(&self) -> u32 {
        self.tokens * (self.heads / self.kv_heads)
    }

    /// At least as many blocks of `per` queries of one row as there are, whatever the rows are.
    fn blocks(&self, per: u32) -> u32 {
        self.queries() / per + self.rows.min(self.tokens)
    }

    /// Over how many blocks a context is split, so that they fill the device about twice: with more, a
    /// block would not have enough to do.
    fn splits(&self, multiprocessors: u32) -> u32 {
        let (tiles, blocks) = (self.max_tiles, self.blocks(FEW) * self.kv_heads);
        let bytes =
            u64::from(self.tokens) * u64::from(self.heads) * u64::from(tiles) * PARTIAL_BYTES;
        let has_room = bytes <= (WORKSPACE_BYTES - COUNTER_BYTES) as u64
            && blocks as usize <= COUNTER_BYTES / size_of::<u32>();
        let wanted = (2 * RESIDENT * multiprocessors).div_ceil(blocks.max(1));
        if has_room { wanted.clamp(1, tiles.div_ceil(TILES_AT_A_TIME).max(1)) } else { 1 }
    }
}

pub(crate) fn paged_attention<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: PagedAttention<'_, Gpu<L>>) {
    let kernels = kernels(&op);
    let PagedAttention { out, q, k_cache, v_cache, block_tables, row_starts, visible, .. } = op;
    let cache_bytes = k_cache.dtype().size();
    let workspace = cx.stream.workspace();
    let positions = block_tables.cols() * op.block_size;
    let mut args = PagedAttentionArgs {
        out: cx.stream.address(out),
        q: cx.stream.address(q),
        k_cache: cx.stream.address(k_cache),
        v_cache: cx.stream.address(v_cache),
        block_tables: cx.stream.address(block_tables),
        row_starts: cx.stream.address(row_starts),
        visible: cx.stream.address(visible),
        partials: workspace + COUNTER_BYTES as u64,
        counters: workspace,
        rows: u32_of(block_tables.rows()),
        tokens: u32_of(out.rows()),
        max_blocks: u32_of(block_tables.cols()),
        num_blocks: u32_of(k_cache.rows() / op.block_size),
        block_size: u32_of(op.block_size),
        heads: u32_of(op.heads),
        kv_heads: u32_of(op.kv_heads),
        head_dim: u32_of(out.cols() / op.heads),
        out_stride: u32_of(out.row_stride()),
        q_stride: u32_of(q.row_stride()),
        k_stride: u32_of(k_cache.row_stride() * cache_bytes),
        v_stride: u32_of(v_cache.row_stride() * cache_bytes),
        r#type: type_code(out.dtype()),
        cache_type: type_code(k_cache.dtype()),
        least: 1,
        most: u32::MAX,
        scale: op.scale,
        max_tiles: u32_of(positions).div_ceil(TILE),
    };
    let Some((many, few)) = kernels else {
        let columns = args.head_dim.div_ceil(ANY_THREADS);
        let grid = [args.blocks(ANY_QUERIES), args.kv_heads, columns];
        let shared_bytes = 4 * ANY_QUERIES * args.head_dim;
        cx.stream.launch("paged_attention_any", grid, [ANY_THREADS, 1, 1], shared_bytes, &args);
        return;
    };
    // How tokens are divided among rows is known to the device alone. Mostly one token a row is decoding,
    // and then one launch answers all; rows with many tokens would have their context read again for every
    // few of them. A row by itself has all tokens.
    let queries = args.queries();
    let is_decoding = queries <= FEW || (args.rows > 1 && args.tokens <= 2 * args.rows);
    let has_few = is_decoding || args.rows > 1;
    if !is_decoding {
        args.least = if has_few { FEW + 1 } else { 1 };
        let grid = [args.blocks(MANY), args.kv_heads, 1];
        cx.stream.launch(many, grid, [128, 1, 1], 0, &args);
    }
    if has_few {
        args.least = 1;
        args.most = if is_decoding { u32::MAX } else { FEW };
        let splits = args.splits(cx.device.facts().multiprocessors);
        let grid = [args.blocks(FEW), args.kv_heads, splits];
        cx.stream.launch(few, grid, [128, 1, 1], 0, &args);
    }
}

/// The kernels on tensor cores for many and for few queries, if there are any for this.
fn kernels<L: Driver>(op: &PagedAttention<'_, Gpu<L>>) -> Option<(&'static str, &'static str)> {
    let (dtype, cache) = (op.out.dtype(), op.k_cache.dtype());
    let caches = [op.k_cache, op.v_cache].map(alignment);
    let fits = op.out.cols() == 64 * op.heads
        && [&*op.out, op.q].into_iter().all(|t| alignment(t) == 16)
        && caches.into_iter().all(|align| align >= if kv::is_scaled(cache) { 4 } else { 16 });
    match (dtype, cache) {
        _ if !fits => None,
        (DType::Bf16, DType::Bf16) => Some(("paged_attention_bf16", "paged_attention_split_bf16")),
        (DType::F16, DType::F16) => Some(("paged_attention_f16", "paged_attention_split_f16")),
        (DType::Bf16, DType::Int8) => {
            Some(("paged_attention_bf16_int8", "paged_attention_split_bf16_int8"))
        }
        (DType::Bf16, DType::Fp8) => {
            Some(("paged_attention_bf16_fp8", "paged_attention_split_bf16_fp8"))
        }
        _ => None,
    }
}
