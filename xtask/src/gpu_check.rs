//! Packs what a GPU's machine needs to check Photon: programs, compiled kernels, small models and
//! questions, and a script that does it all (`gpu_run`). That machine has a driver and CUDA's libraries, and
//! neither Rust nor a network; its C library is at least as new as this machine's.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{cargo, cuda_check, golden_checkpoint, root};

/// What a bundle may weigh.
const MAX_BYTES: u64 = 60 << 20;

const RUN: &str = "\
#!/bin/sh
# Checks Photon on this machine's GPU. Stages that were done are not done again, so it may be
# stopped and started; results are in results/report.md and results/report.json.
#   ./run                 every stage, in the order of their use
#   ./run --stage NAME    a certain stage, again
exec \"$(dirname \"$0\")/bin/xtask\" gpu-run \"$@\"
";

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
    programs(&bin)?;
    models(&bundle.join("models"))?;
    fs::write(bundle.join("requests.jsonl"), requests()?)?;
    script(&bundle.join("run"))?;

    let bytes = size(&bundle)?;
    println!("{}: {:.1} MiB", bundle.display(), bytes as f64 / f64::from(1 << 20));
    ensure!(bytes <= MAX_BYTES, "a bundle may have {} MiB", MAX_BYTES >> 20);
    Ok(())
}

/// Builds the programs and copies them without their symbols.
fn programs(bin: &Path) -> Result<()> {
    cargo(&["build", "--release", "-p", "photon-cli", "--features", "cuda"])?;
    cargo(&["build", "--release", "-p", "xtask"])?;
    cargo(&["build", "--release", "-p", "photon-cuda", "--example", "ceilings"])?;
    let release = target_folder()?.join("release");
    let conformance = test_binary()?;
    let programs = [
        (release.join("photon"), "photon"),
        (release.join("xtask"), "xtask"),
        (release.join("examples/ceilings"), "ceilings"),
        (conformance, "conformance"),
    ];
    for (from, name) in programs {
        let to = bin.join(name);
        fs::copy(&from, &to).with_context(|| from.display().to_string())?;
        let stripped = Command::new("strip").arg(&to).status().context("cannot run strip")?;
        ensure!(stripped.success(), "strip {} failed", to.display());
    }
    Ok(())
}

/// Runs cargo and reads the JSON objects it prints.
fn cargo_json(args: &[&str]) -> Result<Vec<Value>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(root())
        .args(args)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo {} failed", args.join(" "));
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn target_folder() -> Result<PathBuf> {
    let metadata = cargo_json(&["metadata", "--no-deps", "--format-version", "1"])?;
    let folder = metadata.first().and_then(|metadata| metadata["target_directory"].as_str());
    Ok(folder.context("cargo metadata: no target folder")?.into())
}

/// Builds the suite for real devices, and says where it is.
fn test_binary() -> Result<PathBuf> {
    let build = [
        "test",
        "--release",
        "--no-run",
        "--message-format",
        "json",
        "-p",
        "photon-cuda",
        "--test",
    ];
    let messages = cargo_json(&[&build[..], &["device"]].concat())?;
    let is_it = |message: &&Value| message["target"]["name"] == "device";
    let path = messages.iter().filter(is_it).find_map(|message| message["executable"].as_str());
    Ok(path.context("cargo built no test")?.into())
}

/// The tiny models whose outputs PyTorch recorded; the demo models are in the program.
fn models(folder: &Path) -> Result<()> {
    for family in ["moondream2", "moondream3"] {
        golden_checkpoint(&folder.join(family), family)?;
    }
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
