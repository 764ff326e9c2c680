//! A bump allocator for activations.
//!
//! Sized once, by [`Arena::measure`]: a dry run of the largest step that records nothing and counts
//! what it would take. Each pass starts from the bottom and voids what the pass before gave out.
use crate::{Cx, DType, Device, Kernels, Result, Shape, Tensor};

const ALIGNMENT: usize = 256;

/// Activation memory of one stream.
#[derive(Debug)]
pub struct Arena<D: Device> {
    buffer: D::Buffer,
    /// `None` while measuring: nothing is recorded and nothing is too large.
    capacity: Option<usize>,
    used: usize,
    epoch: u32,
}

impl<D: Device> Arena<D> {
    /// Takes `bytes` from the device.
    pub fn new(device: &D, bytes: usize) -> Result<Self> {
        Ok(Arena { buffer: device.alloc(bytes)?, capacity: Some(bytes), used: 0, epoch: 0 })
    }

    /// The bytes `pass` takes from an arena. It runs through every check and records nothing.
    pub fn measure(
        device: &D,
        stream: &mut D::Stream,
        pass: impl FnOnce(&mut Cx<'_, D>),
    ) -> Result<usize>
    where
        D: Kernels,
    {
        let mut arena = Arena { buffer: device.alloc(0)?, capacity: None, used: 0, epoch: 0 };
        pass(&mut Cx::new(device, stream, &mut arena));
        Ok(arena.used.next_multiple_of(ALIGNMENT))
    }

    /// Bytes in all; zero while measuring.
    pub fn capacity(&self) -> usize {
        self.capacity.unwrap_or(0)
    }

    pub(crate) fn is_measuring(&self) -> bool {
        self.capacity.is_none()
    }

    pub(crate) fn restart(&mut self) {
        self.used = 0;
        self.epoch = self.epoch.wrapping_add(1);
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    #[track_caller]
    pub(crate) fn take(&mut self, shape: Shape, dtype: DType) -> Tensor<D> {
        let offset = self.used.next_multiple_of(ALIGNMENT);
        let end = offset + shape.elements() * dtype.size();
        if let Some(capacity) = self.capacity {
            assert!(end <= capacity, "activation arena too small: {end} > {capacity} bytes");
        }
        self.used = end;
        Tensor::new(self.buffer.clone(), offset, shape, dtype).at_epoch(self.epoch)
    }
}
