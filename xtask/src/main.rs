//! `cargo xtask`: the project's own tools. Imports nothing of the engine; runs its programs instead.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool for the terminal")]
#![forbid(unsafe_code)]

mod arm;
mod ci;
mod cuda_check;
mod demo_eval;
mod dist;
mod downstream;
mod foreign;
mod fuzz;
mod gpu_check;
mod gpu_run;
mod metal_check;
mod metal_counts;
mod peers;
mod public_api;
mod scale_check;
mod serve_load;
mod simt;
mod tidy;
mod wheel;
mod wheels;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

/// The project's own tools
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Everything a change must pass: format, tidy, tests, the kernels for GPUs, macOS, clippy
    Ci,
    /// Check what compilers do not: crate edges, unsafe, conformance cases, dead files
    Tidy,
    /// Compile every CUDA kernel for every architecture, compare registers and spills with the table
    CudaCheck(cuda_check::Args),
    /// Pack what a GPU's machine needs to check Photon, without Rust or a network there
    GpuCheck(gpu_check::Args),
    /// What a bundle's `run` does
    #[command(hide = true)]
    GpuRun(gpu_run::Args),
    /// Draw pictures the demo model never saw, ask the engine about them, print a table
    DemoEval(demo_eval::Args),
    /// Load `photon serve` with many clients and far more requests than it can answer, print a table
    ServeLoad(serve_load::Args),
    /// Print what formats of weights, and of keys and values, cost on the golden models
    GoldenEval,
    /// Run the kernels' tests on the processor under clang's address, undefined and thread sanitizers
    SimtSanitize,
    /// Check the address spaces of Metal's kernels with clang, as C++ for OpenCL
    MslCheck,
    /// On a Mac: build, have Apple's compiler take every kernel, check answers, measure
    MetalCheck(metal_check::Args),
    /// Count what steps of the real models consist of on Metal, predict their times
    MetalCounts,
    /// Measure Photon beside PyTorch and llama.cpp on this machine, taking turns, print tables
    Peers(peers::Args),
    /// Run the recipes for several machines on this one: routers and caches, jobs that lose a worker; print tables
    ScaleCheck(scale_check::Args),
    /// Check the types and lints of what only macOS compiles, on Linux
    CheckMacos,
    /// Run the suite of NEON: on Arm itself, elsewhere under qemu
    CheckArm(arm::Args),
    /// Build a program outside of the workspace with each set of features, print times and sizes
    Downstream(downstream::Args),
    /// Compare the public interface with what is written down, say whether a change breaks programs
    PublicApi(public_api::Args),
    /// Check the types and lints of Photon for Windows, on Linux
    CheckWindows,
    /// Make what is released: an archive for each kind of machine, as far as this one can
    Dist(dist::Args),
    /// Make Python's package, install it in an empty environment, run its tests there
    Wheel(wheel::Args),
    /// Feed bytes that nobody would write to everything that reads files (needs cargo-fuzz)
    Fuzz(fuzz::Args),
    /// Write the tiny synthetic checkpoint that the golden outputs were recorded with
    GoldenCheckpoint {
        /// Folder to write to
        out: PathBuf,
        /// moondream2 or moondream3
        #[arg(long, default_value = "moondream2")]
        family: String,
    },
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        Task::Ci => ci::run(),
        Task::Tidy => tidy::run(root()),
        Task::CudaCheck(args) => cuda_check::run(&args),
        Task::GpuCheck(args) => gpu_check::run(&args),
        Task::GpuRun(args) => gpu_run::run(&args),
        Task::DemoEval(args) => demo_eval::run(&args),
        Task::ServeLoad(args) => serve_load::run(&args),
        Task::GoldenEval => cargo(&[
            "run",
            "--quiet",
            "--release",
            "-p",
            "photon-models",
            "--example",
            "golden_eval",
        ]),
        Task::SimtSanitize => simt::sanitize(),
        Task::MslCheck => simt::msl_check(),
        Task::MetalCheck(args) => metal_check::run(&args),
        Task::MetalCounts => metal_counts::run(),
        Task::Peers(args) => peers::run(&args),
        Task::ScaleCheck(args) => scale_check::run(&args),
        Task::CheckMacos => foreign::macos(),
        Task::CheckArm(args) => arm::run(&args),
        Task::CheckWindows => foreign::windows(),
        Task::Dist(args) => dist::run(&args),
        Task::Wheel(args) => wheel::run(&args),
        Task::Downstream(args) => downstream::run(&args),
        Task::PublicApi(args) => public_api::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::GoldenCheckpoint { out, family } => golden_checkpoint(&out, &family),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            eprintln!("xtask: {}", causes.join(": "));
            ExitCode::FAILURE
        }
    }
}

/// The workspace's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Runs cargo in the workspace and expects it to succeed.
fn cargo(args: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(args).status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo {} failed", args.join(" "));
    Ok(())
}

fn golden_checkpoint(out: &Path, family: &str) -> Result<()> {
    let out = std::path::absolute(out)?;
    let out = out.to_str().context("the folder's name is not UTF-8")?;
    let example = ["run", "--quiet", "-p", "photon-models", "--example", "golden_checkpoint", "--"];
    cargo(&[&example[..], &[out, family]].concat())?;
    println!("wrote {out}");
    Ok(())
}
