//! Every source as a binary for one GPU: prebuilt, from the cache, or compiled now.
//!
//! Prebuilt ones lie in a folder beside the program, compressed, for CUDA 12 and 13; a binary of CUDA 12
//! runs on the drivers of both. What is not there NVRTC compiles, once per machine.
use std::{
    env, fs,
    io::Read,
    path::PathBuf,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    cache::Cache,
    driver::Facts,
    nvrtc::Nvrtc,
    source::{Compiled, OLDEST, Source, Target},
};

/// Names the folder of prebuilt binaries.
pub(crate) const FOLDER_VARIABLE: &str = "PHOTON_CUDA_KERNELS";
/// Its name beside the program.
const FOLDER: &str = "cuda-kernels";

/// The binaries, and where they came from.
#[derive(Debug, Default)]
pub(crate) struct Binaries {
    /// One per source.
    pub(crate) cubins: Vec<Vec<u8>>,
    pub(crate) origins: Origins,
}

/// How many came from where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origins {
    pub(crate) prebuilt: usize,
    pub(crate) cached: usize,
    pub(crate) compiled: usize,
}

#[derive(Clone, Copy)]
enum Origin {
    Prebuilt,
    Cached,
    Compiled,
}

fn prebuilt_folder() -> Option<PathBuf> {
    let named = env::var_os(FOLDER_VARIABLE).map(PathBuf::from);
    named.or_else(|| Some(env::current_exe().ok()?.parent()?.join(FOLDER)))
}

/// Finds or makes the binaries of every source.
///
/// # Errors
/// What is missing, and what to do.
pub(crate) fn load(facts: &Facts, cache: &Cache) -> Result<Binaries, String> {
    let (major, minor) = facts.capability;
    if facts.capability < OLDEST {
        return Err(format!(
            "sm_{major}{minor} is too old: kernels need sm_{}{} (Ampere) or newer",
            OLDEST.0, OLDEST.1
        ));
    }
    let target = Target::of(facts.capability);
    let driver_major = facts.driver_version / 1000;
    let nvrtc = OnceLock::new();
    let one = |source: Source| -> Result<(Vec<u8>, Origin), String> {
        if let Some(cubin) = prebuilt(source, target, driver_major) {
            return Ok((cubin, Origin::Prebuilt));
        }
        let nvrtc = nvrtc.get_or_init(|| Nvrtc::open(driver_major)).as_ref().map_err(|why| {
            format!("there are no prebuilt kernels for sm_{major}{minor}, and no compiler: {why}")
        })?;
        cached(source, target, nvrtc, cache)
    };
    let sources = Source::all();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(sources.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = one(source);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                }
            });
        }
    });
    let mut binaries = Binaries::default();
    for result in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let (cubin, origin) = result?;
        binaries.cubins.push(cubin);
        *match origin {
            Origin::Prebuilt => &mut binaries.origins.prebuilt,
            Origin::Cached => &mut binaries.origins.cached,
            Origin::Compiled => &mut binaries.origins.compiled,
        } += 1;
    }
    Ok(binaries)
}

/// The newest prebuilt binary that the driver loads, if there is one.
fn prebuilt(source: Source, target: Target, driver_major: u32) -> Option<Vec<u8>> {
    let folder = prebuilt_folder()?;
    let (major, minor) = target.capability;
    // Up to sm_8x a binary runs on every later minor version; from sm_90a on only on its own.
    let minors = if major < 9 { (0..=minor).rev() } else { (minor..=minor).rev() };
    for (minor, cuda_major) in
        minors.flat_map(|minor| (12..=driver_major.min(13)).rev().map(move |cuda| (minor, cuda)))
    {
        let target = Target { capability: (major, minor) };
        let name = Compiled { source, target, cuda_major, flavor: "" }.file_name();
        let Ok(packed) = fs::read(folder.join(format!("{name}.gz"))) else { continue };
        let mut cubin = Vec::new();
        if flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut cubin).is_ok() {
            return Some(cubin);
        }
    }
    None
}

fn cached(
    source: Source,
    target: Target,
    nvrtc: &Nvrtc,
    cache: &Cache,
) -> Result<(Vec<u8>, Origin), String> {
    let (cuda_major, minor) = nvrtc.version();
    let flavor = &format!(".{minor}");
    let name = Compiled { source, target, cuda_major, flavor }.file_name();
    if let Some(cubin) = cache.get(&name) {
        return Ok((cubin, Origin::Cached));
    }
    let cubin = nvrtc.compile(&source, target, &[])?.cubin;
    cache.put(&name, &cubin);
    Ok((cubin, Origin::Compiled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_that_is_too_old_is_named() {
        let facts = Facts {
            name: "Tesla T4".into(),
            capability: (7, 5),
            multiprocessors: 40,
            shared_bytes: 64 << 10,
            driver_version: 12_080,
        };
        let folder = tempfile::tempdir().unwrap();
        let error = load(&facts, &Cache::at(folder.path())).unwrap_err();
        assert!(error.contains("sm_75") && error.contains("sm_80"), "{error}");
    }
}
