//! Pictures from addresses: off, unless hosts were allowed.
//!
//! # Rules
//! - Only hosts that were named, or `*`; only http and https; no redirect is followed, no proxy asked.
//! - A name that leads to an address of this machine or of a private network is refused after it was
//!   resolved, and the connection goes to the very address that was checked: a name server cannot answer
//!   differently the second time. Private networks can be allowed.
//! - A limit on time and on bytes, whatever the other side says of its length.
use std::net::{IpAddr, Ipv4Addr};

use axum::http::StatusCode;
use ureq::{
    Agent,
    config::Config as AgentConfig,
    http::Uri,
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

use crate::{Config, error::Problem};

/// Fetches a picture.
pub(crate) async fn fetch(address: &str, config: &Config) -> Result<Vec<u8>, Problem> {
    if config.fetch_hosts.is_empty() {
        return Err(Problem::invalid(
            "this server does not fetch pictures: send base64 or a data URI (the server's \
             operator can allow hosts with --fetch)",
        ));
    }
    let uri: Uri = address.parse().map_err(|_| Problem::invalid("the address is not a URL"))?;
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    let allowed = |known: &String| known == "*" || known.eq_ignore_ascii_case(&host);
    if !config.fetch_hosts.iter().any(allowed) {
        return Err(refused(format!("this server does not fetch from {host:?}")));
    }
    let agent = agent(config);
    let most = config.max_image_bytes as u64;
    let fetched = tokio::task::spawn_blocking(move || {
        let mut response = agent.get(uri).call()?;
        if !response.status().is_success() {
            // A redirect, which is no error where none is followed.
            return Err(ureq::Error::StatusCode(response.status().as_u16()));
        }
        response.body_mut().with_config().limit(most).read_to_vec()
    });
    match fetched.await.map_err(|_| Problem::internal())? {
        Ok(bytes) => Ok(bytes),
        Err(ureq::Error::BodyExceedsLimit(_)) => {
            Err(Problem::too_large("the picture at this address is too large (--max-image)"))
        }
        Err(ureq::Error::StatusCode(code)) => {
            Err(failed(format!("the address answered with status {code}")))
        }
        Err(ureq::Error::Timeout(_)) => Err(failed("the address did not answer in time".into())),
        Err(ureq::Error::Other(error)) if error.is::<PrivateAddress>() => {
            Err(refused(error.to_string()))
        }
        // The rest may speak of this network; it is not the client's business.
        Err(error) => {
            tracing::info!(%error, host, "a fetch failed");
            Err(failed("the picture could not be fetched".into()))
        }
    }
}

fn refused(message: String) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "fetch_refused", message)
}

fn failed(message: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "fetch_failed", message)
}

fn agent(config: &Config) -> Agent {
    let settings = AgentConfig::builder()
        .timeout_global(Some(config.fetch_timeout))
        .max_redirects(0)
        .max_redirects_will_error(true)
        .proxy(None)
        .user_agent(concat!("photon/", env!("CARGO_PKG_VERSION")))
        .build();
    let resolver = Checked { inner: DefaultResolver::default(), private: config.fetch_private };
    Agent::with_parts(settings, DefaultConnector::default(), resolver)
}

/// Resolves names to public addresses only.
#[derive(Debug)]
struct Checked {
    inner: DefaultResolver,
    private: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("the address leads to a private network, from which this server does not fetch")]
struct PrivateAddress;

impl Resolver for Checked {
    fn resolve(
        &self,
        uri: &Uri,
        config: &AgentConfig,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let addresses = self.inner.resolve(uri, config, timeout)?;
        if !self.private && addresses.iter().any(|address| !is_public(address.ip())) {
            return Err(ureq::Error::Other(Box::new(PrivateAddress)));
        }
        Ok(addresses)
    }
}

/// Whether an address belongs to the public internet. What is special is listed by IANA's registries of
/// special-purpose addresses; when in doubt, it is not public.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4() {
                // Mapped and compatible addresses lead where the embedded one does.
                return is_public_v4(v4);
            }
            let [first, second, ..] = v6.segments();
            // Global unicast is 2000::/3, less documentation, 6to4, Teredo and benchmarking.
            (first & 0xe000) == 0x2000
                && first != 0x2002
                && !(first == 0x2001 && (second < 0x200 || second == 0xdb8))
                && first != 0x3fff
        }
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    let special = v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_documentation()
        || v4.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (b & 0xc0) == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b & 0xfe) == 18);
    !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_known_in_every_disguise() {
        let public = |text: &str| is_public(text.parse().unwrap());
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "192.0.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "2001:db8::1",
            "ff02::1",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
            "::127.0.0.1",
        ] {
            assert!(!public(private), "{private}");
        }
        for address in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(public(address), "{address}");
        }
    }
}
