//! Keys and values of all layers, in blocks of slots.
use photon_core::{Copy, Cx, DType, Device, Kernels, Result, Tensor, kv};

use crate::config::TextConfig;

/// One layer's keys and values.
#[derive(Debug)]
pub struct LayerKv<D: Device> {
    /// `[num_slots, kv::row_len]`, see [`photon_core::kv`].
    pub k: Tensor<D>,
    /// Like `k`.
    pub v: Tensor<D>,
    /// Slots per block.
    pub block_size: usize,
}

/// Elements of a slot in one layer's keys or values.
fn row_len(config: &TextConfig, dtype: DType) -> usize {
    kv::row_len(dtype, config.n_kv_heads, config.head_dim())
}

/// The paged cache.
#[derive(Debug)]
pub struct KvCache<D: Device> {
    layers: Vec<LayerKv<D>>,
    num_blocks: usize,
    block_size: usize,
}

impl<D: Device> KvCache<D> {
    /// Takes the memory of `num_blocks` blocks of `block_size` slots in every layer.
    pub fn new(
        device: &D,
        config: &TextConfig,
        num_blocks: usize,
        block_size: usize,
        dtype: DType,
    ) -> Result<Self> {
        let shape = [num_blocks * block_size, row_len(config, dtype)];
        let layer = || {
            let (k, v) =
                (Tensor::zeros(device, shape, dtype)?, Tensor::zeros(device, shape, dtype)?);
            Ok(LayerKv { k, v, block_size })
        };
        let layers = (0..config.n_layers).map(|_| layer()).collect::<Result<_>>()?;
        Ok(KvCache { layers, num_blocks, block_size })
    }

    /// What a block takes in all layers.
    pub fn bytes_per_block(config: &TextConfig, block_size: usize, dtype: DType) -> u64 {
        (2 * config.n_layers * block_size * row_len(config, dtype) * dtype.size()) as u64
    }

    /// Blocks, the null block included.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Slots per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The layers in order.
    pub fn layers(&self) -> &[LayerKv<D>] {
        &self.layers
    }

    /// The layers in order.
    pub(crate) fn layers_mut(&mut self) -> &mut [LayerKv<D>] {
        &mut self.layers
    }
}

impl<D: Kernels> KvCache<D> {
    /// Records a copy of the first `slots` slots of block `from` to block `to` in every layer, bit for
    /// bit.
    ///
    /// # Panics
    /// If a block does not exist, the two are the same or a block has fewer slots.
    #[track_caller]
    pub fn copy_block(&mut self, cx: &mut Cx<'_, D>, from: u32, to: u32, slots: usize) {
        let Self { num_blocks, block_size, .. } = *self;
        assert!(slots <= block_size, "copy_block: {slots} slots of a block of {block_size}");
        assert!(from != to, "copy_block: block {from} to itself");
        let rows = |block: u32| {
            assert!((block as usize) < num_blocks, "copy_block: block {block} of {num_blocks}");
            let first = block as usize * block_size;
            first..first + slots
        };
        let (from, to) = (rows(from), rows(to));
        for layer in &self.layers {
            for cache in [&layer.k, &layer.v] {
                let (out, x) = (&mut cache.row_range(to.clone()), &cache.row_range(from.clone()));
                cx.copy(Copy { out, x });
            }
        }
    }
}
