//! What a model may ask of a device, and nothing about models.
//!
//! [`Device`] is memory and order, [`Kernels`] is arithmetic, [`Cx`] is the only door through which a
//! model reaches either: it checks shapes and types once, so backends do not check again. Every
//! fused operation is spelled out in primitive ones in [`mod@reference`].
//!
//! Deliberately absent: models, requests, tokens, files.
#![forbid(unsafe_code)]

mod arena;
mod cx;
mod device;
mod dtype;
mod error;
mod kernels;
pub mod kv;
pub mod quant;
pub mod reference;
pub mod sampler;
mod staging;
mod tensor;
mod weight;

pub use arena::Arena;
pub use cx::Cx;
pub use device::{Device, MemoryInfo};
pub use dtype::{DType, convert, widen};
pub use error::{Error, Result};
pub use kernels::{
    Activate, Activation, Attention, Copy, Fourier, GatedGelu, Gather, GroupedLinear, Kernels,
    LayerNorm, Linear, Masks, Nest, PagedAttention, PatchEmbed, Patchify, RopeStore, Route, Sample,
    Scatter, StitchPool, Tau, Tile, WeightedSum,
};
pub use sampler::SampleParams;
pub use staging::Pending;
pub use tensor::{Shape, Tensor};
pub use weight::{Weight, WeightData, WeightFormat};
