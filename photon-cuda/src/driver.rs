//! What this backend needs of CUDA, and nothing above it may ask for more.
//!
//! There are two drivers: the real one, and one that runs the same kernel sources on the processor, for
//! tests. Everything above this seam (which kernel, which grid, how arguments are packed, what is
//! captured) is the same code for both.
//!
//! # Rules
//! - Work on one stream runs in the order it was given. It may begin at once, and has begun at the latest
//!   when an event is recorded.
//! - A call that fails because the device does says so with [`Error::DeviceLost`]; a failure of work that
//!   was accepted comes out of [`Driver::record`] or [`Driver::wait`].
//! - Memory, streams, events and graphs are freed by dropping them, and then only after the device is done
//!   with them.
//!
//! [`Error::DeviceLost`]: photon_core::Error::DeviceLost
#![allow(unsafe_code, reason = "declares what only its callers can make sound")]

use std::{fmt::Debug, ops::Range};

use photon_core::{DType, MemoryInfo, Result};

/// What kernels are chosen by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The device's name, such as `NVIDIA H200`.
    pub name: String,
    /// Compute capability: (9, 0) is sm_90.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Most shared memory a block can have, static and dynamic.
    pub shared_bytes: u32,
    /// What the driver calls itself: 12080 is CUDA 12.8. Zero for the simulator.
    pub driver_version: u32,
}

/// One launch. Where the device can (sm_90) a kernel starts while the one before it ends, and waits by itself
/// (`grid_wait` of `ptx.cuh`) before it touches what kernels write; the simulator refuses one that does not.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel's name in its source.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// The kernel's one argument, byte for byte.
    pub args: &'a [u8],
}

/// A matrix in device memory as the copy engine of sm_90 sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Address of the first element; a multiple of 16.
    pub address: u64,
    /// Type of the elements; f16, bf16 or bytes.
    pub dtype: DType,
    /// Columns, rows.
    pub dims: [u64; 2],
    /// Bytes from a row to the next; a multiple of 16.
    pub row_bytes: u64,
    /// Columns and rows of the tile that one instruction copies. A row of it is 128 bytes, and is swizzled
    /// as wgmma expects.
    pub tile: [u32; 2],
}

/// A [`TensorMap`] as the hardware reads it: a kernel's argument, at a multiple of 64 bytes.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct TensorMapBits(pub [u64; 16]);

/// A handle to device memory. Cloning shares; the last drop frees.
#[expect(clippy::len_without_is_empty, reason = "nobody asks whether device memory is empty")]
pub trait Memory: Clone + Debug + Send + Sync + 'static {
    /// Where it begins, for the device. A multiple of 256, or of 16 on the simulator, which puts a page that
    /// cannot be touched at the end.
    fn address(&self) -> u64;
    /// Bytes.
    fn len(&self) -> usize;
}

/// A GPU and its driver. Cloning shares.
pub trait Driver: Clone + Debug + Send + Sync + 'static {
    /// Device memory.
    type Memory: Memory;
    /// Host memory that the device copies to and from on its own.
    type Pinned: AsRef<[u8]> + AsMut<[u8]> + Debug + Send + Sync + 'static;
    /// An ordered queue of work. Dropping it waits for the work.
    type Stream: Debug + Send + 'static;
    /// A point in a stream's work.
    type Event: Debug + Send + 'static;
    /// Captured work.
    type Graph: Debug + Send + 'static;

    /// Whether work waits for [`Driver::record`], so that the memory it uses must be held until then.
    const DEFERS: bool;

    /// What kernels are chosen by.
    fn facts(&self) -> &Facts;

    /// Free and total memory.
    fn memory(&self) -> MemoryInfo;

    /// Zeroed memory.
    fn alloc(&self, bytes: usize) -> Result<Self::Memory>;

    /// Host memory.
    fn pinned(&self, bytes: usize) -> Result<Self::Pinned>;

    /// Opens a stream.
    fn stream(&self) -> Result<Self::Stream>;

    /// Copies `from` to `offset` of `to`.
    ///
    /// # Safety
    /// `from` lies in a `Pinned` that lives and stays as it is until the copy has run; the bytes fit.
    unsafe fn copy_in(
        &self,
        stream: &mut Self::Stream,
        to: &Self::Memory,
        offset: usize,
        from: &[u8],
    ) -> Result<()>;

    /// Copies `range` of `from` to the start of `into`.
    ///
    /// # Safety
    /// `into` is not read, written or dropped until the copy has run; the range lies in both.
    unsafe fn copy_out(
        &self,
        stream: &mut Self::Stream,
        from: &Self::Memory,
        range: Range<usize>,
        into: &mut Self::Pinned,
    ) -> Result<()>;

    /// Launches a kernel.
    ///
    /// # Safety
    /// The arguments are what the kernel takes, and every address in them is of memory that lives until the
    /// work has run and is as large as the kernel's other arguments say.
    unsafe fn launch(&self, stream: &mut Self::Stream, launch: &Launch<'_>) -> Result<()>;

    /// Describes a matrix for the copy engine of sm_90; `None` where there is no such engine.
    fn tensor_map(&self, map: &TensorMap) -> Option<TensorMapBits>;

    /// Marks the end of the work given so far.
    fn record(&self, stream: &mut Self::Stream) -> Result<Self::Event>;

    /// Blocks until the work before the mark has run; reports its first failure.
    fn wait(&self, event: &Self::Event) -> Result<()>;

    /// From now on the stream's work is kept instead of run.
    fn begin_capture(&self, stream: &mut Self::Stream) -> Result<()>;

    /// Ends the capture, and gives what was kept.
    fn end_capture(&self, stream: &mut Self::Stream) -> Result<Self::Graph>;

    /// Runs captured work once more.
    ///
    /// # Safety
    /// Memory that the captured work touches lives until it has run.
    unsafe fn replay(&self, stream: &mut Self::Stream, graph: &Self::Graph) -> Result<()>;
}
