//! The programs that are compared: Photon's is built, Python's packages are installed from PyPI, once.
//!
//! Nothing is installed outside of the environment's folder, and what can be imported there is not installed again, so
//! one that somebody has can be named.
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{CpuArgs, LeftOut, Rival, Terms};

/// What the engines need.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) photon: PathBuf,
    /// The dimensions of the synthetic model, as `--synthetic` takes them.
    pub(super) dimensions: String,
    /// Where models and logs are.
    pub(super) folder: PathBuf,
    /// The Python that has PyTorch.
    pub(super) pytorch: Option<PathBuf>,
    /// The Python that has llama-cpp-python.
    pub(super) llama: Option<PathBuf>,
}

/// A package of Python.
struct Package {
    rival: Rival,
    name: &'static str,
    imports: &'static str,
    packages: &'static [&'static str],
    /// Said before it is installed.
    cost: &'static str,
}

const PYTORCH: Package = Package {
    rival: Rival::Pytorch,
    name: "PyTorch",
    imports: "import torch, numpy",
    packages: &["torch", "numpy"],
    cost: "some 5 GB on Linux, whose package has CUDA in it",
};

const LLAMA: Package = Package {
    rival: Rival::Llama,
    name: "llama.cpp",
    imports: "import llama_cpp, gguf",
    packages: &["llama-cpp-python", "gguf"],
    cost: "it is compiled for this processor, which takes 10 minutes or more",
};

pub(super) fn prepare(
    args: &CpuArgs,
    terms: &Terms,
    folder: &Path,
    left_out: &mut Vec<LeftOut>,
) -> Result<Found> {
    let photon = match &args.photon {
        Some(photon) => photon.clone(),
        None => {
            crate::cargo(&["build", "--release", "-p", "photon-cli"])?;
            crate::root().join("target/release/photon")
        }
    };
    let dimensions = match args.quick {
        false => "moondream2".into(),
        true => {
            let folder = folder.join("quick");
            fs::create_dir_all(&folder)?;
            let (vision, text) = (terms.vision_layers, terms.text_layers);
            let config = json!({"vision": {"enc_n_layers": vision}, "text": {"n_layers": text}});
            fs::write(folder.join("config.json"), json!({"config": config}).to_string())?;
            folder.to_str().context("the folder's name is not UTF-8")?.to_owned()
        }
    };
    let venv = args.venv.clone().unwrap_or_else(|| folder.join("venv"));
    let mut python = |package: &Package| {
        if args.only.is_some_and(|only| only != package.rival) {
            return None;
        }
        let python = install(&venv, package, folder);
        python.map_err(|error| left_out.push(LeftOut::new(package.name, &error))).ok()
    };
    let (pytorch, llama) = (python(&PYTORCH), python(&LLAMA));
    if pytorch.is_none() && llama.is_none() {
        bail!("there is no rival to measure");
    }
    Ok(Found { photon, dimensions, folder: folder.to_owned(), pytorch, llama })
}

/// The Python of an environment that has the package.
fn install(venv: &Path, package: &Package, folder: &Path) -> Result<PathBuf> {
    let folders = ["bin/python", "Scripts/python.exe"].map(|name| venv.join(name));
    let existing = || folders.iter().find(|python| python.is_file()).cloned();
    let log = folder.join("install.log");
    if existing().is_none() {
        let mut command = Command::new("python3");
        logged(command.args(["-m", "venv"]).arg(venv), &log)?;
    }
    let python = existing().with_context(|| format!("there is no Python in {}", venv.display()))?;
    let imports = |log| logged(Command::new(&python).args(["-c", package.imports]), log);
    if imports(&log).is_ok() {
        return Ok(python);
    }
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    if package.rival == Rival::Llama && Command::new(&compiler).arg("--version").output().is_err() {
        bail!("there is no C++ compiler {compiler} (install one, or name it in CXX)");
    }
    eprintln!("installing {} with pip ({})", package.name, package.cost);
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check"]);
    // Compiled here, with all that this processor can do.
    pip.args(["--no-binary", "llama-cpp-python"]).args(package.packages);
    let flags = std::env::var("CMAKE_ARGS").unwrap_or_default();
    pip.env("CMAKE_ARGS", format!("{flags} -DGGML_NATIVE=ON"));
    logged(&mut pip, &log)?;
    imports(&log)?;
    Ok(python)
}

/// Runs a command whose output goes to a file; the last line of it is what an error says.
pub(crate) fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::create(log).with_context(|| log.display().to_string())?;
    command.stdout(file.try_clone()?).stderr(file);
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        let said = fs::read_to_string(log).unwrap_or_default();
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        bail!("{program} fails ({status}): {last} (all of it is in {})", log.display());
    }
    Ok(())
}
