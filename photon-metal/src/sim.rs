//! A GPU that is the processor: the same kernel sources, compiled as C++ and run by photon-simt.
//!
//! A submit runs at once, on the calling thread. Launches between two barriers may run in any order on a
//! real device: here they run in that of the seed, by default the last first, so that every barrier that is
//! missing shows. A kernel's mistake (out of bounds, a race, a barrier missed) is an error that names the
//! kernel, and so is an argument that the source declares otherwise.
//!
//! It can also count instead of run: what a step of a model too large to simulate consists of.
#![allow(unsafe_code, reason = "hands addresses to the simulator")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write,
    fs::OpenOptions,
    io::Write as _,
    path::PathBuf,
    ptr::NonNull,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use photon_core::{Error, MemoryInfo, Result};
use photon_simt::metal;

use crate::{
    driver::{self, Driver, Facts, Launch, Layout, THREADGROUP_BYTES},
    work::{Counts, Step, Work},
};

/// A seed of the order in which launches and SIMD-groups run, for looking into a failure; 0: as recorded, 1:
/// the last first, others: drawn.
const SEED_VARIABLE: &str = "PHOTON_SIM_SEED";
/// A file: submits are added to it instead of run, a line of JSON each: how many dispatches and barriers, and of
/// every kernel how many launches and the bytes they name.
const COUNT_VARIABLE: &str = "PHOTON_SIM_COUNT";
/// Submits so small are run even then: a device that is opened is asked what it can.
const FEW: u64 = 4;
/// As much as a small Mac has: nothing that is simulated needs more.
const TOTAL_BYTES: u64 = 4 << 30;

/// The simulator. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Sim(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    facts: Facts,
    seed: u64,
    counted: Option<PathBuf>,
    /// Memory given out.
    used: AtomicU64,
    /// Kernels whose arguments were held against their sources.
    checked: Mutex<BTreeSet<&'static str>>,
}

impl Sim {
    /// A GPU of the family that has everything the simulator runs.
    pub fn open() -> Self {
        let seed = env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok());
        Self::with_seed(seed.unwrap_or(1))
    }

    /// The same, whose launches run in the order of a seed.
    pub fn with_seed(seed: u64) -> Self {
        let facts =
            Facts { name: "simulated".into(), family: 9, has_bfloat: true, has_tensor_ops: false };
        Sim(Arc::new(Shared {
            facts,
            seed,
            counted: env::var_os(COUNT_VARIABLE).map(PathBuf::from),
            used: AtomicU64::new(0),
            checked: Mutex::new(BTreeSet::new()),
        }))
    }

    fn lost(&self, doing: &str, why: String) -> Error {
        Error::DeviceLost { device: self.0.facts.name.clone(), doing: doing.into(), why }
    }

    /// Launches between two barriers, in the order of the seed.
    fn run(&self, launches: &mut Vec<Launch<'_>>, seed: &mut u64) -> Result<()> {
        match self.0.seed {
            0 => {}
            1 => launches.reverse(),
            _ => shuffle(launches, *seed),
        }
        for launch in launches.drain(..) {
            *seed = seed.wrapping_add(1);
            self.launch(&launch, *seed)?;
        }
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>, seed: u64) -> Result<()> {
        let Launch { kernel, threadgroups, threads, threadgroup_bytes, args, layout, .. } = *launch;
        self.check(kernel, layout)?;
        let threadgroup = [(0, threadgroup_bytes)];
        let arguments = metal::Arguments {
            bytes: &[(0, args)],
            threadgroup: if threadgroup_bytes == 0 { &[] } else { &threadgroup },
            ..metal::Arguments::default()
        };
        let options = metal::Options { seed, ..metal::Options::default() };
        let report = metal::launch(kernel, threadgroups, threads, arguments, options)
            .map_err(|fault| self.lost(kernel, fault.to_string()))?;
        let bytes = report.static_shared + u64::from(threadgroup_bytes);
        if bytes > THREADGROUP_BYTES.into() {
            let why = format!("{bytes} bytes of threadgroup memory, of {THREADGROUP_BYTES}");
            return Err(self.lost(kernel, why));
        }
        Ok(())
    }

    /// Adds a line on the work to the file.
    fn count(&self, work: &Work, file: &PathBuf) -> Result<()> {
        let mut kernels: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        work.steps(&mut |step| {
            if let Step::Launch(Launch { kernel, bytes, .. }) = step {
                let (launches, sum) = kernels.entry(kernel).or_default();
                *launches += 1;
                *sum += bytes;
            }
            Ok::<(), Error>(())
        })?;
        let Counts { dispatches, barriers } = work.counts();
        let mut line =
            format!("{{\"dispatches\":{dispatches},\"barriers\":{barriers},\"kernels\":{{");
        for (i, (kernel, (launches, bytes))) in kernels.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let _ = write!(line, "{comma}\"{kernel}\":[{launches},{bytes}]");
        }
        line += "}}\n";
        let opened = OpenOptions::new().create(true).append(true).open(file);
        opened
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .map_err(|error| self.lost(COUNT_VARIABLE, error.to_string()))
    }

    /// Whether Rust and the source agree on how a kernel's argument lies.
    fn check(&self, kernel: &'static str, layout: &Layout) -> Result<()> {
        let mut checked = self.0.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if !checked.insert(kernel) {
            return Ok(());
        }
        let source = metal::kernel(kernel).and_then(|kernel| kernel.args.as_ref());
        let source = source.ok_or_else(|| {
            let why = "no kernel of this name takes `constant Args& a [[buffer(0)]]`";
            self.lost(kernel, why.into())
        })?;
        let fields = source.fields.iter().map(|field| (field.name, field.offset));
        let ours = layout.fields.iter().map(|field| (field.name, field.offset));
        if (source.name, source.size) != (layout.name, layout.size) || !fields.eq(ours) {
            let why = format!("the source has {source:?}, its launch {layout:?}");
            return Err(self.lost(kernel, why));
        }
        Ok(())
    }
}

/// Another order for each seed.
fn shuffle<T>(list: &mut [T], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for last in (1..list.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        list.swap(last, (state % (last as u64 + 1)) as usize);
    }
}

/// Simulated memory. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Buffer(Arc<Allocation>);

#[derive(Debug)]
struct Allocation {
    sim: Sim,
    memory: photon_simt::Memory,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.sim.0.used.fetch_sub(self.memory.len() as u64, Ordering::Relaxed);
    }
}

impl driver::Memory for Buffer {
    fn address(&self) -> u64 {
        self.0.memory.address()
    }

    fn host(&self) -> NonNull<u8> {
        let address = usize::try_from(self.address()).expect("an address of this machine");
        NonNull::new(std::ptr::with_exposed_provenance_mut(address)).expect("no buffer is at null")
    }

    fn len(&self) -> usize {
        self.0.memory.len()
    }
}

/// Where the seed stands.
#[derive(Debug)]
pub struct Queue {
    seed: u64,
}

/// Has always fired.
#[derive(Clone, Debug)]
pub struct Event(());

impl Driver for Sim {
    type Memory = Buffer;
    type Queue = Queue;
    type Event = Event;

    fn facts(&self) -> &Facts {
        &self.0.facts
    }

    fn memory(&self) -> MemoryInfo {
        let used = self.0.used.load(Ordering::Relaxed);
        let free_bytes = TOTAL_BYTES.saturating_sub(used);
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

    fn queue(&self) -> Result<Queue> {
        Ok(Queue { seed: self.0.seed })
    }

    unsafe fn submit(&self, queue: &mut Queue, work: &Work) -> Result<Event> {
        if let Some(file) = &self.0.counted
            && work.counts().dispatches > FEW
        {
            return self.count(work, file).map(|()| Event(()));
        }
        let mut launches = Vec::new();
        work.steps(&mut |step| match step {
            Step::Launch(launch) => {
                launches.push(launch);
                Ok(())
            }
            Step::Barrier => self.run(&mut launches, &mut queue.seed),
        })?;
        self.run(&mut launches, &mut queue.seed)?;
        Ok(Event(()))
    }

    fn is_done(&self, _: &Event) -> bool {
        true
    }

    fn wait(&self, _: &Event) -> Result<()> {
        Ok(())
    }
}
