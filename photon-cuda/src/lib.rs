//! NVIDIA GPUs as a device.
//!
//! Builds without CUDA. What is above [`driver::Driver`] is the same for the real driver and for the
//! simulator that runs the kernels on the processor.

mod device;
pub mod driver;
mod kernels;
mod library;
pub mod nvrtc;
pub mod source;
mod stream;

pub use device::Gpu;
pub use stream::{Graph, Stream};
