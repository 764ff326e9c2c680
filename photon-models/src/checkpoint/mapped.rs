//! Files mapped into memory: the one unsafe line outside the backends.
#![allow(unsafe_code, reason = "mapping a file is unsafe in every crate that offers it")]
use std::{fs::File, path::Path};

use super::CheckpointError;

/// Maps a file for reading.
pub(super) fn map(path: &Path) -> Result<memmap2::Mmap, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map is only ever read as plain bytes, every bit pattern of which is valid. If
    // another process truncates the file the system stops this one (SIGBUS); if it rewrites the
    // file, wrong weights are read. Neither can be prevented by an advisory lock; model files are
    // written once and renamed into place.
    unsafe { memmap2::Mmap::map(&file) }.map_err(io)
}
