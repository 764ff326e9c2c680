//! Adapters: low-rank additions to the matrices of the language model, one set for each request.
//!
//! Where a layer multiplies by `W`, an adapter adds `B (A x)`, without any scale; `A` is `[rank, k]`,
//! `B` `[n, rank]`. [`Adapter`] is what a file holds, [`AdapterShape`] the room on a device, whose slots
//! hold one adapter each; every token goes through the slot of its request (see
//! [`photon_core::GroupedLinear`]), so that one step serves requests with different adapters and without.
//!
//! Two formats are read, by the names of their tensors:
//! - `text_lora.dense.L.{up,down}_{a,b}` and `text_lora.moe.J.{up,down}_{a,b}`: the MLP of block `L`, and
//!   the experts of block `J` counted from the first that has experts, `[num_experts, rank, k]` and
//!   `[num_experts, n, rank]`. What an expert adds counts as much as the expert.
//!   As fine-tuning gives it, all this lies in `lora_state_dict`, some of it twice (`checkpoint`'s layouts).
//! - `text.blocks.L.{qkv,proj,fc1,fc2}.{A,B}`: the variants of Moondream 2. Their `proj` reads what the
//!   block's attention reads, its normed input, as the reference has it.
mod file;

use std::{collections::BTreeMap, path::Path};

use photon_core::{
    Copy, Cx, DType, Device, GroupedLinear, Kernels, Tensor, Weight, WeightData, WeightFormat,
    convert,
};

use crate::{
    checkpoint::{Checkpoint, CheckpointError},
    config::{Config, Family},
};

pub use file::{AdapterSummary, MAX_FILE_BYTES, convert_adapter};

/// The largest rank that is read.
pub const MAX_RANK: usize = 512;

/// Why an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// The file.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// It is an adapter to no model.
    #[error("{name} is no adapter: {why}")]
    NoAdapter {
        /// The file.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A file that is too large.
    #[error("{name} has {mib} MiB, and an adapter {} at most", MAX_FILE_BYTES >> 20)]
    TooLarge {
        /// The file.
        name: String,
        /// Its size.
        mib: u64,
    },
    /// What is in it.
    #[error("{name} is no adapter for this model: {why}")]
    Content {
        /// The file.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// It is larger than the room made for adapters.
    #[error(
        "{name} has rank {rank}, but there is room for rank {room}; start with --adapter-rank {rank}"
    )]
    Rank {
        /// The file.
        name: String,
        /// Its rank.
        rank: usize,
        /// The rank there is room for.
        room: usize,
    },
    /// The device.
    #[error(transparent)]
    Device(#[from] photon_core::Error),
}

/// A matrix of a block that an adapter may add to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// Queries, keys and values.
    Qkv,
    /// The output of attention.
    Proj,
    /// Into the MLP, or into each expert.
    Up,
    /// Out of the MLP, or of each expert.
    Down,
}

/// Equal matrices, row-major, in f32.
#[derive(Clone, Debug, PartialEq)]
struct Matrices {
    /// Number, rows, columns.
    dims: [usize; 3],
    values: Vec<f32>,
}

/// An adapter as a file holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    name: String,
    /// `A` and `B` by block.
    pairs: BTreeMap<(usize, Site), [Matrices; 2]>,
}

/// What is at a site of a block of this model: number of matrices, `n`, `k`; nothing where an adapter
/// cannot add.
fn dims(config: &Config, layer: usize, site: Site) -> Option<[usize; 3]> {
    let c = &config.text;
    let attention = config.family() == Family::Moondream2;
    Some(match (site, c.experts(layer)) {
        (Site::Qkv, _) if attention => [1, c.qkv_dim(), c.dim],
        (Site::Proj, _) if attention => [1, c.dim, c.dim],
        (Site::Qkv | Site::Proj, _) => return None,
        (Site::Up, None) => [1, c.ff_dim, c.dim],
        (Site::Down, None) => [1, c.dim, c.ff_dim],
        (Site::Up, Some(moe)) => [moe.num_experts, 2 * moe.expert_inner_dim, c.dim],
        (Site::Down, Some(moe)) => [moe.num_experts, c.dim, moe.expert_inner_dim],
    })
}

/// Which blocks a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Those without experts.
    Dense,
    /// Those with experts, counted from the first of them.
    Experts,
    /// Any.
    Variant,
}

/// What a tensor's name says, whatever the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    kind: Kind,
    index: usize,
    site: Site,
    /// 0 of `A`, 1 of `B`.
    side: usize,
}

fn parse(name: &str) -> Option<Place> {
    let name = name.strip_prefix("model.").unwrap_or(name);
    let (kind, index, site, side) = match name.split('.').collect::<Vec<_>>()[..] {
        ["text_lora", kind, index, leaf] => {
            let kind = match kind {
                "dense" => Kind::Dense,
                "moe" => Kind::Experts,
                _ => return None,
            };
            let (site, side) = match leaf {
                "up_a" => (Site::Up, 0),
                "up_b" => (Site::Up, 1),
                "down_a" => (Site::Down, 0),
                "down_b" => (Site::Down, 1),
                _ => return None,
            };
            (kind, index, site, side)
        }
        ["text", "blocks", index, part, side] => {
            let site = match part {
                "qkv" => Site::Qkv,
                "proj" => Site::Proj,
                "fc1" => Site::Up,
                "fc2" => Site::Down,
                _ => return None,
            };
            let side = match side {
                "A" => 0,
                "B" => 1,
                _ => return None,
            };
            (Kind::Variant, index, site, side)
        }
        _ => return None,
    };
    Some(Place { kind, index: index.parse().ok()?, site, side })
}

/// The block, the site and which of the two matrices a tensor is.
fn place(name: &str, config: &Config) -> Option<(usize, Site, usize)> {
    let Place { kind, index, site, side } = parse(name)?;
    let first = match kind {
        Kind::Experts => config.text.moe.as_ref()?.start_layer,
        Kind::Dense | Kind::Variant => 0,
    };
    let layer = index.checked_add(first).filter(|&l| l < config.text.n_layers)?;
    // Dense names of a block with experts, or the reverse, are no names.
    let has_experts = config.text.experts(layer).is_some();
    match kind {
        Kind::Dense if has_experts => None,
        Kind::Experts if !has_experts => None,
        _ => Some((layer, site, side)),
    }
}

/// What a tensor is in this model: the block, the site, which of the two matrices, and number, rows and columns.
fn shape(
    tensor: &str,
    shape: &[usize],
    config: &Config,
) -> Result<(usize, Site, usize, [usize; 3]), String> {
    let (layer, site, side) = place(tensor, config).ok_or_else(|| format!("it holds {tensor}"))?;
    let [count, n, k] = dims(config, layer, site)
        .ok_or_else(|| format!("{tensor}: adapters do not reach there"))?;
    let dims = match *shape {
        [rows, cols] if count == 1 => [1, rows, cols],
        [matrices, rows, cols] if matrices == count => [count, rows, cols],
        _ => return Err(format!("{tensor} is {shape:?}")),
    };
    let (rank, length, want) =
        if side == 0 { (dims[1], dims[2], k) } else { (dims[2], dims[1], n) };
    if length != want {
        return Err(format!("{tensor} is {shape:?}, and the model has {want}"));
    }
    if !(1..=MAX_RANK).contains(&rank) {
        return Err(format!("{tensor} has rank {rank}, not in 1..={MAX_RANK}"));
    }
    Ok((layer, site, side, dims))
}

impl Adapter {
    /// Reads a file, or a folder as a checkpoint's is.
    pub fn open(path: &Path, config: &Config) -> Result<Self, AdapterError> {
        Adapter::from_checkpoint(&file::open(path)?, &path.display().to_string(), config)
    }

    /// From tensors that were opened; `name` is for messages.
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        name: &str,
        config: &Config,
    ) -> Result<Self, AdapterError> {
        let wrong = |why: String| AdapterError::Content { name: name.into(), why };
        let mut found: BTreeMap<(usize, Site), [Option<Matrices>; 2]> = BTreeMap::new();
        for (tensor, info) in checkpoint.tensors() {
            let (layer, site, side, dims) = shape(tensor, &info.shape, config).map_err(wrong)?;
            let (from, bytes) = checkpoint.floats(tensor).expect("it was just listed");
            let wide = convert(&bytes, from, DType::F32);
            let values = wide.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let matrices = Matrices { dims, values: values.collect() };
            if !matrices.values.iter().all(|v| v.is_finite()) {
                return Err(wrong(format!("{tensor} holds numbers that are not finite")));
            }
            if found.entry((layer, site)).or_default()[side].replace(matrices).is_some() {
                return Err(wrong(format!("{tensor} and another tensor mean the same")));
            }
        }
        let mut pairs = BTreeMap::new();
        for ((layer, site), pair) in found {
            let [Some(a), Some(b)] = pair else {
                return Err(wrong(format!("block {layer} has one half of {site:?} only")));
            };
            if a.dims[1] != b.dims[2] {
                let (a, b) = (a.dims[1], b.dims[2]);
                return Err(wrong(format!("block {layer}, {site:?}: ranks {a} and {b} differ")));
            }
            pairs.insert((layer, site), [a, b]);
        }
        match pairs.is_empty() {
            true => Err(wrong("it has no tensors".into())),
            false => Ok(Adapter { name: name.into(), pairs }),
        }
    }

    /// The rank there has to be room for: that of an expert counts as often as a token has experts.
    pub fn rank(&self, config: &Config) -> usize {
        let rank = |(&(layer, _), [a, _]): (&(usize, Site), &[Matrices; 2])| {
            a.dims[1] * config.text.experts(layer).map_or(1, |moe| moe.experts_per_token)
        };
        self.pairs.iter().map(rank).max().unwrap_or(0)
    }

    /// `(block, site, number of matrices, n, k, rank)` of everything it adds to.
    pub fn sites(&self) -> impl Iterator<Item = (usize, Site, [usize; 4])> {
        self.pairs.iter().map(|(&(layer, site), [a, b])| {
            (layer, site, [a.dims[0], b.dims[1], a.dims[2], a.dims[1]])
        })
    }

    /// `B A` of a site, `[count, n, k]`: what a model merged with the adapter has on top.
    pub fn delta(&self, layer: usize, site: Site) -> Option<Vec<f32>> {
        let [a, b] = self.pairs.get(&(layer, site))?;
        let ([count, rank, k], n) = (a.dims, b.dims[1]);
        let mut delta = vec![0.0; count * n * k];
        for (row, out) in delta.chunks_exact_mut(k).enumerate() {
            let matrix = row / n;
            for r in 0..rank {
                let factor = b.values[row * rank + r];
                let a = &a.values[(matrix * rank + r) * k..][..k];
                out.iter_mut().zip(a).for_each(|(out, a)| *out += factor * a);
            }
        }
        Some(delta)
    }
}

/// The room for adapters on a device.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterShape {
    config: Config,
    /// Adapters there is room for at the same time.
    pub slots: usize,
    /// Their largest rank.
    pub rank: usize,
    /// How their matrices are stored.
    pub dtype: DType,
}

impl AdapterShape {
    /// For `slots` adapters of up to `rank` to a model of this configuration.
    pub fn new(config: &Config, slots: usize, rank: usize, dtype: DType) -> Self {
        AdapterShape { config: config.clone(), slots, rank, dtype }
    }

    /// Bytes on the device, all slots together.
    pub fn bytes(&self) -> u64 {
        let sites =
            (0..self.config.text.n_layers).flat_map(|layer| SITES.map(|site| (layer, site)));
        let elements = sites.filter_map(|(layer, site)| {
            let [count, n, k] = dims(&self.config, layer, site)?;
            Some((count * (n + k) * self.rank_at(layer)) as u64)
        });
        elements.sum::<u64>() * (self.slots * self.dtype.size()) as u64
    }

    /// The largest rank in this block.
    fn rank_at(&self, layer: usize) -> usize {
        let top = self.config.text.experts(layer).map_or(1, |moe| moe.experts_per_token);
        self.rank.div_ceil(top)
    }

    /// Puts an adapter on the device, ready to be copied to a slot.
    pub fn pack<D: Device>(
        &self,
        device: &D,
        adapter: &Adapter,
    ) -> Result<PackedAdapter<D>, AdapterError> {
        let (rank, room) = (adapter.rank(&self.config), self.rank);
        if rank > room {
            return Err(AdapterError::Rank { name: adapter.name.clone(), rank, room });
        }
        let mut pairs = BTreeMap::new();
        for (&(layer, site), [a, b]) in &adapter.pairs {
            let rank = self.rank_at(layer);
            let a = self.padded(device, a, [a.dims[0], rank, a.dims[2]])?;
            let b = self.padded(device, b, [b.dims[0], b.dims[1], rank])?;
            pairs.insert((layer, site), Pair { a, b });
        }
        Ok(PackedAdapter { pairs })
    }

    /// Zeros past the rank: what they add is nothing.
    fn padded<D: Device>(
        &self,
        device: &D,
        m: &Matrices,
        [count, n, k]: [usize; 3],
    ) -> Result<Weight<D>, photon_core::Error> {
        let [_, rows, cols] = m.dims;
        let mut values = vec![0.0f32; count * n * k];
        for (i, row) in m.values.chunks_exact(cols).enumerate() {
            let at = (i / rows * n + i % rows) * k;
            values[at..at + cols].copy_from_slice(row);
        }
        let wide: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let bytes = convert(&wide, DType::F32, self.dtype);
        let format = WeightFormat::Float(self.dtype);
        device.weight(WeightData { count, n, k, format, bytes: &bytes, scales: &[] })
    }
}

const SITES: [Site; 4] = [Site::Qkv, Site::Proj, Site::Up, Site::Down];

/// `A` and `B`.
#[derive(Debug)]
struct Pair<D: Device> {
    a: Weight<D>,
    b: Weight<D>,
}

/// An adapter on a device, in the form of a slot.
#[derive(Debug)]
pub struct PackedAdapter<D: Device> {
    pairs: BTreeMap<(usize, Site), Pair<D>>,
}

/// The slots on a device.
#[derive(Debug)]
pub struct AdapterSlots<D: Device> {
    shape: AdapterShape,
    pairs: BTreeMap<(usize, Site), Pair<D>>,
    /// Zeros for the sites that an adapter leaves alone, as many as the largest takes in one slot.
    nothing: Tensor<D>,
}

impl<D: Device> AdapterSlots<D> {
    /// Takes the memory.
    pub fn new(device: &D, shape: &AdapterShape) -> Result<Self, photon_core::Error> {
        let mut pairs = BTreeMap::new();
        let mut largest = 0;
        for layer in 0..shape.config.text.n_layers {
            for site in SITES {
                let Some([count, n, k]) = dims(&shape.config, layer, site) else { continue };
                let rank = shape.rank_at(layer);
                let zeros = |n: usize, k: usize| {
                    let count = shape.slots * count;
                    let bytes = &vec![0; count * n * k * shape.dtype.size()];
                    let format = WeightFormat::Float(shape.dtype);
                    device.weight(WeightData { count, n, k, format, bytes, scales: &[] })
                };
                let pair = Pair { a: zeros(rank, k)?, b: zeros(n, rank)? };
                for w in [&pair.a, &pair.b] {
                    largest = largest.max(w.matrices(0..count).cols());
                }
                pairs.insert((layer, site), pair);
            }
        }
        let nothing = Tensor::zeros(device, [1, largest], DType::U8)?;
        Ok(AdapterSlots { shape: shape.clone(), pairs, nothing })
    }

    /// The room.
    pub fn shape(&self) -> &AdapterShape {
        &self.shape
    }

    pub(crate) fn rank(&self, layer: usize) -> usize {
        self.shape.rank_at(layer)
    }

    /// What the slots add at a site.
    pub(crate) fn at(&self, layer: usize, site: Site) -> Option<Added<'_, D>> {
        let pair = self.pairs.get(&(layer, site))?;
        Some(Added { a: &pair.a, b: &pair.b })
    }
}

impl<D: Kernels> AdapterSlots<D> {
    /// Records that a slot holds this adapter from now on.
    ///
    /// # Panics
    /// If there is no such slot, or the adapter was packed for another shape.
    pub fn load(&mut self, cx: &mut Cx<'_, D>, slot: usize, adapter: &PackedAdapter<D>) {
        assert!(slot < self.shape.slots, "slot {slot} of {}", self.shape.slots);
        for (place, slots) in &self.pairs {
            let from = adapter.pairs.get(place);
            for (slots, from) in
                [(&slots.a, from.map(|pair| &pair.a)), (&slots.b, from.map(|pair| &pair.b))]
            {
                let count = slots.count() / self.shape.slots;
                let mut out = slots.matrices(slot * count..(slot + 1) * count);
                let x = match from {
                    Some(w) => w.matrices(0..count),
                    None => self.nothing.col_range(0..out.cols()),
                };
                cx.copy(Copy { out: &mut out, x: &x });
            }
        }
    }
}

/// What adapters add at one site.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Added<'a, D: Device> {
    /// `[slots * count, rank, k]`.
    a: &'a Weight<D>,
    /// `[slots * count, n, rank]`.
    b: &'a Weight<D>,
}

impl<D: Kernels> Added<'_, D> {
    /// `out += B (A x)`, each row by its group; `low` is room for as many rows as `out`, and as many
    /// columns as the rank.
    pub(crate) fn add(
        &self,
        cx: &mut Cx<'_, D>,
        out: &mut Tensor<D>,
        x: &Tensor<D>,
        groups: &Tensor<D>,
        low: &mut Tensor<D>,
    ) {
        let accumulate = false;
        cx.grouped_linear(GroupedLinear { out: low, x, w: self.a, groups, accumulate });
        cx.grouped_linear(GroupedLinear { out, x: low, w: self.b, groups, accumulate: true });
    }
}
