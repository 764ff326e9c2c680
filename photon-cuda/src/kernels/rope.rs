//! Rotation by position, what scales queries and values, and the store of keys and values.
use bytemuck::{Pod, Zeroable};
use photon_core::{Cx, RopeStore, Tau};

use super::elements::{type_code, u32_of};
use crate::{device::Gpu, driver::Driver};

/// `RopeStoreArgs` of `rope.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct RopeStoreArgs {
    qkv: u64,
    k_cache: u64,
    v_cache: u64,
    positions: u64,
    slots: u64,
    table: u64,
    scores: u64,
    alpha: u64,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    rotary_dims: u32,
    max_context: u32,
    num_slots: u32,
    qkv_stride: u32,
    k_stride: u32,
    v_stride: u32,
    scores_stride: u32,
    qkv_type: u32,
    cache_type: u32,
    scores_type: u32,
    padding: u32,
}

/// Heads that a block has.
const WARPS: u32 = 4;

pub(crate) fn rope_store<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: RopeStore<'_, Gpu<L>>) {
    let RopeStore { qkv, k_cache, v_cache, positions, slots, table, tau, .. } = op;
    let (heads, kv_heads, head_dim) = (op.heads, op.kv_heads, op.head_dim);
    let cache_bytes = k_cache.dtype().size();
    let mut args = RopeStoreArgs {
        qkv: cx.stream.address(qkv),
        k_cache: cx.stream.address(k_cache),
        v_cache: cx.stream.address(v_cache),
        positions: cx.stream.address(positions),
        slots: cx.stream.address(slots),
        table: cx.stream.address(table),
        scores: 0,
        alpha: 0,
        heads: u32_of(heads),
        kv_heads: u32_of(kv_heads),
        head_dim: u32_of(head_dim),
        rotary_dims: u32_of(table.cols()),
        max_context: u32_of(table.rows()),
        num_slots: u32_of(k_cache.rows()),
        qkv_stride: u32_of(qkv.row_stride()),
        k_stride: u32_of(k_cache.row_stride() * cache_bytes),
        v_stride: u32_of(v_cache.row_stride() * cache_bytes),
        scores_stride: 0,
        qkv_type: type_code(qkv.dtype()),
        cache_type: type_code(k_cache.dtype()),
        scores_type: 0,
        padding: 0,
    };
    if let Some(Tau { scores, alpha }) = tau {
        args.scores = cx.stream.address(scores);
        args.alpha = cx.stream.address(alpha);
        args.scores_stride = u32_of(scores.row_stride());
        args.scores_type = type_code(scores.dtype());
    }
    let grid = [u32_of(qkv.rows()), (args.heads + 2 * args.kv_heads).div_ceil(WARPS), 1];
    let shared_bytes = WARPS * args.head_dim * 4;
    cx.stream.launch("rope_store", grid, [32 * WARPS, 1, 1], shared_bytes, &args);
}
