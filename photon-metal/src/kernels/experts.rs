//! Which experts a token goes to, and how their results are joined.
use photon_core::{Cx, Nest, Route, WeightedSum};

use super::elements::{alignment, type_code, u32_of};
use crate::{arguments::arguments, device::Gpu, driver::Driver};

arguments! {
    /// `RouteArgs` of `experts.metal`.
    struct RouteArgs {
        experts: u64,
        weights: u64,
        logits: u64,
        rows: u32,
        count: u32,
        top: u32,
        stride: u32,
        logits_type: u32,
        padding: u32,
    }

    /// `NestArgs` of `experts.metal`.
    struct NestArgs {
        out: u64,
        outer: u64,
        inner: u64,
        rows: u32,
        top: u32,
        count: u32,
        padding: u32,
    }

    /// `WeightedSumArgs` of `experts.metal`.
    struct WeightedSumArgs {
        out: u64,
        x: u64,
        weights: u64,
        rows: u32,
        dim: u32,
        top: u32,
        out_stride: u32,
        x_stride: u32,
        out_type: u32,
        x_type: u32,
        out_align: u32,
        x_align: u32,
        padding: u32,
    }
}

pub(crate) fn route<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Route<'_, Gpu<L>>) {
    let Route { experts, weights, logits } = op;
    let args = RouteArgs {
        experts: cx.stream.writes(experts),
        weights: cx.stream.writes(weights),
        logits: cx.stream.reads(logits),
        rows: u32_of(logits.rows()),
        count: u32_of(logits.cols()),
        top: u32_of(experts.cols()),
        stride: u32_of(logits.row_stride()),
        logits_type: type_code(logits.dtype()),
        padding: 0,
    };
    cx.stream.launch("route", [args.rows.div_ceil(4), 1, 1], 128, &args);
}

pub(crate) fn nest<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Nest<'_, Gpu<L>>) {
    let Nest { out, outer, inner, count } = op;
    let args = NestArgs {
        out: cx.stream.writes(out),
        outer: cx.stream.reads(outer),
        inner: cx.stream.reads(inner),
        rows: u32_of(out.rows()),
        top: u32_of(out.cols()),
        count: u32_of(count),
        padding: 0,
    };
    let threadgroups = u32_of(out.shape().elements()).div_ceil(128);
    cx.stream.launch("nest", [threadgroups, 1, 1], 128, &args);
}

pub(crate) fn weighted_sum<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: WeightedSum<'_, Gpu<L>>) {
    let WeightedSum { out, x, weights } = op;
    let args = WeightedSumArgs {
        out: cx.stream.writes(out),
        x: cx.stream.reads(x),
        weights: cx.stream.reads(weights),
        rows: u32_of(out.rows()),
        dim: u32_of(out.cols()),
        top: u32_of(weights.cols()),
        out_stride: u32_of(out.row_stride()),
        x_stride: u32_of(x.row_stride()),
        out_type: type_code(out.dtype()),
        x_type: type_code(x.dtype()),
        out_align: alignment(out),
        x_align: alignment(x),
        padding: 0,
    };
    let grid = [args.rows, args.dim.div_ceil(8 * 128), 1];
    cx.stream.launch("weighted_sum", grid, 128, &args);
}
