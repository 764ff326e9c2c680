//! Compiled kernels on disk.
//!
//! A file is named after what it was made of ([`Compiled::file_name`]) and ends with the digest of its
//! contents, so that half a file, or a changed one, is compiled anew. It gets its name when it is whole.
//! Nothing here fails: a cache that cannot be read or written costs time.
//!
//! [`Compiled::file_name`]: crate::source::Compiled::file_name
use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Names the folder.
pub(crate) const FOLDER_VARIABLE: &str = "PHOTON_CUDA_CACHE";
/// What the files may take together. All kernels of one architecture take some megabytes.
const MAX_BYTES: u64 = 256 << 20;
const DIGEST: usize = blake3::OUT_LEN;

/// A folder of compiled kernels, and of whatever else is worth keeping.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// The folder that the environment names, or the user's own cache.
    pub(crate) fn from_env() -> Self {
        let path = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let user = || {
            let system = path("XDG_CACHE_HOME").or_else(|| path("LOCALAPPDATA"));
            system.or_else(|| Some(path("HOME")?.join(".cache")))
        };
        let folder = path(FOLDER_VARIABLE).or_else(|| Some(user()?.join("photon/cuda")));
        Cache { folder }
    }

    /// A certain folder.
    #[cfg(test)]
    pub(crate) fn at(folder: &Path) -> Self {
        Cache { folder: Some(folder.to_owned()) }
    }

    /// What was put under `name`, if it is whole.
    pub(crate) fn get(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.folder.as_ref()?.join(name);
        let mut bytes = fs::read(&path).ok()?;
        let contents = bytes.len().checked_sub(DIGEST)?;
        let whole = blake3::hash(&bytes[..contents]).as_bytes()[..] == bytes[contents..];
        bytes.truncate(contents);
        if whole {
            // So that what is used is what stays.
            let touched = fs::File::options().append(true).open(&path);
            let _ = touched.and_then(|file| file.set_modified(SystemTime::now()));
        }
        whole.then_some(bytes)
    }

    /// Keeps `bytes` under `name`.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let Some(folder) = &self.folder else { return };
        let whole = [bytes, blake3::hash(bytes).as_bytes()].concat();
        let part = folder.join(format!("{name}.{}.part", std::process::id()));
        let done = fs::create_dir_all(folder)
            .and_then(|()| fs::write(&part, whole))
            .and_then(|()| fs::rename(&part, folder.join(name)));
        if done.is_err() {
            let _ = fs::remove_file(&part);
        }
        let _ = trim(folder, MAX_BYTES);
    }
}

/// Removes what was not used for longest until the rest takes `max_bytes` at most.
fn trim(folder: &Path, max_bytes: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let (path, about) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
        if about.is_file() {
            files.push((about.modified()?, about.len(), path));
        }
    }
    files.sort();
    let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in files {
        if total <= max_bytes {
            break;
        }
        fs::remove_file(path)?;
        total -= bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whole_comes_back_and_what_is_not_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(&folder.path().join("new"));
        assert_eq!(cache.get("a.cubin"), None);
        cache.put("a.cubin", b"kernels");
        assert_eq!(cache.get("a.cubin").unwrap(), b"kernels");
        let path = folder.path().join("new/a.cubin");
        let mut bytes = fs::read(&path).unwrap();
        bytes[2] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(cache.get("a.cubin"), None, "a bit was changed");
        fs::write(&path, b"short").unwrap();
        assert_eq!(cache.get("a.cubin"), None, "shorter than a digest");
        cache.put("a.cubin", b"kernels");
        assert_eq!(cache.get("a.cubin").unwrap(), b"kernels", "built anew");
        assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 1, "no parts stay");
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        for (name, age) in [("new", 10), ("old", 30), ("middle", 20)] {
            let path = folder.path().join(name);
            fs::write(&path, [0; 100]).unwrap();
            let then = SystemTime::now() - std::time::Duration::from_secs(age);
            fs::File::options().append(true).open(path).unwrap().set_modified(then).unwrap();
        }
        trim(folder.path(), 250).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["middle", "new"]);
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_only_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let cache = Cache::at(&file);
        cache.put("a.cubin", b"kernels");
        assert_eq!(cache.get("a.cubin"), None);
    }
}
