//! The host processor as a device: work runs as it is recorded, so streams and events hold nothing.
//!
//! Capture is not supported: a replay could save nothing. [`crate::Tape`] has it, for tests.
use std::{convert::Infallible, ops::Range};

use photon_core::{DType, Device, Error, MemoryInfo, Pending, Result, Weight, WeightData};

use crate::{
    isa::Isa,
    linear,
    memory::{Buffer, check_available, memory_info},
    pool::Pool,
};

/// More than any machine has, and less than a slip of the finger.
const MAX_THREADS: usize = 1024;

/// How to open a [`Cpu`]. The default asks the environment, then the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included; `None` for one per core that affinity and quotas of control groups
    /// leave this process.
    pub threads: Option<usize>,
    /// Instructions to use; `None` for the best there are, or what `PHOTON_CPU_ISA` says.
    pub isa: Option<Isa>,
}

/// The host processor. Cloning shares its threads.
#[derive(Clone, Debug)]
pub struct Cpu {
    pool: Pool,
    isa: Isa,
}

impl Cpu {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the processor has not the instructions asked for, or the number of
    /// threads is zero or absurd.
    pub fn open(options: CpuOptions) -> Result<Self> {
        let unavailable = |why| Error::Unavailable { device: "cpu".into(), why };
        let isa = match options.isa {
            Some(isa) => isa,
            None => Isa::from_env().map_err(unavailable)?,
        };
        if !Isa::available().contains(&isa) {
            let have: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
            return Err(unavailable(format!(
                "this processor has no {}; choose from {}",
                isa.name(),
                have.join(", ")
            )));
        }
        let threads = options.threads.unwrap_or_else(Pool::default_threads);
        if !(1..=MAX_THREADS).contains(&threads) {
            let range = format!("1 to {MAX_THREADS}");
            return Err(unavailable(format!("{threads} threads were asked for; ask for {range}")));
        }
        Ok(Cpu { pool: Pool::new(threads), isa })
    }

    /// The threads.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The instructions kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

/// Holds nothing: work ran as it was recorded.
#[derive(Debug)]
pub struct CpuStream(());

/// Has always fired.
#[derive(Debug)]
pub struct CpuEvent(());

impl Device for Cpu {
    type Buffer = Buffer;
    type Stream = CpuStream;
    type Event = CpuEvent;
    type Graph = Infallible;
    type HostBuffer = Vec<u8>;

    fn name(&self) -> String {
        let threads = self.pool.threads();
        let s = if threads == 1 { "" } else { "s" };
        format!("cpu ({}, {threads} thread{s})", self.isa.name())
    }

    fn memory(&self) -> MemoryInfo {
        memory_info()
    }

    fn inner_activations(&self, weights: DType) -> DType {
        let pairs = weights == DType::Bf16 && self.isa.has_pairs();
        if pairs { weights } else { self.activations(weights) }
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        Buffer::new(bytes)
    }

    fn weight(&self, data: WeightData<'_>) -> Result<Weight<Self>> {
        linear::pack(self.isa, data, &self.pool)
    }

    fn stream(&self) -> Result<CpuStream> {
        Ok(CpuStream(()))
    }

    fn upload(&self, _: &mut CpuStream, dst: &Buffer, offset: usize, bytes: &[u8]) {
        // Whoever fills a page first clears it, too, so all threads take part.
        const PART: usize = 2 << 20;
        self.pool.run(bytes.len().div_ceil(PART), &|part| {
            let part = part * PART..bytes.len().min((part + 1) * PART);
            dst.write(offset + part.start, &bytes[part]);
        });
    }

    fn host_buffer(&self, bytes: usize) -> Result<Vec<u8>> {
        check_available(bytes, "a host buffer")?;
        Ok(vec![0; bytes])
    }

    fn read_back(
        &self,
        _: &mut CpuStream,
        src: &Buffer,
        range: Range<usize>,
        mut into: Vec<u8>,
    ) -> Result<Pending<Self>> {
        src.read(range.start, &mut into[..range.len()]);
        Ok(Pending::new(self.clone(), into, CpuEvent(())))
    }

    fn submit(&self, _: &mut CpuStream) -> Result<CpuEvent> {
        Ok(CpuEvent(()))
    }

    fn wait(&self, _: &CpuEvent) -> Result<()> {
        Ok(())
    }

    fn capture(
        &self,
        _: &mut CpuStream,
        _: &mut dyn FnMut(&mut CpuStream),
    ) -> Result<Option<Infallible>> {
        Ok(None)
    }

    fn replay(&self, _: &mut CpuStream, graph: &Infallible) {
        match *graph {}
    }
}
