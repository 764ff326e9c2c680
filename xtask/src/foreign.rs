//! Has what only other systems compile checked on Linux, by clippy: photon-metal, its driver included, for macOS; `photon`
//! and all it is made of for Windows.
//!
//! What is checked is types and lints: nothing is linked, and nothing runs. The standard library for the other system comes
//! from rustup. Where that cannot be had it is compiled from source, which rustup does not carry for a stable compiler;
//! Debian's `rustc-web` comes with it: its packages are unpacked below `target`, nothing is installed. Where neither can be
//! had the check says so, and that nothing was checked.
use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{dist::tools, root};

/// What is checked for a system.
struct Check {
    name: &'static str,
    triple: &'static str,
    packages: &'static [&'static str],
    features: &'static str,
}

const MACOS: Check = Check {
    name: "check-macos",
    triple: "aarch64-apple-darwin",
    packages: &["photon-metal"],
    features: "",
};

const WINDOWS: Check = Check {
    name: "check-windows",
    triple: "x86_64-pc-windows-msvc",
    packages: &["photon-cli", "xtask"],
    features: "photon-cli/cuda,photon-cli/grpc,photon-cli/kv-events",
};

/// Debian's packages.
const PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev", "rust-web-src", "rust-web-clippy"];
/// What the compiler's packages need to run, by how the names begin: they carry versions.
const LIBRARIES: &[&str] = &["libstd-rust-web-", "libllvm"];

/// Two crates have C and assembly in them, which nobody here compiles for Windows: these tools write what a compiler, an
/// assembler and an archiver would, with nothing in it.
const TOOLS: &[&str] = &["cl.exe", "ml64.exe", "lib.exe"];
const TOOL: &str = "\
#!/bin/sh
next=
for word; do
  if [ -n \"$next\" ]; then : > \"$word\"; next=; continue; fi
  case $word in
    -o) next=1 ;;
    [-/]Fo*) : > \"${word#?Fo}\" ;;
    [-/]out:* | [-/]OUT:*) : > \"${word#*:}\" ;;
  esac
done
";

pub(crate) fn macos() -> Result<()> {
    check(&MACOS)
}

pub(crate) fn windows() -> Result<()> {
    check(&WINDOWS)
}

fn check(check: &Check) -> Result<()> {
    let Check { name, triple, packages, features } = check;
    let mut command = match clippy(triple) {
        Ok(command) => command,
        Err(why) => {
            println!("{name}: NOT CHECKED: {why:#}");
            return Ok(());
        }
    };
    let tools = tools_below(&root().join("target/foreign/tools"))?;
    let variable = |name: &str| format!("{name}_{}", triple.replace('-', "_"));
    command.current_dir(root()).env("PATH", tools);
    command.env(variable("CC"), TOOLS[0]).env(variable("AR"), TOOLS[2]);
    command.args(["--target", triple]);
    if !features.is_empty() {
        command.args(["--features", features]);
    }
    let packages_flags = packages.iter().flat_map(|package| ["-p", *package]);
    let status = command.args(packages_flags).args(["--", "-D", "warnings"]).status();
    let what = packages.join(", ");
    ensure!(status.context("cannot run clippy")?.success(), "{what} do not pass for {triple}");
    println!("{name}: types and lints of {what} are right for {triple}");
    Ok(())
}

/// `PATH` with tools that do nothing before all others.
fn tools_below(folder: &Path) -> Result<std::ffi::OsString> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for name in TOOLS {
        let path = folder.join(name);
        fs::write(&path, TOOL).with_context(|| path.display().to_string())?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
    }
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths([folder.to_owned()].into_iter().chain(env::split_paths(&path)))?)
}

/// Clippy with a standard library for a target: this compiler's, or another compiler's.
fn clippy(triple: &str) -> Result<Command> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let folder = root().join("target/foreign/compiler");
    let is_unpacked = folder.join("unpacked").exists();
    if tools::has_standard_library(triple)
        || (!is_unpacked && tools::standard_library(triple).is_ok())
    {
        let mut command = Command::new(cargo);
        command.arg("clippy");
        return Ok(command);
    }
    let compiler = compiler(&folder)?;
    let mut command = Command::new(compiler.join("usr/bin/cargo-clippy"));
    command
        .args(["clippy", "-Zbuild-std=std,panic_abort", "--target-dir", "target/foreign"])
        .env("CARGO", cargo)
        .env("RUSTC", compiler.join("usr/bin/rustc"))
        .env("LD_LIBRARY_PATH", compiler.join("usr/lib/x86_64-linux-gnu"))
        // A stable compiler that is asked for `-Z` options.
        .env("RUSTC_BOOTSTRAP", "1");
    Ok(command)
}

/// Debian's compiler, unpacked to a folder.
fn compiler(folder: &Path) -> Result<PathBuf> {
    let done = folder.join("unpacked");
    if done.exists() {
        return Ok(folder.to_owned());
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("the compiler's packages are for Linux on x86-64");
    }
    let packages = packages()?;
    let archives = folder.join("archives");
    fs::create_dir_all(&archives).with_context(|| archives.display().to_string())?;
    output(Command::new("apt-get").current_dir(&archives).arg("download").args(&packages))?;
    for entry in fs::read_dir(&archives)? {
        output(Command::new("dpkg").arg("-x").arg(entry?.path()).arg(folder))?;
    }
    fs::remove_dir_all(&archives)?;
    fs::write(&done, packages.into_iter().collect::<Vec<_>>().join("\n"))?;
    Ok(folder.to_owned())
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
