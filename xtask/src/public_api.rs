//! The public interface of the crates that programs depend on, as a list that a change must change, too.
//!
//! rustdoc describes a crate in JSON, which only a nightly compiler or `RUSTC_BOOTSTRAP` gives; cargo-public-api makes a list of
//! it. The tool is installed below `target`, in the version that reads this compiler's JSON.
use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail, ensure};
use clap::Args as ClapArgs;

use crate::root;

/// The tool's version; a new compiler may need a newer one.
const VERSION: &str = "0.51.0";
/// The crates, with the features that are described.
const CRATES: [(&str, &str); 2] =
    [("photon", "cpu,cuda,demo,hub,metal"), ("photon-server", "grpc,kv-events")];

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Write down what is found instead of comparing
    #[arg(long)]
    update: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let tool = tool()?;
    let mut changed = Vec::new();
    for (name, features) in CRATES {
        let found = list(&tool, name, features)?;
        let file = root().join(name).join("public-api.txt");
        if args.update {
            std::fs::write(&file, found)?;
            continue;
        }
        let known = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let (known, found) = (lines(&known), lines(&found));
        for (mark, lines, others) in [("-", &known, &found), ("+", &found, &known)] {
            for line in lines.iter().filter(|line| !others.contains(line)) {
                println!("{name}: {mark} {line}");
            }
        }
        if known != found {
            changed.push(name);
        }
    }
    if changed.is_empty() {
        return Ok(());
    }
    bail!(
        "the interface of {} is another; if that is meant, `cargo xtask public-api --update` writes it down",
        changed.join(" and ")
    )
}

/// Installs the tool, once.
fn tool() -> Result<PathBuf> {
    let folder = root().join("target/tools");
    let tool = folder.join("bin/cargo-public-api");
    let version = Command::new(&tool).args(["public-api", "--version"]).output();
    if version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(VERSION)) {
        return Ok(tool);
    }
    let folder = folder.to_str().context("the folder's name is not UTF-8")?;
    let install = ["install", "cargo-public-api", "--version", VERSION, "--locked", "--root"];
    crate::cargo(&[&install[..], &[folder]].concat())?;
    Ok(tool)
}

/// A crate's public items, a line each.
fn list(tool: &PathBuf, name: &str, features: &str) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let json = [
        "rustdoc",
        "--quiet",
        "--lib",
        "-p",
        name,
        "--no-default-features",
        "--features",
        features,
    ];
    let status = Command::new(cargo)
        .current_dir(root())
        .args(json)
        .args(["--", "-Z", "unstable-options", "--output-format", "json"])
        .env("RUSTC_BOOTSTRAP", "1")
        .status()?;
    ensure!(status.success(), "rustdoc failed for {name}");
    let described = root().join("target/doc").join(name.replace('-', "_")).with_extension("json");
    let output = Command::new(tool)
        .current_dir(root())
        .args(["public-api", "-sss", "--rustdoc-json"])
        .arg(described)
        .output()
        .with_context(|| tool.display().to_string())?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo-public-api failed for {name}: {error}");
    Ok(String::from_utf8(output.stdout)?)
}
