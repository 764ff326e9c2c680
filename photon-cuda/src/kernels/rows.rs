//! Rows moved, repeated and made.
use bytemuck::{Pod, Zeroable};
use photon_core::{Copy, Cx, Fourier, Gather, Scatter, Tensor, Tile};

use super::elements::{alignment, type_code, u32_of};
use crate::{device::Gpu, driver::Driver, stream::Stream};

const THREADS: u32 = 128;

/// `RowsArgs` of `rows.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct RowsArgs {
    out: u64,
    x: u64,
    indices: u64,
    rows: u32,
    columns: u32,
    out_rows: u32,
    x_rows: u32,
    out_stride: u32,
    x_stride: u32,
    out_type: u32,
    x_type: u32,
    scatters: u32,
    padding: u32,
}

/// Which rows go where.
enum Ends<'a, L: Driver> {
    /// The rows of `x` in turn, over and over, to those of `out`.
    Repeated,
    /// Those that are named, to those of `out`.
    From(&'a Tensor<Gpu<L>>),
    /// Those of `x`, to those that are named.
    To(&'a Tensor<Gpu<L>>),
}

fn move_rows<L: Driver>(
    stream: &mut Stream<L>,
    out: &Tensor<Gpu<L>>,
    x: &Tensor<Gpu<L>>,
    ends: Ends<'_, L>,
) {
    let mut args = RowsArgs {
        out: stream.address(out),
        x: stream.address(x),
        indices: match ends {
            Ends::Repeated => 0,
            Ends::From(indices) | Ends::To(indices) => stream.address(indices),
        },
        rows: u32_of(if matches!(ends, Ends::To(_)) { x.rows() } else { out.rows() }),
        columns: u32_of(out.cols()),
        out_rows: u32_of(out.rows()),
        x_rows: u32_of(x.rows()),
        out_stride: u32_of(out.row_stride()),
        x_stride: u32_of(x.row_stride()),
        out_type: type_code(out.dtype()),
        x_type: type_code(x.dtype()),
        scatters: u32::from(matches!(ends, Ends::To(_))),
        padding: 0,
    };
    let mut kernel = "convert_rows";
    if out.dtype() == x.dtype() {
        let size = out.dtype().size();
        let row_bytes = u32_of(out.cols() * size);
        let (name, unit) =
            match alignment(out).min(alignment(x)).min(1 << row_bytes.trailing_zeros()) {
                16 => ("move_rows_16", 16),
                4 | 8 => ("move_rows_4", 4),
                2 => ("move_rows_2", 2),
                _ => ("move_rows_1", 1),
            };
        kernel = name;
        args.columns = row_bytes / unit;
        args.out_stride = u32_of(out.row_stride() * size) / unit;
        args.x_stride = u32_of(x.row_stride() * size) / unit;
    }
    let grid = [args.rows, args.columns.div_ceil(THREADS), 1];
    stream.launch(kernel, grid, [THREADS, 1, 1], 0, &args);
}

pub(crate) fn tile<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Tile<'_, Gpu<L>>) {
    move_rows(cx.stream, op.out, op.x, Ends::Repeated);
}

pub(crate) fn copy<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Copy<'_, Gpu<L>>) {
    move_rows(cx.stream, op.out, op.x, Ends::Repeated);
}

pub(crate) fn gather<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Gather<'_, Gpu<L>>) {
    move_rows(cx.stream, op.out, op.x, Ends::From(op.indices));
}

pub(crate) fn scatter<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Scatter<'_, Gpu<L>>) {
    move_rows(cx.stream, op.out, op.x, Ends::To(op.indices));
}

/// `FourierArgs` of `rows.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FourierArgs {
    out: u64,
    values: u64,
    w: u64,
    rows: u32,
    dims: u32,
    features: u32,
    out_stride: u32,
    out_type: u32,
    padding: u32,
}

pub(crate) fn fourier<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Fourier<'_, Gpu<L>>) {
    let Fourier { out, values, w } = op;
    let args = FourierArgs {
        out: cx.stream.address(out),
        values: cx.stream.address(values),
        w: cx.stream.address(w),
        rows: u32_of(out.rows()),
        dims: u32_of(w.rows()),
        features: u32_of(w.cols()),
        out_stride: u32_of(out.row_stride()),
        out_type: type_code(out.dtype()),
        padding: 0,
    };
    let grid = [args.rows, args.features.div_ceil(THREADS), 1];
    cx.stream.launch("fourier", grid, [THREADS, 1, 1], 0, &args);
}
