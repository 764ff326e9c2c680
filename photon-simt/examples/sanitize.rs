//! Runs kept launches under clang's sanitizers: `sanitize FOLDER`, as `cargo xtask simt-sanitize` does.
//!
//! Addresses and undefined behavior on every launch; races on every launch, over blocks on two threads; and the race in
//! the kernel whose barrier was taken out, which must be found with its line. Without clang it says so, and that is all.
#![allow(clippy::print_stdout, reason = "a tool for the terminal")]
#![forbid(unsafe_code)]

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("sanitize: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let folder = PathBuf::from(env::args().nth(1).ok_or("which folder of launches?")?);
    let Some(clang) = clang() else {
        println!("not checked: clang is absent (clang++ or clang++-14 to clang++-22)");
        return Ok(());
    };
    let mut launches: Vec<PathBuf> =
        fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    launches.sort();
    let is_planted = |path: &PathBuf| path.to_string_lossy().contains('!');
    let (planted, good): (Vec<_>, Vec<_>) = launches.into_iter().partition(is_planted);
    if good.is_empty() {
        return Err(format!("{} holds no launches", folder.display()).into());
    }
    let programs = [("address", "address,undefined"), ("thread", "thread")];
    for (name, sanitizers) in programs {
        let program = build(&clang, &folder, name, sanitizers)?;
        let (passed, report) = replay(&program, &good)?;
        if !passed {
            println!("{report}");
            return Err(format!("{name}: a report on kernels that should have none").into());
        }
        println!("{name}: {} launches, no report", good.len());
    }
    let barrier = |path: &&PathBuf| path.to_string_lossy().contains("attention!barrier");
    let without_barrier: Vec<PathBuf> = planted.iter().filter(barrier).cloned().collect();
    let (passed, report) = replay(&folder.join("../replay-thread"), &without_barrier)?;
    let place = report.lines().find(|line| line.contains("attention.cu:"));
    match place {
        Some(place) if !passed && report.contains("data race") => {
            println!("thread: the missing barrier is found: {}", place.trim());
            Ok(())
        }
        _ => Err(format!("thread: the missing barrier was not found:\n{report}").into()),
    }
}

fn clang() -> Option<String> {
    let versions = (14..=22).rev().map(|version| format!("clang++-{version}"));
    let mut names = std::iter::once("clang++".to_owned()).chain(versions);
    names
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success()))
}

/// All generated sources and the replaying program, by clang, with sanitizers.
fn build(clang: &str, folder: &Path, name: &str, sanitizers: &str) -> Result<PathBuf> {
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim");
    let objects = folder.join(format!("../objects-{name}"));
    fs::create_dir_all(&objects)?;
    let mut sources: Vec<PathBuf> =
        ["simt/engine.cpp", "simt/land.cpp", "simt/warp.cpp", "sanitize/replay.cpp"]
            .iter()
            .map(|file| shim.join(file))
            .collect();
    for entry in fs::read_dir(env!("OUT_DIR"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "cpp") {
            sources.push(path);
        }
    }
    let shim_time = newest(&shim)?;
    let object = |source: &PathBuf| {
        let stem = source.file_stem().unwrap_or_default();
        let of = if source.starts_with(&shim) { "shim" } else { "kernels" };
        objects.join(format!("{of}-{}.o", stem.to_string_lossy()))
    };
    let compile = |source: &PathBuf| -> std::result::Result<(), String> {
        let object = object(source);
        let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
        if time(&object) > time(source) && time(&object) > Some(shim_time) {
            return Ok(());
        }
        let mut command = Command::new(clang);
        command.args([
            "-std=c++20",
            "-O1",
            "-g1",
            "-ffp-contract=off",
            "-fno-strict-aliasing",
            "-w",
        ]);
        // The engine's accesses are one thread's in turn, and not what is looked for.
        let engine = ["engine.cpp", "warp.cpp"]
            .iter()
            .any(|file| source.ends_with(Path::new("simt").join(file)));
        if engine && name == "thread" {
            command.arg("-DSIMT_TSAN=1");
        } else {
            command.arg(format!("-fsanitize={sanitizers}"));
            command
                .args(["-fno-sanitize=alignment,vptr,function", "-fno-sanitize-recover=undefined"]);
        }
        command.arg("-I").arg(&shim).arg("-c").arg(source).arg("-o").arg(&object);
        expect(&mut command).map_err(|e| e.to_string())
    };
    let half = sources.len() / 2;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| sources[half..].iter().try_for_each(compile));
        sources[..half].iter().try_for_each(compile)?;
        other.join().expect("compiling does not panic")
    })?;
    let linked: Vec<PathBuf> = sources.iter().map(object).collect();
    let program = folder.join(format!("../replay-{name}"));
    let mut command = Command::new(clang);
    command.arg(format!("-fsanitize={sanitizers}")).args(&linked).arg("-o").arg(&program);
    expect(command.args(["-lpthread", "-lm"]))?;
    Ok(program)
}

/// When anything in a folder last changed.
fn newest(folder: &Path) -> Result<std::time::SystemTime> {
    let mut newest = std::time::UNIX_EPOCH;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let time = if entry.file_type()?.is_dir() {
            self::newest(&entry.path())?
        } else {
            entry.metadata()?.modified()?
        };
        newest = newest.max(time);
    }
    Ok(newest)
}

fn expect(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr)).into())
}

/// Whether all launches ran without a report, and what was said.
fn replay(program: &Path, launches: &[PathBuf]) -> Result<(bool, String)> {
    let mut command = Command::new(program);
    command.args(launches);
    command.env("ASAN_OPTIONS", "detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=0");
    command.env("TSAN_OPTIONS", "halt_on_error=1:report_signal_unsafe=0:history_size=4");
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.success() && !said.contains("WARNING: ThreadSanitizer"), said))
}
