//! Packs what a GPU's machine needs to check Photon: programs and compiled kernels, in one compressed file, questions, and
//! a script that does it all (`gpu_run`). That machine has a driver and CUDA's libraries, and neither Rust nor a network;
//! its C library is at least as new as this machine's. Models are made there.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{cuda_check, root};

/// What a bundle may weigh.
const MAX_BYTES: u64 = 60 << 20;

#[cfg(unix)]
const RUN: &str = "\
#!/bin/sh
# Checks Photon on this machine's GPU. Stages that were done are not done again, so it may be
# stopped and started; results are in results/report.md and results/report.json.
#   ./run                 every stage, in the order of their use
#   ./run --stage NAME    a certain stage, again
set -e
here=$(cd \"$(dirname \"$0\")\" && pwd)
if [ ! -e \"$here/bin/unpacked\" ]; then
  tar -xzf \"$here/programs.tar.gz\" -C \"$here\"
  : > \"$here/bin/unpacked\"
fi
exec \"$here/bin/xtask\" gpu-run \"$@\"
";

/// Packages, what of them is built, and its name in the bundle.
const PROGRAMS: &[(&str, &[&str], &str)] = &[
    ("photon-cli", &["--bin", "photon", "--features", "cuda"], "photon"),
    ("xtask", &["--bin", "xtask"], "xtask"),
    ("photon-cuda", &["--example", "ceilings"], "ceilings"),
    ("photon-models", &["--example", "golden_checkpoint"], "golden-checkpoint"),
    ("photon-cuda", &["--test", "device"], "conformance"),
];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to write the bundle to; anything in it is removed
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let bundle = std::path::absolute(&args.bundle)?;
    ensure!(bundle != root() && !root().starts_with(&bundle), "{} is ours", bundle.display());
    if bundle.join("run").is_file() {
        fs::remove_dir_all(&bundle).with_context(|| bundle.display().to_string())?;
    } else if bundle.exists() && fs::read_dir(&bundle)?.next().is_some() {
        bail!("{} is not empty, and no bundle", bundle.display());
    }
    let bin = bundle.join("bin");
    fs::create_dir_all(&bin).with_context(|| bin.display().to_string())?;

    let tables = cuda_check::compile(&[])?
        .map_err(|why| anyhow!("a bundle needs compiled kernels: {why}"))?;
    cuda_check::copy_to(&tables, &bin.join("cuda-kernels"))?;
    for (package, what, name) in PROGRAMS {
        program(package, what, &bin.join(name))?;
    }
    tool(Command::new("tar").current_dir(&bundle).args(["-czf", "programs.tar.gz", "bin"]))?;
    fs::remove_dir_all(&bin)?;
    fs::write(bundle.join("requests.jsonl"), requests()?)?;
    script(&bundle.join("run"))?;

    let bytes = size(&bundle)?;
    println!("{}: {:.1} MiB", bundle.display(), bytes as f64 / f64::from(1 << 20));
    ensure!(bytes <= MAX_BYTES, "a bundle may have {} MiB", MAX_BYTES >> 20);
    Ok(())
}

/// Builds a program and copies it without its symbols.
fn program(package: &str, what: &[&str], to: &Path) -> Result<()> {
    let is_test = what.contains(&"--test");
    let build: &[&str] = if is_test { &["test", "--no-run"] } else { &["build"] };
    let common = ["--release", "--message-format", "json", "-p", package];
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(root())
        .args([build, &common, what].concat())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "{package} {} does not compile", what.join(" "));
    // The program itself comes last.
    let text = String::from_utf8(output.stdout)?;
    let mut messages =
        text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let built = messages.find_map(|message| message["executable"].as_str().map(str::to_owned));
    let built = built.with_context(|| format!("cargo built no program of {package}"))?;
    fs::copy(&built, to).with_context(|| built.clone())?;
    tool(Command::new("strip").arg(to))
}

fn tool(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    ensure!(status.success(), "{name} failed");
    Ok(())
}

/// Questions of every skill about pictures of both demo models, with the pictures in them.
fn requests() -> Result<String> {
    let mut pictures = Vec::new();
    for folder in ["photon/demo/expected", "assets"] {
        let folder = root().join(folder);
        let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        let paths: Vec<PathBuf> = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
        pictures
            .extend(paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "png")));
    }
    pictures.sort();
    let mut lines = String::new();
    for (i, path) in pictures.iter().enumerate() {
        let image = STANDARD.encode(fs::read(path).with_context(|| path.display().to_string())?);
        let questions = [
            json!({"skill": "query", "question": "what is in the picture?", "reasoning": false}),
            json!({"skill": "caption", "length": "normal"}),
            json!({"skill": "detect", "object": "square", "settings": {"max_objects": 6}}),
            json!({"skill": "point", "object": "circle", "settings": {"max_objects": 6}}),
        ];
        for (j, mut line) in questions.into_iter().enumerate() {
            line["id"] = json!(format!("{i}-{j}"));
            line["image"] = json!(image);
            lines += &format!("{line}\n");
        }
    }
    Ok(lines)
}

#[cfg(unix)]
fn script(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;

    fs::write(path, RUN)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(not(unix))]
fn script(path: &Path) -> Result<()> {
    bail!("a bundle is made on Linux, for Linux: {} is a shell script", path.display())
}

fn size(path: &Path) -> Result<u64> {
    let about = fs::metadata(path)?;
    if about.is_file() {
        return Ok(about.len());
    }
    let mut total = 0;
    for entry in fs::read_dir(path)? {
        total += size(&entry?.path())?;
    }
    Ok(total)
}
