//! A hub on loopback: the `resolve` route with its headers, LFS redirects, and the ways it can fail.
//!
//! A [`FakeHub`] records every request. Storage for LFS files is a second server on its own port, so
//! that a redirect leads to another origin, as on the real hub.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "9a7d4024050840e001defacec2b00727e89149e6";
pub(crate) const TOKENIZER_COMMIT: &str = "35192e10a54e36eabe0a7cc57a2c1aab371cafc5";

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
}

/// An answer; `cut` closes the connection after so many bytes of the body.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) cut: Option<usize>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// Answers every request by the handler, one thread per connection, until dropped.
pub(crate) struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    accept: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let accept = std::thread::spawn({
            let stop = stop.clone();
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let handler = handler.clone();
                    std::thread::spawn(move || answer(stream.unwrap(), &*handler));
                }
            }
        });
        Self { address, stop, accept: Some(accept) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // `accept` only looks at the flag when somebody connects.
        drop(TcpStream::connect(self.address));
        if let Some(accept) = self.accept.take() {
            accept.join().unwrap();
        }
    }
}

/// One request and its answer. A client that went away is no concern of the test's.
fn answer(mut stream: TcpStream, handler: &Handler) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
            None => break,
        }
    }
    let request = Request { method, path, headers };
    let reply = handler(&request);
    let mut head = format!("HTTP/1.1 {} Answer\r\nConnection: close\r\n", reply.status);
    let has_length = reply.headers.iter().any(|(name, _)| name == "Content-Length");
    if !has_length {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    if request.method != "HEAD" {
        let len = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
        stream.write_all(&reply.body[..len]).ok()?;
    }
    stream.shutdown(std::net::Shutdown::Write).ok()?;
    // Closing with unread input would reset the connection before the client has read all.
    reader.read_to_end(&mut Vec::new()).ok()?;
    Some(())
}

/// A file in a fake repository.
#[derive(Clone)]
pub(crate) struct FakeFile {
    pub(crate) bytes: Vec<u8>,
    /// LFS files are redirected to storage and named by their SHA-256.
    pub(crate) lfs: bool,
}

impl FakeFile {
    pub(crate) fn etag(&self) -> String {
        if self.lfs { sha256(&self.bytes) } else { git_sha1(&self.bytes) }
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn git_sha1(bytes: &[u8]) -> String {
    let hasher = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hasher.chain_update(bytes).finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// What the fake hub serves and how it misbehaves. Changed between requests through the mutex.
#[derive(Default)]
pub(crate) struct Behavior {
    /// By `owner/name/file`.
    pub(crate) files: HashMap<String, FakeFile>,
    /// By `owner/name`: the commit, and the names that stand for it.
    pub(crate) revisions: HashMap<String, (String, Vec<String>)>,
    /// How many bytes storage sends before it breaks, one entry per GET, then without limit.
    pub(crate) cuts: Vec<usize>,
    /// Storage answers 200 with everything, whatever was asked.
    pub(crate) ignore_range: bool,
    /// Storage answers 416 to any range.
    pub(crate) refuse_range: bool,
    /// Every request without this token is refused with 401.
    pub(crate) token: Option<String>,
    /// Answered by the hub (not storage) to everything, as often as the count says.
    pub(crate) failing: Option<(u32, u16)>,
    /// Storage sends these bytes instead of the file's.
    pub(crate) damaged: Option<Vec<u8>>,
    /// The path of the endpoint, as `/mirror`.
    pub(crate) prefix: &'static str,
    /// The size the hub claims for LFS files, if not the true one.
    pub(crate) claimed_size: Option<u64>,
}

pub(crate) struct FakeHub {
    pub(crate) behavior: Arc<Mutex<Behavior>>,
    log: Arc<Mutex<Vec<Request>>>,
    storage_log: Arc<Mutex<Vec<Request>>>,
    server: Server,
    _storage: Server,
}

impl FakeHub {
    pub(crate) fn start(behavior: Behavior) -> Self {
        Self::start_with(behavior, || {})
    }

    /// As [`Self::start`]; `on_storage` runs before each answer of the storage and may delay it.
    pub(crate) fn start_with(
        behavior: Behavior,
        on_storage: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let behavior = Arc::new(Mutex::new(behavior));
        let log = Arc::new(Mutex::new(Vec::new()));
        let storage_log = Arc::new(Mutex::new(Vec::new()));
        let storage = Server::start({
            let (behavior, log) = (behavior.clone(), storage_log.clone());
            move |request: &Request| {
                log.lock().unwrap().push(request.clone());
                on_storage();
                store(&mut behavior.lock().unwrap(), request)
            }
        });
        let server = Server::start({
            let (behavior, log, storage) = (behavior.clone(), log.clone(), storage.url());
            move |request: &Request| {
                log.lock().unwrap().push(request.clone());
                resolve(&mut behavior.lock().unwrap(), request, &storage)
            }
        });
        Self { behavior, log, storage_log, server, _storage: storage }
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// The requests to the hub itself so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// The requests to the storage that LFS files are redirected to.
    pub(crate) fn storage_requests(&self) -> Vec<Request> {
        self.storage_log.lock().unwrap().clone()
    }
}

/// `/owner/name/resolve/revision/file`.
fn resolve(behavior: &mut Behavior, request: &Request, storage: &str) -> Reply {
    if let Some((count, status)) = &mut behavior.failing
        && *count > 0
    {
        *count -= 1;
        return Reply::status(*status);
    }
    if let Some(token) = &behavior.token
        && request.headers.get("authorization") != Some(&format!("Bearer {token}"))
    {
        return Reply::status(401).with("X-Error-Code", "GatedRepo");
    }
    let path = request.path.strip_prefix(behavior.prefix).unwrap_or(&request.path);
    let parts: Vec<&str> = path.trim_start_matches('/').splitn(5, '/').collect();
    let [owner, name, "resolve", revision, file] = parts[..] else {
        // Where small files are redirected to, on the hub's own origin.
        return match request.path.strip_prefix("/cache/") {
            Some(key) => send_small(behavior, request, key),
            None => Reply::status(404).with("X-Error-Code", "RepoNotFound"),
        };
    };
    let repo = format!("{owner}/{name}");
    let Some((commit, names)) = behavior.revisions.get(&repo) else {
        return Reply::status(404).with("X-Error-Code", "RepoNotFound");
    };
    if commit != revision && !names.iter().any(|name| name == revision) {
        return Reply::status(404).with("X-Error-Code", "RevisionNotFound");
    }
    let key = format!("{repo}/{file}");
    let Some(found) = behavior.files.get(&key) else {
        return Reply::status(404)
            .with("X-Error-Code", "EntryNotFound")
            .with("X-Repo-Commit", commit);
    };
    let described = Reply::status(302).with("X-Repo-Commit", commit);
    if !found.lfs {
        return described.with("Location", format!("/cache/{key}"));
    }
    described
        .with("Location", format!("{storage}/{key}?signature=abc%2Fdef"))
        .with("X-Linked-Etag", format!("\"{}\"", found.etag()))
        .with("X-Linked-Size", behavior.claimed_size.unwrap_or(found.bytes.len() as u64))
}

fn send_small(behavior: &Behavior, request: &Request, key: &str) -> Reply {
    let Some(file) = behavior.files.get(key) else { return Reply::status(404) };
    let body = if request.method == "HEAD" { Vec::new() } else { file.bytes.clone() };
    Reply { body, ..Reply::status(200) }
        .with("ETag", format!("\"{}\"", file.etag()))
        .with("Content-Length", file.bytes.len())
}

fn store(behavior: &mut Behavior, request: &Request) -> Reply {
    let key = request.path.trim_start_matches('/').split('?').next().unwrap();
    let Some(file) = behavior.files.get(key) else { return Reply::status(404) };
    let bytes = behavior.damaged.clone().unwrap_or_else(|| file.bytes.clone());
    let cut = if behavior.cuts.is_empty() { None } else { Some(behavior.cuts.remove(0)) };
    let start = request.headers.get("range").map(|range| {
        range.strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')).unwrap().parse().unwrap()
    });
    match start {
        Some(_) if behavior.refuse_range => Reply::status(416),
        Some(start) if !behavior.ignore_range => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            let body = bytes[start..].to_vec();
            Reply { body, cut, ..Reply::status(206) }.with("Content-Range", range)
        }
        _ => Reply { body: bytes, cut, ..Reply::status(200) },
    }
}
