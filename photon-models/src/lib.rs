//! Moondream: pictures and words in, words and places out, generic over the device.
//!
//! [`image`] makes crops of pictures, [`tokenizer`] ids of words, [`prompt`] and [`skill`] know what
//! Moondream can be asked and what its ids mean, [`checkpoint`] and [`config`] read model files, and
//! [`Moondream`] runs them over any [`photon_core::Kernels`]. Deliberately absent: queues, requests,
//! backends.
#![deny(unsafe_code)]

pub mod adapter;
pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod hostile;
pub mod image;
mod kv;
mod layers;
mod moondream;
pub mod prompt;
mod region;
pub mod skill;
pub mod stop;
mod text;
pub mod tokenizer;
mod vision;

pub use kv::{KvCache, LayerKv};
pub use layers::LoadError;
pub use moondream::{Moondream, Precision, Quant, expected_tensors};
pub use region::{coord_of_bin, size_of_bin};
