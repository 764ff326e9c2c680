//! A stream: launches in order, barriers where they are needed, the first failure latched, capture.
//!
//! # Rules
//! - Nothing reaches the device before a submit: recording makes a list ([`Work`]), which becomes one command
//!   buffer. What is captured is such a list, kept by the graph.
//! - [`Stream::reads`], [`Stream::writes`] and their like are the only way to an address. Each notes the bytes
//!   for the next launch, which gets a barrier before it if it needs one, and keeps the memory until the work
//!   has run (inside a capture: as long as the graph).
//! - An upload is written at once if nothing is recorded or under way. Else a launch copies it in its turn,
//!   from memory used again only after its submit has run; inside a capture, from memory of the graph's own.
//! - After a failure nothing more is recorded; the failure comes out of every submit.
#![allow(unsafe_code, reason = "hands addresses to the driver, and writes memory that it shares")]

use std::{collections::VecDeque, ops::Range, ptr::NonNull, sync::Arc};

use photon_core::{Error, Result, Tensor, Weight};

use crate::{
    arguments::Arguments,
    device::Gpu,
    driver::{Driver, Launch, Memory},
    hazards::{Hazards, Span},
    kernels::rows,
    work::{Counts, Work},
};

/// Memory between the launches of one operation.
const SCRATCH_BYTES: usize = 16 << 20;
/// Uploads on their way: so many chunks at most, made as they are first needed.
const CHUNKS: usize = 4;
const CHUNK_BYTES: usize = 1 << 20;
/// What kernels copy fastest.
const ALIGNMENT: usize = 16;
/// The largest argument that is copied into a command buffer.
const MAX_ARGS: usize = 4096;
const MAX_THREADS: u32 = 1024;

/// An ordered queue of work.
#[derive(Debug)]
pub struct Stream<L: Driver> {
    driver: L,
    queue: L::Queue,
    pass: Pass<L>,
    /// What was recorded before the capture under way.
    outer: Option<Pass<L>>,
    in_flight: VecDeque<InFlight<L>>,
    staging: Staging<L>,
    scratch: L::Memory,
    scratch_used: usize,
    failed: Option<Error>,
    submitted: Counts,
}

/// What is recorded and not yet submitted.
#[derive(Debug)]
struct Pass<L: Driver> {
    work: Work,
    hazards: Hazards,
    held: Held<L>,
}

/// What work keeps alive.
#[derive(Debug)]
struct Held<L: Driver> {
    memory: Vec<L::Memory>,
    graphs: Vec<Arc<Held<L>>>,
}

impl<L: Driver> Pass<L> {
    fn new() -> Self {
        let held = Held { memory: Vec::new(), graphs: Vec::new() };
        Pass { work: Work::default(), hazards: Hazards::default(), held }
    }
}

/// Captured work, and every buffer it touches.
#[derive(Debug)]
pub struct Graph<L: Driver> {
    work: Arc<Work>,
    held: Arc<Held<L>>,
}

/// A submit that may not have run yet.
#[derive(Debug)]
struct InFlight<L: Driver> {
    event: L::Event,
    /// Kept until then.
    #[expect(dead_code, reason = "held, not read")]
    held: Held<L>,
    chunks: Vec<L::Memory>,
}

/// Memory for uploads that must wait for their turn.
#[derive(Debug)]
struct Staging<L: Driver> {
    free: Vec<L::Memory>,
    /// The chunk being filled, and how far.
    current: Option<(L::Memory, usize)>,
    /// Full chunks of work not yet submitted.
    spent: Vec<L::Memory>,
    made: usize,
}

impl<L: Driver> Staging<L> {
    /// A place for `bytes`; `None` if everything is in use.
    fn place(&mut self, driver: &L, bytes: usize) -> Result<Option<(L::Memory, usize)>> {
        if bytes > CHUNK_BYTES {
            return Ok(None);
        }
        if let Some((chunk, used)) = &mut self.current {
            let at = used.next_multiple_of(ALIGNMENT);
            if at + bytes <= CHUNK_BYTES {
                *used = at + bytes;
                return Ok(Some((chunk.clone(), at)));
            }
        }
        let next = match self.free.pop() {
            Some(chunk) => chunk,
            None if self.made < CHUNKS => {
                self.made += 1;
                driver.alloc(CHUNK_BYTES)?
            }
            None => return Ok(None),
        };
        if let Some((full, _)) = self.current.replace((next.clone(), bytes)) {
            self.spent.push(full);
        }
        Ok(Some((next, 0)))
    }
}

/// Host memory that the device copies to by itself: memory that both share.
#[derive(Debug)]
pub struct Pinned<L: Driver>(L::Memory);

impl<L: Driver> Pinned<L> {
    pub(crate) fn new(driver: &L, bytes: usize) -> Result<Self> {
        Ok(Pinned(driver.alloc(bytes)?))
    }
}

impl<L: Driver> AsRef<[u8]> for Pinned<L> {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the memory lives as long as its handle and is zeroed where nobody wrote; the device writes
        // to it only between `Stream::read_back`, which takes this value, and the event that gives it back.
        unsafe { std::slice::from_raw_parts(self.0.host().as_ptr(), self.0.len()) }
    }
}

impl<L: Driver> AsMut<[u8]> for Pinned<L> {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_ref`; the handle is never given out, so this borrow is the only way to the bytes.
        unsafe { std::slice::from_raw_parts_mut(self.0.host().as_ptr(), self.0.len()) }
    }
}

/// Copies bytes to where nothing reads or writes meanwhile.
pub(crate) fn write<M: Memory>(memory: &M, offset: usize, bytes: &[u8]) {
    let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= memory.len());
    assert!(fits, "{} bytes at {offset} of a buffer of {}", bytes.len(), memory.len());
    // SAFETY: inside of the memory, as just checked.
    let to: NonNull<u8> = unsafe { memory.host().add(offset) };
    // SAFETY: the range was checked; a slice of the caller's does not overlap memory that is only handed out
    // by address; no launch touches it meanwhile (the caller's promise).
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
}

/// Memory between two launches; see [`Stream::scratch`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scratch {
    address: u64,
    bytes: usize,
}

impl<L: Driver> Stream<L> {
    pub(crate) fn open(driver: &L) -> Result<Self> {
        Ok(Stream {
            driver: driver.clone(),
            queue: driver.queue()?,
            pass: Pass::new(),
            outer: None,
            in_flight: VecDeque::new(),
            staging: Staging { free: Vec::new(), current: None, spent: Vec::new(), made: 0 },
            scratch: driver.alloc(SCRATCH_BYTES)?,
            scratch_used: 0,
            failed: None,
            submitted: Counts::default(),
        })
    }

    /// All that was submitted so far.
    pub fn submitted(&self) -> Counts {
        self.submitted
    }

    /// The address of a tensor's first element, for a next launch that reads the tensor.
    pub(crate) fn reads(&mut self, t: &Tensor<Gpu<L>>) -> u64 {
        let span = self.span(t);
        self.pass.hazards.reads(span);
        span.start
    }

    /// The address of a tensor's first element, for a next launch that writes the tensor, and may read it.
    pub(crate) fn writes(&mut self, t: &Tensor<Gpu<L>>) -> u64 {
        let span = self.span(t);
        self.pass.hazards.writes(span);
        span.start
    }

    /// The address of packed matrices, for a next launch that reads them.
    pub(crate) fn weight(&mut self, w: &Weight<Gpu<L>>) -> u64 {
        let memory = w.buffer();
        self.hold(memory);
        // Noted, too: adapters are copied into place by launches.
        self.reads_bytes(memory.address(), memory.len())
    }

    /// Memory that one launch writes and a later one of the same operation reads; it holds anything.
    ///
    /// # Panics
    /// If there is not so much.
    #[track_caller]
    pub(crate) fn scratch(&mut self, bytes: usize) -> Scratch {
        assert!(bytes <= SCRATCH_BYTES, "{bytes} bytes of scratch memory, of {SCRATCH_BYTES}");
        let mut at = self.scratch_used.next_multiple_of(256);
        if at + bytes > SCRATCH_BYTES {
            at = 0;
        }
        self.scratch_used = at + bytes;
        Scratch { address: self.scratch.address() + at as u64, bytes }
    }

    /// Its address, for a next launch that reads it.
    pub(crate) fn reads_scratch(&mut self, scratch: Scratch) -> u64 {
        let memory = self.scratch.clone();
        self.hold(&memory);
        self.reads_bytes(scratch.address, scratch.bytes)
    }

    /// Its address, for a next launch that writes it.
    pub(crate) fn writes_scratch(&mut self, scratch: Scratch) -> u64 {
        let memory = self.scratch.clone();
        self.hold(&memory);
        self.writes_bytes(scratch.address, scratch.bytes)
    }

    /// The address, for a next launch that reads bytes there, whose memory is held.
    pub(crate) fn reads_bytes(&mut self, address: u64, bytes: usize) -> u64 {
        self.pass.hazards.reads(Span::bytes(address, bytes));
        address
    }

    /// The address, for a next launch that writes bytes there, whose memory is held.
    pub(crate) fn writes_bytes(&mut self, address: u64, bytes: usize) -> u64 {
        self.pass.hazards.writes(Span::bytes(address, bytes));
        address
    }

    fn span(&mut self, t: &Tensor<Gpu<L>>) -> Span {
        self.hold(t.buffer());
        let size = t.dtype().size();
        Span {
            start: t.buffer().address() + t.offset() as u64,
            row_bytes: (t.cols() * size) as u64,
            stride: (t.row_stride() * size) as u64,
            rows: t.rows() as u64,
        }
    }

    fn hold(&mut self, memory: &L::Memory) {
        let list = &mut self.pass.held.memory;
        // Operations in a row share most of their buffers; a whole step has few hundred.
        if !list.iter().rev().any(|held| held.address() == memory.address()) {
            list.push(memory.clone());
        }
    }

    /// Records a launch of `kernel` with the one argument it takes; nothing if there are no threadgroups.
    ///
    /// # Panics
    /// If the threadgroup or the argument is larger than any device takes.
    #[track_caller]
    pub(crate) fn launch<A: Arguments>(
        &mut self,
        kernel: &'static str,
        threadgroups: [u32; 3],
        threads: u32,
        args: &A,
    ) {
        self.launch_with(kernel, threadgroups, threads, args, 0);
    }

    /// As [`Stream::launch`], with so many bytes of `[[threadgroup(0)]]`.
    #[track_caller]
    pub(crate) fn launch_with<A: Arguments>(
        &mut self,
        kernel: &'static str,
        threadgroups: [u32; 3],
        threads: u32,
        args: &A,
        threadgroup_bytes: u32,
    ) {
        let (args, layout) = (bytemuck::bytes_of(args), A::LAYOUT);
        let fits = threads <= MAX_THREADS && args.len() <= MAX_ARGS;
        assert!(fits, "{kernel}: {threads} threads, {} bytes of arguments", args.len());
        let Pass { work, hazards, .. } = &mut self.pass;
        if threadgroups.contains(&0) || self.failed.is_some() {
            return hazards.forget_next();
        }
        let bytes = hazards.next_bytes();
        if hazards.launch() {
            work.barrier();
        }
        work.launch(&Launch {
            kernel,
            threadgroups,
            threads: [threads, 1, 1],
            threadgroup_bytes,
            args,
            layout,
            bytes,
        });
    }

    fn fail(&mut self, doing: &str, why: String) {
        let device = self.driver.facts().name.clone();
        self.failed.get_or_insert(Error::DeviceLost { device, doing: doing.into(), why });
    }

    fn outcome(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Takes back what submits that have run held.
    fn reap(&mut self) {
        while let Some(first) = self.in_flight.front()
            && self.driver.is_done(&first.event)
        {
            let InFlight { event, chunks, .. } = self.in_flight.pop_front().expect("just seen");
            self.staging.free.extend(chunks);
            if let Err(error) = self.driver.wait(&event) {
                self.failed.get_or_insert(error);
            }
        }
    }

    /// Records a copy of `bytes` to `offset` of `to`.
    ///
    /// # Panics
    /// If they do not fit.
    #[track_caller]
    pub(crate) fn upload(&mut self, to: &L::Memory, offset: usize, bytes: &[u8]) {
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= to.len());
        assert!(fits, "upload: {} bytes at {offset} of a buffer of {}", bytes.len(), to.len());
        self.reap();
        if bytes.is_empty() || self.failed.is_some() {
            return;
        }
        let is_capturing = self.outer.is_some();
        if !is_capturing && self.pass.work.is_empty() && self.in_flight.is_empty() {
            return write(to, offset, bytes);
        }
        let place = match is_capturing {
            true => self.driver.alloc(bytes.len()).map(|memory| Some((memory, 0))),
            false => self.staging.place(&self.driver, bytes.len()),
        };
        match place {
            Ok(Some((from, at))) => {
                write(&from, at, bytes);
                self.hold(&from);
                self.copy((from.address() + at as u64, to, offset), bytes.len());
            }
            // Too much to keep twice.
            Ok(None) => {
                let done = self.submit().and_then(|event| self.driver.wait(&event));
                match done {
                    Ok(()) => write(to, offset, bytes),
                    Err(error) => drop(self.failed.get_or_insert(error)),
                }
            }
            Err(error) => drop(self.failed.get_or_insert(error)),
        }
    }

    /// Records a copy to `offset` of `to`, which is held.
    fn copy(&mut self, (from, to, offset): (u64, &L::Memory, usize), bytes: usize) {
        self.hold(to);
        rows::copy_bytes(self, to.address() + offset as u64, from, bytes);
    }

    /// Records a copy of `range` of `from` to `into` and submits.
    ///
    /// # Panics
    /// If the range does not lie in both.
    #[track_caller]
    pub(crate) fn read_back(
        &mut self,
        from: &L::Memory,
        range: Range<usize>,
        into: Pinned<L>,
    ) -> Result<(Pinned<L>, L::Event)> {
        let (has, takes) = (from.len(), into.0.len());
        assert!(
            range.start <= range.end && range.end <= has && range.len() <= takes,
            "read_back: {range:?} of a buffer of {has} into one of {takes}"
        );
        if self.outer.is_none() && !range.is_empty() {
            self.hold(from);
            let start = from.address() + range.start as u64;
            // What the device may still write to after a failure is held by the work.
            self.copy((start, &into.0, 0), range.len());
        }
        self.submit().map(|event| (into, event))
    }

    /// Hands the work so far to the device.
    pub(crate) fn submit(&mut self) -> Result<L::Event> {
        if self.outer.is_some() {
            self.fail("capturing", "work was submitted inside a capture".into());
        }
        self.reap();
        self.outcome()?;
        let Pass { work, held, .. } = std::mem::replace(&mut self.pass, Pass::new());
        // SAFETY: arguments are those of the kernel of this name (the simulator compares every struct with the
        // source's); addresses in them came from `Self::reads` and its like, which hold the memory until the
        // submit is reaped; `Cx` has checked that shapes fit their tensors.
        let event = unsafe { self.driver.submit(&mut self.queue, &work) };
        let event = event.map_err(|error| self.failed.insert(error).clone())?;
        self.submitted += work.counts();
        let chunks = std::mem::take(&mut self.staging.spent);
        self.in_flight.push_back(InFlight { event: event.clone(), held, chunks });
        Ok(event)
    }

    /// What is recorded, which is then no longer so.
    #[cfg(test)]
    pub(crate) fn take_work(&mut self) -> Work {
        std::mem::replace(&mut self.pass, Pass::new()).work
    }

    pub(crate) fn capture(
        &mut self,
        record: &mut dyn FnMut(&mut Self),
    ) -> Result<Option<Graph<L>>> {
        if self.outer.is_some() {
            self.fail("capturing", "a capture was begun inside a capture".into());
        }
        self.outcome()?;
        self.outer = Some(std::mem::replace(&mut self.pass, Pass::new()));
        record(self);
        let outer = self.outer.take().expect("set above, and taken only here");
        let Pass { work, held, .. } = std::mem::replace(&mut self.pass, outer);
        self.outcome()?;
        Ok(Some(Graph { work: Arc::new(work), held: Arc::new(held) }))
    }

    pub(crate) fn replay(&mut self, graph: &Graph<L>) {
        if self.failed.is_some() || graph.work.is_empty() {
            return;
        }
        let Pass { work, hazards, held } = &mut self.pass;
        if !hazards.is_clear() {
            work.barrier();
        }
        work.replay(&graph.work);
        hazards.fence();
        held.graphs.push(Arc::clone(&graph.held));
    }
}

impl<L: Driver> Drop for Stream<L> {
    fn drop(&mut self) {
        // What was submitted uses memory that is freed with this.
        for InFlight { event, .. } in &self.in_flight {
            let _ = self.driver.wait(event);
        }
    }
}
