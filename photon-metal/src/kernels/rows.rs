//! Rows moved, repeated and made.
use photon_core::{Copy, Cx, Fourier, Gather, Scatter, Tensor, Tile};

use super::elements::{alignment, type_code, u32_of};
use crate::{arguments::arguments, device::Gpu, driver::Driver, stream::Stream};

const THREADS: u32 = 128;

arguments! {
    /// `RowsArgs` of `rows.metal`.
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

/// The kernel that moves units of the size, at most 16, that divides `bits`, and that size.
fn units(bits: u32) -> (&'static str, u32) {
    match 1 << bits.trailing_zeros() {
        1 => ("move_rows_1", 1),
        2 => ("move_rows_2", 2),
        4 | 8 => ("move_rows_4", 4),
        _ => ("move_rows_16", 16),
    }
}

fn move_rows<L: Driver>(
    stream: &mut Stream<L>,
    out: &Tensor<Gpu<L>>,
    x: &Tensor<Gpu<L>>,
    ends: Ends<'_, L>,
) {
    let mut args = RowsArgs {
        out: stream.writes(out),
        x: stream.reads(x),
        indices: match ends {
            Ends::Repeated => 0,
            Ends::From(indices) | Ends::To(indices) => stream.reads(indices),
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
        let (name, unit) = units(alignment(out) | alignment(x) | row_bytes);
        kernel = name;
        args.columns = row_bytes / unit;
        args.out_stride = u32_of(out.row_stride() * size) / unit;
        args.x_stride = u32_of(x.row_stride() * size) / unit;
    }
    let threadgroups = [args.rows, args.columns.div_ceil(THREADS), 1];
    stream.launch(kernel, threadgroups, THREADS, &args);
}

/// Copies bytes between two addresses, whose memory the caller holds.
pub(crate) fn copy_bytes<L: Driver>(stream: &mut Stream<L>, out: u64, x: u64, bytes: usize) {
    let (kernel, unit) = units(((out | x | bytes as u64) & 15 | 16) as u32);
    // Bytes in lines of one threadgroup each, of which the last may be short.
    let line = (THREADS * unit) as usize;
    for (at, rows, row_bytes) in [
        (0, bytes / line, line),
        (bytes / line * line, usize::from(!bytes.is_multiple_of(line)), bytes % line),
    ] {
        let columns = u32_of(row_bytes) / unit;
        let args = RowsArgs {
            out: stream.writes_bytes(out + at as u64, rows * row_bytes),
            x: stream.reads_bytes(x + at as u64, rows * row_bytes),
            indices: 0,
            rows: u32_of(rows),
            columns,
            out_rows: u32_of(rows),
            x_rows: u32_of(rows),
            out_stride: columns,
            x_stride: columns,
            out_type: 0,
            x_type: 0,
            scatters: 0,
            padding: 0,
        };
        stream.launch(kernel, [args.rows, 1, 1], THREADS, &args);
    }
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

arguments! {
    /// `FourierArgs` of `rows.metal`.
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
}

pub(crate) fn fourier<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Fourier<'_, Gpu<L>>) {
    let Fourier { out, values, w } = op;
    let args = FourierArgs {
        out: cx.stream.writes(out),
        values: cx.stream.reads(values),
        w: cx.stream.reads(w),
        rows: u32_of(out.rows()),
        dims: u32_of(w.rows()),
        features: u32_of(w.cols()),
        out_stride: u32_of(out.row_stride()),
        out_type: type_code(out.dtype()),
        padding: 0,
    };
    let threadgroups = [args.rows, args.features.div_ceil(THREADS), 1];
    cx.stream.launch("fourier", threadgroups, THREADS, &args);
}
