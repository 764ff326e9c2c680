//! A GPU that is the processor: the same kernel sources, compiled as C++ and run by photon-simt.
//!
//! A submit runs at once, on the calling thread. Launches between two barriers may run in any order on a
//! real device: here they run in that of the seed, by default the last first, so that every barrier that is
//! missing shows. A kernel's mistake (out of bounds, a race, a barrier missed) is an error that names the
//! kernel, and so is an argument that the source declares otherwise.
//!
//! It can also count instead of run: see [`Counter`].
#![allow(unsafe_code, reason = "hands addresses to the simulator")]

use std::{
    collections::BTreeSet,
    env,
    ptr::NonNull,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use photon_core::{Error, MemoryInfo, Result};
use photon_simt::{Count, Counter, metal};

use crate::{
    driver::{self, Driver, Facts, Launch, Layout, THREADGROUP_BYTES},
    source,
    work::{Step, Work},
};

/// A seed of the order in which launches and SIMD-groups run, for looking into a failure; 0: as recorded, 1:
/// the last first, others: drawn.
const SEED_VARIABLE: &str = "PHOTON_SIM_SEED";
/// The family of GPUs to be: 7 and 8 have no bfloat.
const FAMILY_VARIABLE: &str = "PHOTON_SIM_FAMILY";
/// The first with bfloat, and what is simulated unless asked otherwise.
const BFLOAT_FAMILY: u32 = 9;
/// As much as a small Mac has: nothing that is simulated needs more.
const TOTAL_BYTES: u64 = 4 << 30;

/// The simulator. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Sim(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    facts: Facts,
    seed: u64,
    counter: Option<Counter>,
    /// Memory given out.
    used: AtomicU64,
    /// Kernels whose arguments were held against their sources.
    checked: Mutex<BTreeSet<&'static str>>,
}

impl Sim {
    /// A GPU of the family that has everything the simulator runs, or of the one that is asked for.
    pub fn open() -> Self {
        let number = |variable| env::var(variable).ok().and_then(|number| number.parse().ok());
        let family = number(FAMILY_VARIABLE).map_or(BFLOAT_FAMILY, |family| family as u32);
        Self::new(number(SEED_VARIABLE).unwrap_or(1), family)
    }

    /// One whose launches run in the order of a seed.
    pub fn with_seed(seed: u64) -> Self {
        Self::new(seed, BFLOAT_FAMILY)
    }

    /// One of another family.
    pub fn of_family(family: u32) -> Self {
        Self::new(1, family)
    }

    fn new(seed: u64, family: u32) -> Self {
        let has_bfloat = family >= BFLOAT_FAMILY;
        let facts = Facts { name: "simulated".into(), family, has_bfloat, has_tensor_ops: false };
        Sim(Arc::new(Shared {
            facts,
            seed,
            counter: Counter::from_env(),
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

    /// Whether the work is counted, and so not to be run.
    fn count(&self, work: &Work) -> Result<bool> {
        let Some(counter) = &self.0.counter else { return Ok(false) };
        let mut count = Count::default();
        work.steps(&mut |step| {
            match step {
                Step::Launch(Launch { kernel, bytes, .. }) => count.launch(kernel, bytes),
                Step::Barrier => count.barriers += 1,
            }
            Ok::<(), Error>(())
        })?;
        counter.takes(&count).map_err(|error| self.lost("counting", error.to_string()))
    }

    /// Whether there is such a kernel, and Rust and the source agree on how its argument lies.
    fn check(&self, kernel: &'static str, layout: &Layout) -> Result<()> {
        let mut checked = self.0.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if !checked.insert(kernel) {
            return Ok(());
        }
        if !self.0.facts.has_bfloat && source::needs_bfloat(kernel) {
            let why = "it is made only where there is bfloat, from family 9 on";
            return Err(self.lost(kernel, why.into()));
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
        if self.count(work)? {
            return Ok(Event(()));
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
