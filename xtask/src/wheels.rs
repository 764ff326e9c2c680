//! Tools out of PyPI's wheels, in folders below `target`: build tools, which we may use and not pass on.
use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::root;

/// Downloads packages, given as `NAME==VERSION`, into a folder; `path` in it says whether they are there.
pub(crate) fn fetch(folder: &Path, packages: &[&str], path: &str) -> Result<()> {
    if folder.join(path).is_file() {
        return Ok(());
    }
    let names = packages.join(" ");
    println!("downloading {names}");
    let output = Command::new("python3")
        .current_dir(root())
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"])
        .args(["--only-binary", ":all:", "--target"])
        .arg(folder)
        .args(packages)
        .output()
        .with_context(|| format!("cannot run python3 -m pip, which downloads {names}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cannot download {names}: {}", said.trim());
    ensure!(folder.join(path).is_file(), "{names} has no {path}");
    Ok(())
}
