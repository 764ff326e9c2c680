//! Rotation by position, and the store of keys and values.
use bytemuck::{Pod, Zeroable};
use photon_core::{Cx, RopeStore};

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
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    rotary_dims: u32,
    max_context: u32,
    num_slots: u32,
    qkv_stride: u32,
    k_stride: u32,
    v_stride: u32,
    qkv_type: u32,
    cache_type: u32,
    padding: u32,
}

/// Heads that a block has.
const WARPS: u32 = 4;

pub(crate) fn rope_store<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: RopeStore<'_, Gpu<L>>) {
    let RopeStore { qkv, k_cache, v_cache, positions, slots, table, heads, kv_heads, head_dim } =
        op;
    let cache_bytes = k_cache.dtype().size();
    let args = RopeStoreArgs {
        qkv: cx.stream.address(qkv),
        k_cache: cx.stream.address(k_cache),
        v_cache: cx.stream.address(v_cache),
        positions: cx.stream.address(positions),
        slots: cx.stream.address(slots),
        table: cx.stream.address(table),
        heads: u32_of(heads),
        kv_heads: u32_of(kv_heads),
        head_dim: u32_of(head_dim),
        rotary_dims: u32_of(table.cols()),
        max_context: u32_of(table.rows()),
        num_slots: u32_of(k_cache.rows()),
        qkv_stride: u32_of(qkv.row_stride()),
        k_stride: u32_of(k_cache.row_stride() * cache_bytes),
        v_stride: u32_of(v_cache.row_stride() * cache_bytes),
        qkv_type: type_code(qkv.dtype()),
        cache_type: type_code(k_cache.dtype()),
        padding: 0,
    };
    let grid = [u32_of(qkv.rows()), (args.heads + 2 * args.kv_heads).div_ceil(WARPS), 1];
    cx.stream.launch_early("rope_store", grid, [32 * WARPS, 1, 1], 0, &args);
}
