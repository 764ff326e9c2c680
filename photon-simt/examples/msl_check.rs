//! Checks the address spaces of all Metal kernels with a compiler that has the same ones under other names:
//! `cargo xtask msl-check`. Passing it is no proof that Apple's compiler takes a source. Without clang it says so.
#![allow(clippy::print_stdout, reason = "a tool for the terminal")]
#![forbid(unsafe_code)]

#[path = "../src/metal_source.rs"]
#[allow(dead_code, reason = "the build's own, of which only the checked form is wanted")]
mod metal_source;
#[path = "../src/rewrite.rs"]
mod rewrite;
#[path = "../src/source.rs"]
#[allow(dead_code, reason = "likewise")]
mod source;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What must be refused, or nothing was checked.
const WRONG: &str =
    "kernel void wrong(threadgroup float* s [[threadgroup(0)]]) { device float* p = s; *p = 1; }";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("msl-check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let Some(clang) = clang() else {
        println!("not checked: clang is absent (clang or clang-14 to clang-22)");
        return Ok(());
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no workspace")?;
    let work = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/simt");
    fs::create_dir_all(&work)?;
    if check(&clang, root, &work, "wrong", WRONG)?.is_none() {
        return Err("a threadgroup pointer bound to a device pointer was not refused".into());
    }
    let mut count = 0;
    for folder in ["photon-metal/kernels", "photon-simt/kernels"] {
        let Ok(entries) = fs::read_dir(root.join(folder)) else { continue };
        let mut files: Vec<PathBuf> = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
        files.retain(|file| file.extension().is_some_and(|e| e == "metal"));
        files.sort();
        for file in files {
            let text = fs::read_to_string(&file)?;
            // The build's mark: what is declared nowhere here.
            if text.starts_with("// Not simulated:") {
                println!("not checked: {}", file.display());
                continue;
            }
            let name = file.file_stem().and_then(|s| s.to_str()).ok_or("a file without name")?;
            if let Some(message) = check(&clang, root, &work, name, &text)? {
                return Err(format!("{}:\n{message}", file.display()).into());
            }
            count += 1;
        }
    }
    println!("msl-check: {count} files, address spaces are right");
    Ok(())
}

fn clang() -> Option<String> {
    let versions = (14..=22).rev().map(|version| format!("clang-{version}"));
    let mut names = std::iter::once("clang".to_owned()).chain(versions);
    names
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success()))
}

/// What the compiler says against a source, if anything.
fn check(clang: &str, root: &Path, work: &Path, name: &str, text: &str) -> Result<Option<String>> {
    let input = work.join(format!("{name}.metal"));
    fs::write(&input, text)?;
    let mut preprocess = Command::new(clang);
    preprocess.current_dir(root).args([
        "-E",
        "-x",
        "c++",
        "-D__METAL__",
        "-DPHOTON_BFLOAT=1",
        "-DPHOTON_SIM_PREPROCESS",
    ]);
    preprocess.args(["-I", "photon-simt/shim/metal", "-I", "photon-metal/kernels"]).arg(&input);
    let output = preprocess.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let body = metal_source::checked(std::str::from_utf8(&output.stdout)?)?;
    let checked = work.join(format!("{name}.clcpp"));
    fs::write(&checked, format!("#include \"msl_check.h\"\nusing namespace metal;\n{body}\n"))?;
    let mut compile = Command::new(clang);
    compile.args(["-x", "cl", "-cl-std=CLC++2021", "-cl-no-stdinc", "-target", "spir64"]);
    compile
        .args(["-fsyntax-only", "-Wno-everything", "-I"])
        .arg(root.join("photon-simt/shim/metal"));
    let output = compile.arg(&checked).output()?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((!output.status.success()).then_some(message))
}
