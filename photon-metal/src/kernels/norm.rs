//! Layer norm.
use photon_core::{Cx, DType, LayerNorm};

use super::elements::{alignment, type_code, u32_of};
use crate::{arguments::arguments, device::Gpu, driver::Driver};

arguments! {
    /// `LayerNormArgs` of `norm.metal`.
    struct LayerNormArgs {
        out: u64,
        x: u64,
        w: u64,
        b: u64,
        rows: u32,
        dim: u32,
        out_stride: u32,
        x_stride: u32,
        out_type: u32,
        x_type: u32,
        eps: f32,
        padding: u32,
    }
}

/// Rows that a threadgroup of the kernels with a SIMD-group a row has.
const SIMDGROUPS: u32 = 4;
/// Threads of the kernel for any type.
const ANY_THREADS: u32 = 256;

pub(crate) fn layer_norm<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: LayerNorm<'_, Gpu<L>>) {
    let LayerNorm { out, x, w, b, eps } = op;
    let args = LayerNormArgs {
        out: cx.stream.writes(out),
        x: cx.stream.reads(x),
        w: cx.stream.reads(w),
        b: cx.stream.reads(b),
        rows: u32_of(out.rows()),
        dim: u32_of(out.cols()),
        out_stride: u32_of(out.row_stride()),
        x_stride: u32_of(x.row_stride()),
        out_type: type_code(out.dtype()),
        x_type: type_code(x.dtype()),
        eps,
        padding: 0,
    };
    // Not by the number of rows: a row's bits must not depend on it.
    let rows_fit = [&*out, x].into_iter().all(|t| alignment(t) >= 8);
    let fits = rows_fit && [w, b].into_iter().all(|t| t.offset().is_multiple_of(16));
    let has_bfloat = cx.device.facts().has_bfloat;
    let kernel = match (out.dtype(), args.dim) {
        (dtype, dim) if dtype != x.dtype() || !fits || !dim.is_multiple_of(4) => None,
        (DType::F16, ..=1280) => Some("layer_norm_f16_1280"),
        (DType::F16, ..=2048) => Some("layer_norm_f16_2048"),
        (DType::Bf16, ..=1280) if has_bfloat => Some("layer_norm_bf16_1280"),
        (DType::Bf16, ..=2048) if has_bfloat => Some("layer_norm_bf16_2048"),
        _ => None,
    };
    match kernel {
        Some(kernel) => {
            let threadgroups = [args.rows.div_ceil(SIMDGROUPS), 1, 1];
            cx.stream.launch(kernel, threadgroups, 32 * SIMDGROUPS, &args);
        }
        None => cx.stream.launch("layer_norm", [args.rows, 1, 1], ANY_THREADS, &args),
    }
}
