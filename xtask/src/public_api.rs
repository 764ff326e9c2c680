//! The public interface of the crates that programs depend on, as a list that a change must change, too.
//!
//! rustdoc describes a crate in JSON, which only a nightly compiler or `RUSTC_BOOTSTRAP` gives; `tools/public-api` makes a list
//! of it.
use std::{
    collections::HashSet,
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
        let known = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let change = Change::between(&known, &found);
        for (mark, lines) in [("-", &change.gone), ("+", &change.new)] {
            lines.iter().for_each(|line| println!("{name}: {mark} {line}"));
        }
        match known == found {
            true => println!("{name}: as written down, {} items", found.lines().count()),
            false if args.update => {
                std::fs::write(&file, &found)?;
                println!("{name}: {}; written down", change.says());
            }
            false => changed.push(format!("{name}: {}", change.says())),
        }
    }
    if changed.is_empty() {
        return Ok(());
    }
    bail!(
        "{}; if that is meant, `cargo xtask public-api --update` writes it down",
        changed.join("; ")
    )
}

/// What became of an interface.
#[derive(Debug)]
struct Change<'a> {
    gone: Vec<&'a str>,
    new: Vec<&'a str>,
}

impl<'a> Change<'a> {
    fn between(known: &'a str, found: &'a str) -> Self {
        let old: HashSet<&str> = known.lines().collect();
        let new: HashSet<&str> = found.lines().collect();
        Change {
            gone: known.lines().filter(|line| !new.contains(line)).collect(),
            new: found.lines().filter(|line| !old.contains(line)).collect(),
        }
    }

    /// For versions, as cargo understands them. An item that is another is gone and new.
    fn says(&self) -> String {
        let Change { gone, new } = self;
        match (gone.len(), new.len()) {
            (0, 0) => "the same items in another order".to_owned(),
            (0, new) => format!("new: {new}, gone: none; programs should build as before"),
            (gone, _) => {
                format!("gone or another: {gone}; programs break, so the minor version rises")
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_said_with_what_it_does_to_programs() {
        let says = |known, found| Change::between(known, found).says();
        let grown = says("a\nb(u32)", "a\nb(u32)\nc");
        assert_eq!(grown, "new: 1, gone: none; programs should build as before");
        let broken = Change::between("a\nb(u32)", "a\nb(u64)");
        assert_eq!((&broken.gone[..], &broken.new[..]), (&["b(u32)"][..], &["b(u64)"][..]));
        assert!(broken.says().starts_with("gone or another: 1; programs break"));
        assert_eq!(says("a\nb", "b\na"), "the same items in another order");
    }
}
