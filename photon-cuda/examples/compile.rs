//! Compiles every kernel with a given NVRTC, needing no GPU: what `cargo xtask cuda-check` and
//! `cargo xtask gpu-check` run.
//!
//! `compile NVRTC FOLDER [TARGET...]` writes `FOLDER/linear-sm_90a-cuda12-DIGEST.cubin.gz` and so on, and
//! beside each a `.tsv` of what ptxas said of its kernels: `kernel, registers, spilled bytes, shared bytes`.
//! What is there already is not compiled again. Any other word of the compiler's is an error.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool for the terminal")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use photon_cuda::{
    nvrtc::Nvrtc,
    source::{Compiled, Source, TARGETS, Target},
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [nvrtc, folder, targets @ ..] = &args[..] else {
        eprintln!("usage: compile NVRTC FOLDER [TARGET...]");
        return ExitCode::FAILURE;
    };
    match run(Path::new(nvrtc), Path::new(folder), targets) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(nvrtc: &Path, folder: &Path, targets: &[String]) -> Result<(), String> {
    let nvrtc = Nvrtc::open_file(nvrtc)?;
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let cuda_major = nvrtc.version().0;
    let wanted = |target: &Target| {
        targets.is_empty() || targets.contains(&target.name(cuda_major)[3..].to_owned())
    };
    let jobs: Vec<(Source, Target)> = TARGETS
        .iter()
        .filter(|target| wanted(target))
        .flat_map(|&target| Source::all().iter().map(move |&source| (source, target)))
        .collect();
    let (next, errors) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&(source, target)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = compile(&nvrtc, folder, source, target) {
                        errors.lock().unwrap_or_else(PoisonError::into_inner).push(error);
                    }
                }
            });
        }
    });
    let errors = errors.into_inner().unwrap_or_else(PoisonError::into_inner);
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
}

fn compile(nvrtc: &Nvrtc, folder: &Path, source: Source, target: Target) -> Result<(), String> {
    let cuda_major = nvrtc.version().0;
    let name = Compiled { source, target, cuda_major, flavor: "" }.file_name();
    let (cubin, table) = (folder.join(format!("{name}.gz")), folder.join(format!("{name}.tsv")));
    println!("{}", table.display());
    if cubin.is_file() && table.is_file() {
        return Ok(());
    }
    let output = nvrtc.compile(&source, target, &["--ptxas-options=-v"])?;
    let rows = resources(&output.log).map_err(|line| {
        let target = target.name(cuda_major);
        format!("{} for {target}: {line}\n{}", source.name, output.log)
    })?;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let packed = packed.write_all(&output.cubin).and_then(|()| packed.finish());
    write(&cubin, &packed.map_err(|error| error.to_string())?)?;
    write(&table, rows.as_bytes())
}

/// Whole or not at all.
fn write(path: &PathBuf, bytes: &[u8]) -> Result<(), String> {
    let part = path.with_extension("part");
    let done = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
    done.map_err(|error| format!("{}: {error}", path.display()))
}

/// What ptxas said as a table; the first line that says anything else, as an error.
fn resources(log: &str) -> Result<String, String> {
    let (mut rows, mut kernel, mut spilled) = (String::new(), "", 0u32);
    let number_before = |line: &str, what: &str| -> u32 {
        let before = line.split(what).next().filter(|_| line.contains(what)).unwrap_or("0");
        before.trim_end().rsplit([' ', ',']).next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    for line in log.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let known = line.starts_with("ptxas info") || line.starts_with("ptxas         .");
        if !known {
            return Err(line.into());
        }
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or(rest);
        } else if line.contains("bytes spill stores") {
            spilled = number_before(line, " bytes spill stores")
                + number_before(line, " bytes spill loads");
        } else if line.contains(" registers") && line.contains("Used ") {
            let (registers, shared) =
                (number_before(line, " registers"), number_before(line, " bytes smem"));
            rows += &format!("{kernel}\t{registers}\t{spilled}\t{shared}\n");
        }
    }
    Ok(rows)
}
