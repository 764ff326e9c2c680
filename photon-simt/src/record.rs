//! Launches kept as files, to be run again by a program that a sanitizer watches: `cargo xtask simt-sanitize`.
//!
//! `PHOTON_SIMT_RECORD=FOLDER` makes every launch write itself there before it runs: a few of each kernel, of different
//! shapes, with the buffers that its argument points into. Little-endian: the kernel's name and a line end; grid, block,
//! dynamic shared bytes and whether cooperative as `u32`; the seed as `u64`; the argument after its length; then the
//! buffers, each as address, length and bytes. `shim/sanitize/replay.cpp` reads it.
use std::{
    collections::BTreeMap,
    env, fs,
    path::PathBuf,
    sync::{LazyLock, Mutex, PoisonError},
};

use crate::{cuda::Options, memory};

static FOLDER: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| env::var_os("PHOTON_SIMT_RECORD").map(PathBuf::from));

/// Whether launches are kept.
pub(crate) fn is_on() -> bool {
    FOLDER.is_some()
}

/// Of a kernel: as many launches, of different shapes, and no more bytes each.
const MAX_LAUNCHES: usize = 6;
const MAX_BYTES: usize = 8 << 20;

type Shape = ([u32; 3], [u32; 3], u32);

/// Keeps a launch, if that is asked for and it is not like others.
pub(crate) fn keep(kernel: &str, shape: Shape, args: &[u8], options: Options) {
    let Some(folder) = &*FOLDER else { return };
    static KEPT: Mutex<BTreeMap<String, Vec<Shape>>> = Mutex::new(BTreeMap::new());
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let shapes = kept.entry(kernel.to_owned()).or_default();
    if shapes.len() >= MAX_LAUNCHES || shapes.contains(&shape) {
        return;
    }
    let buffers = memory::of_arguments(args);
    if buffers.values().map(Vec::len).sum::<usize>() > MAX_BYTES {
        return;
    }
    shapes.push(shape);
    let (grid, block, shared_bytes) = shape;
    let mut out = format!("{kernel}\n").into_bytes();
    let mut word = |x: u32| out.extend(x.to_le_bytes());
    grid.into_iter().chain(block).for_each(&mut word);
    word(shared_bytes);
    word(options.cooperative.into());
    out.extend(options.seed.to_le_bytes());
    out.extend((args.len() as u64).to_le_bytes());
    out.extend(args);
    for (address, bytes) in buffers {
        out.extend((address as u64).to_le_bytes());
        out.extend((bytes.len() as u64).to_le_bytes());
        out.extend(bytes);
    }
    let path = folder.join(format!("{kernel}-{}-{}", std::process::id(), shapes.len()));
    fs::write(&path, out).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
}
