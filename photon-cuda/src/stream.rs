//! A stream: work in order, the first failure latched, uploads through pinned memory, capture.
//!
//! # Rules
//! - After a failure nothing more is given to the driver; the failure comes out of every submit.
//! - An upload copies its bytes to pinned memory, from where the device takes them. That memory is a ring
//!   of chunks, each reused only after the event that follows its last copy. Inside a capture an upload
//!   gets pinned memory of its own, which belongs to the graph, as a replay reads it again.
//! - [`Stream::address`] is the only way to a device address. What is asked for inside a capture is held by
//!   the graph; for a driver that defers work, what is asked for is held until the work has run.
#![allow(unsafe_code, reason = "hands addresses and pinned memory to the driver")]

use std::sync::Arc;

use bytemuck::Pod;
use photon_core::{Error, Result, Tensor, Weight};

use crate::{
    device::Gpu,
    driver::{Driver, Launch, Memory},
};

/// Scratch memory of a stream, in bytes.
pub(crate) const WORKSPACE_BYTES: usize = 8 << 20;
/// Of which so many at the start are counters: zero whenever no kernel runs.
pub(crate) const COUNTER_BYTES: usize = 64 << 10;

/// Four chunks of 4 MiB: the crops of one picture fit in one, and large weights stream through all four
/// while the processor fills the next.
const CHUNKS: usize = 4;
const CHUNK_BYTES: usize = 4 << 20;
/// What copy engines like best.
const ALIGNMENT: usize = 256;
/// The largest grid along y and z.
const MAX_GRID_YZ: u32 = 65_535;
/// The largest argument of a kernel.
const MAX_ARGS: usize = 4096;

/// An ordered queue of work.
#[derive(Debug)]
pub struct Stream<L: Driver> {
    // First, as dropping it waits for the work that uses the rest.
    raw: L::Stream,
    driver: L,
    ring: Ring<L>,
    workspace: L::Memory,
    failed: Option<Error>,
    capture: Option<Held<L>>,
    /// For drivers that defer: memory and graphs of work that has not run.
    deferred: Vec<L::Memory>,
    deferred_graphs: Vec<Arc<Held<L>>>,
}

/// What a graph keeps alive.
#[derive(Debug)]
pub(crate) struct Held<L: Driver> {
    memory: Vec<L::Memory>,
    pinned: Vec<L::Pinned>,
}

/// Captured work, and every buffer it touches.
#[derive(Debug)]
pub struct Graph<L: Driver> {
    raw: L::Graph,
    held: Arc<Held<L>>,
}

/// Pinned memory for uploads. Chunks come into being as they are first needed.
#[derive(Debug)]
struct Ring<L: Driver> {
    chunks: Vec<Chunk<L>>,
    /// The chunk being filled, and how far.
    current: usize,
    used: usize,
}

#[derive(Debug)]
struct Chunk<L: Driver> {
    pinned: L::Pinned,
    /// Fires after the last copy out of the chunk.
    free: Option<L::Event>,
}

impl<L: Driver> Ring<L> {
    /// Puts `bytes`, at most a chunk of them, where the device can copy them from.
    fn put(&mut self, driver: &L, stream: &mut L::Stream, bytes: &[u8]) -> Result<&[u8]> {
        let mut at = self.used.next_multiple_of(ALIGNMENT);
        if !self.chunks.is_empty() && at + bytes.len() > CHUNK_BYTES {
            self.chunks[self.current].free = Some(driver.record(stream)?);
            self.current = (self.current + 1) % CHUNKS;
            at = 0;
        }
        if self.current == self.chunks.len() {
            self.chunks.push(Chunk { pinned: driver.pinned(CHUNK_BYTES)?, free: None });
        }
        let chunk = &mut self.chunks[self.current];
        if let Some(free) = chunk.free.take() {
            driver.wait(&free)?;
        }
        chunk.pinned.as_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        self.used = at + bytes.len();
        Ok(&chunk.pinned.as_ref()[at..at + bytes.len()])
    }
}

/// Calls, unless something failed before; latches the failure.
fn attempt<T>(failed: &mut Option<Error>, call: impl FnOnce() -> Result<T>) -> Option<T> {
    if failed.is_some() {
        return None;
    }
    call().map_err(|error| *failed = Some(error)).ok()
}

impl<L: Driver> Stream<L> {
    pub(crate) fn open(driver: &L) -> Result<Self> {
        Ok(Stream {
            raw: driver.stream()?,
            driver: driver.clone(),
            ring: Ring { chunks: Vec::new(), current: 0, used: 0 },
            workspace: driver.alloc(WORKSPACE_BYTES)?,
            failed: None,
            capture: None,
            deferred: Vec::new(),
            deferred_graphs: Vec::new(),
        })
    }

    /// The address of a tensor's first element, for arguments of the next launches.
    pub(crate) fn address(&mut self, t: &Tensor<Gpu<L>>) -> u64 {
        self.memory_address(t.buffer()) + t.offset() as u64
    }

    /// The address of packed matrices.
    pub(crate) fn weight_address(&mut self, w: &Weight<Gpu<L>>) -> u64 {
        self.memory_address(w.buffer())
    }

    /// The address of [`WORKSPACE_BYTES`] of scratch memory. The first [`COUNTER_BYTES`] are zero when a
    /// kernel starts, and it leaves them so; the rest holds anything.
    pub(crate) fn workspace(&mut self) -> u64 {
        let workspace = self.workspace.clone();
        self.memory_address(&workspace)
    }

    fn memory_address(&mut self, memory: &L::Memory) -> u64 {
        let list = match &mut self.capture {
            Some(held) => &mut held.memory,
            None if L::DEFERS => &mut self.deferred,
            None => return memory.address(),
        };
        // Operations in a row share most of their buffers; a graph of a whole step has few hundred.
        if !list.iter().rev().any(|held| held.address() == memory.address()) {
            list.push(memory.clone());
        }
        memory.address()
    }

    /// Launches `kernel` with the one argument it takes; does nothing for an empty grid.
    ///
    /// # Panics
    /// If the grid or the argument is larger than any device takes.
    #[track_caller]
    pub(crate) fn launch(
        &mut self,
        kernel: &'static str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        args: &impl Pod,
    ) {
        let args = bytemuck::bytes_of(args);
        let fits = grid[1] <= MAX_GRID_YZ && grid[2] <= MAX_GRID_YZ && args.len() <= MAX_ARGS;
        assert!(fits, "{kernel}: a grid of {grid:?}, {} bytes of arguments", args.len());
        if grid.contains(&0) {
            return;
        }
        let launch = Launch { kernel, grid, block, shared_bytes, args };
        // SAFETY: the arguments are those of the kernel of this name (tested for every kernel against what
        // its source declares); addresses in them came from `Self::address`, which holds the memory or, as
        // freeing waits for the device, need not; `Cx` has checked that shapes fit their tensors.
        self.attempt(|driver, raw| unsafe { driver.launch(raw, &launch) });
    }

    /// Calls the driver, unless the stream has failed; latches its failure.
    fn attempt<T>(&mut self, call: impl FnOnce(&L, &mut L::Stream) -> Result<T>) -> Option<T> {
        let Stream { raw, driver, failed, .. } = self;
        attempt(failed, || call(driver, raw))
    }

    fn fail(&mut self, doing: &str, why: String) {
        let device = self.driver.facts().name.clone();
        self.failed.get_or_insert(Error::DeviceLost { device, doing: doing.into(), why });
    }

    fn outcome(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Records a copy of `bytes` to `offset` of `to`.
    ///
    /// # Panics
    /// If they do not fit.
    #[track_caller]
    pub(crate) fn upload(&mut self, to: &L::Memory, offset: usize, bytes: &[u8]) {
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= to.len());
        assert!(fits, "upload: {} bytes at {offset} of a buffer of {}", bytes.len(), to.len());
        if bytes.is_empty() {
            return;
        }
        self.memory_address(to);
        if self.capture.is_some() {
            return self.upload_captured(to, offset, bytes);
        }
        for (i, part) in bytes.chunks(CHUNK_BYTES).enumerate() {
            let Stream { raw, driver, ring, failed, .. } = self;
            attempt(failed, || {
                let from = ring.put(driver, raw, part)?;
                // SAFETY: the bytes lie in the ring, which lives as long as the stream and writes there
                // again only after an event behind this copy; they fit (asserted above).
                unsafe { driver.copy_in(raw, to, offset + i * CHUNK_BYTES, from) }
            });
        }
    }

    fn upload_captured(&mut self, to: &L::Memory, offset: usize, bytes: &[u8]) {
        let pinned = self.attempt(|driver, raw| {
            let mut pinned = driver.pinned(bytes.len())?;
            pinned.as_mut().copy_from_slice(bytes);
            // SAFETY: the graph keeps `pinned`, and nobody writes to it again; the bytes fit (asserted by
            // the caller).
            unsafe { driver.copy_in(raw, to, offset, pinned.as_ref())? };
            Ok(pinned)
        });
        if let Some(held) = &mut self.capture {
            held.pinned.extend(pinned);
        }
    }

    /// Records a copy of `range` of `from` to `into` and marks its end.
    ///
    /// # Panics
    /// If the range does not lie in both.
    #[track_caller]
    pub(crate) fn read_back(
        &mut self,
        from: &L::Memory,
        range: std::ops::Range<usize>,
        mut into: L::Pinned,
    ) -> Result<(L::Pinned, L::Event)> {
        assert!(
            range.start <= range.end
                && range.end <= from.len()
                && range.len() <= into.as_ref().len(),
            "read_back: {range:?} of a buffer of {} into one of {}",
            from.len(),
            into.as_ref().len()
        );
        self.memory_address(from);
        if self.capture.is_none() && !range.is_empty() {
            // SAFETY: `into` is moved to the caller's `Pending`, which gives it out or drops it only after
            // the event; the range lies in both (asserted above).
            self.attempt(|driver, raw| unsafe { driver.copy_out(raw, from, range, &mut into) });
        }
        match self.submit() {
            Ok(event) => Ok((into, event)),
            Err(error) => {
                // A device that was lost may still be writing to it.
                std::mem::forget(into);
                Err(error)
            }
        }
    }

    /// Marks the end of the work so far.
    pub(crate) fn submit(&mut self) -> Result<L::Event> {
        if self.capture.is_some() {
            self.fail("capturing", "work was submitted inside a capture".into());
        }
        let event = self.attempt(L::record);
        if self.capture.is_none() {
            self.deferred.clear();
            self.deferred_graphs.clear();
        }
        match event {
            Some(event) => Ok(event),
            None => Err(self.outcome().expect_err("an attempt fails only with the stream")),
        }
    }

    pub(crate) fn capture(
        &mut self,
        record: &mut dyn FnMut(&mut Self),
    ) -> Result<Option<Graph<L>>> {
        if self.capture.is_some() {
            self.fail("capturing", "a capture was begun inside a capture".into());
        }
        self.attempt(L::begin_capture);
        self.outcome()?;
        self.capture = Some(Held { memory: Vec::new(), pinned: Vec::new() });
        record(self);
        let held = self.capture.take();
        // Ended even if something failed in between: else the driver would go on capturing.
        let raw = self.driver.end_capture(&mut self.raw);
        self.outcome()?;
        match raw {
            Ok(raw) => Ok(held.map(|held| Graph { raw, held: Arc::new(held) })),
            Err(error) => Err(self.failed.insert(error).clone()),
        }
    }

    pub(crate) fn replay(&mut self, graph: &Graph<L>) {
        if let Some(outer) = &mut self.capture {
            outer.memory.extend(graph.held.memory.iter().cloned());
        } else if L::DEFERS {
            self.deferred_graphs.push(Arc::clone(&graph.held));
        }
        // SAFETY: the graph holds the memory it touches; freeing that memory waits for the device, or it is
        // held here until the work has run.
        self.attempt(|driver, raw| unsafe { driver.replay(raw, &graph.raw) });
    }
}
