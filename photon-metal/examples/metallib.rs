//! Compiles every kernel with Apple's compiler, on a Mac that has Xcode: what `cargo xtask dist` puts beside the program, which
//! then need not compile them at every start.
//!
//! `metallib FOLDER` writes `FOLDER/rows-metal3.1-DIGEST.metallib` and so on. What only a newer compiler takes is left out, and
//! said: the program compiles it where it runs, or does without.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool for the terminal")]

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use photon_metal::source::Source;

fn main() -> ExitCode {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder] = &args[..] else {
        eprintln!("usage: metallib FOLDER");
        return ExitCode::FAILURE;
    };
    match run(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(folder: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    for source in Source::all() {
        let forms: &[bool] = if source.needs_tensor_ops() { &[true] } else { &[false, true] };
        for &has_bfloat in forms {
            match compile(source, has_bfloat, folder) {
                Err(why) if source.needs_tensor_ops() => {
                    println!("left out: {}: {why}", source.name);
                }
                done => done?,
            }
        }
    }
    Ok(())
}

fn compile(source: &Source, has_bfloat: bool, folder: &Path) -> Result<(), Box<dyn Error>> {
    let library = folder.join(source.library_name(has_bfloat));
    let text = library.with_extension("metal");
    fs::write(&text, source.compiled(has_bfloat))?;
    let language = source.language(has_bfloat);
    // The oldest macOS that knows the language.
    let oldest = match language {
        "metal4.0" => "26.0",
        "metal3.1" => "14.0",
        _ => "13.0",
    };
    let output = Command::new("xcrun")
        .args(["-sdk", "macosx", "metal", "-fno-fast-math", "-Wall"])
        .args([format!("-std={language}"), format!("-mmacosx-version-min={oldest}")])
        .arg(&text)
        .arg("-o")
        .arg(&library)
        .output()
        .map_err(|error| format!("cannot run xcrun, which is part of Xcode: {error}"))?;
    fs::remove_file(&text)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().into()),
    }
}
