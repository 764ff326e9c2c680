//! Files with adapters: what is in one, whatever the model, and writing one anew.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use photon_core::{DType, convert};
use serde::Serialize;

use super::{Adapter, AdapterError, Kind, MAX_RANK, Place, Site, parse, shape};
use crate::{
    checkpoint::{Checkpoint, CheckpointError, weight_files, write_tensors},
    config::{Config, Family},
};

/// Bytes of the largest file that is read.
pub const MAX_FILE_BYTES: u64 = 1 << 30;

/// Opens an adapter's file, or folder.
pub(super) fn open(path: &Path) -> Result<Checkpoint, AdapterError> {
    let mut bytes = 0;
    for file in weight_files(path)? {
        let metadata = std::fs::metadata(&file);
        bytes += metadata.map_err(|source| CheckpointError::Io { path: file, source })?.len();
    }
    if bytes > MAX_FILE_BYTES {
        let name = path.display().to_string();
        return Err(AdapterError::TooLarge { name, mib: bytes >> 20 });
    }
    Ok(Checkpoint::open(path)?)
}

/// What a file holds that is an adapter to some model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdapterSummary {
    /// The rank of what is added to dense layers; 0 if there is none.
    pub rank: usize,
    /// The rank of what is added to each expert, which counts as often as a token has experts; 0 if there is none.
    pub expert_rank: usize,
    /// Dense blocks that it adds to.
    pub dense_blocks: usize,
    /// Blocks of experts that it adds to.
    pub expert_blocks: usize,
    /// Experts of those.
    pub experts: usize,
    /// Whether it adds to attention too.
    pub attention: bool,
    /// Elements of all matrices.
    pub parameters: u64,
    /// The published models that it fits.
    pub fits: Vec<String>,
}

impl AdapterSummary {
    /// Looks into a file, or a folder as a checkpoint's is.
    ///
    /// # Errors
    /// If it is no adapter to any model.
    pub fn open(path: &Path) -> Result<Self, AdapterError> {
        Self::of(&open(path)?, &path.display().to_string())
    }

    /// Of tensors that were opened; `name` is for messages.
    ///
    /// # Errors
    /// If they are no adapter to any model.
    pub fn of(checkpoint: &Checkpoint, name: &str) -> Result<Self, AdapterError> {
        Self::read(checkpoint).map_err(|why| AdapterError::NoAdapter { name: name.into(), why })
    }

    /// The rank there has to be room for in a model of this configuration.
    pub fn rank_in(&self, config: &Config) -> usize {
        let top = config.text.moe.as_ref().map_or(1, |moe| moe.experts_per_token);
        self.rank.max(self.expert_rank.saturating_mul(top))
    }

    fn read(checkpoint: &Checkpoint) -> Result<Self, String> {
        let mut summary = AdapterSummary {
            rank: 0,
            expert_rank: 0,
            dense_blocks: 0,
            expert_blocks: 0,
            experts: 0,
            attention: false,
            parameters: 0,
            fits: Vec::new(),
        };
        // By block and site, the ranks of the two halves.
        let mut halves: BTreeMap<(bool, usize, Site), [Option<usize>; 2]> = BTreeMap::new();
        let tensors = checkpoint.tensors();
        for (name, info) in &tensors {
            let place = parse(name).ok_or_else(|| format!("it holds {name}"))?;
            let Place { kind, index, site, side } = place;
            let (count, rows, cols) = match (kind, &info.shape[..]) {
                (Kind::Experts, &[count, rows, cols]) => (count, rows, cols),
                (Kind::Dense | Kind::Variant, &[rows, cols]) => (0, rows, cols),
                _ => return Err(format!("{name} is {:?}", info.shape)),
            };
            let rank = if side == 0 { rows } else { cols };
            if !(1..=MAX_RANK).contains(&rank) {
                return Err(format!("{name} has rank {rank}, not in 1..={MAX_RANK}"));
            }
            let of_experts = kind == Kind::Experts;
            let largest = if of_experts { &mut summary.expert_rank } else { &mut summary.rank };
            *largest = (*largest).max(rank);
            summary.experts = summary.experts.max(count);
            summary.attention |= matches!(site, Site::Qkv | Site::Proj);
            summary.parameters += info.shape.iter().product::<usize>() as u64;
            halves.entry((of_experts, index, site)).or_default()[side] = Some(rank);
        }
        for ((_, index, site), ranks) in &halves {
            match ranks {
                [Some(a), Some(b)] if a == b => {}
                [Some(a), Some(b)] => {
                    return Err(format!("block {index}, {site:?}: ranks {a} and {b} differ"));
                }
                _ => return Err(format!("block {index} has one half of {site:?} only")),
            }
        }
        if halves.is_empty() {
            return Err("it has no tensors".into());
        }
        let blocks = |experts: bool| {
            let of = halves.keys().filter(|(of_experts, ..)| *of_experts == experts);
            of.map(|(_, index, _)| index).collect::<BTreeSet<_>>().len()
        };
        (summary.dense_blocks, summary.expert_blocks) = (blocks(false), blocks(true));
        let fits = |family: &Family| {
            let config = Config::of(*family);
            tensors.iter().all(|(name, info)| shape(name, &info.shape, &config).is_ok())
        };
        let families = [Family::Moondream2, Family::Moondream3].into_iter().filter(fits);
        summary.fits = families.map(|family| family.to_string()).collect();
        Ok(summary)
    }
}

/// Writes an adapter as safetensors with the names it is published under, whatever it comes in; `from` is what the
/// result shall say that it was made from. Matrices keep their type unless there is a `dtype`.
///
/// # Errors
/// If it is no adapter, or not one to a model of `config`.
pub fn convert_adapter(
    from: &Path,
    to: &Path,
    dtype: Option<DType>,
    config: Option<&Config>,
) -> Result<AdapterSummary, AdapterError> {
    let (checkpoint, name) = (open(from)?, from.display().to_string());
    let summary = AdapterSummary::of(&checkpoint, &name)?;
    if let Some(config) = config {
        Adapter::from_checkpoint(&checkpoint, &name, config)?;
    }
    let mut tensors = Vec::new();
    for (tensor, info) in checkpoint.tensors() {
        let (stored, bytes) = checkpoint.floats(tensor).expect("it was just listed");
        let wide = convert(&bytes, stored, DType::F32);
        let is_finite = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite();
        if !wide.chunks_exact(4).all(is_finite) {
            let why = format!("{tensor} holds numbers that are not finite");
            return Err(AdapterError::NoAdapter { name, why });
        }
        let dtype = dtype.unwrap_or(stored);
        let public = tensor.strip_prefix("model.").unwrap_or(tensor).to_owned();
        tensors.push((public, dtype, info.shape, convert(&bytes, stored, dtype).into_owned()));
    }
    let source = from.file_name().unwrap_or_default().to_string_lossy();
    write_tensors(to, &source, &tensors)?;
    Ok(summary)
}
