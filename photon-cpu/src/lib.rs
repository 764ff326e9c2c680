//! Photon on the host processor: every operation of [`photon_core::Kernels`] in plain Rust, with
//! vector instructions chosen when the device is opened.
//!
//! - [`Cpu`] runs work as it is recorded, on a pool of threads; `isa` says with which instructions.
//! - [`Tape`] records, submits and captures as a GPU does and runs the same kernels: for tests.
//! - A buffer is shared memory without a borrow checker; `memory` says once what makes that sound.
//!
//! Results do not depend on the number of threads, on what else is in a batch, or on whether a prompt
//! was computed at once or in chunks. They do depend on the instructions, in the last bits.
//!
//! Deliberately absent: models, and formats of files.
mod device;
mod doctor;
mod elements;
mod isa;
mod kernels;
mod linear;
mod memory;
mod pool;
mod scratch;
mod simd;
mod tape;
#[cfg(test)]
mod test_support;

pub use device::{Cpu, CpuEvent, CpuOptions, CpuStream};
pub use doctor::{Description, describe};
pub use isa::Isa;
pub use memory::Buffer;
pub use tape::{Tape, TapeEvent, TapeGraph, TapeStream};
