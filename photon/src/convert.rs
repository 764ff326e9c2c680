//! Writing a model anew: one layout and chosen formats, whatever it came in.
//!
//! # Rules
//! - What is written loads to the bit as the source does with the same `dtype` and `quant`, and has nothing left to
//!   quantize (`photon_models::checkpoint::Conversion`).
//! - A folder takes its name when it is complete. Until then it has another one beside it, which is removed if
//!   anything fails; what a killed process leaves behind is never taken for a model.
//! - Only a model is replaced, and only if that is asked for.
use std::{
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process,
};

use photon_core::DType;
use photon_models::{
    LoadError, Quant,
    checkpoint::{Checkpoint, CheckpointError, Conversion, TensorInfo},
    config::Config,
    expected_tensors,
};
use serde::Serialize;

use crate::{
    BuildError, Model,
    model::{Parts, read},
};

/// Most bytes of a file of weights, as on Hugging Face.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// How to write a model.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Matrices to quantize; none by default.
    pub quant: Quant,
    /// The type of other weights; as they are by default.
    pub dtype: Option<DType>,
    /// Most bytes of a file of weights; [`SHARD_BYTES`] by default.
    pub shard_bytes: u64,
    /// `tokenizer.json`; the model's own by default.
    pub tokenizer: Option<PathBuf>,
    /// Replace a model that is there.
    pub force: bool,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        ConvertOptions {
            quant: Quant::NONE,
            dtype: None,
            shard_bytes: SHARD_BYTES,
            tokenizer: None,
            force: false,
        }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Converted {
    /// The folder.
    pub out: PathBuf,
    /// What it was made from.
    pub source: String,
    /// How the matrices of each part are stored.
    pub formats: String,
    /// Bytes of the weights before.
    pub bytes_before: u64,
    /// And now.
    pub bytes_after: u64,
    /// The files of the folder.
    pub files: Vec<String>,
}

/// Why a model was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The model.
    #[error(transparent)]
    Model(#[from] BuildError),
    /// Its weights, or writing them.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    /// Something is there.
    #[error("{} is there already; --force replaces it", .0.display())]
    Exists(PathBuf),
    /// Something is there that nobody would want replaced.
    #[error("{} is no folder of a model, so it is not replaced; name another one", .0.display())]
    NoModel(PathBuf),
    /// The model would be written over itself.
    #[error("{} is the model that is read; name another folder", .0.display())]
    Itself(PathBuf),
    /// The disk is too full.
    #[error(
        "{} needs {need_mib} MiB and its disk has {free_mib} MiB left: make room, or write elsewhere",
        path.display()
    )]
    Space {
        /// What was to be written.
        path: PathBuf,
        /// Its size.
        need_mib: u64,
        /// What is free.
        free_mib: u64,
    },
    /// A file.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was broken off.
    #[error("broken off; nothing was written")]
    Cancelled,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ConvertError {
    let path = path.to_path_buf();
    move |source| ConvertError::Io { path, source }
}

/// Reads a model in whatever layout and writes it to the folder `out`. `progress` is told bytes written and
/// bytes in all, and may break off.
///
/// # Errors
/// As [`ConvertError`] lists; then `out` is as it was.
pub fn convert(
    model: &Model,
    out: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Converted, ConvertError> {
    let out = std::path::absolute(out).map_err(io_error(out))?;
    check_place(model, &out, options.force)?;
    let (config, checkpoint, tokenizer) = match &options.tokenizer {
        Some(path) => {
            let (config, checkpoint) = model.checkpoint()?;
            (config, checkpoint, read(path)?)
        }
        None => {
            let Parts { config, checkpoint, .. } = model.open()?;
            (config, checkpoint, model.tokenizer_json()?.into_owned())
        }
    };
    let plan = photon_models::checkpoint::ConvertOptions {
        quant: options.quant,
        dtype: options.dtype,
        shard_bytes: options.shard_bytes,
        source: model.label(),
    };
    let conversion = Conversion::plan(&checkpoint, &config, &plan)?;
    let folder = Folder::beside(&out)?;
    let need = conversion.bytes() + tokenizer.len() as u64;
    // Where the free space cannot be told, writing will show.
    if let Ok(free) = fs4::available_space(&folder.0)
        && free < need
    {
        let (need_mib, free_mib) = (need.div_ceil(1 << 20), free >> 20);
        return Err(ConvertError::Space { path: out, need_mib, free_mib });
    }
    let json = serde_json::to_vec_pretty(&serde_json::json!({ "config": config }));
    folder.write("config.json", &json.expect("numbers and names are JSON"))?;
    folder.write("tokenizer.json", &tokenizer)?;
    if conversion.write(&folder.0, progress)?.is_break() {
        return Err(ConvertError::Cancelled);
    }
    check_written(&folder.0, &config)?;
    let files = folder.files()?;
    folder.rename(&out)?;
    Ok(Converted {
        out,
        source: plan.source,
        formats: conversion.formats().to_owned(),
        bytes_before: checkpoint.tensors().values().map(TensorInfo::bytes).sum(),
        bytes_after: conversion.bytes(),
        files,
    })
}

/// Whether a model may be written there.
fn check_place(model: &Model, out: &Path, force: bool) -> Result<(), ConvertError> {
    if out.symlink_metadata().is_err() {
        return Ok(());
    }
    let is_model = out.is_dir() && out.join("config.json").is_file();
    let is_empty = || fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    let same = |path: &Path| match (path.canonicalize(), out.canonicalize()) {
        (Ok(path), Ok(out)) => path.starts_with(out),
        _ => false,
    };
    if model.folder().is_some_and(same) {
        return Err(ConvertError::Itself(out.to_path_buf()));
    }
    match force {
        false => Err(ConvertError::Exists(out.to_path_buf())),
        true if is_model || (out.is_dir() && is_empty()) => Ok(()),
        true => Err(ConvertError::NoModel(out.to_path_buf())),
    }
}

/// Whether what was written can be read.
fn check_written(folder: &Path, config: &Config) -> Result<(), ConvertError> {
    Ok(Checkpoint::open(folder)?.check(&expected_tensors(config))?)
}

/// A folder on its way to its name; removed unless it gets there.
struct Folder(PathBuf);

impl Folder {
    fn beside(out: &Path) -> Result<Self, ConvertError> {
        let path = hidden(out, "incomplete");
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io_error(parent))?;
        }
        fs::create_dir(&path).map_err(io_error(&path))?;
        Ok(Folder(path))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), ConvertError> {
        let path = self.0.join(name);
        fs::write(&path, bytes).map_err(io_error(&path))
    }

    fn files(&self) -> Result<Vec<String>, ConvertError> {
        let entries = fs::read_dir(&self.0).map_err(io_error(&self.0))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<_> = names.collect();
        names.sort();
        Ok(names)
    }

    /// Gives it its name; what had the name is removed only after that.
    fn rename(self, out: &Path) -> Result<(), ConvertError> {
        let old = hidden(out, "replaced");
        let replaces = out.exists();
        if replaces {
            fs::rename(out, &old).map_err(io_error(out))?;
        }
        if let Err(error) = fs::rename(&self.0, out) {
            if replaces {
                // As it was; if that fails as well, the first error says enough.
                let _ = fs::rename(&old, out);
            }
            return Err(io_error(out)(error));
        }
        if replaces {
            fs::remove_dir_all(&old).map_err(io_error(&old))?;
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It is gone if it got its name. Best effort: what is left is hidden and named incomplete.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A name beside `out` that no other process uses.
pub(crate) fn hidden(out: &Path, what: &str) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!(".{name}.{}.{what}", process::id()))
}

impl From<LoadError> for ConvertError {
    fn from(error: LoadError) -> Self {
        ConvertError::Model(error.into())
    }
}
