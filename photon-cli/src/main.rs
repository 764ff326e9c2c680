//! `photon`: Moondream from the command line.
//!
//! One file per command family; `args` is everything a user can type, `output` everything that is
//! printed. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. A pipe that the reader closed
//! is not an error. Answers go to standard output, everything else to standard error.
#![forbid(unsafe_code)]

mod adapter;
mod args;
mod batch;
mod bench;
mod chat;
mod convert;
mod draw;
mod health;
mod inspect;
mod manual;
mod models;
mod names;
mod output;
mod rng;
mod run;
mod serve;

use std::process::ExitCode;

use args::Command;

/// musl's own allocator asks the system for every picture anew, which costs a sixth of all processor time: PERFORMANCE.md, What is
/// released.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a command failed with, and whose fault it was.
#[derive(Debug)]
enum Failure {
    /// What was typed cannot be done: exit code 2.
    Usage(String),
    /// It was tried and did not work: exit code 1.
    Failed(anyhow::Error),
    /// Somebody interrupted it, and it said what it had to say: exit code 130.
    Interrupted,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Failed(error.into())
    }
}

fn main() -> ExitCode {
    let args = match serve::with_file(std::env::args_os().collect()) {
        Ok(args) => args,
        Err(failure) => return report(Err(failure)),
    };
    report(match args.command {
        Command::Query(a) => run::query(a),
        Command::Chat(a) => chat::chat(a),
        Command::Caption(a) => run::caption(a),
        Command::Detect(a) => run::detect(a),
        Command::Point(a) => run::point(a),
        Command::Segment(a) => run::segment(a),
        Command::Gaze(a) => run::gaze(a),
        Command::Batch(a) => batch::batch(&a),
        Command::Models(a) => models::list(&a),
        Command::Pull(a) => models::pull(&a),
        Command::Inspect(a) => inspect::inspect(&a),
        Command::Convert(a) => convert::convert(&a),
        Command::Quantize(a) => convert::quantize(&a),
        Command::Adapter(a) => adapter::adapter(&a),
        Command::Doctor(a) => models::doctor(&a),
        Command::Serve(a) => serve::serve(&a),
        Command::Health(a) => health::health(&a),
        Command::Bench(a) => bench::bench(&a),
        Command::Completions(a) => manual::completions(&a),
        Command::Man(a) => manual::man(&a),
    })
}

/// Says how a command ended, and what the program's exit code is.
fn report(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => {
            output::error(&output::describe(&error));
            ExitCode::from(1)
        }
        Err(Failure::Interrupted) => ExitCode::from(130),
        Err(Failure::Usage(message)) => {
            output::error(&message);
            ExitCode::from(2)
        }
    }
}
