//! Has what only macOS compiles checked on Linux: photon-metal, its driver included, by clippy.
//!
//! The standard library for macOS is compiled from source, which rustup does not carry for a stable compiler;
//! Debian's `rustc-web` comes with it. Its packages are unpacked below `target`; nothing is installed. What is
//! checked is types and lints: nothing is linked, and nothing runs. Where the packages cannot be had the check
//! says so, and that nothing was checked.
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::root;

const TARGET: &str = "aarch64-apple-darwin";
const PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev", "rust-web-src", "rust-web-clippy"];
/// What the compiler's packages need to run, by how the names begin: they carry versions.
const LIBRARIES: &[&str] = &["libstd-rust-web-", "libllvm"];

pub(crate) fn run() -> Result<()> {
    let compiler = match compiler() {
        Ok(compiler) => compiler,
        Err(why) => {
            println!("check-macos: NOT CHECKED: {why:#}");
            return Ok(());
        }
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(compiler.join("usr/bin/cargo-clippy"))
        .current_dir(root())
        .args(["clippy", "-Zbuild-std=std,panic_abort", "--target", TARGET])
        .args(["--target-dir", "target/check-macos", "-p", "photon-metal", "--", "-D", "warnings"])
        .env("CARGO", cargo)
        .env("RUSTC", compiler.join("usr/bin/rustc"))
        .env("LD_LIBRARY_PATH", compiler.join("usr/lib/x86_64-linux-gnu"))
        // A stable compiler that is asked for `-Z` options.
        .env("RUSTC_BOOTSTRAP", "1")
        .status()
        .context("cannot run cargo-clippy")?;
    ensure!(status.success(), "photon-metal does not pass for {TARGET}");
    println!("check-macos: types and lints of photon-metal are right for {TARGET}");
    Ok(())
}

/// The folder of the unpacked compiler.
fn compiler() -> Result<PathBuf> {
    let folder = root().join("target/check-macos/compiler");
    let done = folder.join("unpacked");
    if done.exists() {
        return Ok(folder);
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("the compiler's packages are for Linux on x86-64");
    }
    let packages = packages()?;
    let archives = folder.join("archives");
    std::fs::create_dir_all(&archives).with_context(|| archives.display().to_string())?;
    output(Command::new("apt-get").current_dir(&archives).arg("download").args(&packages))?;
    for entry in std::fs::read_dir(&archives)? {
        output(Command::new("dpkg").arg("-x").arg(entry?.path()).arg(&folder))?;
    }
    std::fs::remove_dir_all(&archives)?;
    std::fs::write(&done, packages.into_iter().collect::<Vec<_>>().join("\n"))?;
    Ok(folder)
}

/// Names of the packages that make up the compiler.
fn packages() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut wanted: Vec<String> = PACKAGES.iter().map(|&name| name.to_owned()).collect();
    while let Some(name) = wanted.pop() {
        let needs = output(Command::new("apt-cache").args(["depends", &name]))?;
        let needs = needs.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let ours = needs.filter(|need| LIBRARIES.iter().any(|prefix| need.starts_with(prefix)));
        found.insert(name);
        wanted.extend(ours.filter(|need| !found.contains(*need)).map(str::to_owned));
    }
    Ok(found)
}

fn output(command: &mut Command) -> Result<String> {
    let name = Path::new(command.get_program()).display().to_string();
    let output = command.output().with_context(|| format!("{name} is absent"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
