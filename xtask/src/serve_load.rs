//! `cargo xtask serve-load`: many clients against `photon serve`, from one to far more than it can answer.
//!
//! Each stage has so many clients in threads of this process, each asking about one of a few pictures again as
//! soon as it has its answer; the last stages send far more than can be answered. What comes out is a table: answers
//! a second, refusals, latencies of what was answered, and the server's memory.
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Cursor, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use demo_model::Scene;
use serde_json::{Value, json};

/// Load `photon serve` and print how it bears it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The program; built in release mode without it
    #[arg(long)]
    photon: Option<PathBuf>,
    /// Seconds per stage
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Seconds of the stage with the most clients
    #[arg(long, default_value_t = 120.0)]
    longest: f64,
    /// Clients of the stages, in order
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64,200")]
    clients: Vec<usize>,
    /// Pictures to ask about
    #[arg(long, default_value_t = 64)]
    pictures: u64,
    /// Print a line of JSON per stage
    #[arg(long)]
    json: bool,
    /// Further arguments of `photon serve`
    #[arg(last = true)]
    extra: Vec<String>,
}

/// Pictures that no model was trained on.
const SEEDS: u64 = 1 << 40;

/// Most requests waiting at the server under test, so that overload is refused and not only slow.
const MAX_WAITING: &str = "64";

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(args: &Args) -> Result<Self> {
        let photon = match &args.photon {
            Some(photon) => photon.clone(),
            None => {
                crate::cargo(&["build", "--release", "-p", "photon-cli"])?;
                crate::root().join("target/release/photon")
            }
        };
        let mut child = Command::new(&photon)
            .args(["serve", "--port", "0", "--max-waiting", MAX_WAITING])
            .args(&args.extra)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", photon.display()))?;
        let stderr = child.stderr.take().context("its errors are piped")?;
        let mut lines = BufReader::new(stderr).lines();
        let address = loop {
            let line = lines.next().context("photon serve ended at once")??;
            if let Some((_, rest)) = line.split_once("http://") {
                break rest.split(' ').next().unwrap_or(rest).to_owned();
            }
        };
        // What else it says is read and dropped, so that it never waits.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Server { child, address })
    }

    /// Memory of the process in MiB; `None` where the system does not say.
    fn memory(&self) -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the clients of a stage saw.
#[derive(Default)]
struct Seen {
    /// Milliseconds of each answer.
    latencies: Vec<f64>,
    /// By status, 0 for a connection that broke.
    others: BTreeMap<u16, u64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let bodies = (SEEDS..SEEDS + args.pictures).map(body).collect::<Result<Vec<_>>>()?;
    let server = Server::start(args)?;
    let mut best = 0.0_f64;
    let mut rows = Vec::new();
    let most = args.clients.iter().copied().max().unwrap_or(0);
    ensure!(most > 0, "--clients names no stage");
    for &clients in &args.clients {
        let seconds = if clients == most { args.longest } else { args.seconds };
        let row = stage(&server, &bodies, clients, None, seconds)?;
        best = best.max(row["answers_per_s"].as_f64().unwrap_or(0.0));
        show(args, &row);
        rows.push(row);
    }
    // Ten times what it can answer, offered by as many clients on a clock of their own.
    let row = stage(&server, &bodies, most, Some(10.0 * best), args.seconds)?;
    show(args, &row);
    rows.push(row);
    for row in &rows {
        let wrong = row["errors"].as_u64().unwrap_or(0);
        ensure!(wrong == 0, "there were answers other than 200, 429 and 504: {row}");
    }
    let last = rows.last().context("there was a stage")?;
    let share = last["answers_per_s"].as_f64().unwrap_or(0.0) / best;
    if !args.json {
        println!("answers under overload: {:.0} % of the best stage", 100.0 * share);
    }
    Ok(())
}

/// A question about a drawn picture.
fn body(seed: u64) -> Result<Vec<u8>> {
    let scene = Scene::from_seed(seed);
    let (width, height) = (scene.width, scene.height);
    let mut png = Cursor::new(Vec::new());
    let (pixels, rgb) = (scene.render(width, height), image::ExtendedColorType::Rgb8);
    image::write_buffer_with_format(
        &mut png,
        &pixels,
        width,
        height,
        rgb,
        image::ImageFormat::Png,
    )?;
    let body = json!({
        "question": "How many shapes are there?",
        "image_url": STANDARD.encode(png.into_inner()),
        "settings": { "temperature": 0, "max_tokens": 8 },
    });
    Ok(body.to_string().into_bytes())
}

/// Runs clients for a time; with `rate`, together they send so many requests a second, answered or not.
fn stage(
    server: &Server,
    bodies: &[Vec<u8>],
    clients: usize,
    rate: Option<f64>,
    seconds: f64,
) -> Result<Value> {
    let seen = Mutex::new(Seen::default());
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (seen, stop) = (&seen, &stop);
            scope.spawn(move || {
                let mut socket = None;
                let mut n = client;
                let every = rate.map(|rate| Duration::from_secs_f64(clients as f64 / rate));
                let mut next =
                    begun + every.unwrap_or_default().mul_f64(client as f64 / clients as f64);
                while !stop.load(Ordering::Relaxed) {
                    if let Some(every) = every {
                        std::thread::sleep(next.saturating_duration_since(Instant::now()));
                        next += every;
                    }
                    let asked = Instant::now();
                    let status = ask(&server.address, &mut socket, &bodies[n % bodies.len()]);
                    let ms = asked.elapsed().as_secs_f64() * 1000.0;
                    n += 1;
                    let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    match status {
                        Ok(200) => seen.latencies.push(ms),
                        Ok(status) => *seen.others.entry(status).or_default() += 1,
                        Err(_) => {
                            socket = None;
                            *seen.others.entry(0).or_default() += 1;
                        }
                    }
                    // A client that is told to come again does not come at once.
                    if matches!(status, Ok(429)) && rate.is_none() {
                        drop(seen);
                        std::thread::sleep(Duration::from_millis(50));
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_secs_f64(seconds));
        stop.store(true, Ordering::Relaxed);
    });
    let took = begun.elapsed().as_secs_f64();
    let mut seen = seen.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    seen.latencies.sort_by(f64::total_cmp);
    let at = |p: f64| {
        let rank = (p * seen.latencies.len() as f64).ceil() as usize;
        seen.latencies.get(rank.saturating_sub(1)).copied()
    };
    let of = |status| seen.others.get(&status).copied().unwrap_or(0);
    let (busy, late) = (of(429), of(504));
    let others: u64 = seen.others.values().sum();
    Ok(json!({
        "clients": clients,
        "offered_per_s": rate,
        "answers_per_s": seen.latencies.len() as f64 / took,
        "busy": busy,
        "late": late,
        "errors": others - busy - late,
        "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0),
        "memory_mib": server.memory(),
    }))
}

fn show(args: &Args, row: &Value) {
    if args.json {
        println!("{row}");
        return;
    }
    let number = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
    println!(
        "{:>4} clients{}: {:>7.1} answers/s, {:>6} busy, {:>3} late, {:>3} errors, p50 {:>7.1} ms, p99 {:>7.1} ms, \
         max {:>7.1} ms, {:>6.0} MiB",
        row["clients"],
        row["offered_per_s"]
            .as_f64()
            .map_or(String::new(), |rate| format!(", {rate:.0}/s offered")),
        number("answers_per_s"),
        row["busy"],
        row["late"],
        row["errors"],
        number("p50_ms"),
        number("p99_ms"),
        number("max_ms"),
        number("memory_mib"),
    );
}

/// One request over a connection that is kept; its status.
fn ask(address: &str, socket: &mut Option<TcpStream>, body: &[u8]) -> Result<u16> {
    let socket = match socket {
        Some(socket) => socket,
        None => {
            let opened = TcpStream::connect(address)?;
            opened.set_nodelay(true)?;
            opened.set_read_timeout(Some(Duration::from_secs(300)))?;
            socket.insert(opened)
        }
    };
    let head = format!(
        "POST /v1/query HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(&[head.as_bytes(), body].concat())?;
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let n = socket.read(&mut piece)?;
        if n == 0 {
            bail!("the server hung up");
        }
        bytes.extend_from_slice(&piece[..n]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&bytes[..end])?.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.context("no length")?.trim().parse()?;
        if bytes.len() >= end + 4 + length {
            return Ok(head.split(' ').nth(1).context("no status")?.parse()?);
        }
    }
}
