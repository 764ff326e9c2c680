//! What can go wrong between a caller and the device.
use photon_models::{LoadError, adapter::AdapterError, image::ImageError, prompt::Rejected};

use crate::{GrammarError, adapters::NameError};

/// Why no model could be made ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The model's files.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device.
    #[error(transparent)]
    Device(#[from] photon_core::Error),
    /// A model that nobody knows or that is not here.
    #[error("{0}")]
    NoModel(String),
    /// A configuration that cannot cut pictures.
    #[error("config.json: {0}")]
    Crops(ImageError),
    /// A key-value cache too small for one picture.
    #[error(
        "a key-value cache of {mib} MiB is too small for one picture; \
         it needs {least_mib} MiB at least (--kv-memory)"
    )]
    KvMemory {
        /// What was asked for.
        mib: u64,
        /// The least that is of use.
        least_mib: u64,
    },
    /// An adapter to make room for.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A folder of adapters, or a name in it.
    #[error(transparent)]
    AdapterName(#[from] NameError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// A device this build does not have.
    #[error("{0}")]
    NoDevice(String),
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The request makes no sense; others are not affected.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The picture cannot be used; others are not affected.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The picture's file cannot be read; others are not affected.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The adapter cannot be used; others are not affected.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// An adapter, in an engine without room for any.
    #[error("there is no room for adapters; start with --adapter-slots 1 or more")]
    NoAdapters,
    /// The grammar cannot be followed; others are not affected.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// Too many requests are waiting; try again later.
    #[error("busy: {waiting} requests are waiting, which is the most allowed; try again later")]
    Busy {
        /// Requests waiting.
        waiting: usize,
    },
    /// The request could not run even alone.
    #[error(
        "the request needs {needed} blocks of key-value cache and there are {blocks}; \
         raise --kv-memory or lower --max-tokens"
    )]
    TooLarge {
        /// Blocks the request may come to need.
        needed: usize,
        /// Blocks there are.
        blocks: usize,
    },
    /// The deadline passed.
    #[error("the deadline passed before the answer was complete")]
    Deadline,
    /// The engine was told to stop before the request was done.
    #[error("cancelled")]
    Cancelled,
    /// Work on this request went wrong in a way that is a bug in Photon; others are not affected.
    #[error("this request met a bug in Photon, please report it: {0}")]
    Bug(String),
    /// The engine is not running any more.
    #[error("the engine has stopped: {0}")]
    Stopped(String),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] photon_core::Error),
    /// The model gave no number: its weights are damaged, or a 16-bit type overflowed.
    #[error(
        "the model's output is not a number: its weights are damaged, or --dtype is too narrow (f16 ends at \
         65504; bf16 and f32 do not)"
    )]
    NotANumber,
}

/// Why a file could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a picture Photon can use.
    #[error(transparent)]
    Image(#[from] ImageError),
}
