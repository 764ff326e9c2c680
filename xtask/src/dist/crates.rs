//! What a program is made of: crates, their licenses and how they hang together, as cargo says for a target and its
//! features. Crates that only build something are not in the program.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::targets::Target;
use crate::root;

/// A crate in a program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression.
    pub(crate) license: String,
    pub(crate) description: String,
    pub(crate) repository: String,
    pub(crate) folder: PathBuf,
    /// SHA-256 of its package; our own crates have none.
    pub(crate) checksum: Option<String>,
    /// Names and versions of what it uses.
    pub(crate) uses: BTreeSet<Key>,
}

/// Name and version.
pub(crate) type Key = (String, String);

impl Crate {
    pub(crate) fn is_ours(&self) -> bool {
        self.folder.starts_with(root()) && self.checksum.is_none()
    }
}

/// The crates of one of ours for a target, in the order of their names.
pub(crate) fn of(target: &Target, package: &str, features: &[&str]) -> Result<Vec<Crate>> {
    let tree = cargo(&[
        "tree",
        "--locked",
        "--package",
        package,
        "--features",
        &features.join(","),
        "--target",
        target.triple,
        "--edges=normal,no-proc-macro",
        "--prefix=depth",
        "--charset=ascii",
        "--format= {p}",
    ])?;
    let graph = graph(&tree)?;
    let metadata: Value = serde_json::from_str(&cargo(&[
        "metadata",
        "--locked",
        "--all-features",
        "--format-version=1",
    ])?)?;
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).context("Cargo.lock")?;
    let mut checksums = checksums(&lock);
    let packages = metadata["packages"].as_array().context("cargo metadata: no packages")?;
    let mut crates = Vec::new();
    for package in packages {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let key = (text("name"), text("version"));
        let Some(uses) = graph.get(&key) else { continue };
        let license = text("license").replace('/', " OR ");
        let manifest = PathBuf::from(text("manifest_path"));
        crates.push(Crate {
            license,
            description: text("description").split_whitespace().collect::<Vec<_>>().join(" "),
            repository: text("repository"),
            folder: manifest.parent().context("a manifest's folder")?.to_owned(),
            checksum: checksums.remove(&key),
            uses: uses.clone(),
            name: key.0,
            version: key.1,
        });
    }
    ensure!(crates.len() == graph.len(), "cargo tree and cargo metadata know different crates");
    crates.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(crates)
}

fn cargo(args: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).current_dir(root()).args(args).output();
    let output = output.context("cannot run cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo {}: {}", args.join(" "), said.trim());
    Ok(String::from_utf8(output.stdout)?)
}

/// What each crate uses, from lines such as `2 serde v1.0.0`; what a crate uses follows it the first time it is named.
fn graph(tree: &str) -> Result<BTreeMap<Key, BTreeSet<Key>>> {
    let mut graph = BTreeMap::<Key, BTreeSet<Key>>::new();
    let mut path: Vec<Key> = Vec::new();
    for line in tree.lines().filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let mut word = || words.next().with_context(|| format!("cargo tree: {line:?}"));
        let depth: usize = word()?.parse().with_context(|| format!("cargo tree: {line:?}"))?;
        let key = (word()?.to_owned(), word()?.trim_start_matches('v').to_owned());
        path.truncate(depth);
        if let Some(user) = path.last() {
            graph.entry(user.clone()).or_default().insert(key.clone());
        }
        graph.entry(key.clone()).or_default();
        path.push(key);
    }
    Ok(graph)
}

fn checksums(lock: &str) -> BTreeMap<Key, String> {
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.map(|quoted| quoted.trim_matches('"').to_owned())
    };
    let package = |block| {
        Some(((value(block, "name")?, value(block, "version")?), value(block, "checksum")?))
    };
    lock.split("[[package]]").filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        (name.to_owned(), "1.0.0".to_owned())
    }

    #[test]
    fn a_tree_is_read_as_a_graph() {
        let tree = "0 photon v1.0.0 (/photon)\n1 serde v1.0.0\n2 core v1.0.0\n1 json v1.0.0\n\
                    2 core v1.0.0\n2 serde v1.0.0 (*)\n";
        let graph = graph(tree).unwrap();
        assert_eq!(graph[&key("photon")], [key("json"), key("serde")].into());
        assert_eq!(graph[&key("json")], [key("core"), key("serde")].into());
        assert_eq!(graph[&key("serde")], [key("core")].into());
        assert!(graph[&key("core")].is_empty());
    }

    #[test]
    fn checksums_are_found_by_name_and_version() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\
                    checksum = \"ff\"\n\n[[package]]\nname = \"ours\"\nversion = \"1.0.0\"\n";
        assert_eq!(checksums(lock), [(key("a"), "ff".to_owned())].into());
    }
}
