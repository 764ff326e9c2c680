//! Pictures: patches in, stitched crops out.
use bytemuck::{Pod, Zeroable};
use photon_core::{Activation, Cx, PatchEmbed, Patchify, StitchPool};

use super::{
    elements::{alignment, type_code, u32_of},
    linear,
};
use crate::{device::Gpu, driver::Driver};

/// `PatchifyArgs` of `patchify.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct PatchifyArgs {
    out: u64,
    crops: u64,
    rows: u32,
    size: u32,
    patch: u32,
    out_stride: u32,
    out_type: u32,
    padding: u32,
}

pub(crate) fn patchify<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Patchify<'_, Gpu<L>>) {
    let Patchify { out, crops, patch } = op;
    let args = PatchifyArgs {
        out: cx.stream.address(out),
        crops: cx.stream.address(crops),
        rows: u32_of(out.rows()),
        size: u32_of(crops.shape().dims()[1]),
        patch: u32_of(patch),
        out_stride: u32_of(out.row_stride()),
        out_type: type_code(out.dtype()),
        padding: 0,
    };
    cx.stream.launch("patchify", [args.rows, 1, 1], [128, 1, 1], 0, &args);
}

/// The positions are added where the sums are stored: they are not tiled before, and not rounded.
pub(crate) fn patch_embed<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: PatchEmbed<'_, Gpu<L>>) {
    let PatchEmbed { out, crops, patch, w, bias, positions, scratch } = op;
    patchify(cx, Patchify { out: scratch, crops, patch });
    linear::run(cx, out, scratch, w, Some(bias), Activation::None, Some(positions));
}

/// `StitchPoolArgs` of `stitch_pool.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct StitchPoolArgs {
    out: u64,
    x: u64,
    dim: u32,
    out_stride: u32,
    x_stride: u32,
    out_type: u32,
    x_type: u32,
    grid: u32,
    margin: u32,
    tile_rows: u32,
    tile_columns: u32,
    first_local: u32,
    vectors: u32,
    padding: u32,
}

pub(crate) fn stitch_pool<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: StitchPool<'_, Gpu<L>>) {
    let StitchPool { out, x, grid, margin, tiles } = op;
    let pooled = out.col_range(x.cols()..out.cols());
    let args = StitchPoolArgs {
        out: cx.stream.address(out),
        x: cx.stream.address(x),
        dim: u32_of(x.cols()),
        out_stride: u32_of(out.row_stride()),
        x_stride: u32_of(x.row_stride()),
        out_type: type_code(out.dtype()),
        x_type: type_code(x.dtype()),
        grid: u32_of(grid),
        margin: u32_of(margin),
        tile_rows: u32_of(tiles.0),
        tile_columns: u32_of(tiles.1),
        // With one crop the local one is the global one.
        first_local: u32::from(x.rows() > grid * grid),
        vectors: u32::from([&*out, &pooled, x].into_iter().all(|t| alignment(t) == 16)),
        padding: 0,
    };
    let launch = [u32_of(out.rows()), args.dim.div_ceil(8 * 128), 1];
    cx.stream.launch("stitch_pool", launch, [128, 1, 1], 0, &args);
}
