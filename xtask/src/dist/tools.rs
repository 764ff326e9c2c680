//! What programs are made with, and how those for another processor are run.
//!
//! On Linux the linker, the C compiler and the C libraries are zig's, of one version whatever machine it is: programs run
//! with old systems, and are the same bytes everywhere. Elsewhere the system's own are used.
use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::targets::Target;
use crate::{root, wheels};

const ZIG: &[&str] = &["ziglang==0.17.0", "cargo-zigbuild==0.24.0"];
/// A standard library is some 30 MB.
const PATIENCE: Duration = Duration::from_secs(300);

/// A tool that this machine does not have: nothing was tried, nothing failed.
#[derive(Debug)]
pub(crate) struct Absent(pub(crate) String);

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Absent {}

/// The folder of zig's wheels.
pub(crate) fn zig() -> Result<PathBuf> {
    let folder = root().join("target/zig");
    wheels::fetch(&folder, ZIG, "bin/cargo-zigbuild")
        .map_err(|error| Absent(format!("{error:#}")))?;
    Ok(folder)
}

/// A command that runs cargo with zig's tools.
pub(crate) fn cargo_zigbuild(zig: &Path) -> Result<Command> {
    let mut command = Command::new(zig.join("bin/cargo-zigbuild"));
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([zig.join("bin")].into_iter().chain(env::split_paths(&path)))?;
    command.env("PATH", path).env("PYTHONPATH", zig).arg("zigbuild");
    Ok(command)
}

/// The compiler's version and its folder.
pub(crate) fn rustc() -> Result<(String, PathBuf)> {
    let rustc = |what: &[&str]| {
        let output = Command::new("rustc").current_dir(root()).args(what).output();
        let output = output.context("cannot run rustc")?;
        Ok::<_, anyhow::Error>(String::from_utf8(output.stdout)?)
    };
    let version = rustc(&["--version"])?;
    let version = version.split_whitespace().nth(1).context("rustc's version")?.to_owned();
    Ok((version, PathBuf::from(rustc(&["--print", "sysroot"])?.trim_end())))
}

/// Whether the standard library for a target is there.
pub(crate) fn has_standard_library(triple: &str) -> bool {
    rustc().is_ok_and(|(_, folder)| folder.join("lib/rustlib").join(triple).join("lib").is_dir())
}

/// Has rustup fetch the standard library for a target, unless it is there.
pub(crate) fn standard_library(triple: &str) -> Result<()> {
    if has_standard_library(triple) {
        return Ok(());
    }
    let absent = |why: String| Absent(format!("no standard library for {triple}: {why}"));
    println!("adding Rust's standard library for {triple}");
    let begun = Instant::now();
    let mut rustup = Command::new("rustup")
        .current_dir(root())
        .args(["target", "add", triple])
        .env("RUSTUP_MAX_RETRIES", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| absent(format!("cannot run rustup: {error}")))?;
    while rustup.try_wait()?.is_none() {
        if begun.elapsed() > PATIENCE {
            rustup.kill()?;
            rustup.wait()?;
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    match has_standard_library(triple) {
        true => Ok(()),
        false => Err(absent(format!("`rustup target add {triple}` does not bring it")).into()),
    }
}

/// What stands before a program to run it here: nothing, or an emulator of its processor.
pub(crate) fn runner(target: &Target) -> Result<Vec<String>> {
    if target.processor() == env::consts::ARCH {
        return Ok(Vec::new());
    }
    let qemu = format!("qemu-{}", target.processor());
    let is_there = |folder: PathBuf| folder.join(&qemu).is_file();
    let path = env::var_os("PATH").unwrap_or_default();
    if !env::split_paths(&path).any(is_there) {
        return Err(Absent(format!("{qemu} is absent, which runs the program (qemu-user)")).into());
    }
    let mut runner = vec![qemu, "-cpu".to_owned(), "max".to_owned()];
    if !target.is_static() {
        let libraries = format!("/usr/{}-linux-gnu", target.processor());
        if !Path::new(&libraries).join("lib").is_dir() {
            return Err(Absent(format!(
                "{libraries} is absent, a C library to run the program with (libc6-arm64-cross)"
            ))
            .into());
        }
        runner.extend(["-L".to_owned(), libraries]);
    }
    Ok(runner)
}
