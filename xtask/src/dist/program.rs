//! Builds a program so that nothing in it says where: paths are those of a machine that is not, times those of the commit.
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{targets::Target, tools};
use crate::root;

/// Builds `photon` for a target with the profile `dist`.
pub(crate) fn build(target: &Target, seconds: u64) -> Result<Vec<u8>> {
    tools::standard_library(target.triple)?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Names of folders with crates in them are known only when they are there.
    let fetch = ["fetch", "--quiet", "--locked", "--target", target.triple];
    let status = Command::new(&cargo).current_dir(root()).args(fetch).status()?;
    ensure!(status.success(), "cargo fetch failed");
    let mut command = match target.is_linux() {
        true => tools::cargo_zigbuild(&tools::zig()?)?,
        false => {
            let mut command = Command::new(cargo);
            command.arg("build");
            command
        }
    };
    let triple = if target.is_linux() { target.for_zig() } else { target.triple.to_owned() };
    let hidden = hidden()?;
    let output = disguise(&mut command, target, &hidden, seconds)
        .current_dir(root())
        .args(["--profile=dist", "--locked", "--package=photon-cli", "--bin=photon"])
        .args(["--target", &triple, "--features", &target.features.join(",")])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "photon does not build for {triple}");
    let text = String::from_utf8(output.stdout)?;
    let mut messages =
        text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let path = messages.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    let path = path.context("cargo built no program")?;
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    check(&bytes, &hidden).with_context(|| path.display().to_string())?;
    Ok(bytes)
}

/// Has what a command compiles say nothing of this machine.
pub(crate) fn disguise<'a>(
    command: &'a mut Command,
    target: &Target,
    hidden: &[(PathBuf, String)],
    seconds: u64,
) -> &'a mut Command {
    command
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(target, hidden).join("\x1f"))
        .env("CARGO_INCREMENTAL", "0")
        .env("CFLAGS", c_flags(target, hidden).join(" "))
        .env("CC_SHELL_ESCAPED_FLAGS", "1")
        .env("SOURCE_DATE_EPOCH", seconds.to_string())
        .env("ZERO_AR_DATE", "1")
        .env("MACOSX_DEPLOYMENT_TARGET", "13.0")
}

/// That a program says nothing of this machine.
pub(crate) fn check(bytes: &[u8], hidden: &[(PathBuf, String)]) -> Result<()> {
    let told = hidden.iter().filter(|(path, _)| contains(bytes, path.to_string_lossy().as_bytes()));
    let told: Vec<String> = told.map(|(path, _)| path.display().to_string()).collect();
    ensure!(told.is_empty(), "it tells where it was built: {}", told.join(", "));
    Ok(())
}

/// Folders of this machine, and what the program says instead of them.
pub(crate) fn hidden() -> Result<Vec<(PathBuf, String)>> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo"))).context("no home folder")?;
    let mut folders = vec![(root().to_owned(), "/photon".to_owned())];
    if let Some(target) = env::var_os("CARGO_TARGET_DIR") {
        folders.push((root().join(target), "/photon/target".to_owned()));
    }
    folders.push((home.clone(), "/cargo".to_owned()));
    // Their names depend on where crates are fetched from.
    let sources = home.join("registry/src");
    for entry in fs::read_dir(&sources).with_context(|| sources.display().to_string())? {
        folders.push((entry?.path(), "/crates".to_owned()));
    }
    let (version, compiler) = tools::rustc()?;
    folders.push((compiler.join("lib/rustlib/src/rust"), format!("/rustc/{version}")));
    Ok(folders)
}

/// Of several that fit, compilers take what comes last.
fn rust_flags(target: &Target, hidden: &[(PathBuf, String)]) -> Vec<String> {
    let remap =
        |(from, to): &(PathBuf, String)| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags: Vec<String> = hidden.iter().map(remap).collect();
    if target.is_windows() {
        // No Visual C++ to install first; no time in the program.
        flags.extend(["-Ctarget-feature=+crt-static", "-Clink-arg=/Brepro"].map(str::to_owned));
    }
    flags
}

/// Quoted as for a shell: folders have spaces.
fn c_flags(target: &Target, hidden: &[(PathBuf, String)]) -> Vec<String> {
    if target.is_windows() {
        return Vec::new();
    }
    let quoted = |path: &Path| path.display().to_string().replace('\'', r"'\''");
    let map = |(from, to): &(PathBuf, String)| format!("'-ffile-prefix-map={}={to}'", quoted(from));
    hidden.iter().map(map).collect()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    let Some((&first, rest)) = part.split_first() else { return false };
    let mut from = bytes;
    while let Some(at) = from.iter().position(|&byte| byte == first) {
        from = &from[at + 1..];
        if from.starts_with(rest) {
            return true;
        }
    }
    false
}

/// The newest version of glibc's functions that a program uses; `None` if it is static.
pub(crate) fn glibc(bytes: &[u8]) -> Option<(u32, u32)> {
    let mark = b"GLIBC_2.";
    let places = bytes.windows(mark.len()).enumerate().filter(|(_, window)| window == mark);
    let minor = |(at, _): (usize, &[u8])| {
        let digits = bytes[at + mark.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(None, |n: Option<u32>, &d| Some(n.unwrap_or(0) * 10 + u32::from(d - b'0')))
    };
    places.filter_map(minor).max().map(|minor| (2, minor))
}

/// Runs a program with nothing of this user's: not its home, its settings nor its tools.
pub(crate) fn alone(runner: &[String], program: &Path, home: &Path) -> Command {
    let mut words = runner.iter().map(Into::into).chain([program.as_os_str().to_owned()]);
    let mut command = Command::new(words.next().expect("the program, at least"));
    command.args(words).env_clear().env("HOME", home).current_dir(home);
    // An emulator is found with it; so are the libraries of Windows.
    for name in ["PATH", "SystemRoot"] {
        if let Some(value) = env::var_os(name).filter(|_| cfg!(windows) || !runner.is_empty()) {
            command.env(name, value);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_a_program_is_found() {
        assert!(contains(b"\x00panicked at /home/me/photon/src\x00", b"/home/me/photon"));
        assert!(!contains(b"\x00panicked at /photon/src\x00/home/m", b"/home/me/photon"));
    }

    #[test]
    fn the_newest_symbol_says_which_c_library_is_needed() {
        assert_eq!(glibc(b"\0GLIBC_2.2.5\0GLIBC_2.17\0GLIBC_2.9\0GLIBC_PRIVATE"), Some((2, 17)));
        assert_eq!(glibc(b"static"), None);
    }
}
