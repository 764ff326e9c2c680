//! What can go wrong in a pull, each in one line that ends in what to do about it.
//!
//! No message holds the token or the query of a signed URL.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model could not be pulled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each variant is documented by its message, which names its fields")]
pub enum HubError {
    #[error("unknown model {name:?}; known models: {known}")]
    UnknownModel { name: String, known: String },

    #[error(
        "no folder to download into: set HF_HOME (or HF_HUB_CACHE), since there is no home folder"
    )]
    NoCacheDir,

    #[error("HF_ENDPOINT {endpoint:?} is not a URL like https://huggingface.co")]
    BadEndpoint { endpoint: String },

    #[error("the access token has characters no token has: check HF_TOKEN or run `hf auth login`")]
    BadToken,

    #[error(
        "{file} of {repo} is not in {} and offline mode is on: run `photon pull {model}` once \
         without HF_HUB_OFFLINE or --offline",
        cache.display()
    )]
    Offline { model: String, repo: String, file: String, cache: PathBuf },

    #[error(
        "{host} wants a login for {repo}, or there is no such repository: set HF_TOKEN or run `hf auth login`"
    )]
    LoginNeeded { host: String, repo: String },

    #[error(
        "{host} rejected the access token for {repo}: check HF_TOKEN or run `hf auth login` again"
    )]
    TokenRejected { host: String, repo: String },

    #[error(
        "no access to {repo}: accept its terms on {host}, and use a token (HF_TOKEN) that may read it"
    )]
    Forbidden { host: String, repo: String },

    #[error(
        "there is no {repo} at revision {revision} on {host}: check HF_ENDPOINT, or update photon"
    )]
    RevisionNotFound { host: String, repo: String, revision: String },

    #[error(
        "there is no {file} in {repo} at revision {revision}: check HF_ENDPOINT, or update photon"
    )]
    FileNotFound {
        repo: String,
        revision: String,
        file: String,
        /// The commit the revision stands for, where the hub said so.
        commit: Option<String>,
    },

    #[error("{host} answered HTTP {status} for {file}: try again later")]
    Status { host: String, status: u16, file: String },

    #[error("cannot reach {host} ({cause}): check the network, the proxy settings and HF_ENDPOINT")]
    Connect {
        host: String,
        cause: String,
        /// Whether a connection existed and broke, which may pass.
        broke: bool,
    },

    #[error(
        "cannot trust {host} ({cause}): behind a proxy with its own certificates, set SSL_CERT_FILE to a PEM file of them"
    )]
    Certificate { host: String, cause: String },

    #[error("{} holds no PEM certificates: check SSL_CERT_FILE", path.display())]
    BadCaFile { path: PathBuf },

    #[error("{host} did not answer within {seconds} s: check the network and try again")]
    Timeout { host: String, seconds: f32 },

    #[error("{host} {what}: check that HF_ENDPOINT is a Hugging Face hub")]
    Protocol { host: String, what: String },

    #[error(
        "the download of {file} stopped at {done} of {total} bytes ({cause}): run the command again to resume"
    )]
    Interrupted { file: String, done: u64, total: u64, cause: String },

    #[error(
        "{file} arrived damaged and was deleted: expected {algorithm} {expected}, got {actual}; run the command again"
    )]
    Checksum { file: String, algorithm: &'static str, expected: String, actual: String },

    #[error(
        "{file} has {size} bytes and at most {limit} are taken: this is not the file photon expects"
    )]
    TooLarge { file: String, size: u64, limit: u64 },

    #[error("{file} is not a usable index of weights: {why}")]
    BadIndex { file: String, why: String },

    #[error(
        "not enough disk space for {file}: {} needed in {}, {} free; free some or set HF_HOME to another disk",
        in_gib(*need), dir.display(), in_gib(*free)
    )]
    DiskSpace { file: String, dir: PathBuf, need: u64, free: u64 },

    #[error(
        "the disk became full while writing {}: free some space and run the command again to resume",
        path.display()
    )]
    DiskFull { path: PathBuf },

    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl HubError {
    /// Wraps an error of the file system.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path: path.to_owned() }
            }
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Interrupted { .. } | Self::Connect { broke: true, .. } => {
                true
            }
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            _ => false,
        }
    }
}

fn in_gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_as_such() {
        let wrap = |kind| HubError::io("write", Path::new("/x"))(io::Error::from(kind)).to_string();
        assert!(wrap(io::ErrorKind::StorageFull).contains("disk became full"));
        assert!(wrap(io::ErrorKind::QuotaExceeded).contains("disk became full"));
        assert!(wrap(io::ErrorKind::PermissionDenied).starts_with("cannot write /x"));
    }
}
