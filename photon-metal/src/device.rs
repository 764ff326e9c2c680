//! A GPU as a [`photon_core::Device`], whatever its driver.
use std::ops::Range;

use photon_core::{MemoryInfo, Pending, Result, Weight, WeightData};

use crate::{
    driver::{Driver, Facts},
    kernels::linear,
    stream::{self, Graph, Pinned, Stream},
};

/// A GPU. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Gpu<L: Driver> {
    driver: L,
}

impl<L: Driver> Gpu<L> {
    /// A device on `driver`.
    ///
    /// # Errors
    /// If the driver cannot be used.
    pub fn new(driver: L) -> Result<Self> {
        Ok(Gpu { driver })
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
