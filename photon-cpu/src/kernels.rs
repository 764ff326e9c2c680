//! The operations, one file per family.
//!
//! Each is a free function of a [`Cpu`], so that [`crate::Tape`] can run it later; an operation picks
//! its element types here once, and splits itself into tasks whose outputs are disjoint and do not
//! depend on how many threads there are.
#![allow(unsafe_code, reason = "tasks write their own parts of shared tensors")]

use photon_core::{
    Activate, Attention, Copy, Cx, Fourier, GatedGelu, Gather, GroupedLinear, Kernels, LayerNorm,
    Linear, Nest, PagedAttention, Patchify, RopeStore, Route, Sample, Scatter, StitchPool, Tile,
    WeightedSum,
};

use crate::{
    Cpu,
    linear::{grouped_linear, linear},
};

mod attention;
mod attention_core;
mod attention_decode;
mod attention_pack;
mod attention_rows;
mod experts;
mod gate;
mod image;
mod norm;
mod rope;
mod rows;
mod sample;
#[cfg(test)]
mod tests;

pub(crate) use attention::{attention, paged_attention};
pub(crate) use experts::{nest, route, weighted_sum};
pub(crate) use gate::{activate, gated_gelu};
pub(crate) use image::{patchify, stitch_pool};
pub(crate) use norm::layer_norm;
pub(crate) use rope::rope_store;
pub(crate) use rows::{copy, fourier, gather, scatter, tile};
pub(crate) use sample::sample;

/// Runs `body` over `0..items` in runs of at least `1 / items_cost` of a worthwhile task.
///
/// `cost` is roughly the bytes one item touches: a task of 32 KiB takes some microseconds, several
/// times what it costs to hand it to another thread.
fn for_runs(cpu: &Cpu, items: usize, cost: usize, body: impl Fn(std::ops::Range<usize>) + Sync) {
    const WORTH: usize = 32 << 10;
    let run = (WORTH / cost.max(1)).max(1);
    let tasks = items.div_ceil(run);
    if tasks <= 1 {
        return body(0..items);
    }
    cpu.pool().run(tasks, &|task| body(task * run..((task + 1) * run).min(items)));
}

/// An index tensor's entry as an index below `limit`.
pub(crate) fn index(entry: i32, limit: usize) -> Option<usize> {
    usize::try_from(entry).ok().filter(|&i| i < limit)
}

impl Kernels for Cpu {
    fn linear(cx: &mut Cx<'_, Self>, op: Linear<'_, Self>) {
        linear(cx.device, op);
    }
    fn activate(cx: &mut Cx<'_, Self>, op: Activate<'_, Self>) {
        activate(cx.device, op);
    }
    fn grouped_linear(cx: &mut Cx<'_, Self>, op: GroupedLinear<'_, Self>) {
        grouped_linear(cx.device, op);
    }
    fn route(cx: &mut Cx<'_, Self>, op: Route<'_, Self>) {
        route(cx.device, op);
    }
    fn nest(cx: &mut Cx<'_, Self>, op: Nest<'_, Self>) {
        nest(cx.device, op);
    }
    fn gated_gelu(cx: &mut Cx<'_, Self>, op: GatedGelu<'_, Self>) {
        gated_gelu(cx.device, op);
    }
    fn weighted_sum(cx: &mut Cx<'_, Self>, op: WeightedSum<'_, Self>) {
        weighted_sum(cx.device, op);
    }
    fn layer_norm(cx: &mut Cx<'_, Self>, op: LayerNorm<'_, Self>) {
        layer_norm(cx.device, op);
    }
    fn patchify(cx: &mut Cx<'_, Self>, op: Patchify<'_, Self>) {
        patchify(cx.device, op);
    }
    fn tile(cx: &mut Cx<'_, Self>, op: Tile<'_, Self>) {
        tile(cx.device, op);
    }
    fn attention(cx: &mut Cx<'_, Self>, op: Attention<'_, Self>) {
        attention(cx.device, op);
    }
    fn rope_store(cx: &mut Cx<'_, Self>, op: RopeStore<'_, Self>) {
        rope_store(cx.device, op);
    }
    fn paged_attention(cx: &mut Cx<'_, Self>, op: PagedAttention<'_, Self>) {
        paged_attention(cx.device, op);
    }
    fn stitch_pool(cx: &mut Cx<'_, Self>, op: StitchPool<'_, Self>) {
        stitch_pool(cx.device, op);
    }
    fn gather(cx: &mut Cx<'_, Self>, op: Gather<'_, Self>) {
        gather(cx.device, op);
    }
    fn scatter(cx: &mut Cx<'_, Self>, op: Scatter<'_, Self>) {
        scatter(cx.device, op);
    }
    fn fourier(cx: &mut Cx<'_, Self>, op: Fourier<'_, Self>) {
        fourier(cx.device, op);
    }
    fn sample(cx: &mut Cx<'_, Self>, op: Sample<'_, Self>) {
        sample(cx.device, op);
    }
    fn copy(cx: &mut Cx<'_, Self>, op: Copy<'_, Self>) {
        copy(cx.device, op);
    }
}
