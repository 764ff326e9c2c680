//! What is in a file of weights.
use std::{collections::BTreeMap, path::Path};

use photon_models::{
    LoadError,
    adapter::AdapterSummary,
    checkpoint::{Checkpoint, TensorInfo},
    config::{Config, Family},
    expected_tensors,
};
use serde::Serialize;

pub use photon_models::checkpoint::Origin;

use crate::{BuildError, model::read};

/// What a file or folder of weights holds, and whether it is a model.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// `Moondream 2`, `Moondream 3`, or `adapter`.
    pub family: String,
    /// Who laid the tensors out.
    pub layout: String,
    /// Whether the dimensions are those of a `config.json` beside the weights, or of the published model.
    pub has_config: bool,
    /// Every tensor, by the name it has in a Hugging Face repository.
    pub tensors: Vec<TensorLine>,
    /// What a model or adapter that Photon wrote was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Tensors that are there and never used: static scales of 8-bit keys and values. Photon's keys and values
    /// carry their own.
    pub ignored: Vec<String>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors, their scales included.
    pub bytes: u64,
    /// Tensors of the model that are not here.
    pub missing: Vec<String>,
    /// Tensors that are not of the model.
    pub unknown: Vec<String>,
    /// Tensors of another shape than the model's, with both.
    pub misshapen: Vec<String>,
    /// What kind of an adapter it is, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterSummary>,
    /// The rank of an adapter: what `--adapter-rank` must be at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
}

/// One tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorLine {
    /// Its name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub format: String,
    /// Bytes it takes, scales included.
    pub bytes: u64,
}

impl Inspection {
    /// Whether it is a whole model or adapter.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unknown.is_empty() && self.misshapen.is_empty()
    }
}

/// Looks into a file of safetensors or of PyTorch, or a folder with a model. Nothing is loaded.
///
/// # Errors
/// If the files cannot be read; a file that holds other tensors than a model is no error.
pub fn inspect(path: &Path) -> Result<Inspection, BuildError> {
    let checkpoint = Checkpoint::open(path).map_err(LoadError::from)?;
    let tensors: BTreeMap<&str, TensorInfo> = checkpoint.tensors();
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    let json = folder.join("config.json");
    let family = Family::of(tensors.keys().copied());
    let config = match json.is_file() {
        true => Config::from_json(&read(&json)?, family).map_err(LoadError::from)?,
        false => Config::of(family),
    };
    let expected = expected_tensors(&config);
    let mut inspection = Inspection {
        family: family.to_string(),
        layout: checkpoint.layout().map(|layout| layout.to_string()).unwrap_or_default(),
        has_config: json.is_file(),
        origin: checkpoint.origin().cloned(),
        ignored: checkpoint.ignored().to_vec(),
        parameters: tensors.values().map(|t| t.shape.iter().product::<usize>() as u64).sum(),
        bytes: tensors.values().map(TensorInfo::bytes).sum(),
        missing: Vec::new(),
        unknown: Vec::new(),
        misshapen: Vec::new(),
        adapter: None,
        rank: None,
        tensors: Vec::new(),
    };
    let is_adapter =
        |name: &&str| name.starts_with("text_lora.") || name.starts_with("text.blocks.");
    if !tensors.is_empty() && tensors.keys().all(is_adapter) {
        let adapter = AdapterSummary::of(&checkpoint, &path.display().to_string())?;
        inspection.family = "adapter".into();
        inspection.rank = Some(adapter.rank_in(&config));
        inspection.adapter = Some(adapter);
    } else {
        for (name, want) in &expected {
            match tensors.get(name.as_str()) {
                None => inspection.missing.push(name.clone()),
                Some(info) if info.shape != *want => {
                    inspection.misshapen.push(format!("{name} {:?}, not {want:?}", info.shape));
                }
                Some(_) => {}
            }
        }
        let known: std::collections::HashSet<&str> =
            expected.iter().map(|(name, _)| name.as_str()).collect();
        let unknown = tensors.keys().filter(|name| !known.contains(*name));
        inspection.unknown = unknown.map(ToString::to_string).collect();
    }
    let line = |(name, info): (&str, TensorInfo)| TensorLine {
        name: name.to_owned(),
        bytes: info.bytes(),
        format: info.format.to_string(),
        shape: info.shape,
    };
    inspection.tensors = tensors.into_iter().map(line).collect();
    Ok(inspection)
}
