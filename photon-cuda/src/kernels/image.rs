//! Pictures: patches in, stitched crops out.
use photon_core::{Cx, PatchEmbed, Patchify, StitchPool};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn patchify<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: Patchify<'_, Gpu<L>>) {
    cx.stream.missing("patchify");
}

pub(crate) fn patch_embed<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: PatchEmbed<'_, Gpu<L>>) {
    cx.stream.missing("patch_embed");
}

pub(crate) fn stitch_pool<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, _op: StitchPool<'_, Gpu<L>>) {
    cx.stream.missing("stitch_pool");
}
