//! The cache folder, laid out as Python's `huggingface_hub` lays it out.
//!
//! ```text
//! models--owner--name/blobs/<digest>                  the bytes
//! models--owner--name/snapshots/<commit>/<file>       a relative link to a blob
//! models--owner--name/refs/<revision>                 the commit a tag or branch stood for
//! models--owner--name/.no_exist/<commit>/<file>       empty: the commit has no such file
//! .locks/models--owner--name/<digest>.lock            held (flock) while a blob is written
//! ```
//! Everything is put in place by a rename, so a reader never sees half of it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::HubError;
use super::http::Digest;

pub(super) struct Cache {
    root: PathBuf,
}

/// Held while a blob is written; released on drop, also when the process dies.
pub(super) struct BlobLock {
    _file: File,
}

impl Cache {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The commit that `revision` stands for, as far as the cache knows.
    pub(super) fn commit(&self, repo: &str, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = read_limited(&self.repo_dir(repo).join("refs").join(revision), 64).ok()?;
        let commit = String::from_utf8(text).ok()?.trim().to_owned();
        is_commit(&commit).then_some(commit)
    }

    /// The path of a file of a commit, if it is there with its bytes.
    pub(super) fn file(&self, repo: &str, commit: &str, file: &str) -> Option<PathBuf> {
        let path = self.snapshot_path(repo, commit, file);
        path.is_file().then_some(path)
    }

    /// Whether the hub once said that the commit has no such file.
    pub(super) fn is_known_absent(&self, repo: &str, commit: &str, file: &str) -> bool {
        self.absent_path(repo, commit, file).is_file()
    }

    pub(super) fn note_absent(&self, repo: &str, commit: &str, file: &str) -> Result<(), HubError> {
        write_atomically(&self.absent_path(repo, commit, file), b"")
    }

    pub(super) fn write_ref(
        &self,
        repo: &str,
        revision: &str,
        commit: &str,
    ) -> Result<(), HubError> {
        let path = self.repo_dir(repo).join("refs").join(revision);
        write_atomically(&path, commit.as_bytes())
    }

    pub(super) fn blob(&self, repo: &str, digest: &Digest) -> PathBuf {
        self.repo_dir(repo).join("blobs").join(digest.hex())
    }

    pub(super) fn partial(&self, repo: &str, digest: &Digest) -> PathBuf {
        self.repo_dir(repo).join("blobs").join(format!("{}.incomplete", digest.hex()))
    }

    /// Locks a blob for writing, calling `on_wait` first if somebody else holds it.
    pub(super) fn lock(
        &self,
        repo: &str,
        digest: &Digest,
        on_wait: impl FnOnce(),
    ) -> Result<BlobLock, HubError> {
        let dir = self.root.join(".locks").join(folder_name(repo));
        fs::create_dir_all(&dir).map_err(HubError::io("create", &dir))?;
        let path = dir.join(format!("{}.lock", digest.hex()));
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(HubError::io("open", &path))?;
        match fs4::FileExt::try_lock(&file) {
            Ok(()) => {}
            Err(fs4::TryLockError::WouldBlock) => {
                on_wait();
                fs4::FileExt::lock(&file).map_err(HubError::io("lock", &path))?;
            }
            Err(fs4::TryLockError::Error(e)) => return Err(HubError::io("lock", &path)(e)),
        }
        Ok(BlobLock { _file: file })
    }

    /// Makes a complete blob visible as `file` of `commit`, and returns the path to open.
    pub(super) fn link(
        &self,
        repo: &str,
        commit: &str,
        file: &str,
        digest: &Digest,
    ) -> Result<PathBuf, HubError> {
        let path = self.snapshot_path(repo, commit, file);
        create_parent(&path)?;
        let temporary = temporary_beside(&path);
        // Windows follows no link with `/` in it.
        let target: PathBuf = ["..", "..", "blobs", digest.hex()].iter().collect();
        if symlink(&target, &temporary).is_err() {
            // File systems without links (exFAT, Windows without the privilege): Python, too, then
            // keeps the file itself in the snapshot.
            let blob = self.blob(repo, digest);
            return match fs::rename(&blob, &path) {
                Err(_) if path.is_file() => Ok(path),
                Err(e) => Err(HubError::io("move a file to", &path)(e)),
                Ok(()) => Ok(path),
            };
        }
        fs::rename(&temporary, &path).map_err(HubError::io("create", &path))?;
        Ok(path)
    }

    fn repo_dir(&self, repo: &str) -> PathBuf {
        self.root.join(folder_name(repo))
    }

    fn snapshot_path(&self, repo: &str, commit: &str, file: &str) -> PathBuf {
        self.repo_dir(repo).join("snapshots").join(commit).join(file)
    }

    fn absent_path(&self, repo: &str, commit: &str, file: &str) -> PathBuf {
        self.repo_dir(repo).join(".no_exist").join(commit).join(file)
    }
}

/// Whether this is a commit and not the name of a tag or branch.
pub(super) fn is_commit(revision: &str) -> bool {
    is_hex(revision, 40)
}

/// Whether `text` is `len` lower-case hex digits, and so safe as a file name.
pub(super) fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The whole file, or an error if it has more than `limit` bytes.
pub(super) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, HubError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(HubError::io("open", path))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(HubError::io("read", path))?;
    if bytes.len() as u64 > limit {
        let size = fs::metadata(path).map_or(limit + 1, |m| m.len());
        return Err(HubError::TooLarge { file: path.display().to_string(), size, limit });
    }
    Ok(bytes)
}

pub(super) fn create_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(dir) => fs::create_dir_all(dir).map_err(HubError::io("create", dir)),
        None => Ok(()),
    }
}

fn folder_name(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), HubError> {
    create_parent(path)?;
    let temporary = temporary_beside(path);
    fs::write(&temporary, bytes).map_err(HubError::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(HubError::io("write", path))
}

/// A name in the same folder that no other thread or process uses.
fn temporary_beside(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}-{n}.tmp", std::process::id()))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}
