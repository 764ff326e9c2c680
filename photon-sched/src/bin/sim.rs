//! Simulates many seeds, or one.
//!
//! `sim --seeds 100000` runs the seeds below 100,000; `sim --seed 7` only that one; `--bug NAME`
//! plants a bug first. Exits with 1 if a simulation fails.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the program's voice")]

use std::{
    io::IsTerminal,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use photon_sched::{
    Bug,
    sim::{self, Failure, Report},
};

const USAGE: &str = "usage: sim [--seeds N] [--seed K] [--bug NAME] [--threads N]";

struct Args {
    seeds: std::ops::Range<u64>,
    bug: Option<Bug>,
    threads: usize,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Args, String> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut parsed = Args { seeds: 0..10_000, bug: None, threads };
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} {value}: not a number"));
        match name.as_str() {
            "--seeds" => parsed.seeds = 0..number()?,
            "--seed" => parsed.seeds = number()?..number()?.saturating_add(1),
            "--threads" => parsed.threads = number()?.max(1) as usize,
            "--bug" => parsed.bug = Some(bug(&value)?),
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(parsed)
}

fn bug(name: &str) -> Result<Bug, String> {
    let found = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name);
    found.ok_or_else(|| format!("no bug {name}; there are {:?}", Bug::ALL))
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let begun = Instant::now();
    let (done, report, failure) = simulate(&args);
    let Report { steps, finished, ended, hits, preemptions, copies, encodings, .. } = report;
    let Report { drafted, accepted, .. } = report;
    println!(
        "{done} seeds, {steps} steps, {finished} finished, {ended} cancelled or late, {hits} hits, \
         {preemptions} preemptions, {copies} copies, {encodings} encodings, {drafted} drafted, \
         {accepted} accepted in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    let Some(failure) = failure else { return ExitCode::SUCCESS };
    println!("{failure}");
    let bug = args.bug.map(|bug| format!(" --bug {bug:?}")).unwrap_or_default();
    println!(
        "repeat with: cargo run -p photon-sched --features sim --bin sim -- --seed {}{bug}",
        failure.seed
    );
    ExitCode::FAILURE
}

/// Seeds that were run, what happened in them, and the first failure found.
fn simulate(args: &Args) -> (u64, Report, Option<Failure>) {
    let (next, stop) = (AtomicU64::new(args.seeds.start), AtomicBool::new(false));
    let done = AtomicU64::new(0);
    let total = Mutex::new((Report::default(), None::<Failure>));
    let shows = std::io::stderr().is_terminal();
    let work = || {
        let mut report = Report::default();
        let mut failure = None;
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= args.seeds.end {
                break;
            }
            match sim::run(seed, args.bug) {
                Ok(one) => report.add(&one),
                Err(found) => {
                    stop.store(true, Ordering::Relaxed);
                    failure = Some(found);
                }
            }
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if shows && done.is_multiple_of(1000) {
                eprint!("\r{done} of {} seeds", args.seeds.end - args.seeds.start);
            }
        }
        let mut total = total.lock().expect("no thread panics while it adds");
        total.0.add(&report);
        // The lowest seed, so that a run with several threads mostly says the same.
        let lower = |old: &Failure| failure.as_ref().is_some_and(|new| new.seed < old.seed);
        if total.1.is_none() || total.1.as_ref().is_some_and(lower) {
            total.1 = failure;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..args.threads {
            scope.spawn(work);
        }
    });
    if shows {
        eprint!("\r\x1b[K");
    }
    let (report, failure) = total.into_inner().expect("no thread panics while it adds");
    (done.into_inner(), report, failure)
}
