//! Two servers behind a router, asked many questions about few pictures.
use std::{fmt, process::Command, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    Part,
    running::{Running, free_ports},
    setup::Found,
};

/// Longer than Ray takes to start on two slow cores.
const TO_START: Duration = Duration::from_secs(120);
/// Longer than all questions take.
const TO_ANSWER: Duration = Duration::from_secs(300);
/// What requests bring their key in.
const HEADER: &str = "x-photon-route-key";

/// A router and how it chooses a server.
#[derive(Debug)]
pub(super) struct Policy {
    router: Router,
    name: &'static str,
    /// Whether equal keys are to go to the same server.
    pub(super) affinity: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Router {
    Smg,
    RayServe,
}

const fn policy(router: Router, name: &'static str, affinity: bool) -> Policy {
    Policy { router, name, affinity }
}

pub(super) const POLICIES: [Policy; 6] = [
    policy(Router::Smg, "consistent_hashing", true),
    policy(Router::Smg, "round_robin", false),
    policy(Router::Smg, "random", false),
    policy(Router::RayServe, "affinity", true),
    policy(Router::RayServe, "round_robin", false),
    policy(Router::RayServe, "power_of_two", false),
];

impl Policy {
    pub(super) fn part(&self) -> Part {
        match self.router {
            Router::Smg => Part::Smg,
            Router::RayServe => Part::RayServe,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let router = match self.router {
            Router::Smg => "SMG",
            Router::RayServe => "Ray Serve",
        };
        write!(f, "{router}, {}", self.name)
    }
}

/// What clients saw, as `load.py` says it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) hit_rate: f64,
    /// Each server's share of the requests.
    pub(super) balance: Vec<f64>,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) requests_per_second: f64,
    pub(super) all: Value,
}

impl Asked {
    fn parse(line: &str) -> Result<Self> {
        let all: Value = serde_json::from_str(line).context("not JSON")?;
        let number = |name: &str| all[name].as_f64().with_context(|| format!("no {name}"));
        let shares = all["balance"].as_array().context("no balance")?;
        Ok(Asked {
            hit_rate: number("hit_rate")?,
            balance: shares.iter().filter_map(Value::as_f64).collect(),
            p50_ms: number("p50_ms")?,
            p99_ms: number("p99_ms")?,
            requests_per_second: number("requests_per_second")?,
            all,
        })
    }
}

/// Servers and router, for as long as they are needed.
struct Behind {
    /// The router comes first: it ends before the servers do.
    _running: Vec<Running>,
    router: String,
    servers: Vec<String>,
}

/// Starts everything anew, so that no policy finds what another left in a cache.
pub(super) fn ask(policy: &Policy, rounds: usize, found: &Found) -> Result<Asked> {
    let behind = match policy.router {
        Router::Smg => smg(policy, found)?,
        Router::RayServe => ray_serve(policy, found)?,
    };
    let mut load = found.command("check/load.py");
    load.arg(&behind.router).arg("--servers").args(&behind.servers);
    load.args(["--rounds", &rounds.to_string(), "--seed", "1"]);
    // Policies that do not look at it get it too: only the policy differs.
    load.args(["--affinity", "--wait", &TO_START.as_secs().to_string()]);
    let load = Running::start(&mut load, &found.folder.join("load.log"))?;
    let said = load.finish(TO_START + TO_ANSWER).context("load.py")?;
    let line = said.lines().last().unwrap_or_default();
    Asked::parse(line).with_context(|| format!("load.py says {line:?}"))
}

fn local(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn smg(policy: &Policy, found: &Found) -> Result<Behind> {
    let mut running = Vec::new();
    let mut servers = Vec::new();
    for number in 0..2 {
        let mut photon = Command::new(&found.photon);
        photon.args(["serve", "--model", "demo", "--port", "0", "--threads", "1"]);
        let mut server =
            Running::start(&mut photon, &found.folder.join(format!("photon-{number}.log")))?;
        let address = |said: &str| {
            let (_, rest) = said.split_once(" on http://")?;
            Some(format!("http://{}", rest.split_once(' ')?.0))
        };
        servers.push(server.find(TO_START, address).context("photon serve")?);
        running.push(server);
    }
    let port = free_ports(2)?;
    let mut gateway = found.command("smg");
    gateway.args(["launch", "--host", "127.0.0.1", "--port", &port.to_string()]);
    gateway.args(["--prometheus-host", "127.0.0.1", "--prometheus-port", &(port + 1).to_string()]);
    gateway.args(["--policy", policy.name, "--routing-key-headers", HEADER]);
    gateway.args(["--disable-tokenizer-autoload", "--log-level", "warn", "--worker-urls"]);
    gateway.args(&servers);
    running.insert(0, Running::start(&mut gateway, &found.folder.join("smg.log"))?);
    Ok(Behind { _running: running, router: local(port), servers })
}

fn ray_serve(policy: &Policy, found: &Found) -> Result<Behind> {
    let port = free_ports(3)?;
    let mut app = found.command("ray_serve/app.py");
    app.args(["--policy", policy.name, "--replicas", "2", "--listen", &port.to_string()]);
    app.args(["--port", &(port + 1).to_string(), "--model", "demo", "--program"]);
    app.arg(&found.photon).args(["--", "--threads", "1"]);
    let mut app = Running::start(&mut app, &found.folder.join("ray-serve.log"))?;
    let ready = |said: &str| said.contains("ready on http://").then_some(());
    app.find(TO_START, ready).context("Ray Serve")?;
    let servers = vec![local(port + 1), local(port + 2)];
    Ok(Behind { _running: vec![app], router: local(port), servers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_load_says_is_read() {
        let said = r#"{"requests": 144, "hit_rate": 0.8333, "balance": [0.4, 0.6], "p50_ms": 8.1,
            "p99_ms": 90.5, "requests_per_second": 231.4, "wrong": []}"#;
        let asked = Asked::parse(said).unwrap();
        assert_eq!((asked.hit_rate, asked.balance), (0.8333, vec![0.4, 0.6]));
        assert!(Asked::parse("{}").unwrap_err().to_string().contains("balance"));
        assert!(Asked::parse("Traceback").is_err());
    }
}
