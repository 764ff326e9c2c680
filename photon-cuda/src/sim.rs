//! A GPU that is the processor: the same kernel sources, compiled as C++ and run by photon-simt.
//!
//! A stream only makes a list; it runs when an event is recorded, on the calling thread, so that whatever
//! a real device does later happens later here, too: uploads are read from pinned memory then, and memory
//! freed too early is missed. A kernel's mistake (out of bounds, a race, a barrier missed) is an error that
//! names the kernel.
//!
//! It can also count instead of run: see [`Counter`].
#![allow(unsafe_code, reason = "hands addresses to the simulator")]

use std::{
    env, fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use photon_core::{Error, MemoryInfo, Result};
use photon_simt::{Count, Counter, cuda};

use crate::driver::{self, Driver, Facts, Launch, TensorMap, TensorMapBits};

/// A seed of the order in which warps run, for looking into a failure.
const SEED_VARIABLE: &str = "PHOTON_SIM_SEED";
/// As much as a small GPU has: nothing that is simulated needs more.
const TOTAL_BYTES: u64 = 4 << 30;

/// The simulator. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Sim(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    facts: Facts,
    seed: u64,
    /// Kernels that can be had with this bug have it.
    bug: Option<String>,
    counter: Option<Counter>,
    /// Memory given out.
    used: AtomicU64,
}

impl Sim {
    /// A GPU of few multiprocessors, so that grids wrap round where they may.
    pub fn open() -> Self {
        Self::new(None)
    }

    /// The same with a bug in its kernels: see `kernels/planted.diff`.
    #[cfg(test)]
    pub(crate) fn with_bug(name: &str) -> Self {
        Self::new(Some(name.to_owned()))
    }

    fn new(bug: Option<String>) -> Self {
        let seed = env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok());
        let facts = Facts {
            name: "simulated".into(),
            capability: (8, 9),
            multiprocessors: 4,
            shared_bytes: 99 << 10,
            driver_version: 0,
        };
        Sim(Arc::new(Shared {
            facts,
            seed: seed.unwrap_or(1),
            bug,
            counter: Counter::from_env(),
            used: AtomicU64::new(0),
        }))
    }

    /// What photon-simt calls the kernel that is to run.
    fn kernel(&self, name: &'static str) -> &'static str {
        let bug = self.0.bug.as_ref().and_then(|bug| cuda::kernel(&format!("{name}!{bug}")));
        bug.map_or(name, |kernel| kernel.name)
    }

    fn lost(&self, doing: &str, why: String) -> Error {
        Error::DeviceLost { device: self.0.facts.name.clone(), doing: doing.into(), why }
    }

    /// Whether the launches are counted, and so not to be run.
    fn count(&self, steps: &[Step]) -> Result<bool> {
        fn add(steps: &[Step], count: &mut Count) {
            for step in steps {
                match step {
                    // What a pointer in an argument leads to, nobody here knows the size of.
                    Step::Launch { kernel, .. } => count.launch(kernel, 0),
                    Step::Replay(steps) => add(steps, count),
                    Step::In { .. } | Step::Out { .. } => {}
                }
            }
        }
        let Some(counter) = &self.0.counter else { return Ok(false) };
        let mut count = Count::default();
        add(steps, &mut count);
        counter.takes(&count).map_err(|error| self.lost("counting", error.to_string()))
    }

    fn submit(&self, steps: &[Step], seed: &mut u64) -> Result<()> {
        let is_counted = self.count(steps)?;
        self.run(steps, seed, is_counted)
    }

    fn run(&self, steps: &[Step], seed: &mut u64, is_counted: bool) -> Result<()> {
        for step in steps {
            match step {
                Step::In { to, offset, from } => {
                    // SAFETY: the bytes live and stay as they are until now (`Driver::copy_in`).
                    let bytes = unsafe { std::slice::from_raw_parts(from.start, from.len) };
                    to.memory().write(*offset, bytes);
                }
                Step::Out { from, offset, into } => {
                    // SAFETY: nobody else uses these bytes until now (`Driver::copy_out`).
                    let bytes = unsafe { std::slice::from_raw_parts_mut(into.start, into.len) };
                    from.memory().read(*offset, bytes);
                }
                Step::Launch { .. } if is_counted => {}
                Step::Launch { kernel, grid, block, shared_bytes, args } => {
                    *seed = seed.wrapping_add(1);
                    let options = cuda::Options {
                        seed: *seed,
                        shared_limit: self.0.facts.shared_bytes,
                        starts_early: true,
                        ..cuda::Options::default()
                    };
                    cuda::launch(kernel, *grid, *block, *shared_bytes, args, options)
                        .map_err(|fault| self.lost(kernel, fault.to_string()))?;
                }
                Step::Replay(steps) => self.run(steps, seed, is_counted)?,
            }
        }
        Ok(())
    }
}

/// Simulated device memory. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Buffer(Arc<Allocation>);

#[derive(Debug)]
struct Allocation {
    sim: Sim,
    memory: photon_simt::Memory,
}

impl Buffer {
    fn memory(&self) -> &photon_simt::Memory {
        &self.0.memory
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.sim.0.used.fetch_sub(self.memory.len() as u64, Ordering::Relaxed);
    }
}

impl driver::Memory for Buffer {
    fn address(&self) -> u64 {
        self.memory().address()
    }

    fn len(&self) -> usize {
        self.memory().len()
    }
}

/// Host memory named by a recorded copy.
#[derive(Clone, Copy, Debug)]
struct Host<P> {
    start: P,
    len: usize,
}

// SAFETY: the rules of `Driver::copy_in` and `Driver::copy_out` keep other threads off these bytes.
unsafe impl<P> Send for Host<P> {}
// SAFETY: as above.
unsafe impl<P> Sync for Host<P> {}

/// One piece of work.
#[derive(Debug)]
enum Step {
    In {
        to: Buffer,
        offset: usize,
        from: Host<*const u8>,
    },
    Out {
        from: Buffer,
        offset: usize,
        into: Host<*mut u8>,
    },
    Launch {
        kernel: &'static str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        args: Vec<u8>,
    },
    Replay(Arc<[Step]>),
}

/// Work not yet run.
pub struct Stream {
    sim: Sim,
    steps: Vec<Step>,
    /// What was recorded before the capture under way.
    before: Option<Vec<Step>>,
    seed: u64,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("steps", &self.steps).finish_non_exhaustive()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.before.is_none() && !std::thread::panicking() {
            // A device would have run it by now; nobody is left to hear how it went.
            let _ = self.sim.submit(&self.steps, &mut self.seed);
        }
    }
}

/// Captured work.
#[derive(Debug)]
pub struct Graph(Arc<[Step]>);

/// Has always fired.
#[derive(Debug)]
pub struct Event(());

impl Driver for Sim {
    type Memory = Buffer;
    type Pinned = Vec<u8>;
    type Stream = Stream;
    type Event = Event;
    type Graph = Graph;

    const DEFERS: bool = true;

    fn facts(&self) -> &Facts {
        &self.0.facts
    }

    fn memory(&self) -> MemoryInfo {
        let used = self.0.used.load(Ordering::Relaxed);
        let free_bytes = TOTAL_BYTES.saturating_sub(used);
        // Not dedicated: it is main memory, and steps are better small.
        MemoryInfo { free_bytes, total_bytes: TOTAL_BYTES, is_dedicated: false }
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        let MemoryInfo { free_bytes, .. } = self.memory();
        if bytes as u64 > free_bytes {
            return Err(Error::OutOfMemory {
                device: self.0.facts.name.clone(),
                purpose: "a buffer".into(),
                requested_bytes: bytes as u64,
                free_bytes,
            });
        }
        self.0.used.fetch_add(bytes as u64, Ordering::Relaxed);
        let memory = photon_simt::Memory::zeroed(bytes);
        Ok(Buffer(Arc::new(Allocation { sim: self.clone(), memory })))
    }

    fn pinned(&self, bytes: usize) -> Result<Vec<u8>> {
        Ok(vec![0; bytes])
    }

    fn stream(&self) -> Result<Stream> {
        let seed = self.0.seed;
        Ok(Stream { sim: self.clone(), steps: Vec::new(), before: None, seed })
    }

    unsafe fn copy_in(
        &self,
        stream: &mut Stream,
        to: &Buffer,
        offset: usize,
        from: &[u8],
    ) -> Result<()> {
        let from = Host { start: from.as_ptr(), len: from.len() };
        stream.steps.push(Step::In { to: to.clone(), offset, from });
        Ok(())
    }

    unsafe fn copy_out(
        &self,
        stream: &mut Stream,
        from: &Buffer,
        range: Range<usize>,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        let into = Host { start: into.as_mut_ptr(), len: range.len() };
        stream.steps.push(Step::Out { from: from.clone(), offset: range.start, into });
        Ok(())
    }

    unsafe fn launch(&self, stream: &mut Stream, launch: &Launch<'_>) -> Result<()> {
        let Launch { kernel, grid, block, shared_bytes, args } = *launch;
        let (kernel, args) = (self.kernel(kernel), args.to_vec());
        stream.steps.push(Step::Launch { kernel, grid, block, shared_bytes, args });
        Ok(())
    }

    fn tensor_map(&self, _: &TensorMap) -> Option<TensorMapBits> {
        None
    }

    fn record(&self, stream: &mut Stream) -> Result<Event> {
        let steps = std::mem::take(&mut stream.steps);
        self.submit(&steps, &mut stream.seed)?;
        Ok(Event(()))
    }

    fn wait(&self, _: &Event) -> Result<()> {
        Ok(())
    }

    fn begin_capture(&self, stream: &mut Stream) -> Result<()> {
        stream.before = Some(std::mem::take(&mut stream.steps));
        Ok(())
    }

    fn end_capture(&self, stream: &mut Stream) -> Result<Graph> {
        let before = stream.before.take().unwrap_or_default();
        Ok(Graph(std::mem::replace(&mut stream.steps, before).into()))
    }

    unsafe fn replay(&self, stream: &mut Stream, graph: &Graph) -> Result<()> {
        stream.steps.push(Step::Replay(Arc::clone(&graph.0)));
        Ok(())
    }
}
