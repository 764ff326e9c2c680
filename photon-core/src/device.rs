//! Memory, ordering and replay: everything about a device except arithmetic.
//!
//! # Rules
//! - Work recorded on one stream runs in recording order. Recording never fails; an error is latched
//!   in the stream and comes out of [`Device::submit`] or [`Device::wait`].
//! - Nothing allocates after start-up: buffers, host buffers and the arena are made once.
//! - A graph owns clones of every buffer it touches, so replaying it is safe for ever.
use std::{fmt::Debug, ops::Range};

use crate::{DType, Pending, Result, Weight, WeightData};

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Bytes that could be allocated now.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Whether it is the device's own, so that it may be filled: main memory is everybody's.
    pub is_dedicated: bool,
}

/// A processor with its own memory and ordered queues of work. Cloning shares the device.
pub trait Device: Clone + Debug + Send + Sync + 'static {
    /// A handle to device memory. Cloning shares; the last drop frees.
    type Buffer: Clone + Debug + Send + Sync + 'static;
    /// An ordered queue of work.
    type Stream: Debug + Send + 'static;
    /// A point in a stream's work that another thread can wait for.
    type Event: Debug + Send + 'static;
    /// A captured run of work; [`std::convert::Infallible`] where capture is not supported.
    type Graph: Debug + Send + 'static;
    /// Host memory the device can copy to and from on its own (pinned, shared or plain).
    type HostBuffer: AsRef<[u8]> + AsMut<[u8]> + Debug + Send + 'static;

    /// Short name for logs, messages and test output, such as `cpu (avx2, 2 threads)`.
    fn name(&self) -> String;

    /// Free and total memory.
    fn memory(&self) -> MemoryInfo;

    /// The float type that a model of type `own` is kept in where nobody asks for another: its own, unless the device
    /// has fast arithmetic only on a different one of the same size.
    fn model_dtype(&self, own: DType) -> DType {
        own
    }

    /// The type that activations should have beside weights of a float type: f32, unless units that multiply
    /// matrices want both alike.
    fn activations(&self, _weights: DType) -> DType {
        DType::F32
    }

    /// The type of those activations that only live within a block: normed inputs, queries, keys and values,
    /// hidden layers. The same as the others, unless units that multiply matrices round them anyway.
    fn inner_activations(&self, weights: DType) -> DType {
        self.activations(weights)
    }

    /// Allocates zeroed memory, aligned to at least 256 bytes. Slow, so only at start-up.
    fn alloc(&self, bytes: usize) -> Result<Self::Buffer>;

    /// Copies a weight matrix to the device in the layout its kernels like best. Slow, so only at
    /// start-up.
    fn weight(&self, data: WeightData<'_>) -> Result<Weight<Self>>;

    /// Opens a stream.
    fn stream(&self) -> Result<Self::Stream>;

    /// Records a copy of `bytes` to `dst` at byte `offset`; `bytes` is free for reuse on return.
    fn upload(&self, stream: &mut Self::Stream, dst: &Self::Buffer, offset: usize, bytes: &[u8]);

    /// Allocates host memory. Slow, so only at start-up.
    fn host_buffer(&self, bytes: usize) -> Result<Self::HostBuffer>;

    /// Records a copy of the bytes `range` of `src` to the start of `into`, and submits.
    fn read_back(
        &self,
        stream: &mut Self::Stream,
        src: &Self::Buffer,
        range: Range<usize>,
        into: Self::HostBuffer,
    ) -> Result<Pending<Self>>;

    /// Hands recorded work to the device; the event fires when it is done.
    fn submit(&self, stream: &mut Self::Stream) -> Result<Self::Event>;

    /// Blocks until `event` has fired and reports the first error of the work before it.
    fn wait(&self, event: &Self::Event) -> Result<()>;

    /// Captures what `record` records instead of running it; `None` where not supported (then
    /// `record` was not called).
    fn capture(
        &self,
        stream: &mut Self::Stream,
        record: &mut dyn FnMut(&mut Self::Stream),
    ) -> Result<Option<Self::Graph>>;

    /// Records one replay of `graph`.
    fn replay(&self, stream: &mut Self::Stream, graph: &Self::Graph);
}
