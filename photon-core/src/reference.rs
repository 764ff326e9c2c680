//! Fused operations spelled out in primitive ones.
//!
//! Free functions, not only default bodies, so a backend that overrides a default can still be tested
//! against it.
use crate::{Activation, Cx, Kernels, Linear, PatchEmbed, Patchify, Tile};

/// [`PatchEmbed`] as [`Patchify`], [`Tile`] and an accumulating [`Linear`].
pub fn patch_embed<D: Kernels>(cx: &mut Cx<'_, D>, op: PatchEmbed<'_, D>) {
    let PatchEmbed { out, crops, patch, w, bias, positions, scratch } = op;
    cx.patchify(Patchify { out: scratch, crops, patch });
    cx.tile(Tile { out, x: positions });
    cx.linear(Linear {
        out,
        x: scratch,
        w,
        bias: Some(bias),
        activation: Activation::None,
        accumulate: true,
    });
}
