//! Attention, in the vision tower and over the paged cache.
//!
//! # What is promised
//! A token's answer has the same bits whatever else is in the batch and however its row was cut into
//! steps: which kernels may answer a token is decided by types, sizes of heads and alignment alone, and the
//! two that answer the same ones, for many and for few queries, compute the same (`paged_attention.h`).
use photon_core::{Attention, Cx, DType, PagedAttention, kv};

use super::elements::{alignment, type_code, u32_of};
use crate::{arguments::arguments, device::Gpu, driver::Driver};

/// Queries of a threadgroup, and the threads that share its positions, of the kernels for any type.
const ANY_QUERIES: u32 = 16;
const ANY_THREADS: u32 = 128;
/// Queries of a threadgroup on matrices, and its threads; of the paged cache, where rows have many.
const MANY: u32 = 64;
const MANY_THREADS: u32 = 256;
/// The same where rows have few.
const FEW: u32 = 8;
const FEW_THREADS: u32 = 256;
/// What rows of 16-bit floats on matrices begin at multiples of.
const VECTOR_BYTES: u32 = 8;

arguments! {
    /// `AttentionArgs` of `attention.h`.
    struct AttentionArgs {
        out: u64,
        qkv: u64,
        seq_len: u32,
        heads: u32,
        head_dim: u32,
        out_stride: u32,
        qkv_stride: u32,
        qkv_type: u32,
        scale: f32,
        padding: u32,
    }

    /// `PagedAttentionArgs` of `attention.h`.
    struct PagedAttentionArgs {
        out: u64,
        q: u64,
        k_cache: u64,
        v_cache: u64,
        block_tables: u64,
        row_starts: u64,
        visible: u64,
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
        q_type: u32,
        cache_type: u32,
        least: u32,
        most: u32,
        scale: f32,
        padding: u32,
    }
}

pub(crate) fn attention<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Attention<'_, Gpu<L>>) {
    let Attention { out, qkv, seq_len, heads, scale } = op;
    let head_dim = out.cols() / heads;
    let args = AttentionArgs {
        out: cx.stream.writes(out),
        qkv: cx.stream.reads(qkv),
        seq_len: u32_of(seq_len),
        heads: u32_of(heads),
        head_dim: u32_of(head_dim),
        out_stride: u32_of(out.row_stride()),
        qkv_stride: u32_of(qkv.row_stride()),
        qkv_type: type_code(qkv.dtype()),
        scale,
        padding: 0,
    };
    let num_seqs = u32_of(out.rows() / seq_len);
    let fits = [&*out, qkv].into_iter().all(|t| alignment(t) >= VECTOR_BYTES);
    let has_bfloat = cx.device.facts().has_bfloat;
    let kernel = match (out.dtype(), head_dim) {
        _ if !fits => None,
        (DType::F16, 32) => Some("attention_f16_32"),
        (DType::F16, 64) => Some("attention_f16_64"),
        (DType::F16, 72) => Some("attention_f16_72"),
        (DType::Bf16, 32) if has_bfloat => Some("attention_bf16_32"),
        (DType::Bf16, 64) if has_bfloat => Some("attention_bf16_64"),
        (DType::Bf16, 72) if has_bfloat => Some("attention_bf16_72"),
        _ => None,
    };
    match kernel {
        Some(kernel) => {
            let threadgroups = [args.seq_len.div_ceil(MANY), args.heads, num_seqs];
            cx.stream.launch(kernel, threadgroups, MANY_THREADS, &args);
        }
        None => {
            let columns = args.head_dim.div_ceil(ANY_THREADS);
            let threadgroups = [args.seq_len.div_ceil(ANY_QUERIES), args.heads, num_seqs * columns];
            let bytes = 4 * ANY_QUERIES * args.head_dim;
            cx.stream.launch_with("attention_any", threadgroups, ANY_THREADS, &args, bytes);
        }
    }
}

impl PagedAttentionArgs {
    fn new<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: &PagedAttention<'_, Gpu<L>>) -> Self {
        let PagedAttention { out, q, k_cache, v_cache, block_tables, row_starts, visible, .. } = op;
        let cache_bytes = k_cache.dtype().size();
        PagedAttentionArgs {
            out: cx.stream.writes(out),
            q: cx.stream.reads(q),
            k_cache: cx.stream.reads(k_cache),
            v_cache: cx.stream.reads(v_cache),
            block_tables: cx.stream.reads(block_tables),
            row_starts: cx.stream.reads(row_starts),
            visible: cx.stream.reads(visible),
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
            q_type: type_code(q.dtype()),
            cache_type: type_code(k_cache.dtype()),
            least: 1,
            most: u32::MAX,
            scale: op.scale,
            padding: 0,
        }
    }

    /// Queries that share a head of keys, of all tokens.
    fn queries(&self) -> u32 {
        self.tokens * (self.heads / self.kv_heads)
    }

    /// At least as many threadgroups of `per` queries of one row as there are, whatever the rows are.
    fn threadgroups(&self, per: u32) -> u32 {
        self.queries() / per + self.rows.min(self.tokens)
    }
}

pub(crate) fn paged_attention<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: PagedAttention<'_, Gpu<L>>) {
    let args = PagedAttentionArgs::new(cx, &op);
    let Some((many, few)) = kernels(&op, cx.device.facts().has_bfloat) else {
        let columns = args.head_dim.div_ceil(ANY_THREADS);
        let threadgroups = [args.threadgroups(ANY_QUERIES), args.kv_heads, columns];
        let bytes = 4 * ANY_QUERIES * args.head_dim;
        cx.stream.launch_with("paged_attention_any", threadgroups, ANY_THREADS, &args, bytes);
        return;
    };
    // How tokens are divided among rows is known to the device alone. Mostly one token a row is decoding,
    // and then one launch answers all; rows with many tokens would have their context read again for every
    // few of them. A row by itself has all tokens.
    let is_decoding = args.queries() <= FEW || (args.rows > 1 && args.tokens <= 2 * args.rows);
    let has_few = is_decoding || args.rows > 1;
    let mut most = u32::MAX;
    if !is_decoding {
        let least = if has_few { FEW + 1 } else { 1 };
        let args = PagedAttentionArgs { least, ..args };
        cx.stream.launch(many, [args.threadgroups(MANY), args.kv_heads, 1], MANY_THREADS, &args);
        most = FEW;
    }
    if has_few {
        // What a launch touches is told anew.
        let args = PagedAttentionArgs { most, ..PagedAttentionArgs::new(cx, &op) };
        cx.stream.launch(few, [args.threadgroups(FEW), args.kv_heads, 1], FEW_THREADS, &args);
    }
}

/// The kernels on matrices for many and for few queries, if there are any for this.
fn kernels<L: Driver>(
    op: &PagedAttention<'_, Gpu<L>>,
    has_bfloat: bool,
) -> Option<(&'static str, &'static str)> {
    let (dtype, cache) = (op.out.dtype(), op.k_cache.dtype());
    let least = if kv::is_scaled(cache) { size_of::<u32>() as u32 } else { VECTOR_BYTES };
    let fits = op.out.cols() == 64 * op.heads
        && [&*op.out, op.q].into_iter().all(|t| alignment(t) >= VECTOR_BYTES)
        && [op.k_cache, op.v_cache].into_iter().all(|t| alignment(t) >= least);
    match (dtype, cache) {
        (DType::Bf16, _) if !has_bfloat => None,
        _ if !fits => None,
        (DType::F16, DType::F16) => Some(("paged_attention_f16", "paged_attention_split_f16")),
        (DType::F16, DType::Int8) => {
            Some(("paged_attention_f16_int8", "paged_attention_split_f16_int8"))
        }
        (DType::F16, DType::Fp8) => {
            Some(("paged_attention_f16_fp8", "paged_attention_split_f16_fp8"))
        }
        (DType::Bf16, DType::Bf16) => Some(("paged_attention_bf16", "paged_attention_split_bf16")),
        (DType::Bf16, DType::Int8) => {
            Some(("paged_attention_bf16_int8", "paged_attention_split_bf16_int8"))
        }
        (DType::Bf16, DType::Fp8) => {
            Some(("paged_attention_bf16_fp8", "paged_attention_split_bf16_fp8"))
        }
        _ => None,
    }
}
