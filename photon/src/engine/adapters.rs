//! Adapters in the engine: from files, on the threads that prepare requests, to slots on the device.
//!
//! # Rules
//! - A file is read, checked and packed once, on a thread that does nothing else: requests with adapters that are
//!   here, or without any, do not wait for it. The engine's thread only copies what is packed to a slot.
//! - What a file holds has a number; a file that was written again has another. The number keeps its
//!   keys and values apart in the prefix cache.
//! - A packed adapter lives as long as a request uses it, and the last few live longer.
use std::{
    any::Any,
    collections::HashMap,
    fmt::Debug,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::SystemTime,
};

use photon_core::Kernels;
use photon_models::{
    adapter::{Adapter, AdapterError, AdapterShape, PackedAdapter},
    checkpoint::{CheckpointError, weight_files},
    config::Config,
};

use crate::RunError;

/// A request's adapter: its number, and what keeps it packed.
#[derive(Clone, Debug)]
pub(crate) struct AdapterUse {
    /// From 1 on: 0 is no adapter.
    pub(crate) id: u32,
    /// What it is called: `ID@STEP` if it has such a name.
    pub(crate) name: Arc<str>,
    _packed: Arc<dyn Any + Send + Sync>,
}

impl AdapterUse {
    pub(crate) fn new(id: u32, path: &Path, packed: Arc<dyn Any + Send + Sync>) -> Self {
        AdapterUse { id, name: name(path), _packed: packed }
    }
}

/// What the adapter in a file or folder is called.
pub(crate) fn name(path: &Path) -> Arc<str> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let file = [".safetensors", ".pt"].iter().find_map(|end| name.strip_suffix(end));
    file.unwrap_or(&name).into()
}

/// What the threads that prepare requests know of adapters, whatever the device.
pub(crate) trait LoadAdapters: Debug + Send + Sync {
    /// An adapter, if it is packed already.
    fn find(&self, path: &Path) -> Result<Option<AdapterUse>, RunError>;

    /// Reads an adapter, unless it is packed already; called on one thread only.
    fn load(&self, path: &Path) -> Result<AdapterUse, RunError>;
}

/// A file in a certain state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FileKey {
    path: PathBuf,
    bytes: u64,
    modified: Option<SystemTime>,
}

/// Adapters packed for a device.
#[derive(Debug)]
pub(crate) struct AdapterStore<D: Kernels> {
    device: D,
    config: Config,
    shape: AdapterShape,
    /// Held for moments only: the engine's thread asks here too.
    state: Mutex<State<D>>,
}

#[derive(Debug)]
struct State<D: Kernels> {
    ids: HashMap<FileKey, u32>,
    packed: HashMap<u32, Weak<PackedAdapter<D>>>,
    /// The last ones asked for, the latest last.
    kept: Vec<Arc<PackedAdapter<D>>>,
}

impl<D: Kernels> AdapterStore<D> {
    pub(crate) fn new(device: D, config: Config, shape: AdapterShape) -> Self {
        let state = State { ids: HashMap::new(), packed: HashMap::new(), kept: Vec::new() };
        AdapterStore { device, config, shape, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State<D>> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An adapter that a request uses.
    pub(crate) fn packed(&self, id: u32) -> Arc<PackedAdapter<D>> {
        self.state().packed[&id].upgrade().expect("a request keeps it")
    }

    /// A folder is in the state of the files in it.
    fn key(path: &Path) -> Result<FileKey, RunError> {
        let error =
            |source| AdapterError::from(CheckpointError::Io { path: path.to_path_buf(), source });
        let mut key =
            FileKey { path: std::fs::canonicalize(path).map_err(error)?, bytes: 0, modified: None };
        for file in weight_files(path).map_err(AdapterError::from)? {
            let metadata = std::fs::metadata(&file).map_err(error)?;
            key.bytes += metadata.len();
            key.modified = key.modified.max(metadata.modified().ok());
        }
        Ok(key)
    }

    /// Notes that an adapter is asked for: it is kept longest from now on.
    fn keep(&self, id: u32, path: &Path, packed: Arc<PackedAdapter<D>>) -> AdapterUse {
        let mut state = self.state();
        state.packed.insert(id, Arc::downgrade(&packed));
        state.kept.retain(|other| !Arc::ptr_eq(other, &packed));
        state.kept.push(Arc::clone(&packed));
        if state.kept.len() > self.shape.slots {
            state.kept.remove(0);
        }
        AdapterUse::new(id, path, packed)
    }
}

impl<D: Kernels> LoadAdapters for AdapterStore<D> {
    fn find(&self, path: &Path) -> Result<Option<AdapterUse>, RunError> {
        if self.shape.slots == 0 {
            return Err(RunError::NoAdapters);
        }
        let key = Self::key(path)?;
        let state = self.state();
        let here =
            state.ids.get(&key).and_then(|&id| Some((id, state.packed.get(&id)?.upgrade()?)));
        drop(state);
        Ok(here.map(|(id, packed)| self.keep(id, path, packed)))
    }

    fn load(&self, path: &Path) -> Result<AdapterUse, RunError> {
        if let Some(here) = self.find(path)? {
            return Ok(here);
        }
        let key = Self::key(path)?;
        let adapter = Adapter::open(path, &self.config)?;
        let packed = Arc::new(self.shape.pack(&self.device, &adapter)?);
        let mut state = self.state();
        let next = state.ids.len() as u32 + 1;
        let id = *state.ids.entry(key).or_insert(next);
        drop(state);
        Ok(self.keep(id, path, packed))
    }
}
