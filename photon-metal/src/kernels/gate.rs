//! Functions of single elements.
use photon_core::{Activate, Cx, GatedGelu, Tensor};

use super::elements::{activation_code, alignment, type_code, u32_of};
use crate::{arguments::arguments, device::Gpu, driver::Driver, stream::Stream};

arguments! {
    /// `GateArgs` of `gate.metal`.
    struct GateArgs {
        out: u64,
        x: u64,
        rows: u32,
        dim: u32,
        out_stride: u32,
        x_stride: u32,
        out_type: u32,
        x_type: u32,
        out_align: u32,
        x_align: u32,
        gate_align: u32,
        activation: u32,
    }
}

impl GateArgs {
    fn new<L: Driver>(stream: &mut Stream<L>, out: &Tensor<Gpu<L>>, x: &Tensor<Gpu<L>>) -> Self {
        GateArgs {
            out: stream.writes(out),
            x: stream.reads(x),
            rows: u32_of(out.rows()),
            dim: u32_of(out.cols()),
            out_stride: u32_of(out.row_stride()),
            x_stride: u32_of(x.row_stride()),
            out_type: type_code(out.dtype()),
            x_type: type_code(x.dtype()),
            out_align: alignment(out),
            x_align: alignment(x),
            gate_align: 0,
            activation: 0,
        }
    }

    /// Threadgroups of 128 threads of eight columns each.
    fn grid(&self) -> [u32; 3] {
        [self.rows, self.dim.div_ceil(8 * 128), 1]
    }
}

pub(crate) fn activate<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Activate<'_, Gpu<L>>) {
    let Activate { out, x, activation } = op;
    let mut args = GateArgs::new(cx.stream, out, x);
    args.activation = activation_code(activation);
    cx.stream.launch("activate_rows", args.grid(), 128, &args);
}

pub(crate) fn gated_gelu<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: GatedGelu<'_, Gpu<L>>) {
    let GatedGelu { out, x } = op;
    let mut args = GateArgs::new(cx.stream, out, x);
    args.gate_align = alignment(&x.col_range(out.cols()..x.cols()));
    cx.stream.launch("gated_gelu", args.grid(), 128, &args);
}
