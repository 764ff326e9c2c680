//! Pictures to patches, patches to features.
use photon_core::{Cx, PatchEmbed, Patchify, StitchPool};

use crate::{device::Gpu, driver::Driver};

pub(crate) fn patchify<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: Patchify<'_, Gpu<L>>) {
    unimplemented!("patchify on Metal")
}

pub(crate) fn patch_embed<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: PatchEmbed<'_, Gpu<L>>) {
    unimplemented!("patch_embed on Metal")
}

pub(crate) fn stitch_pool<L: Driver>(_: &mut Cx<'_, Gpu<L>>, _: StitchPool<'_, Gpu<L>>) {
    unimplemented!("stitch_pool on Metal")
}
