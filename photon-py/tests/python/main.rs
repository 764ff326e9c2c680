//! Python's tests, run by the Python of this machine with the module that cargo built.
//!
//! The module is put beside the package's sources, in a folder below `target`; pytest and what pictures come from, Pillow
//! and NumPy, are installed there once. Where there is no Python, or nothing can be installed, it says SKIPPED; with
//! `CI` set it fails. `cargo xtask wheel` runs the same tests with what is released.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]
#![allow(clippy::print_stdout, reason = "what Python said is what a test shows")]

use std::{
    env::consts::{DLL_PREFIX, DLL_SUFFIX},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// As `xtask/src/wheel.rs` has them, but for the type checker, which takes longer than all tests.
const PACKAGES: [&str; 4] = ["numpy>=2,<3", "pillow>=11,<14", "pytest>=8,<10", "tqdm>=4,<5"];

/// Where everything lies: below `target`, as this test's own program does.
fn folder() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let target = program.ancestors().find(|path| path.ends_with("target"));
    target.unwrap_or(Path::new(env!("CARGO_TARGET_TMPDIR"))).join("python")
}

/// The Python of an environment with the packages.
fn python() -> Result<PathBuf, String> {
    let folder = folder().join("venv");
    let (made, packages) = (folder.join("made"), PACKAGES.join(" "));
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if fs::read_to_string(&made).is_ok_and(|with| with == packages) {
        return Ok(python);
    }
    let _ = fs::remove_dir_all(&folder);
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(Command::new(&python).args(pip).args(PACKAGES))?;
    fs::write(made, packages).map_err(|error| error.to_string())?;
    Ok(python)
}

fn run(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|error| format!("cannot run {shown}: {error}"))?;
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    match output.status.success() {
        true => Ok(out.into_owned()),
        false => Err(format!("{shown}: {}\n{out}\n{err}", output.status)),
    }
}

/// A folder with the package: its sources, and the module under the name that Python looks for.
fn package() -> PathBuf {
    let folder = folder().join("package");
    let _ = fs::remove_dir_all(&folder);
    let package = folder.join("photon");
    fs::create_dir_all(&package).unwrap();
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/python/photon")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, package.join(path.file_name().unwrap())).unwrap();
        }
    }
    let module = format!("{DLL_PREFIX}photon_py{DLL_SUFFIX}");
    let built = std::env::current_exe().unwrap().with_file_name(module);
    let name = if cfg!(windows) { "_photon.pyd" } else { "_photon.abi3.so" };
    fs::hard_link(&built, package.join(name))
        .or_else(|_| fs::copy(&built, package.join(name)).map(drop))
        .unwrap_or_else(|error| panic!("{}: {error}", built.display()));
    folder
}

#[test]
fn what_python_does() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "the gate runs Python's tests: {why}");
            return println!("SKIPPED: {why}");
        }
    };
    let mut pytest = Command::new(python);
    pytest
        .args(["-m", "pytest", "--quiet", "-p", "no:cacheprovider", "--durations=5"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python"))
        .env("PYTHONPATH", package())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    match run(&mut pytest) {
        Ok(said) => print!("{said}"),
        Err(why) => panic!("{why}"),
    }
}
