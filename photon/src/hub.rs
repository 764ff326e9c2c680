//! Downloading known models from a Hugging Face hub into the cache that Python shares.
//!
//! Rules that always hold:
//! - A file appears under `snapshots/` only after its digest (the hub's ETag: SHA-256 of an LFS file,
//!   git's SHA-1 of any other) was checked over every byte; what is unchecked is called
//!   `blobs/<etag>.incomplete` and is only touched under `.locks/…/<etag>.lock`, as Python does.
//! - All files of one pull from one repository come from one commit, the first one the hub named.
//! - The token goes to the endpoint's own scheme, host and port, and nowhere a redirect leads.
//! - What is complete in the cache is used without a request.
//! - Names, sizes, digests and indexes that the hub sends are bounded and checked before use.
//!
//! Why not the `hf-hub` crate: 1.0.0 starts an interrupted file again from byte 0, and 0.5.0 appends
//! a whole answer to the partial file when a server ignores `Range` and sends the token to the host
//! that an LFS redirect names; both move a file into place without checking its digest, so a wrapper
//! could only check it after other processes may have read it. Neither has an offline switch, and
//! 1.0.0 brings some 280 crates (tokio, reqwest, xet) for three requests. The cache layout is theirs.
//!
//! Not here: uploads, the Xet protocol (the hub serves the same bytes over HTTP), anything that
//! loads a model.

mod cache;
mod download;
mod env;
mod error;
mod http;
mod model;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use error::HubError;
pub use model::{KnownModel, WeightFiles, known_model, known_models};

use cache::{Cache, is_commit};
use http::{Http, Remote};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

/// The largest `config.json` or `*.index.json` taken, in bytes; real ones are under 100 KB.
const MAX_JSON_BYTES: u64 = 8 << 20;
/// The largest `tokenizer.json` taken, in bytes; starmie-v1 is 3.7 MB.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// Weights are bounded by the free disk space instead, which is checked first.
const NO_LIMIT: u64 = u64::MAX;
/// The most shards an index may name.
const MAX_SHARDS: usize = 512;

/// Where the files of a pulled model lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFiles {
    /// The safetensors files, in the order of their names.
    pub weights: Vec<PathBuf>,
    /// The repository's `config.json`, if it has one (or, out of [`Hub::find`], if it is cached).
    pub config: Option<PathBuf>,
    /// `tokenizer.json`, from the tokenizer's own repository.
    pub tokenizer: PathBuf,
    /// The commit of the model's repository, 40 hex digits.
    pub revision: String,
}

/// What a pull is doing; sent at the start of each step and then for each piece of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file's name in its repository.
    pub file: &'a str,
    /// What is being done to it.
    pub step: Step,
    /// Bytes of the file dealt with in this step.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// A stage in the life of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another process or thread is downloading the file.
    Waiting,
    /// The part an earlier, interrupted pull left is read to take up its digest.
    Resuming,
    /// Bytes arrive; `done` falls back to 0 if the server cannot resume.
    Downloading,
    /// The file is in the cache and checked.
    Done,
}

/// A hub to download from and the cache to download into.
///
/// Cheap to make; [`Hub::pull`] blocks, and several may run at once, also in several processes.
#[derive(Clone)]
pub struct Hub {
    endpoint: String,
    cache_dir: Option<PathBuf>,
    token: Option<String>,
    offline: bool,
    use_env_proxy: bool,
    ca_file: Option<PathBuf>,
    timeout: Duration,
    max_stalls: u32,
    retry_delay: Duration,
}

impl Hub {
    /// The public hub, no token, and the given cache folder (the one that holds `models--…`).
    /// Reads no environment variable.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            cache_dir: Some(cache_dir.into()),
            token: None,
            offline: false,
            use_env_proxy: false,
            ca_file: None,
            timeout: Duration::from_secs(30),
            max_stalls: 5,
            retry_delay: Duration::from_secs(1),
        }
    }

    /// The hub that the environment describes, as Python's `huggingface_hub` reads it: `HF_ENDPOINT`;
    /// `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME` or the home folder; `HF_TOKEN`, `HF_TOKEN_PATH` or
    /// the file `hf auth login` writes; `HF_HUB_OFFLINE`; `SSL_CERT_FILE` or
    /// `REQUESTS_CA_BUNDLE`. Proxy variables are honored.
    pub fn from_env() -> Self {
        let home = std::env::home_dir();
        // On Windows, as in Python, the user's profile: there `HOME` is what some shells make of it.
        let mut hub = Self::from_vars(|name| match name {
            "HOME" => home.clone().map(PathBuf::into_os_string),
            _ => std::env::var_os(name),
        });
        hub.use_env_proxy = true;
        hub
    }

    /// As [`Hub::from_env`], with variables from `lookup` and no proxy.
    pub fn from_vars(lookup: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        let vars = env::Vars::new(&lookup);
        Self {
            endpoint: vars.endpoint().unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            cache_dir: vars.cache_dir(),
            token: vars.token(),
            offline: vars.offline(),
            ca_file: vars.ca_file(),
            ..Self::new("")
        }
    }

    /// Downloads from this URL (scheme, host and perhaps a path) instead.
    #[must_use]
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = endpoint.into();
        self
    }

    /// Uses this cache folder (the one that holds `models--…`) instead.
    #[must_use]
    pub fn with_cache_dir(mut self, cache_dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(cache_dir.into());
        self
    }

    /// Uses this token, or none.
    #[must_use]
    pub fn with_token(mut self, token: Option<String>) -> Self {
        self.token = token;
        self
    }

    /// Trusts the PEM certificates in this file instead of Mozilla's, which are built in.
    #[must_use]
    pub fn with_ca_file(mut self, ca_file: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(ca_file.into());
        self
    }

    /// When true, makes no request: what is not in the cache is an error.
    #[must_use]
    pub fn with_offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// The longest wait for a connection, for an answer, and between two pieces of a body.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Gives up after `max_stalls` failures in a row that brought no new byte; the pause before each
    /// new attempt starts at `delay` and doubles.
    #[must_use]
    pub fn with_retries(mut self, max_stalls: u32, delay: Duration) -> Self {
        self.max_stalls = max_stalls;
        self.retry_delay = delay;
        self
    }

    /// Whether requests are forbidden.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// The cache folder, unless none was given and there is no home folder.
    pub fn cache_dir(&self) -> Option<&Path> {
        self.cache_dir.as_deref()
    }

    /// The model's files if weights and tokenizer are complete in the cache; makes no request.
    pub fn find(&self, model: &KnownModel) -> Option<ModelFiles> {
        let cache = Cache::new(self.cache_dir.as_deref()?);
        find_cached(&cache, model).ok()
    }

    /// The model's files, downloaded as far as they are not in the cache yet.
    ///
    /// An interrupted pull is taken up where it stopped, also one that Python began.
    ///
    /// # Errors
    /// Every failure is one line that says what to do, see [`HubError`].
    pub fn pull(
        &self,
        model: &KnownModel,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<ModelFiles, HubError> {
        let cache_dir = self.cache_dir.as_deref().ok_or(HubError::NoCacheDir)?;
        let cache = Cache::new(cache_dir);
        let cached = find_cached(&cache, model);
        if self.offline {
            return cached.map_err(|(repo, file)| HubError::Offline {
                model: model.name.to_owned(),
                repo,
                file,
                cache: cache_dir.to_owned(),
            });
        }
        if let Ok(files) = cached
            && (files.config.is_some()
                || cache.is_known_absent(model.repo, &files.revision, CONFIG))
        {
            return Ok(files);
        }

        let http = Http::new(self)?;
        // Small files first: what is wrong with a token or a name shows before the gigabytes.
        let mut repo = RepoPull::new(self, &cache, &http, model.repo, model.revision);
        let config = repo.get_if_present(CONFIG, MAX_JSON_BYTES, progress)?;
        let mut tokenizer_repo =
            RepoPull::new(self, &cache, &http, model.tokenizer_repo, model.tokenizer_revision);
        let tokenizer = tokenizer_repo.get(TOKENIZER, MAX_TOKENIZER_BYTES, progress)?;
        tokenizer_repo.finish()?;
        let weights = match model.weights {
            WeightFiles::Single(file) => vec![repo.get(file, NO_LIMIT, progress)?],
            WeightFiles::Sharded(index) => {
                let index = repo.get(index, MAX_JSON_BYTES, progress)?;
                read_shards(&index)?
                    .iter()
                    .map(|shard| repo.get(shard, NO_LIMIT, progress))
                    .collect::<Result<_, _>>()?
            }
        };
        let revision = repo.finish()?;
        Ok(ModelFiles { weights, config, tokenizer, revision })
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "<hidden>"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// The files in the cache, or the repository and name of the first one that is missing.
fn find_cached(cache: &Cache, model: &KnownModel) -> Result<ModelFiles, (String, String)> {
    let get = |repo: &str, revision: &str, file: &str| {
        let commit = cache.commit(repo, revision);
        let path = commit.and_then(|commit| cache.file(repo, &commit, file));
        path.ok_or_else(|| (repo.to_owned(), file.to_owned()))
    };
    let get_weights = |file: &str| get(model.repo, model.revision, file);
    let weights = match model.weights {
        WeightFiles::Single(file) => vec![get_weights(file)?],
        WeightFiles::Sharded(index) => {
            let path = get_weights(index)?;
            let shards =
                read_shards(&path).map_err(|_| (model.repo.to_owned(), index.to_owned()))?;
            shards.iter().map(|shard| get_weights(shard)).collect::<Result<_, _>>()?
        }
    };
    let tokenizer = get(model.tokenizer_repo, model.tokenizer_revision, TOKENIZER)?;
    let revision = cache
        .commit(model.repo, model.revision)
        .ok_or_else(|| (model.repo.to_owned(), CONFIG.to_owned()))?;
    Ok(ModelFiles { weights, config: get_weights(CONFIG).ok(), tokenizer, revision })
}

/// The shards that an index names, sorted, each a plain file name.
fn read_shards(index: &Path) -> Result<Vec<String>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bad = |why: String| HubError::BadIndex { file: index.display().to_string(), why };
    let text = cache::read_limited(index, MAX_JSON_BYTES)?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    let mut shards: Vec<String> = index.weight_map.into_values().collect();
    shards.sort_unstable();
    shards.dedup();
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        return Err(bad(format!("it names {} shards, not 1 to {MAX_SHARDS}", shards.len())));
    }
    match shards.iter().find(|name| !is_plain_shard_name(name)) {
        Some(name) => Err(bad(format!("{:?} is not the name of a shard", shorten(name)))),
        None => Ok(shards),
    }
}

/// True for names that can be put into a path and a URL as they are.
fn is_plain_shard_name(name: &str) -> bool {
    name.len() <= 200
        && name.ends_with(".safetensors")
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// At most 100 characters of something the hub sent, for an error message.
fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

/// The files of one repository being fetched at one commit.
struct RepoPull<'a> {
    hub: &'a Hub,
    cache: &'a Cache,
    http: &'a Http,
    repo: &'a str,
    revision: &'a str,
    /// Known from the first answer on, or at once where the revision is itself a commit.
    commit: Option<String>,
}

impl<'a> RepoPull<'a> {
    fn new(
        hub: &'a Hub,
        cache: &'a Cache,
        http: &'a Http,
        repo: &'a str,
        revision: &'a str,
    ) -> Self {
        let commit = is_commit(revision).then(|| revision.to_owned());
        Self { hub, cache, http, repo, revision, commit }
    }

    /// The cached path of `file`, downloaded if need be; more than `limit` bytes are refused.
    fn get(
        &mut self,
        file: &str,
        limit: u64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf, HubError> {
        if let Some(path) = self.cached(file) {
            return Ok(path);
        }
        let remote = Remote {
            repo: self.repo,
            revision: self.commit.as_deref().unwrap_or(self.revision),
            file,
        };
        let meta = self.http.head(&remote)?;
        match &self.commit {
            Some(commit) if *commit != meta.commit => {
                return Err(HubError::Protocol {
                    host: self.http.host().to_owned(),
                    what: format!("answered for commit {} when asked for {commit}", meta.commit),
                });
            }
            Some(_) => {}
            None => self.commit = Some(meta.commit.clone()),
        }
        // A tag may point at a commit that was cached under another name.
        if let Some(path) = self.cached(file) {
            return Ok(path);
        }
        if meta.size > limit {
            return Err(HubError::TooLarge { file: file.to_owned(), size: meta.size, limit });
        }
        let remote = Remote { repo: self.repo, revision: &meta.commit, file };
        download::fetch_blob(self.hub, self.cache, self.http, &remote, &meta, progress)?;
        self.cache.link(self.repo, &meta.commit, file, &meta.digest)
    }

    /// As [`Self::get`], or `None` where the repository has no such file.
    fn get_if_present(
        &mut self,
        file: &str,
        limit: u64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<PathBuf>, HubError> {
        match self.get(file, limit, progress) {
            Err(HubError::FileNotFound { commit, .. }) => {
                if let Some(commit) = commit.or_else(|| self.commit.clone()) {
                    self.cache.note_absent(self.repo, &commit, file)?;
                }
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Records which commit the revision's name stands for; call once all files are there.
    fn finish(self) -> Result<String, HubError> {
        let commit = self.commit.unwrap_or_default();
        debug_assert!(is_commit(&commit), "a file was fetched, so the commit is known");
        if !is_commit(self.revision) {
            self.cache.write_ref(self.repo, self.revision, &commit)?;
        }
        Ok(commit)
    }

    fn cached(&self, file: &str) -> Option<PathBuf> {
        self.cache.file(self.repo, self.commit.as_deref()?, file)
    }
}
