//! `health`: whether a server on this machine takes requests, for containers without other programs in them.
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
};

use anyhow::{Context, anyhow};

use crate::{Failure, args::HealthArgs, output};

/// What answers 200 while the server takes requests.
const ROUTE: &str = "/readiness";

pub(crate) fn health(args: &HealthArgs) -> Result<(), Failure> {
    let address = SocketAddr::new(reachable(args.host), args.port);
    let status = ask(address, args).with_context(|| format!("no server answers at {address}"))?;
    if status != 200 {
        return Err(anyhow!("the server at {address} takes no requests: status {status}").into());
    }
    output::line(&format!("the server at {address} takes requests"))?;
    Ok(())
}

/// A server that listens on every address is asked on this machine's own.
fn reachable(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        host => host,
    }
}

/// The status of the answer.
fn ask(address: SocketAddr, args: &HealthArgs) -> anyhow::Result<u16> {
    let timeout = Some(args.timeout.0);
    let mut stream = TcpStream::connect_timeout(&address, args.timeout.0)?;
    stream.set_read_timeout(timeout)?;
    stream.set_write_timeout(timeout)?;
    write!(stream, "GET {ROUTE} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    // `HTTP/1.1 200`: nothing of the rest matters.
    let mut begin = [0; 12];
    stream.read_exact(&mut begin)?;
    let status = begin.strip_prefix(b"HTTP/1.1 ").and_then(|digits| str::from_utf8(digits).ok());
    status.and_then(|digits| digits.parse().ok()).context("what answers is no HTTP server")
}
