//! The files of a demo model: Moondream 2's architecture with 4 million parameters, trained on drawn
//! shapes. `tools/demo-model` makes it.
#![no_std]
#![forbid(unsafe_code)]

/// `model.safetensors`.
pub static WEIGHTS: &[u8] = include_bytes!("../model.safetensors");
/// `config.json`.
pub static CONFIG: &[u8] = include_bytes!("../config.json");
/// `tokenizer.json`.
pub static TOKENIZER: &[u8] = include_bytes!("../tokenizer.json");
