//! Requests to the hub: who is asked, who gets the token, and what an answer means.
//!
//! Redirects are followed here and not by the HTTP library, because the token must reach the
//! endpoint's own origin (scheme, host and port) and nobody else, and because the answer that
//! describes an LFS file is the redirect itself.

use std::io;
use std::path::Path;
use std::time::Duration;

use ureq::http::{HeaderMap, Uri, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, BodyReader};

use super::cache::{is_commit, is_hex, read_limited};
use super::{Hub, HubError, shorten};

const MAX_REDIRECTS: u32 = 8;
/// A system's bundle has some 250 KB.
const MAX_CA_BYTES: u64 = 16 << 20;

/// A file on the hub.
#[derive(Clone, Copy)]
pub(super) struct Remote<'a> {
    pub(super) repo: &'a str,
    pub(super) revision: &'a str,
    pub(super) file: &'a str,
}

/// What the hub says about a file before sending it.
#[derive(Debug)]
pub(super) struct Meta {
    /// 40 hex digits.
    pub(super) commit: String,
    pub(super) digest: Digest,
    /// In bytes.
    pub(super) size: u64,
}

/// The digest by which the hub names a file's content, in lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Digest {
    /// Of an LFS file.
    Sha256(String),
    /// Git's name for the blob: the SHA-1 of `blob <size>\0` and the content.
    GitBlob(String),
}

impl Digest {
    fn parse(etag: &str) -> Option<Self> {
        let hex = etag.trim().trim_start_matches("W/").trim_matches('"');
        if is_hex(hex, 64) {
            Some(Self::Sha256(hex.to_owned()))
        } else if is_hex(hex, 40) {
            Some(Self::GitBlob(hex.to_owned()))
        } else {
            None
        }
    }

    pub(super) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    pub(super) fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitBlob(_) => "git SHA-1",
        }
    }
}

/// A body that starts at byte `start` of the file.
pub(super) struct Content {
    pub(super) start: u64,
    pub(super) reader: BodyReader<'static>,
}

/// The answer to a request for the rest of a file.
pub(super) enum Rest {
    Content(Content),
    /// The server cannot continue from there: what is on disk is no beginning of its file.
    MustRestart,
}

pub(super) struct Http {
    agent: Agent,
    /// Without a trailing slash.
    endpoint: String,
    origin: Origin,
    token: Option<String>,
    timeout: Duration,
    max_stalls: u32,
    retry_delay: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    is_https: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(url: &Uri) -> Option<Self> {
        let is_https = match url.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = url.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        let port = url.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        Some(Self { is_https, host, port })
    }
}

enum Method {
    Head,
    Get { start: u64 },
}

struct Reply {
    status: u16,
    /// True if it came from the hub's own origin and not from where it redirected to.
    is_own: bool,
    host: String,
    /// The headers of the last answer; `x-` headers missing there are from earlier ones.
    headers: HeaderMap,
    body: Body,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Http {
    pub(super) fn new(hub: &Hub) -> Result<Self, HubError> {
        let bad = || HubError::BadEndpoint { endpoint: shorten(&hub.endpoint) };
        let endpoint = hub.endpoint.trim_end_matches('/').to_owned();
        let url: Uri = endpoint.parse().map_err(|_| bad())?;
        if url.query().is_some() {
            return Err(bad());
        }
        let origin = Origin::of(&url).ok_or_else(bad)?;
        if hub.token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(HubError::BadToken);
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("photon/", env!("CARGO_PKG_VERSION")))
            // A compressed answer would have neither the size nor the digest that the hub names.
            .accept_encoding("identity")
            .timeout_connect(Some(hub.timeout))
            .timeout_recv_response(Some(hub.timeout))
            .timeout_per_read(Some(hub.timeout));
        let config = match &hub.ca_file {
            Some(path) => {
                config.tls_config(TlsConfig::builder().root_certs(read_roots(path)?).build())
            }
            None => config,
        };
        let config = if hub.use_env_proxy { config } else { config.proxy(None) };
        Ok(Self {
            agent: config.build().new_agent(),
            endpoint,
            origin,
            token: hub.token.clone(),
            timeout: hub.timeout,
            max_stalls: hub.max_stalls,
            retry_delay: hub.retry_delay,
        })
    }

    /// The endpoint's host, for messages.
    pub(super) fn host(&self) -> &str {
        &self.origin.host
    }

    /// Pauses before attempt `n + 1` after `n` failures in a row.
    pub(super) fn pause(&self, failures: u32) {
        std::thread::sleep(self.retry_delay * 2u32.pow(failures.saturating_sub(1).min(4)));
    }

    /// Asks what `remote` is, trying again on failures that may pass.
    pub(super) fn head(&self, remote: &Remote<'_>) -> Result<Meta, HubError> {
        let mut failures = 0;
        loop {
            match self.head_once(remote) {
                Err(e) if e.is_transient() && failures + 1 < self.max_stalls => {
                    failures += 1;
                    self.pause(failures);
                }
                result => return result,
            }
        }
    }

    fn head_once(&self, remote: &Remote<'_>) -> Result<Meta, HubError> {
        let reply = self.send(&Method::Head, remote)?;
        if !matches!(reply.status, 200 | 300..=399) {
            return Err(self.status_error(&reply, remote));
        }
        let protocol = |what: &str| HubError::Protocol {
            host: self.origin.host.clone(),
            what: format!("sent {what} for {}", remote.file),
        };
        let commit = match reply.header("x-repo-commit") {
            Some(commit) if is_commit(commit) => commit.to_owned(),
            None if is_commit(remote.revision) => remote.revision.to_owned(),
            _ => return Err(protocol("no commit (X-Repo-Commit)")),
        };
        let etag = reply.header("x-linked-etag").or_else(|| reply.header("etag"));
        let digest = etag
            .and_then(Digest::parse)
            .ok_or_else(|| protocol("no digest (X-Linked-Etag or ETag)"))?;
        let size = reply.header("x-linked-size").or_else(|| {
            // The length of a redirect is that of its own text.
            reply.header("content-length").filter(|_| reply.status == 200)
        });
        let size = size
            .and_then(|size| size.parse().ok())
            .ok_or_else(|| protocol("no size (X-Linked-Size or Content-Length)"))?;
        Ok(Meta { commit, digest, size })
    }

    /// Asks for `remote` from byte `start` on; a server may answer with the whole file.
    pub(super) fn get(&self, remote: &Remote<'_>, start: u64, size: u64) -> Result<Rest, HubError> {
        let reply = self.send(&Method::Get { start }, remote)?;
        let start = match reply.status {
            200 => 0,
            206 if content_range(&reply) == Some((start, size)) => start,
            206 | 416 => return Ok(Rest::MustRestart),
            _ => return Err(self.status_error(&reply, remote)),
        };
        Ok(Rest::Content(Content { start, reader: reply.body.into_reader() }))
    }

    fn send(&self, method: &Method, remote: &Remote<'_>) -> Result<Reply, HubError> {
        let Remote { repo, revision, file } = remote;
        let path = format!("{repo}/resolve/{}/{file}", revision.replace('/', "%2F"));
        let mut url: Uri = format!("{}/{path}", self.endpoint)
            .parse()
            .map_err(|_| HubError::BadEndpoint { endpoint: shorten(&self.endpoint) })?;
        let mut kept = HeaderMap::new();
        for _ in 0..=MAX_REDIRECTS {
            let origin = Origin::of(&url).ok_or_else(|| self.bad_redirect())?;
            let is_own = origin == self.origin;
            let request = match method {
                Method::Head => self.agent.head(&url),
                Method::Get { start: 0 } => self.agent.get(&url),
                Method::Get { start } => {
                    self.agent.get(&url).header(header::RANGE, format!("bytes={start}-"))
                }
            };
            let request = match &self.token {
                Some(token) if is_own => {
                    request.header(header::AUTHORIZATION, format!("Bearer {token}"))
                }
                _ => request,
            };
            let response = request.call().map_err(|e| self.transport_error(&origin.host, e))?;
            let (head, body) = response.into_parts();
            let status = head.status.as_u16();
            // Only its own answers describe the file; storage may have other ETags.
            if is_own {
                for (name, value) in &head.headers {
                    if name.as_str().starts_with("x-") && !kept.contains_key(name) {
                        kept.insert(name, value.clone());
                    }
                }
            }
            let next = match status {
                301 | 302 | 303 | 307 | 308 => {
                    let next = head.headers.get(header::LOCATION).and_then(|v| v.to_str().ok());
                    let next = next.and_then(|location| join(&url, location));
                    Some(next.ok_or_else(|| self.bad_redirect())?)
                }
                _ => None,
            };
            if let Some(next) = next {
                let target = Origin::of(&next).ok_or_else(|| self.bad_redirect())?;
                if origin.is_https && !target.is_https {
                    return Err(self.bad_redirect());
                }
                if target == self.origin || matches!(method, Method::Get { .. }) {
                    url = next;
                    continue;
                }
            }
            let mut headers = head.headers;
            for (name, value) in &kept {
                headers.insert(name, value.clone());
            }
            return Ok(Reply { status, is_own, host: origin.host, headers, body });
        }
        Err(self.bad_redirect())
    }

    fn bad_redirect(&self) -> HubError {
        HubError::Protocol {
            host: self.origin.host.clone(),
            what: "redirected in circles or to something that is not a secure URL".to_owned(),
        }
    }

    fn status_error(&self, reply: &Reply, remote: &Remote<'_>) -> HubError {
        let host = self.origin.host.clone();
        let repo = remote.repo.to_owned();
        // Storage that a redirect led to knows nothing of tokens and repositories.
        match reply.status {
            401 if reply.is_own && self.token.is_some() => HubError::TokenRejected { host, repo },
            401 if reply.is_own => HubError::LoginNeeded { host, repo },
            403 if reply.is_own => HubError::Forbidden { host, repo },
            404 if reply.is_own => {
                let revision = remote.revision.to_owned();
                match reply.header("x-error-code") {
                    Some("RepoNotFound" | "RevisionNotFound") => {
                        HubError::RevisionNotFound { host, repo, revision }
                    }
                    _ => HubError::FileNotFound {
                        repo,
                        revision,
                        file: remote.file.to_owned(),
                        commit: reply
                            .header("x-repo-commit")
                            .filter(|commit| is_commit(commit))
                            .map(str::to_owned),
                    },
                }
            }
            status => {
                HubError::Status { host: reply.host.clone(), status, file: remote.file.to_owned() }
            }
        }
    }

    fn transport_error(&self, host: &str, error: ureq::Error) -> HubError {
        let host = host.to_owned();
        match error {
            ureq::Error::Timeout(_) => self.timed_out(host),
            ureq::Error::Io(e) if e.kind() == io::ErrorKind::TimedOut => self.timed_out(host),
            ureq::Error::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                HubError::Connect { host, cause: "connection refused".to_owned(), broke: false }
            }
            // rustls reports through io::Error, in words only.
            ureq::Error::Io(e) if e.to_string().contains("certificate") => {
                HubError::Certificate { host, cause: e.to_string() }
            }
            ureq::Error::Io(e) => {
                HubError::Connect { host, cause: e.to_string(), broke: is_broken_connection(&e) }
            }
            e => HubError::Connect { host, cause: e.to_string(), broke: false },
        }
    }

    fn timed_out(&self, host: String) -> HubError {
        HubError::Timeout { host, seconds: self.timeout.as_secs_f32() }
    }
}

/// The certificates in a PEM file; anything else in it is skipped.
fn read_roots(path: &Path) -> Result<RootCerts, HubError> {
    let pem = read_limited(path, MAX_CA_BYTES)?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(HubError::BadCaFile { path: path.to_owned() });
    }
    Ok(certificates.into())
}

/// Whether there was a connection that the other side or the network ended.
fn is_broken_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof].contains(&error.kind())
}

/// The first byte and the file's size out of `Content-Range: bytes 5-9/10`.
fn content_range(reply: &Reply) -> Option<(u64, u64)> {
    let (range, size) = reply.header("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, size.trim().parse().ok()?))
}

/// The URL that a `Location` header means, or `None` if it means none.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    let text = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let (folder, _) = base.path().rsplit_once('/')?;
        format!("{scheme}://{authority}{folder}/{location}")
    };
    // A fragment is for the reader of a page, and is never sent.
    text.split('#').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_joined_as_a_browser_would() {
        let check = |location: &str, expect: &str| {
            let base: Uri = "https://hub.example/a/b?x=1".parse().unwrap();
            assert_eq!(join(&base, location).unwrap().to_string(), expect, "{location}");
        };
        check("https://cdn.example/f?sig=a%2Fb#top", "https://cdn.example/f?sig=a%2Fb");
        check("//cdn.example/f", "https://cdn.example/f");
        check("/api/f", "https://hub.example/api/f");
        check("f", "https://hub.example/a/f");
    }

    #[test]
    fn the_origin_is_scheme_host_and_port() {
        let origin = |url: &str| Origin::of(&url.parse().unwrap());
        assert_eq!(origin("https://hub.example/a"), origin("https://HUB.example:443/b"));
        for other in ["http://hub.example", "https://hub.example:444", "https://cdn.hub.example"] {
            assert_ne!(origin("https://hub.example"), origin(other), "{other}");
        }
        assert_eq!(origin("ftp://hub.example"), None);
    }

    #[test]
    fn only_digests_are_taken_for_etags() {
        let sha256 = "a".repeat(64);
        assert_eq!(Digest::parse(&format!("\"{sha256}\"")), Some(Digest::Sha256(sha256.clone())));
        let sha1 = "0".repeat(40);
        assert_eq!(Digest::parse(&format!("W/\"{sha1}\"")), Some(Digest::GitBlob(sha1)));
        for bad in ["", "\"../../x\"", &"g".repeat(64), &"a".repeat(63)] {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
    }
}
