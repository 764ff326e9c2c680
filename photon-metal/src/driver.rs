//! What this backend needs of Metal, and nothing above it may ask for more.
//!
//! There are two drivers: the real one, and one that runs the same kernel sources on the processor, for
//! tests. Everything above this seam (which kernel, which grid, how arguments are packed, where barriers
//! stand, what is captured) is the same code for both.
//!
//! # Rules
//! - Memory is unified: the processor and the GPU see the same bytes at the same time, and nothing is
//!   copied to be seen.
//! - A submit is one command buffer with one encoder. Launches between two barriers run in any order or at
//!   once; what is before a barrier is done, and seen, before what is after it begins. One submit of a queue
//!   is done before the next begins.
//! - A failure of submitted work comes out of [`Driver::wait`], of that submit or any later one.
#![allow(unsafe_code, reason = "declares what only its callers can make sound")]

use std::{fmt::Debug, ptr::NonNull};

use photon_core::{MemoryInfo, Result};

pub use crate::arguments::{Field, Layout};
use crate::work::Work;

/// Threadgroup memory of a threadgroup, static and dynamic, on every device of the family.
pub const THREADGROUP_BYTES: u32 = 32 << 10;

/// What kernels are chosen by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The device's name, such as `Apple M2`.
    pub name: String,
    /// Its family: 7 is M1, 8 M2, 9 M3 and M4, 10 M5.
    pub family: u32,
    /// Whether there is arithmetic on bfloat16: kernels with it are compiled only then.
    pub has_bfloat: bool,
    /// Whether there are tensor operations on matrices (Metal 4).
    pub has_tensor_ops: bool,
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel's name in its source.
    pub kernel: &'static str,
    /// Threadgroups.
    pub threadgroups: [u32; 3],
    /// Threads of a threadgroup.
    pub threads: [u32; 3],
    /// Bytes of `[[threadgroup(0)]]`; 0 if the kernel has none.
    pub threadgroup_bytes: u32,
    /// The kernel's one argument, byte for byte: `[[buffer(0)]]`.
    pub args: &'a [u8],
    /// How the argument lies.
    pub layout: &'static Layout,
    /// Bytes of what it was said to read and write.
    pub bytes: u64,
}

/// A handle to memory that the processor and the GPU share. Cloning shares; the last drop frees.
#[expect(clippy::len_without_is_empty, reason = "nobody asks whether device memory is empty")]
pub trait Memory: Clone + Debug + Send + Sync + 'static {
    /// Where it begins, for kernels. A multiple of 256, or of 16 on the simulator, which puts a page that
    /// cannot be touched at the end.
    fn address(&self) -> u64;

    /// Where it begins, for the processor.
    fn host(&self) -> NonNull<u8>;

    /// Bytes.
    fn len(&self) -> usize;
}

/// A GPU and its driver. Cloning shares.
pub trait Driver: Clone + Debug + Send + Sync + 'static {
    /// Shared memory.
    type Memory: Memory;
    /// An ordered queue of work.
    type Queue: Debug + Send + 'static;
    /// The end of a submit.
    type Event: Clone + Debug + Send + 'static;

    /// What kernels are chosen by.
    fn facts(&self) -> &Facts;

    /// Free and total memory.
    fn memory(&self) -> MemoryInfo;

    /// Zeroed memory, which every kernel can reach from now on.
    fn alloc(&self, bytes: usize) -> Result<Self::Memory>;

    /// Opens a queue.
    fn queue(&self) -> Result<Self::Queue>;

    /// Hands work to the device.
    ///
    /// # Safety
    /// The arguments of every launch are what its kernel takes, and every address in them is of memory that
    /// lives until the work has run and is as large as the kernel's other arguments say.
    unsafe fn submit(&self, queue: &mut Self::Queue, work: &Work) -> Result<Self::Event>;

    /// Whether the work before the mark has run, or failed.
    fn is_done(&self, event: &Self::Event) -> bool;

    /// Blocks until the work before the mark has run; reports the first failure of its queue.
    fn wait(&self, event: &Self::Event) -> Result<()>;
}
