//! A GPU as a [`photon_core::Device`], whatever its driver.
use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use photon_core::{DType, MemoryInfo, Pending, Result, Weight, WeightData};

use crate::{
    driver::{Driver, Facts, TensorMap, TensorMapBits},
    kernels::linear,
    stream::{Graph, Stream},
};

/// Set to 1, it lets rows have other bits among many than among few, where that is faster: see
/// `kernels/linear.rs`.
const FAST_VARIABLE: &str = "PHOTON_CUDA_FAST";

/// A GPU. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Gpu<L: Driver> {
    driver: L,
    /// Weights go to the device on a stream of their own.
    loader: Arc<Mutex<Stream<L>>>,
    is_fast: bool,
}

impl<L: Driver> Gpu<L> {
    /// A device on `driver`.
    pub fn new(driver: L) -> Result<Self> {
        let loader = Arc::new(Mutex::new(Stream::open(&driver)?));
        let is_fast = std::env::var_os(FAST_VARIABLE).is_some_and(|value| value == "1");
        Ok(Gpu { driver, loader, is_fast })
    }

    /// Whether speed counts more than that a row has the same bits in every batch.
    pub(crate) fn is_fast(&self) -> bool {
        self.is_fast
    }

    /// What kernels are chosen by.
    pub fn facts(&self) -> &Facts {
        self.driver.facts()
    }

    /// The driver.
    pub fn driver(&self) -> &L {
        &self.driver
    }

    /// Describes a matrix for the copy engine of sm_90; `None` where there is no such engine.
    pub(crate) fn tensor_map(&self, map: &TensorMap) -> Option<TensorMapBits> {
        self.driver.tensor_map(map)
    }

    /// Device memory that holds `bytes`, and is there when this returns.
    pub(crate) fn load(&self, bytes: &[u8]) -> Result<L::Memory> {
        let memory = self.driver.alloc(bytes.len())?;
        let mut loader = self.loader.lock().unwrap_or_else(PoisonError::into_inner);
        loader.upload(&memory, 0, bytes);
        let done = loader.submit()?;
        self.driver.wait(&done)?;
        Ok(memory)
    }
}

impl<L: Driver> photon_core::Device for Gpu<L> {
    type Buffer = L::Memory;
    type Stream = Stream<L>;
    type Event = L::Event;
    type Graph = Graph<L>;
    type HostBuffer = L::Pinned;

    fn name(&self) -> String {
        let Facts { name, capability: (major, minor), .. } = self.facts();
        format!("cuda ({name}, sm_{major}{minor})")
    }

    fn memory(&self) -> MemoryInfo {
        self.driver.memory()
    }

    fn activations(&self, weights: DType) -> DType {
        weights
    }

    fn alloc(&self, bytes: usize) -> Result<L::Memory> {
        self.driver.alloc(bytes)
    }

    fn weight(&self, data: WeightData<'_>) -> Result<Weight<Self>> {
        linear::pack(self, data)
    }

    fn stream(&self) -> Result<Stream<L>> {
        Stream::open(&self.driver)
    }

    fn upload(&self, stream: &mut Stream<L>, dst: &L::Memory, offset: usize, bytes: &[u8]) {
        stream.upload(dst, offset, bytes);
    }

    fn host_buffer(&self, bytes: usize) -> Result<L::Pinned> {
        self.driver.pinned(bytes)
    }

    fn read_back(
        &self,
        stream: &mut Stream<L>,
        src: &L::Memory,
        range: Range<usize>,
        into: L::Pinned,
    ) -> Result<Pending<Self>> {
        let (host, event) = stream.read_back(src, range, into)?;
        Ok(Pending::new(self.clone(), host, event))
    }

    fn submit(&self, stream: &mut Stream<L>) -> Result<L::Event> {
        stream.submit()
    }

    fn wait(&self, event: &L::Event) -> Result<()> {
        self.driver.wait(event)
    }

    fn capture(
        &self,
        stream: &mut Stream<L>,
        record: &mut dyn FnMut(&mut Stream<L>),
    ) -> Result<Option<Graph<L>>> {
        stream.capture(record)
    }

    fn replay(&self, stream: &mut Stream<L>, graph: &Graph<L>) {
        stream.replay(graph);
    }
}
