//! What a program costs that depends on `photon`: `tests/downstream`, built and run with each set of features.
//!
//! It has the workspace's versions of other crates, a profile of its own (release, stripped) and a target folder for each
//! set, so that times are of whole builds. Processor time is what the build took of all processors together: it can be compared
//! where the machine has other work.
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args as ClapArgs;

use crate::root;

/// Sets of features that somebody may want, from nothing up.
const SETS: [&str; 8] =
    ["", "cpu", "cpu,demo", "cpu,demo,hub", "cuda", "metal", "cpu,cuda,demo", "cpu,demo,server"];

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Only these sets, such as `cpu,demo`; may be given several times
    #[arg(long = "set", value_name = "FEATURES")]
    sets: Vec<String>,
    /// Check types only: no table
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let sets: Vec<&str> = match args.sets.is_empty() {
        true => SETS.to_vec(),
        false => args.sets.iter().map(String::as_str).collect(),
    };
    let folder = root().join("tests/downstream");
    // The versions that the workspace is tested with; cargo drops what is not needed.
    std::fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
    if args.check {
        return sets.iter().try_for_each(|set| cargo(&folder, &["check"], set, "check"));
    }
    println!("| features | crates | build, s | processor, s | program, MB |");
    println!("|---|---|---|---|---|");
    for set in sets {
        println!("{}", measure(&folder, set)?);
    }
    Ok(())
}

/// A row of the table.
fn measure(folder: &Path, set: &str) -> Result<String> {
    let name = if set.is_empty() { "none".to_owned() } else { set.replace(',', "-") };
    let target = root().join("target/downstream").join(&name);
    let _ = std::fs::remove_dir_all(&target);
    let (begun, processor) = (Instant::now(), processor_time()?);
    cargo(folder, &["build", "--release"], set, &name)?;
    let wall = begun.elapsed();
    let processor = processor.zip(processor_time()?).map(|(before, after)| after - before);
    let program = target.join("release/downstream");
    let output = Command::new(&program).output().with_context(|| program.display().to_string())?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && output.stdout == b"ok\n", "with {set:?}: {error}");
    let size = std::fs::metadata(&program)?.len() as f64 / 1e6;
    let crates = crates(folder, set)?;
    let processor = processor.map_or("-".into(), |time| format!("{:.0}", time.as_secs_f64()));
    let set = if set.is_empty() { "none" } else { set };
    Ok(format!("| {set} | {crates} | {:.0} | {processor} | {size:.1} |", wall.as_secs_f64()))
}

fn cargo(folder: &Path, what: &[&str], set: &str, target: &str) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(folder)
        .args(what)
        .args(["--quiet", "--features", set, "--target-dir"])
        .arg(root().join("target/downstream").join(target))
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo {} with {set:?} failed", what.join(" "));
    Ok(())
}

/// How many crates the program consists of.
fn crates(folder: &Path, set: &str) -> Result<usize> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = ["tree", "--edges", "normal", "--prefix", "none", "--no-dedupe", "--features", set];
    let output = Command::new(cargo).current_dir(folder).args(tree).output()?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let name = |line: &str| line.split(" (").next().unwrap_or_default().to_owned();
    Ok(text.lines().map(name).collect::<std::collections::BTreeSet<_>>().len())
}

/// Processor time of all programs this one has waited for; only Linux says.
fn processor_time() -> Result<Option<Duration>> {
    if !cfg!(target_os = "linux") {
        return Ok(None);
    }
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Behind the program's name: `cutime` and `cstime` are fields 16 and 17, in hundredths of a second.
    let (_, fields) = stat.rsplit_once(") ").context("/proc/self/stat has another form")?;
    let ticks: Vec<u64> =
        fields.split(' ').skip(13).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(Some(Duration::from_millis(10 * ticks.iter().sum::<u64>())))
}
