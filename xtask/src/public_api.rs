//! The public interface of the crates that programs depend on, as a list that a change must change, too.
//!
//! rustdoc describes a crate in JSON, which only a nightly compiler or `RUSTC_BOOTSTRAP` gives; `tools/public-api` makes a list
//! of it.
use std::{
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args as ClapArgs;

use crate::root;

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
    let mut changed = Vec::new();
    for (name, features) in CRATES {
        let found = list(&describe(name, features)?)?;
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

/// A crate in rustdoc's JSON.
fn describe(name: &str, features: &str) -> Result<std::path::PathBuf> {
    // In a target folder of its own: with that variable set, much that is built already would be built again.
    let json = ["rustdoc", "--quiet", "--lib", "--target-dir", "target/public-api", "-p", name];
    let json = [&json[..], &["--no-default-features", "--features"]].concat();
    cargo(
        &[&json[..], &[features, "--", "-Z", "unstable-options", "--output-format", "json"]]
            .concat(),
    )?;
    Ok(root().join("target/public-api/doc").join(name.replace('-', "_")).with_extension("json"))
}

/// Its public items, a line each.
fn list(described: &Path) -> Result<String> {
    let described = described.to_str().context("the folder's name is not UTF-8")?;
    let tool = ["run", "--quiet", "--manifest-path", "tools/public-api/Cargo.toml"];
    let output =
        cargo(&[&tool[..], &["--target-dir", "target/public-api", "--", described]].concat())?;
    Ok(String::from_utf8(output.stdout)?)
}

fn cargo(args: &[&str]) -> Result<Output> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Without it a stable rustdoc gives no JSON.
    let mut command = Command::new(cargo);
    let output = command.current_dir(root()).args(args).env("RUSTC_BOOTSTRAP", "1").output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo {} failed: {error}", args.join(" "));
    Ok(output)
}
