//! Apple's GPUs as a device.
//!
//! Layers, from below: `ffi`, which alone needs macOS, what is safe to call of Metal; [`driver`] what the
//! backend asks for; `work` and `hazards` a step's launches and the barriers between them; [`Stream`] and
//! [`Gpu`] what photon-core asks for; `kernels` the operations. What is above [`driver`] is the same for
//! Metal and for the simulator that runs the kernels on the processor, on any system.

mod arguments;
mod device;
mod doctor;
pub mod driver;
#[cfg(target_os = "macos")]
mod ffi;
mod hazards;
mod kernels;
#[cfg(any(all(test, target_os = "linux"), feature = "sim"))]
mod sim;
pub mod source;
mod stream;
#[cfg(all(test, target_os = "linux"))]
mod tests;
mod work;

pub use device::Gpu;
pub use doctor::describe;
#[cfg(target_os = "macos")]
pub use ffi::Ffi;
#[cfg(any(all(test, target_os = "linux"), feature = "sim"))]
pub use sim::Sim;
pub use stream::{Graph, Pinned, Stream};
pub use work::{Counts, Step, Work};

/// A GPU of Apple's.
#[cfg(target_os = "macos")]
pub type Metal = Gpu<Ffi>;

#[cfg(target_os = "macos")]
impl Metal {
    /// Opens the machine's GPU.
    ///
    /// # Errors
    /// [`photon_core::Error::Unavailable`] with the reason and what to do.
    pub fn open() -> photon_core::Result<Self> {
        Gpu::new(Ffi::open()?)
    }
}

/// The kernels on the processor, for tests.
#[cfg(any(all(test, target_os = "linux"), feature = "sim"))]
pub type SimMetal = Gpu<Sim>;

#[cfg(any(all(test, target_os = "linux"), feature = "sim"))]
impl SimMetal {
    /// Opens the simulator.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn open() -> photon_core::Result<Self> {
        Gpu::new(Sim::open())
    }
}
