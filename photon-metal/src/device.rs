//! A GPU as a [`photon_core::Device`], whatever its driver.
use std::ops::Range;

use photon_core::{DType, MemoryInfo, Pending, Result, Weight, WeightData};

use crate::{
    driver::{Driver, Facts},
    kernels::linear,
    stream::{self, Graph, Pinned, Stream},
};

/// Set to 1, it lets rows have other bits among many than among few, where that is faster: see
/// `kernels/linear.rs`.
const FAST_VARIABLE: &str = "PHOTON_METAL_FAST";

/// A GPU. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Gpu<L: Driver> {
    driver: L,
    matrices_chain: bool,
    is_fast: bool,
}

impl<L: Driver> Gpu<L> {
    /// A device on `driver`.
    ///
    /// # Errors
    /// If the device does not do what it is asked to.
    pub fn new(driver: L) -> Result<Self> {
        let is_fast = std::env::var_os(FAST_VARIABLE).is_some_and(|value| value == "1");
        let mut gpu = Gpu { driver, matrices_chain: false, is_fast };
        gpu.matrices_chain = linear::matrices_chain(&gpu)?;
        Ok(gpu)
    }

    /// The same device, taken for one whose multiplications of matrices sum in an order of their own.
    #[cfg(test)]
    pub(crate) fn without_chains(self) -> Self {
        Gpu { matrices_chain: false, ..self }
    }

    /// Whether a multiplication of matrices gives the bits of a chain of fma.
    pub(crate) fn matrices_chain(&self) -> bool {
        self.matrices_chain
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

    /// Memory that holds `bytes`.
    pub(crate) fn load(&self, bytes: &[u8]) -> Result<L::Memory> {
        let memory = self.driver.alloc(bytes.len())?;
        stream::write(&memory, 0, bytes);
        Ok(memory)
    }
}

impl<L: Driver> photon_core::Device for Gpu<L> {
    type Buffer = L::Memory;
    type Stream = Stream<L>;
    type Event = L::Event;
    type Graph = Graph<L>;
    type HostBuffer = Pinned<L>;

    fn name(&self) -> String {
        format!("metal ({})", self.facts().name)
    }

    fn memory(&self) -> MemoryInfo {
        self.driver.memory()
    }

    /// f16 in the place of bf16 before Apple9. What f16 cannot hold is refused when weights are loaded; of activations it
    /// becomes infinite, and the answer that is not a number then is an error.
    fn model_dtype(&self, own: DType) -> DType {
        match own {
            DType::Bf16 if !self.facts().has_bfloat => DType::F16,
            own => own,
        }
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

    fn host_buffer(&self, bytes: usize) -> Result<Pinned<L>> {
        Pinned::new(&self.driver, bytes)
    }

    fn read_back(
        &self,
        stream: &mut Stream<L>,
        src: &L::Memory,
        range: Range<usize>,
        into: Pinned<L>,
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
