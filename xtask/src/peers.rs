//! `cargo xtask peers cpu`: Photon beside PyTorch and llama.cpp on this machine's processor, in one run.
//!
//! Every engine is a process that loads its model once and then runs the phases it is told, one at a time. They take
//! turns, phase by phase and round by round, so that what else the machine does hits all alike. A bout has the engines
//! that are compared with one another, whose weights have equally many bits; one bout's models are in memory at a time.
//! Where an engine can run a phase in several ways, a warm-up finds its fastest. An engine that cannot be installed, or
//! breaks down, is left out, with the reason, and the others go on.
use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use self::{
    lineup::{Bout, Peer},
    report::{Played, Report},
    rounds::Player,
};

mod lineup;
pub(crate) mod report;
mod rounds;
pub(crate) mod setup;
mod worker;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    device: Device,
}

#[derive(Debug, clap::Subcommand)]
enum Device {
    /// PyTorch and llama.cpp, installed from PyPI into target/peers/venv (llama.cpp is compiled: 10 minutes or more, once)
    Cpu(CpuArgs),
}

#[derive(Debug, clap::Args)]
struct CpuArgs {
    /// Models of 4 layers, to see in a minute whether everything works
    #[arg(long)]
    quick: bool,
    /// Rounds; the medians are reported
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The only rival
    #[arg(long)]
    only: Option<Rival>,
    /// Threads of every engine; one per core without it
    #[arg(long)]
    threads: Option<usize>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// The program; built in release mode without it
    #[arg(long)]
    photon: Option<PathBuf>,
    /// Where Python and the rivals are installed, or are to be
    #[arg(long)]
    venv: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Rival {
    Pytorch,
    Llama,
}

/// What every engine is asked for.
#[derive(Debug)]
struct Terms {
    threads: usize,
    vision_layers: usize,
    text_layers: usize,
    /// Tokens decoded in a row in one run.
    decode_tokens: usize,
    /// Sequences decoded together.
    sequences: usize,
}

impl Terms {
    fn of(args: &CpuArgs) -> Result<Terms> {
        let threads = match args.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism()?.get(),
        };
        ensure!(0 < threads && 0 < args.rounds, "--threads and --rounds are at least 1");
        let (vision_layers, text_layers) = if args.quick { (4, 4) } else { (27, 24) };
        Ok(Terms { threads, vision_layers, text_layers, decode_tokens: 8, sequences: 8 })
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Device::Cpu(args) = &args.device;
    let terms = Terms::of(args)?;
    let folder = crate::root().join("target/peers");
    fs::create_dir_all(&folder)?;
    let mut report = Report::new(&terms, args.rounds, args.quick);
    let found = setup::prepare(args, &terms, &folder, &mut report.left_out)?;
    for bout in lineup::bouts(&terms, &found) {
        eprintln!("== {}", bout.name);
        let played = play(&bout, args.rounds, &terms, &mut report.left_out);
        report.bouts.push(played);
    }
    let tables = report.markdown();
    let record = serde_json::to_string_pretty(&report.json())?;
    for (name, text) in [("cpu.md", &tables), ("cpu.json", &record)] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    println!("{}", if args.json { record } else { tables });
    Ok(())
}

/// Why an engine, or a way to run it, was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LeftOut {
    name: String,
    why: String,
}

impl LeftOut {
    fn new(name: impl Into<String>, why: &anyhow::Error) -> LeftOut {
        let left_out = LeftOut { name: name.into(), why: format!("{why:#}") };
        eprintln!("{} is left out: {}", left_out.name, left_out.why);
        left_out
    }

    fn json(&self) -> serde_json::Value {
        json!({"name": self.name, "why": self.why})
    }
}

/// All of a bout: starts its engines, warms up, plays the rounds.
fn play(bout: &Bout, rounds: usize, terms: &Terms, left_out: &mut Vec<LeftOut>) -> Played {
    let mut players = Vec::new();
    for peer in &bout.peers {
        match Player::start(peer) {
            Ok(player) => players.push(player),
            Err(error) => left_out.push(LeftOut::new(&peer.name, &error)),
        }
    }
    let phases = lineup::phases(terms);
    let phases: Vec<&str> = phases.iter().map(String::as_str).collect();
    rounds::warm_up(&mut players, &phases, left_out);
    let others = rounds::play(&mut players, &phases, rounds, left_out);
    let records = players.into_iter().map(Player::finish).collect();
    Played { name: bout.name, records, others }
}
