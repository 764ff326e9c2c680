//! `cargo xtask serve-load`: many clients against `photon serve`, from one to far more than it can answer.
//!
//! Each stage has so many clients in threads of this process, each asking about a picture that the server has not seen
//! as soon as it has its answer; the last stage offers ten times what can be answered, on a clock. What comes out is a
//! table: answers a second, refusals, latencies of what was answered, and the server's memory and processor time, since
//! clients on the same machine take from it what they need themselves.
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Cursor, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    /// Ask about the same pictures again, so that the server's cache answers most
    #[arg(long)]
    again: bool,
    /// Give the server half of the processors and the clients the others, so that neither takes the other's time
    #[arg(long)]
    apart: bool,
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

    /// Seconds that all its processors together spent on the process; `None` where the system does not say.
    fn processor_seconds(&self) -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        // The name before may hold anything; the 12th and 13th field after it are ticks of 10 ms.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let ticks: f64 = fields.next()?.parse().ok()?;
        let of_system: f64 = fields.next()?.parse().ok()?;
        Some((ticks + of_system) / 100.0)
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
    let questions = (SEEDS..SEEDS + args.pictures).map(Question::about);
    let questions = questions.collect::<Result<Vec<_>>>()?;
    let server = if args.apart { apart(|| Server::start(args))? } else { Server::start(args)? };
    let mut best = 0.0_f64;
    let mut rows = Vec::new();
    let most = args.clients.iter().copied().max().unwrap_or(0);
    ensure!(most > 0, "--clients names no stage");
    for &clients in &args.clients {
        let seconds = if clients == most { args.longest } else { args.seconds };
        let row = stage(&server, &questions, args.again, Offer { clients, rate: None, seconds })?;
        best = best.max(row["answers_per_s"].as_f64().unwrap_or(0.0));
        show(args, &row);
        rows.push(row);
    }
    // Ten times what it can answer, offered by as many clients on a clock of their own.
    let offer = Offer { clients: most, rate: Some(10.0 * best), seconds: args.seconds };
    let row = stage(&server, &questions, args.again, offer)?;
    show(args, &row);
    rows.push(row);
    for row in &rows {
        let wrong = row["errors"].as_u64().unwrap_or(0);
        ensure!(wrong == 0, "there were answers other than 200, 429 and 504: {row}");
    }
    let share = |name: &str| {
        let values: Vec<f64> = rows.iter().filter_map(|row| row[name].as_f64()).collect();
        let best = values.iter().copied().fold(0.0, f64::max);
        values.last().map_or(f64::NAN, |last| 100.0 * last / best)
    };
    if !args.json {
        let (all, each) = (share("answers_per_s"), share("answers_per_processor_s"));
        println!(
            "under overload {all:.0} % of the best stage's answers a second, {each:.0} % of the best a processor's second"
        );
    }
    Ok(())
}

/// Starts the server on the first half of this process's processors and leaves the clients the second.
#[cfg(target_os = "linux")]
fn apart(start: impl FnOnce() -> Result<Server>) -> Result<Server> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let all = sched_getaffinity(None).context("which processors there are")?;
    let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu)).collect();
    ensure!(all.len() > 1, "--apart needs two processors");
    let (of_server, of_clients) = all.split_at(all.len() / 2);
    let only = |cpus: &[usize]| {
        let mut set = CpuSet::new();
        cpus.iter().for_each(|&cpu| set.set(cpu));
        // The calling thread's, which what it starts inherits.
        sched_setaffinity(None, &set).context("cannot choose processors")
    };
    only(of_server)?;
    let server = start()?;
    only(of_clients)?;
    Ok(server)
}

#[cfg(not(target_os = "linux"))]
fn apart(_: impl FnOnce() -> Result<Server>) -> Result<Server> {
    bail!("--apart works on Linux only")
}

/// A question about a drawn picture: what stands around the number that makes the picture's file another one.
struct Question {
    before: String,
    after: String,
}

impl Question {
    fn about(seed: u64) -> Result<Self> {
        let scene = Scene::from_seed(seed);
        let (width, height) = (scene.width, scene.height);
        let mut png = Cursor::new(Vec::new());
        let (pixels, rgb) = (scene.render(width, height), image::ExtendedColorType::Rgb8);
        let format = image::ImageFormat::Png;
        image::write_buffer_with_format(&mut png, &pixels, width, height, rgb, format)?;
        let mut png = png.into_inner();
        // What stands behind the end of a PNG is not looked at. Three bytes are four characters.
        png.resize(png.len().next_multiple_of(3), 0);
        let body = json!({
            "question": "How many shapes are there?",
            "image_url": STANDARD.encode(png) + "#",
            "settings": { "temperature": 0, "max_tokens": 8 },
        });
        let body = body.to_string();
        let (before, after) = body.split_once('#').context("the mark that was just put there")?;
        Ok(Question { before: before.into(), after: after.into() })
    }

    fn body(&self, number: u64) -> String {
        let number = STANDARD.encode(&number.to_be_bytes()[2..]);
        [&self.before, &*number, &self.after].concat()
    }
}

/// What a stage asks.
#[derive(Clone, Copy)]
struct Offer {
    clients: usize,
    /// Requests a second of all clients together, answered or not; as soon as they can without it.
    rate: Option<f64>,
    seconds: f64,
}

/// Runs clients for a time.
fn stage(server: &Server, questions: &[Question], again: bool, offer: Offer) -> Result<Value> {
    let Offer { clients, rate, seconds } = offer;
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let seen = Mutex::new(Seen::default());
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let spent = server.processor_seconds();
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
                    let number = if again { 0 } else { NUMBER.fetch_add(1, Ordering::Relaxed) };
                    let body = questions[n % questions.len()].body(number);
                    let status = ask(&server.address, &mut socket, body.as_bytes());
                    let ms = asked.elapsed().as_secs_f64() * 1000.0;
                    n += 1;
                    let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    match status {
                        Ok((200, _)) => seen.latencies.push(ms),
                        Ok((status, _)) => *seen.others.entry(status).or_default() += 1,
                        Err(_) => {
                            socket = None;
                            *seen.others.entry(0).or_default() += 1;
                        }
                    }
                    drop(seen);
                    // A client without a clock comes again when it is told to, and looks up when the stage ends.
                    if let (Ok((_, Some(after))), None) = (status, rate) {
                        let until = Instant::now() + after;
                        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_secs_f64(seconds));
        stop.store(true, Ordering::Relaxed);
    });
    let took = begun.elapsed().as_secs_f64();
    let spent = server.processor_seconds().zip(spent).map(|(after, before)| after - before);
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
        "processors": spent.map(|spent| spent / took),
        "answers_per_processor_s": spent.map(|spent| seen.latencies.len() as f64 / spent),
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
        "{:>4} clients{}: {:>7.1} answers/s of {:.2} processors, {:>6} busy, {:>3} late, {:>3} errors, p50 {:>7.1} ms, p99 {:>7.1} ms, \
         max {:>7.1} ms, {:>6.0} MiB",
        row["clients"],
        row["offered_per_s"]
            .as_f64()
            .map_or(String::new(), |rate| format!(", {rate:.0}/s offered")),
        number("answers_per_s"),
        number("processors"),
        row["busy"],
        row["late"],
        row["errors"],
        number("p50_ms"),
        number("p99_ms"),
        number("max_ms"),
        number("memory_mib"),
    );
}

/// One request over a connection that is kept: its status, and when to come again.
fn ask(
    address: &str,
    socket: &mut Option<TcpStream>,
    body: &[u8],
) -> Result<(u16, Option<Duration>)> {
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
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let length: usize = field("content-length:").context("no length")?.trim().parse()?;
        if bytes.len() >= end + 4 + length {
            let status = head.split(' ').nth(1).context("no status")?.parse()?;
            let after = field("retry-after:").map(|seconds| seconds.trim().parse());
            return Ok((status, after.transpose()?.map(Duration::from_secs)));
        }
    }
}
