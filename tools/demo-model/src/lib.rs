//! The demo models' world: pictures of a few colored shapes and perhaps a word, and questions on them.
//!
//! A seed means the same picture and the same tasks for ever: the generator uses its own random
//! numbers and only arithmetic that IEEE 754 fixes exactly, and a test pins the results.
//! Training draws seeds below [`EVALUATION_SEEDS`]; evaluation draws from there on, so that no
//! judged picture was ever seen in training.
//! The models themselves, and how they are trained, are not here: see `train/`.
#![forbid(unsafe_code)]

mod font;
pub mod outline;
mod render;
mod rng;
mod scene;
pub mod score;
mod tasks;
#[cfg(test)]
mod tests;

pub use scene::{Background, Color, Object, Pattern, Scene, Shape, Text, WORDS};
pub use tasks::{Length, ObjectRecord, QueryKind, SceneRecord, Task, TextRecord};

/// The first seed kept for evaluation; every training seed is below it.
pub const EVALUATION_SEEDS: u64 = 1 << 40;
