//! `cargo xtask wheel`: Python's package, one file for each kind of machine and for every Python from 3.10 on.
//!
//! maturin builds `photon-py` as `cargo xtask dist` builds the program: with zig's linker for old C libraries on Linux, and
//! saying nothing of this machine. A wheel is good when it answers in an empty environment, with an empty home, and when
//! the tests and the type checker have passed with it.
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    dist::{
        archive::{self, Entry},
        commit_seconds, crates,
        kernels::read_cuda,
        licenses, others, program,
        targets::{Kernels, TARGETS, Target},
        tools,
    },
    root, wheels,
};

const MATURIN: &str = "maturin==1.16.0";
/// What tests need; `photon-py/tests/python/main.rs` has the same, but for the type checker.
const PACKAGES: [&str; 5] =
    ["mypy>=2.4,<3", "numpy>=2,<3", "pillow>=11,<14", "pytest>=8,<10", "tqdm>=4,<5"];
/// A question in an empty folder.
const PROGRAM: &str = "\
import sys, photon
picture = sys.stdin.buffer.read()
print(photon.vl().caption(picture, length='short')['caption'])
";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For which kind of machine, as `cargo xtask dist --plan` names it; this one by default
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// Where wheels go
    #[arg(long, value_name = "DIR", default_value = "target/wheels")]
    out: PathBuf,
    /// A folder of compiled CUDA kernels to put into it; without them they are compiled when they are first needed
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// Check the wheel that is there, build none
    #[arg(long)]
    check: bool,
    /// Measure what Python costs, too
    #[arg(long)]
    bench: bool,
    /// The Python to check with
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let triple = args.target.clone().unwrap_or_else(host);
    let target = Target::named(&triple).filter(|target| name(target).is_some());
    let target =
        target.with_context(|| format!("there is no wheel for {triple}; see dist --plan"))?;
    let out = root().join(&args.out);
    let wheel = out.join(name(target).expect("as asked for above"));
    if !args.check {
        ensure!(target.needs().is_none(), "{triple} {}", target.needs().unwrap_or_default());
        build(target, args.kernels.as_deref(), &out)?;
    }
    let bytes = fs::read(&wheel).with_context(|| wheel.display().to_string())?;
    let module = archive::unpack("zip", &bytes)?.into_iter().find(|file| is_module(&file.path));
    let module = module.context("there is no module in the wheel")?.bytes;
    program::check(&module, &program::hidden()?)?;
    let mib = |n: usize| n as f64 / f64::from(1 << 20);
    println!(
        "{}: {:.1} MiB, the module {:.1} MiB",
        wheel.display(),
        mib(bytes.len()),
        mib(module.len())
    );
    if target.triple != host() {
        println!("NOT CHECKED: it is for another machine");
        return Ok(());
    }
    let python = install(&wheel, &args.python)?;
    println!("in an empty environment it says {:?}", answer(&python)?);
    test(&python)?;
    if args.bench {
        let bench = root().join("photon-py/benches/overhead.py");
        said(Command::new(&python).arg(bench).arg("--check"))?;
    }
    Ok(())
}

/// What a wheel is called; `None` where there is none: Python's own for musl are rare, and take the others' wheels not.
pub(crate) fn name(target: &Target) -> Option<String> {
    let platform = match target.triple {
        "x86_64-unknown-linux-gnu" => "manylinux_2_28_x86_64",
        "aarch64-unknown-linux-gnu" => "manylinux_2_28_aarch64",
        "x86_64-pc-windows-msvc" => "win_amd64",
        "aarch64-apple-darwin" => "macosx_13_0_arm64",
        _ => return None,
    };
    Some(format!("photon-{}-cp310-abi3-{platform}.whl", env!("CARGO_PKG_VERSION")))
}

fn is_module(path: &str) -> bool {
    path.starts_with("photon/_photon.") && !path.ends_with(".pyi")
}

/// The target that this program runs on.
fn host() -> String {
    let is_it = |target: &&Target| {
        let os = match env::consts::OS {
            "macos" => "darwin",
            os => os,
        };
        target.processor() == env::consts::ARCH && target.triple.contains(os) && !target.is_static()
    };
    TARGETS.iter().find(is_it).map_or_else(String::new, |target| target.triple.to_owned())
}

/// Builds a wheel from a copy of the package's folder that has what else belongs into it.
fn build(target: &Target, kernels: Option<&Path>, out: &Path) -> Result<()> {
    let maturin = root().join("target/maturin");
    let program = if cfg!(windows) { "bin/maturin.exe" } else { "bin/maturin" };
    wheels::fetch(&maturin, &[MATURIN], program)?;
    tools::standard_library(target.triple)?;
    let features: &[&str] = if target.kernels == Kernels::Cuda { &["cuda"] } else { &[] };
    let folder = tempfile::tempdir()?;
    let package = root().join("photon-py");
    let project = fs::read_to_string(package.join("pyproject.toml"))?;
    let manifest = package.join("Cargo.toml");
    let here = format!("manifest-path = '{}'", manifest.display());
    let mut files = vec![
        Entry::file("pyproject.toml", project.replace("manifest-path = \"Cargo.toml\"", &here)),
        Entry::file("README.md", fs::read(package.join("README.md"))?),
        Entry::file("LICENSE", fs::read(root().join("LICENSE"))?),
    ];
    let crates = crates::of(target, "photon-py", features)?;
    files.push(Entry::file("THIRD-PARTY.txt", licenses::text(&crates, &others(target)?)?));
    let sources = package.join("python/photon");
    for entry in fs::read_dir(&sources).with_context(|| sources.display().to_string())? {
        let path = entry?.path();
        let is_source = path.extension().is_some_and(|end| end == "py" || end == "pyi");
        if is_source || path.ends_with("py.typed") {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.push(Entry::file(format!("python/photon/{name}"), fs::read(&path)?));
        }
    }
    let kernels = kernels.filter(|_| target.kernels == Kernels::Cuda);
    for kernel in kernels.map(read_cuda).transpose()?.unwrap_or_default() {
        files.push(Entry::file(format!("python/photon/{}", kernel.path), kernel.bytes));
    }
    for file in files {
        let path = folder.path().join(file.path);
        fs::create_dir_all(path.parent().context("a file's folder")?)?;
        fs::write(&path, file.bytes).with_context(|| path.display().to_string())?;
    }
    let mut command = Command::new(maturin.join(program));
    command
        .current_dir(folder.path())
        .args(["build", "--profile=dist", "--locked", "--target", target.triple])
        .arg("--target-dir")
        .arg(root().join("target"))
        .arg("--out")
        .arg(out);
    if !features.is_empty() {
        command.args(["--features", &features.join(",")]);
    }
    if target.is_linux() {
        command
            .args(["--zig", "--compatibility", "manylinux_2_28"])
            .env("PYTHONPATH", tools::zig()?);
    }
    let hidden = program::hidden()?;
    said(program::disguise(&mut command, target, &hidden, commit_seconds()?))
}

/// The Python of a new environment that has the wheel and nothing else.
fn install(wheel: &Path, python: &Path) -> Result<PathBuf> {
    let folder = root().join("target/python/wheel");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    said(Command::new(python).args(["-m", "venv"]).arg(&folder))?;
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    said(pip(&python).args(["--no-index", "--no-deps"]).arg(wheel))?;
    Ok(python)
}

fn pip(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    command
}

/// What it says of a picture, with nothing of this user's around it.
fn answer(python: &Path) -> Result<String> {
    let home = tempfile::tempdir()?;
    let picture = fs::File::open(root().join("assets/shapes.png"))?;
    let output = program::alone(&[], python, home.path())
        .args(["-c", PROGRAM])
        .stdin(picture)
        .output()
        .context("cannot run Python")?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the wheel does not answer: {why}");
    let answer = String::from_utf8(output.stdout)?.trim().to_owned();
    ensure!(answer.contains("circle"), "the wheel says {answer:?}");
    Ok(answer)
}

/// Types and tests.
fn test(python: &Path) -> Result<()> {
    let package = root().join("photon-py");
    said(pip(python).args(PACKAGES))?;
    // In a folder where the sources are not, so that the wheel is what is imported.
    let empty = tempfile::tempdir()?;
    let python = || {
        let mut command = Command::new(python);
        command.current_dir(empty.path()).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    };
    let program = package.join("tests/typed.py");
    said(python().args(["-m", "mypy", "--strict", "-p", "photon"]))?;
    said(python().args(["-m", "mypy", "--strict"]).arg(program))?;
    said(python().args(["-m", "mypy.stubtest", "photon._model", "photon._photon"]))?;
    let pytest = ["-m", "pytest", "--quiet", "-p", "no:cacheprovider", "--durations=5"];
    said(python().args(pytest).arg(package.join("tests/python")))
}

/// Runs a command that says for itself what goes wrong.
fn said(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_wheel_for_this_machine_and_for_most() {
        assert!(Target::named(&host()).is_some_and(|target| name(target).is_some()), "{}", host());
        let wheels = TARGETS.iter().filter_map(name).count();
        assert_eq!((wheels, TARGETS.len()), (4, 6));
    }

    #[test]
    fn the_module_is_told_from_what_lies_beside_it() {
        let names = ["photon/_photon.abi3.so", "photon/_photon.pyd", "photon/_photon.pyi"];
        assert_eq!(names.map(is_module), [true, true, false]);
    }
}
