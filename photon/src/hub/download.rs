//! One file from the hub to a checked blob: resume, retry, digest, rename.
//!
//! The partial file always holds a beginning of the file, and the running digest covers exactly the
//! bytes in it; both go back to nothing together. Only growth counts as progress: a server that
//! ignores `Range` and always breaks at the same byte is given up on like one that sends nothing.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::cache::{Cache, create_parent};
use super::http::{Digest, Http, Meta, Remote, Rest};
use super::{Hub, HubError, Progress, Step};

const BUFFER_BYTES: usize = 256 << 10;

/// Makes sure that the cache holds the blob that `meta` describes.
pub(super) fn fetch_blob(
    hub: &Hub,
    cache: &Cache,
    http: &Http,
    remote: &Remote<'_>,
    meta: &Meta,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), HubError> {
    let blob = cache.blob(remote.repo, &meta.digest);
    let partial = cache.partial(remote.repo, &meta.digest);
    let mut report =
        |step, done| progress(Progress { file: remote.file, step, done, total: meta.size });
    create_parent(&blob)?;
    let _lock = cache.lock(remote.repo, &meta.digest, || report(Step::Waiting, 0))?;
    if fs::metadata(&blob).is_ok_and(|m| m.is_file() && m.len() == meta.size) {
        report(Step::Done, meta.size);
        return Ok(());
    }
    let mut file = Partial::open(&partial, meta, &mut report)?;
    file.check_space(remote.file, &blob)?;
    let resumed = file.len > 0;
    file.fill(hub, http, remote, &mut report)?;
    let mut actual = file.hasher.finish();
    if actual != meta.digest.hex() && resumed {
        // Then the part that was found is the likeliest culprit: once more without it.
        file.restart()?;
        file.fill(hub, http, remote, &mut report)?;
        actual = file.hasher.finish();
    }
    if actual != meta.digest.hex() {
        drop(file);
        fs::remove_file(&partial).map_err(HubError::io("delete", &partial))?;
        return Err(HubError::Checksum {
            file: remote.file.to_owned(),
            algorithm: meta.digest.algorithm(),
            expected: meta.digest.hex().to_owned(),
            actual,
        });
    }
    file.file.sync_all().map_err(HubError::io("write", &partial))?;
    drop(file);
    fs::rename(&partial, &blob).map_err(HubError::io("create", &blob))?;
    report(Step::Done, meta.size);
    Ok(())
}

/// The beginning of a file on disk, with its digest so far.
struct Partial<'a> {
    file: File,
    path: &'a Path,
    meta: &'a Meta,
    len: u64,
    hasher: Hasher,
}

impl<'a> Partial<'a> {
    /// Opens what an earlier pull left, or an empty file.
    fn open(
        path: &'a Path,
        meta: &'a Meta,
        report: &mut dyn FnMut(Step, u64),
    ) -> Result<Self, HubError> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(HubError::io("open", path))?;
        let found = file.metadata().map_err(HubError::io("read", path))?.len();
        let mut partial = Self { file, path, meta, len: 0, hasher: Hasher::new(meta) };
        if found > meta.size {
            partial.restart()?;
            return Ok(partial);
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        while partial.len < found {
            report(Step::Resuming, partial.len);
            let n = partial.file.read(&mut buffer).map_err(HubError::io("read", path))?;
            if n == 0 {
                break;
            }
            partial.hasher.update(&buffer[..n]);
            partial.len += n as u64;
        }
        Ok(partial)
    }

    fn check_space(&self, name: &str, blob: &Path) -> Result<(), HubError> {
        let dir = blob.parent().unwrap_or(blob);
        let need = self.meta.size - self.len;
        // Where the free space cannot be told, writing will show.
        match fs4::available_space(dir) {
            Ok(free) if free < need => {
                Err(HubError::DiskSpace { file: name.to_owned(), dir: dir.to_owned(), need, free })
            }
            _ => Ok(()),
        }
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(HubError::io("write", self.path))?;
        self.len = 0;
        self.hasher = Hasher::new(self.meta);
        Ok(())
    }

    /// Downloads what is missing, in as many attempts as bring the file forward.
    fn fill(
        &mut self,
        hub: &Hub,
        http: &Http,
        remote: &Remote<'_>,
        report: &mut dyn FnMut(Step, u64),
    ) -> Result<(), HubError> {
        let mut longest = self.len;
        let mut stalls = 0;
        while self.len < self.meta.size {
            let cause = match self.attempt(http, remote, report) {
                Ok(()) => "the connection closed".to_owned(),
                Err(HubError::Interrupted { cause, .. }) => cause,
                Err(e) if e.is_transient() => e.to_string(),
                Err(e) => return Err(e),
            };
            if self.len == self.meta.size {
                break;
            }
            if self.len > longest {
                longest = self.len;
                stalls = 0;
            }
            stalls += 1;
            if stalls >= hub.max_stalls {
                return Err(self.interrupted(remote, cause));
            }
            http.pause(stalls);
        }
        Ok(())
    }

    /// One request; returns when its body ends, which may be too early.
    fn attempt(
        &mut self,
        http: &Http,
        remote: &Remote<'_>,
        report: &mut dyn FnMut(Step, u64),
    ) -> Result<(), HubError> {
        let mut content = match http.get(remote, self.len, self.meta.size)? {
            Rest::Content(content) => content,
            Rest::MustRestart => {
                self.restart()?;
                return Err(self.interrupted(remote, "the server cannot resume".to_owned()));
            }
        };
        if content.start != self.len {
            self.restart()?;
        }
        report(Step::Downloading, self.len);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let n = match content.reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.interrupted(remote, e.to_string())),
            };
            if n as u64 > self.meta.size - self.len {
                self.restart()?;
                return Err(HubError::Protocol {
                    host: http.host().to_owned(),
                    what: format!("sent more than the {} bytes of {}", self.meta.size, remote.file),
                });
            }
            self.file.write_all(&buffer[..n]).map_err(HubError::io("write", self.path))?;
            self.hasher.update(&buffer[..n]);
            self.len += n as u64;
            report(Step::Downloading, self.len);
        }
    }

    fn interrupted(&self, remote: &Remote<'_>, cause: String) -> HubError {
        let (done, total) = (self.len, self.meta.size);
        HubError::Interrupted { file: remote.file.to_owned(), done, total, cause }
    }
}

enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    fn new(meta: &Meta) -> Self {
        match meta.digest {
            Digest::Sha256(_) => Self::Sha256(Sha256::new()),
            Digest::GitBlob(_) => {
                Self::GitBlob(Sha1::new_with_prefix(format!("blob {}\0", meta.size)))
            }
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    /// The digest in hex; the hasher is back at nothing.
    fn finish(&mut self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        match self {
            Self::Sha256(hasher) => hex(&hasher.finalize_reset()),
            Self::GitBlob(hasher) => hex(&hasher.finalize_reset()),
        }
    }
}
