//! Runs the fuzzer's targets (`fuzz/`), one after the other.
//!
//! Without sanitizers by default, which a stable compiler can do: what is fuzzed is safe code, so what
//! remains to be found are panics, hangs and memory, and those libFuzzer finds by itself.
use std::{collections::BTreeSet, process::Command};

use anyhow::{Context, Result, bail, ensure};

use crate::root;

/// An input that takes longer is a finding, in seconds.
const TIMEOUT: u32 = 10;
/// A process that takes more memory is a finding, in MiB.
const MEMORY: u32 = 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Targets; all of them by default
    targets: Vec<String>,
    /// How long each is fuzzed
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u32,
    /// `address` needs a nightly compiler, or RUSTC_BOOTSTRAP=1
    #[arg(long, default_value = "none")]
    sanitizer: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        Command::new("cargo")
            .args(["fuzz", "--version"])
            .output()
            .is_ok_and(|o| o.status.success()),
        "cargo-fuzz is not installed: cargo install cargo-fuzz --locked"
    );
    let all = targets()?;
    if let Some(unknown) = args.targets.iter().find(|target| !all.contains(*target)) {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        bail!("there is no target {unknown}; there are {}", all.join(", "));
    }
    let chosen = all.iter().filter(|name| args.targets.is_empty() || args.targets.contains(name));
    let mut found = Vec::new();
    for target in chosen {
        eprintln!("== {target}: {} s", args.seconds);
        if !fuzz(target, args)? {
            found.push(target.as_str());
        }
    }
    ensure!(found.is_empty(), "found something in {}: see above", found.join(", "));
    Ok(())
}

/// The names of the files in `fuzz_targets`.
fn targets() -> Result<BTreeSet<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let stem = |path: std::path::PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    Ok(entries.filter_map(|entry| stem(entry.ok()?.path())).collect())
}

/// Fuzzes one target; whether it found nothing.
fn fuzz(target: &str, args: &Args) -> Result<bool> {
    let fuzz = root().join("fuzz");
    // What reaches something new goes to the first folder, so that the one in the repository stays small.
    let grown = fuzz.join("target/corpus").join(target);
    std::fs::create_dir_all(&grown).with_context(|| grown.display().to_string())?;
    let status = Command::new("cargo")
        .current_dir(&fuzz)
        .args(["fuzz", "run", "--sanitizer", &args.sanitizer, target])
        .arg(&grown)
        .arg(fuzz.join("corpus").join(target))
        .arg("--")
        .arg(format!("-dict=dict/{target}.dict"))
        .arg(format!("-max_total_time={}", args.seconds))
        .arg(format!("-timeout={TIMEOUT}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .status()
        .context("cannot run cargo fuzz")?;
    Ok(status.success())
}
