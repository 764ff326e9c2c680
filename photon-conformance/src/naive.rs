//! The plainest device there can be: vectors behind a mutex, scalar f32 loops, capture by closures.
//!
//! It shows what a [`Device`] has to do with nothing else in sight, proves that the suite can be
//! passed, and is what the suite's own tests plant bugs in. Work runs as it is recorded, unless the
//! stream is being captured.
//!
//! Deliberately absent: speed.
mod kernels;

use std::{
    fmt::Debug,
    mem::take,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

use photon_core::{
    DType, Device, Error, MemoryInfo, Pending, Result, Weight, WeightData, WeightFormat,
};

/// Nobody tests with more; anything above is taken for a mistake.
const MAX_BYTES: usize = 1 << 32;

/// A device of scalar loops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Naive;

/// Bytes behind a mutex.
#[derive(Clone)]
pub struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    /// The bytes.
    pub fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().expect("no work panicked")
    }
}

impl Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({:p})", Arc::as_ptr(&self.0))
    }
}

type Work = Arc<dyn Fn() + Send + Sync>;

/// Runs work at once, or collects it while it is being captured.
#[derive(Default)]
pub struct Stream {
    captured: Option<Vec<Work>>,
}

impl Stream {
    fn push(&mut self, work: Work) {
        match &mut self.captured {
            Some(captured) => captured.push(work),
            None => work(),
        }
    }

    fn run(&mut self, work: impl Fn() + Send + Sync + 'static) {
        self.push(Arc::new(work));
    }
}

impl Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("is_capturing", &self.captured.is_some()).finish()
    }
}

/// Always in the past.
#[derive(Debug)]
pub struct Event(());

/// Captured work, in order. Its closures own clones of their buffers.
pub struct Graph(Vec<Work>);

impl Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Graph({} pieces of work)", self.0.len())
    }
}

impl Device for Naive {
    type Buffer = Buffer;
    type Stream = Stream;
    type Event = Event;
    type Graph = Graph;
    type HostBuffer = Vec<u8>;

    fn name(&self) -> String {
        "naive (scalar f32)".into()
    }

    fn memory(&self) -> MemoryInfo {
        MemoryInfo {
            free_bytes: MAX_BYTES as u64,
            total_bytes: MAX_BYTES as u64,
            is_dedicated: true,
        }
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        if bytes > MAX_BYTES {
            return Err(Error::OutOfMemory {
                device: self.name(),
                purpose: "a buffer".into(),
                requested_bytes: bytes as u64,
                free_bytes: MAX_BYTES as u64,
            });
        }
        Ok(Buffer(Arc::new(Mutex::new(vec![0; bytes]))))
    }

    fn weight(&self, data: WeightData<'_>) -> Result<Weight<Self>> {
        let WeightData { count, format, bytes, scales, .. } = data;
        let WeightFormat::Float(DType::I32 | DType::U8 | DType::Int8 | DType::Fp8) = format else {
            // Matrix by matrix its elements, then its scales.
            let elements = bytes.len().checked_div(count).unwrap_or(0);
            let num_scales = scales.len().checked_div(count).unwrap_or(0);
            let mut packed = Vec::new();
            for matrix in 0..count {
                packed.extend(&bytes[matrix * elements..(matrix + 1) * elements]);
                let scales = &scales[matrix * num_scales..(matrix + 1) * num_scales];
                packed.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
            }
            let buffer = Buffer(Arc::new(Mutex::new(packed)));
            return Ok(Weight::new(&data, buffer, elements + 4 * num_scales));
        };
        let (device, format) = (self.name(), format.to_string());
        Err(Error::UnsupportedFormat { device, format })
    }

    fn stream(&self) -> Result<Stream> {
        Ok(Stream::default())
    }

    fn upload(&self, stream: &mut Stream, dst: &Buffer, offset: usize, bytes: &[u8]) {
        let (dst, bytes) = (dst.clone(), bytes.to_vec());
        stream.run(move || dst.lock()[offset..offset + bytes.len()].copy_from_slice(&bytes));
    }

    fn host_buffer(&self, bytes: usize) -> Result<Vec<u8>> {
        Ok(vec![0; bytes])
    }

    fn read_back(
        &self,
        _: &mut Stream,
        src: &Buffer,
        range: Range<usize>,
        mut into: Vec<u8>,
    ) -> Result<Pending<Self>> {
        into[..range.len()].copy_from_slice(&src.lock()[range]);
        Ok(Pending::new(*self, into, Event(())))
    }

    fn submit(&self, _: &mut Stream) -> Result<Event> {
        Ok(Event(()))
    }

    fn wait(&self, _: &Event) -> Result<()> {
        Ok(())
    }

    fn capture(
        &self,
        stream: &mut Stream,
        record: &mut dyn FnMut(&mut Stream),
    ) -> Result<Option<Graph>> {
        stream.captured = Some(Vec::new());
        record(stream);
        Ok(take(&mut stream.captured).map(Graph))
    }

    fn replay(&self, stream: &mut Stream, graph: &Graph) {
        graph.0.iter().for_each(|work| stream.push(work.clone()));
    }
}
