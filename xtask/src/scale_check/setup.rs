//! What is run: Photon's program, and Python with the packages of `scale/requirements.txt`.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::Args;
use crate::peers::setup::logged;

#[derive(Debug)]
pub(super) struct Found {
    pub(super) photon: PathBuf,
    python: PathBuf,
    /// `scale/`.
    pub(super) recipes: PathBuf,
    /// Where logs and results are.
    pub(super) folder: PathBuf,
    /// Home and session folder of what is run, with a short name: Ray's sockets lie in it.
    home: TempDir,
}

impl Found {
    /// A program of Python's packages, or one of `scale/`, which is not to tell anybody that it runs.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = match program.strip_suffix(".py") {
            None => Command::new(self.python.with_file_name(program)),
            Some(_) => {
                let mut python = Command::new(&self.python);
                python.arg(self.recipes.join(program));
                python
            }
        };
        command
            .envs([("RAY_USAGE_STATS_ENABLED", "0"), ("DAFT_ANALYTICS_ENABLED", "0")])
            .envs([("PYTHONDONTWRITEBYTECODE", "1"), ("NO_PROXY", "127.0.0.1")])
            .env("HOME", self.home.path())
            .env("RAY_TMPDIR", self.home.path());
        command
    }
}

pub(super) fn prepare(args: &Args, folder: &Path) -> Result<Found> {
    let photon = match &args.photon {
        Some(photon) => std::path::absolute(photon)?,
        None => {
            crate::cargo(&["build", "--release", "-p", "photon-cli"])?;
            crate::root().join("target/release/photon")
        }
    };
    let recipes = crate::root().join("scale");
    let venv = args.venv.clone().unwrap_or_else(|| folder.join("venv"));
    let (python, log) = (venv.join("bin/python"), folder.join("install.log"));
    if !python.is_file() {
        logged(Command::new("python3").args(["-m", "venv"]).arg(&venv), &log)?;
    }
    let wanted = fs::read_to_string(recipes.join("requirements.txt"))?;
    let made = venv.join("requirements.txt");
    if fs::read_to_string(&made).ok().as_ref() != Some(&wanted) {
        eprintln!("installing SMG, Ray and Daft with pip (1 GB)");
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check", "-r"]);
        logged(pip.arg(recipes.join("requirements.txt")), &log)?;
        fs::write(&made, wanted)?;
    }
    let home = tempfile::Builder::new().prefix("photon").tempdir().context("a folder for homes")?;
    Ok(Found { photon, python, recipes, folder: folder.to_owned(), home })
}
