//! Runs Photon's GPU kernels, from their own sources, on the processor: for tests, and for finding bugs.
//!
//! The build compiles `photon-cuda/kernels/*.cu` and `photon-metal/kernels/*.metal` as host C++ behind the headers in `shim/`. A thread of the GPU becomes a
//! fiber. A seed decides the order they run in, and each runs as far ahead of the others as barriers let it, so that a
//! barrier that is missing gives wrong results for one seed or another instead of working by accident.
//!
//! # What a launch finds
//! - Reads and writes outside of device memory ([`Memory`]), of a `__shared__` array, or of a thread's own stack: a
//!   [`Fault`] with kernel, block, thread and line. Buffers end at a page that cannot be touched.
//! - Lanes of a warp, or threads of a block, that come to different places; deadlocks; polls that never end.
//! - Shared memory that was never written reads as NaN or as huge numbers, by the seed; so does [`Memory::new`].
//! - `cp.async` that nobody waited for, or that overwrites what is still read: copies land when issued or when waited for,
//!   by the seed.
//! - Threads that return without having waited for the launches before them, where kernels start early.
//! - Addresses that are not aligned for `cp.async`, `ldmatrix` and streaming loads; arrays beyond 48 KiB.
//!
//! # What it does not show
//! Speed; registers and bank conflicts; the order in which tensor cores sum; how weak the memory of a GPU is beyond what
//! barriers promise; blocks of one grid that wait for each other (but in a cooperative launch); instructions without a
//! definition in `shim/simt/ptx.hpp`.
//!
//! # How kernels are written for it
//! - `extern "C" __global__ void __launch_bounds__(N) name(const NameArgs a)`: one plain struct, by value.
//! - Assembly in `ptx.cuh` only, each wrapper with its definition in `shim/simt/ptx.hpp`.
//! - `alignas(16) __shared__ T x[N];`, in any function or template; dynamic shared memory by `DYNAMIC_SHARED(T, name)`.
//! - Every lane in a `_sync` function's mask calls it from the same line.
//! - Metal: `kernel void name(constant NameArgs& a [[buffer(0)]], ...)`, the struct holding addresses; its layout is told
//!   ([`metal::Kernel`]). A source that only Apple's compiler takes begins with `// Not simulated:` and why.
//! - `a * b + c` is not fused here, and is on the GPU unless compiled otherwise: where bits matter, say `fmaf`.
#![allow(unsafe_code, reason = "calls C++ and hands out memory that it writes")]

mod count;
pub mod cuda;
mod fault;
mod launch;
mod memory;
pub mod metal;
mod raw;
mod record;

// The build's own, here for their tests.
#[cfg(test)]
mod cuda_source;
#[cfg(test)]
mod metal_source;
#[cfg(test)]
mod planted;
#[cfg(test)]
mod rewrite;
#[cfg(test)]
mod source;

pub use count::{Count, Counter};
pub use fault::Fault;
pub use memory::Memory;
