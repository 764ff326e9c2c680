//! NVIDIA GPUs as a device.
//!
//! Builds without CUDA: the driver and its libraries are looked for when a device is opened, and their
//! absence is an error that says what to do. Layers, from below: `sys` the driver's functions, `ffi`
//! what is safe to call of them, [`driver`] what the backend asks for, `stream` and `device` what
//! photon-core asks for, `kernels` the operations. What is above [`driver`] is the same for the real
//! driver and for the simulator that runs the kernels on the processor.

mod binaries;
mod blas;
mod cache;
mod ceilings;
mod device;
mod doctor;
pub mod driver;
mod ffi;
mod kernels;
mod library;
pub mod nvrtc;
#[cfg(any(test, feature = "sim"))]
mod sim;
pub mod source;
mod stream;
mod sys;
#[cfg(test)]
mod tests;

pub use ceilings::Ceilings;
pub use device::Gpu;
pub use doctor::describe;
pub use ffi::Ffi;
#[cfg(any(test, feature = "sim"))]
pub use sim::Sim;
pub use stream::{Graph, Stream};

/// An NVIDIA GPU.
pub type Cuda = Gpu<Ffi>;

impl Cuda {
    /// Opens a GPU by its ordinal.
    ///
    /// # Errors
    /// [`photon_core::Error::Unavailable`] with the reason and what to do.
    pub fn open(ordinal: usize) -> photon_core::Result<Self> {
        Gpu::new(Ffi::open(ordinal)?)
    }
}

/// The kernels on the processor, for tests.
#[cfg(any(test, feature = "sim"))]
pub type SimCuda = Gpu<Sim>;

#[cfg(any(test, feature = "sim"))]
impl SimCuda {
    /// Opens the simulator.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn open() -> photon_core::Result<Self> {
        Gpu::new(Sim::open())
    }
}
