//! The operations, one file per family, named as in the other backends; `kernels/*.metal` at the top of the
//! crate is what they launch.
//!
//! Each is a free function that picks kernel and grid and packs the kernel's one argument, whose struct
//! stands next to it, field for field as in the source.

use photon_core::{
    Activate, Attention, Copy, Cx, Fourier, GatedGelu, Gather, GroupedLinear, Kernels, LayerNorm,
    Linear, Nest, PagedAttention, PatchEmbed, Patchify, RopeStore, Route, Sample, Scatter,
    StitchPool, Tile, WeightedSum,
};

use crate::{device::Gpu, driver::Driver};

mod attention;
mod elements;
mod experts;
mod gate;
mod image;
pub(crate) mod linear;
mod norm;
mod rope;
pub(crate) mod rows;
mod sample;
mod weights;

macro_rules! kernels {
    ($($family:ident::$name:ident($op:ident))+) => {
        impl<L: Driver> Kernels for Gpu<L> {
            $(fn $name(cx: &mut Cx<'_, Self>, op: $op<'_, Self>) {
                $family::$name(cx, op);
            })+
        }
    };
}

kernels! {
    linear::linear(Linear)
    gate::activate(Activate)
    linear::grouped_linear(GroupedLinear)
    experts::route(Route)
    experts::nest(Nest)
    gate::gated_gelu(GatedGelu)
    experts::weighted_sum(WeightedSum)
    norm::layer_norm(LayerNorm)
    image::patchify(Patchify)
    rows::tile(Tile)
    image::patch_embed(PatchEmbed)
    attention::attention(Attention)
    rope::rope_store(RopeStore)
    attention::paged_attention(PagedAttention)
    image::stitch_pool(StitchPool)
    rows::gather(Gather)
    rows::scatter(Scatter)
    rows::fourier(Fourier)
    sample::sample(Sample)
    rows::copy(Copy)
}
