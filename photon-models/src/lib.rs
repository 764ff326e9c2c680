//! Moondream: pictures and words in, words and places out, generic over the device.
//!
//! [`image`] makes crops of pictures, [`tokenizer`] ids of words, [`prompt`] and [`skill`] know what
//! Moondream can be asked and what its ids mean, [`svg`] the outlines among its answers, [`checkpoint`] and [`config`] read model files, and
//! [`Moondream`] runs them over any [`photon_core::Kernels`]. Deliberately absent: queues, requests,
//! backends.
#![deny(unsafe_code)]

pub mod adapter;
pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod image;
mod kv;
mod layers;
mod moondream;
pub mod prompt;
pub mod quant;
mod region;
pub mod skill;
mod spec;
pub mod stop;
pub mod svg;
mod text;
pub mod tokenizer;
mod vision;

pub use kv::{KvCache, LayerKv};
pub use layers::LoadError;
pub use moondream::{Moondream, Precision, expected_tensors, tensor_specs};
pub use quant::Quant;
pub use region::{coord_of_bin, size_of_bin};
pub use spec::{Role, Spec};
