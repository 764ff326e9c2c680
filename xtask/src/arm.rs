//! Runs the suite of every level of NEON: on the machine itself if that has an Arm processor, or under `qemu-aarch64`.
//!
//! Under the emulator programs are static ones, of musl's target: rustup brings all that they are linked with, and they
//! need no C library to run. The whole suite takes ten minutes, most of which products of real shapes take; the gate runs
//! small ones. A level that the emulator lacks is a failure, since nothing would be shown.
use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use crate::{
    cargo,
    dist::{targets::Target, tools},
    root,
};

const TRIPLE: &str = "aarch64-unknown-linux-musl";

/// Cases that the gate runs, by levels of instructions as `photon-cpu/tests/cpu/conformance.rs` names them: all on plain
/// NEON, and of the others those of operations that multiply with what the level adds.
const LEVELS: &[(&str, &[&str])] = &[
    ("neon", &[""]),
    ("neondot", &["linear_", "grouped_linear_"]),
    ("neonbf16", &["linear_", "grouped_linear_", "attention_", "paged_attention_"]),
    ("neoni8mm", &["linear_", "grouped_linear_"]),
];
/// Parts of names of cases that take the emulator long: their shapes are those of models, or many.
const LONG: &[&str] = &[
    "real_",
    "many_rows",
    "invariance",
    "large_",
    "distribution",
    "patch_embed",
    "spans",
    "poisoned",
];

/// What `cargo xtask check-arm` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// All cases and the unit tests, not only what the gate runs
    #[arg(long)]
    all: bool,
}

impl Args {
    /// What the gate asks for.
    pub(crate) fn gate() -> Args {
        Args { all: false }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if cfg!(target_arch = "aarch64") {
        return cargo(&["test", "-p", "photon-cpu"]);
    }
    let emulator = match emulator() {
        Ok(emulator) => emulator,
        Err(why) => {
            println!("check-arm: NOT CHECKED: {why:#}");
            return Ok(());
        }
    };
    for program in build(args.all)? {
        run_tests(&emulator, &program, args.all)?;
    }
    Ok(())
}

/// What stands before a program, if there is all that building one and running it takes.
fn emulator() -> Result<Vec<String>> {
    tools::standard_library(TRIPLE)?;
    tools::runner(Target::named(TRIPLE).context("a target that is released")?)
}

/// Builds the tests of photon-cpu.
fn build(all: bool) -> Result<Vec<PathBuf>> {
    let variable =
        |name: &str| format!("CARGO_TARGET_{}_{name}", TRIPLE.to_uppercase().replace('-', "_"));
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(root())
        .args(["test", "-p", "photon-cpu", "--target", TRIPLE, "--no-run", "--test", "cpu"])
        .args(["--message-format", "json-render-diagnostics"])
        // The compiler's own linker: the musl target has all else with it.
        .env(variable("LINKER"), "rust-lld")
        .stderr(Stdio::inherit());
    // What overflows does so on other processors, too, where the same tests look for it.
    for package in ["photon-core", "photon-conformance", "photon-cpu"] {
        for check in ["debug-assertions", "overflow-checks"] {
            let setting = format!("profile.dev.package.{package}.{check}=false");
            command.args(["--config", &setting]);
        }
    }
    if all {
        command.arg("--lib");
    }
    let output = command.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "photon-cpu's tests cannot be built for {TRIPLE}");
    let messages = String::from_utf8(output.stdout)?;
    let messages = messages.lines().map(serde_json::from_str::<serde_json::Value>);
    let mut programs = Vec::new();
    for message in messages {
        programs.extend(message?["executable"].as_str().map(PathBuf::from));
    }
    ensure!(!programs.is_empty(), "cargo names no tests of photon-cpu");
    Ok(programs)
}

/// What the harness is told to run.
fn cases(all: bool) -> Vec<String> {
    if all {
        // The machine's own processes cannot be started under the emulator.
        return ["--skip", "machine::"].map(str::to_owned).to_vec();
    }
    let mut words = Vec::new();
    for (level, cases) in LEVELS {
        words.extend(cases.iter().map(|case| format!("conformance::{level}::{case}")));
    }
    words.extend(LONG.iter().flat_map(|name| ["--skip".to_owned(), (*name).to_owned()]));
    words
}

fn run_tests(emulator: &[String], program: &PathBuf, all: bool) -> Result<()> {
    let begun = Instant::now();
    // A test that hangs must not take the gate's time: ten times what it needs on two cores.
    let mut command = Command::new("timeout");
    command.arg(if all { "2h" } else { "400s" }).args(emulator).arg(program).args(cases(all));
    let output = command.current_dir(root().join("photon-cpu")).output();
    let output = output.with_context(|| format!("cannot run timeout, for {}", emulator[0]))?;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() != Some(124), "tests hang on Arm:\n{out}\n{err}");
    ensure!(output.status.success(), "tests fail on Arm:\n{out}\n{err}");
    let is_absent = |level: &&str| err.contains(&format!("SKIPPED cpu::conformance::{level} "));
    let absent: Vec<_> = LEVELS.iter().map(|(level, _)| *level).filter(is_absent).collect();
    ensure!(absent.is_empty(), "{} lacks levels {absent:?}: nothing is shown", emulator[0]);
    let result = out.lines().find_map(|line| line.strip_prefix("test result: ok. "));
    let result = result.and_then(|line| line.split_once(" passed")).context("no tests passed")?.0;
    ensure!(result != "0", "no test has such a name: {:?}", cases(all));
    println!("check-arm: {result} tests passed in {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}
