//! Kernels, run on the processor, under sanitizers; Metal's kernels under a compiler that knows address spaces.
use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{cargo, root};

/// Tests of the simulator whose launches are right, or wrong on purpose; not those that fault.
const RECORDED: &[&str] = &["planted::", "warp::", "matrices::", "numbers::", "memory::"];

/// Keeps the launches of tests and runs them again in programs that clang's sanitizers watch.
pub(crate) fn sanitize() -> Result<()> {
    let folder = root().join("target/simt/launches");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let cargo_name = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let own = [&["test", "-p", "photon-simt", "--test", "cuda", "--"][..], RECORDED].concat();
    for args in [&own[..], &["test", "-p", "photon-cuda"]] {
        let mut command = std::process::Command::new(&cargo_name);
        command.current_dir(root()).args(args).env("PHOTON_SIMT_RECORD", &folder);
        let status = command.status().context("cannot run cargo")?;
        ensure!(status.success(), "cargo {} failed", args.join(" "));
    }
    let folder = folder.to_str().context("the folder's name is not UTF-8")?;
    cargo(&["run", "-q", "-p", "photon-simt", "--example", "sanitize", "--", folder])
}

/// Has clang check the address spaces of Metal's kernels.
pub(crate) fn msl_check() -> Result<()> {
    cargo(&["run", "-q", "-p", "photon-simt", "--example", "msl_check"])
}
