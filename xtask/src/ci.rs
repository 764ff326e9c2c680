//! Everything a change must pass, in the order that fails soonest.
use std::time::Instant;

use anyhow::Result;

use crate::{arm, cargo, cuda_check, foreign, root, simt, tidy};

pub(crate) fn run() -> Result<()> {
    std::env::set_current_dir(root())?;
    step("format", || cargo(&["fmt", "--all", "--", "--check"]))?;
    step("tidy", || tidy::run(root()))?;
    step("tests", || cargo(&["test", "--workspace", "--all-features", "--no-fail-fast"]))?;
    step("CUDA kernels", || cuda_check::run(&cuda_check::Args::gate()))?;
    step("Metal kernels", simt::msl_check)?;
    step("Arm", || arm::run(&arm::Args::gate()))?;
    step("macOS", foreign::macos)?;
    step("clippy", || {
        let all = ["--workspace", "--all-targets", "--all-features"];
        cargo(&[&["clippy"][..], &all, &["--", "-D", "warnings"]].concat())
    })
}

fn step(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    eprintln!("== {name}");
    run()?;
    eprintln!("== {name}: {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}
