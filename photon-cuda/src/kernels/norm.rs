//! Layer norm.
use bytemuck::{Pod, Zeroable};
use photon_core::{Cx, DType, LayerNorm};

use super::elements::{alignment, type_code, u32_of};
use crate::{device::Gpu, driver::Driver};

/// `LayerNormArgs` of `norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
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

/// Rows that a block of the kernels with a warp a row has.
const WARPS: u32 = 4;

pub(crate) fn layer_norm<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: LayerNorm<'_, Gpu<L>>) {
    let LayerNorm { out, x, w, b, eps } = op;
    let args = LayerNormArgs {
        out: cx.stream.address(out),
        x: cx.stream.address(x),
        w: cx.stream.address(w),
        b: cx.stream.address(b),
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
    let aligned = [&*out, x, w, b].into_iter().all(|t| alignment(t) == 16 || t.rows() == 1);
    let aligned = aligned && [args.out, args.x, args.w, args.b].iter().all(|at| at % 16 == 0);
    let kernel = match (out.dtype(), args.dim) {
        (dtype, _) if dtype != x.dtype() || !aligned || !args.dim.is_multiple_of(8) => None,
        (DType::Bf16, ..=1280) => Some("layer_norm_bf16_1280"),
        (DType::Bf16, ..=2048) => Some("layer_norm_bf16_2048"),
        (DType::F16, ..=1280) => Some("layer_norm_f16_1280"),
        (DType::F16, ..=2048) => Some("layer_norm_f16_2048"),
        _ => None,
    };
    match kernel {
        Some(kernel) => {
            let grid = [args.rows.div_ceil(WARPS), 1, 1];
            cx.stream.launch(kernel, grid, [32 * WARPS, 1, 1], 0, &args);
        }
        None => cx.stream.launch("layer_norm", [args.rows, 1, 1], [256, 1, 1], 0, &args),
    }
}
