//! `cargo xtask dist`: what is released, one archive for each kind of machine.
//!
//! An archive has the program, licenses of all that is in it, pages and completions that the program wrote itself, sample
//! pictures, and what it is made of. A program that has not answered out of its own archive, in an empty folder with an empty home, is
//! not released. Two runs for one commit give the same bytes. What this machine cannot make is said, with what can.
pub(crate) mod archive;
pub(crate) mod crates;
pub(crate) mod kernels;
pub(crate) mod licenses;
pub(crate) mod program;
mod proof;
mod sbom;
pub(crate) mod targets;
pub(crate) mod tools;

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::{root, wheel};
use archive::Entry;
use targets::{Kernels, TARGETS, Target};

/// Of our own crates, the one that the program is.
const CRATE: &str = "photon-cli";
/// Shells whose completions are packed, and the names that they look for.
const SHELLS: &[(&str, &str)] = &[
    ("bash", "photon.bash"),
    ("zsh", "_photon"),
    ("fish", "photon.fish"),
    ("powershell", "_photon.ps1"),
    ("elvish", "photon.elv"),
];

/// What the README and the guide ask the demo models about.
const PICTURES: &[&str] = &[
    "assets/bank.png",
    "assets/exit.png",
    "assets/four.png",
    "assets/number.png",
    "assets/shapes.png",
    "assets/ticket.png",
];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Say what would be made, where and how; make nothing
    #[arg(long)]
    plan: bool,
    /// Where archives go
    #[arg(long, value_name = "DIR", default_value = "target/archives")]
    out: PathBuf,
    /// A folder of compiled CUDA kernels, made of these sources; they are compiled without it
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// What to make, as the plan names it; without it all that this machine can
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let named = args.targets.iter().map(|name| {
        Target::named(name).with_context(|| format!("no target is called {name}; see --plan"))
    });
    let named = named.collect::<Result<Vec<_>>>()?;
    let targets = if named.is_empty() { TARGETS.iter().collect() } else { named };
    if args.plan {
        targets.iter().for_each(|target| print!("{}", plan(target)));
        return Ok(());
    }
    let out = root().join(&args.out);
    fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let mut absent = Vec::new();
    for target in targets {
        let made = match target.needs() {
            Some(needs) => Err(tools::Absent(needs.to_owned()).into()),
            None => make(target, args, &out),
        };
        match made {
            Ok(report) => println!("{report}"),
            Err(error) if error.is::<tools::Absent>() => {
                println!("{}: NOT MADE: {error}", target.triple);
                absent.push(target.triple);
            }
            Err(error) => return Err(error.context(target.triple)),
        }
    }
    fs::write(out.join("SHA256SUMS"), sums(&out)?)?;
    ensure!(
        args.targets.is_empty() || absent.is_empty(),
        "asked for and not made: {}",
        absent.join(", ")
    );
    Ok(())
}

/// What an archive is called, without its extension; its folder, too.
fn name(target: &Target) -> String {
    format!("photon-{}-{}", env!("CARGO_PKG_VERSION"), target.triple)
}

fn plan(target: &Target) -> String {
    let Target { triple, about, features, runner, .. } = target;
    let kernels = match target.kernels {
        Kernels::None => "",
        Kernels::Cuda => "; kernels of CUDA 12 and 13",
        Kernels::Metal => "; kernels of Metal",
    };
    let features = features.join(", ");
    let file = format!("{}.{}", name(target), target.extension());
    let wheel = match wheel::name(target) {
        Some(wheel) => format!("\n    {wheel}: cargo xtask wheel {triple}"),
        None => String::new(),
    };
    let here = match target.needs() {
        Some(needs) => {
            let check = if target.is_windows() { "check-windows" } else { "check-macos" };
            format!("not here: {needs}; `cargo xtask {check}` checks types and lints")
        }
        None => {
            let library = match tools::has_standard_library(triple) {
                true => "standard library is there",
                false => "standard library: rustup target add",
            };
            let with = match target.is_linux() {
                true => format!("zig for {}", target.for_zig()),
                false => "the system's linker".to_owned(),
            };
            let run = match tools::runner(target) {
                Ok(runner) if runner.is_empty() => "runs here".to_owned(),
                Ok(runner) => format!("runs under {}", runner[0]),
                Err(why) => format!("NOT MADE: {why}"),
            };
            format!("here: {with}; {library}; {run}")
        }
    };
    format!(
        "{triple}: {about}\n    {file}: features {features}{kernels}{wheel}\n    {here}\n    \
         release: .github/workflows/release.yml on {runner}\n"
    )
}

/// Makes one archive, proves that it works and says so.
fn make(target: &Target, args: &Args, out: &std::path::Path) -> Result<String> {
    let runner = tools::runner(target)?;
    let seconds = commit_seconds()?;
    let kernels = match (target.kernels, &args.kernels) {
        (Kernels::None, _) => Vec::new(),
        (Kernels::Metal, _) => kernels::compile_metal()?,
        (Kernels::Cuda, Some(folder)) => kernels::read_cuda(folder)?,
        (Kernels::Cuda, None) => kernels::compile_cuda()?,
    };
    let program = program::build(target, seconds)?;
    let glibc = program::glibc(&program);
    let program_bytes = program.len();
    let crates = crates::of(target, CRATE, target.features)?;
    let description = sbom::describe(target, CRATE, &crates, &tools::rustc()?.0, seconds)?;
    let mut files = vec![
        Entry { is_program: true, ..Entry::file(target.program(), program) },
        Entry::file("THIRD-PARTY.txt", licenses::text(&crates, &others(target)?)?),
        Entry::file("photon.cdx.json", description.clone()),
    ];
    for name in ["LICENSE", "README.md", "CHANGELOG.md"].iter().chain(PICTURES) {
        files.push(Entry::file(*name, fs::read(root().join(name)).context(*name)?));
    }
    if target.is_linux() {
        let unit = root().join("deploy/photon.service");
        files.push(Entry::file("photon.service", fs::read(&unit).context("photon.service")?));
    }
    files.extend(kernels);
    files.extend(proof::written_by(target, &runner, &files[0])?);
    let bytes = archive::pack(target.extension(), &name(target), files, seconds)?;
    let proof = proof::answers(target, &runner, &bytes)?;
    let file = format!("{}.{}", name(target), target.extension());
    fs::write(out.join(&file), &bytes)?;
    fs::write(out.join(format!("{}.cdx.json", name(target))), description)?;
    let mib = |n: usize| n as f64 / f64::from(1 << 20);
    let needs = glibc.map_or("no C library".into(), |(a, b)| format!("glibc {a}.{b}"));
    let needs = if target.is_linux() { format!(", needs {needs}") } else { String::new() };
    Ok(format!(
        "{file}: {:.1} MiB, the program {:.1} MiB{needs}; {proof}\n  sha256 {}",
        mib(bytes.len()),
        mib(program_bytes),
        hex(&Sha256::digest(&bytes))
    ))
}

/// What is in a program and is no crate: names, licenses and their texts.
pub(crate) fn others(target: &Target) -> Result<Vec<(&'static str, &'static str, String)>> {
    let read =
        |path: PathBuf| fs::read_to_string(&path).with_context(|| path.display().to_string());
    let apache = read(root().join("LICENSE"))?;
    let mut others = vec![("Rust's standard library", "MIT OR Apache-2.0", apache)];
    if target.is_static() {
        let musl = read(tools::zig()?.join("ziglang/lib/libc/musl/COPYRIGHT"))?;
        others.push(("musl", "MIT", musl));
    }
    Ok(others)
}

/// When the commit was made; `SOURCE_DATE_EPOCH` says it where there is no git.
pub(crate) fn commit_seconds() -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => seconds,
        Err(_) => {
            let git = ["log", "-1", "--format=%ct"];
            let output = Command::new("git").current_dir(root()).args(git).output();
            String::from_utf8(output.context("cannot run git; set SOURCE_DATE_EPOCH")?.stdout)?
        }
    };
    text.trim().parse().context("when was the commit made? set SOURCE_DATE_EPOCH")
}

/// The digests of a folder's files, as `sha256sum --check` reads them.
fn sums(folder: &std::path::Path) -> Result<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let name = name.to_string_lossy();
        if name.starts_with("photon-") {
            lines.push((name.to_string(), hex(&Sha256::digest(fs::read(path)?))));
        }
    }
    lines.sort();
    Ok(lines.into_iter().map(|(name, digest)| format!("{digest}  {name}\n")).collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_plan_and_a_job_in_the_workflow() {
        let workflow = root().join(".github/workflows/release.yml");
        let workflow = fs::read_to_string(workflow).unwrap();
        for target in TARGETS {
            let text = plan(target);
            assert!(text.contains(target.extension()) && text.contains("here: "), "{text}");
            let job = format!("{{ target: {}, runner: {} }}", target.triple, target.runner);
            assert!(workflow.contains(&job), "release.yml has no {job}");
        }
        assert!(Target::named("x86_64-unknown-linux-gnu").is_some());
        assert!(Target::named("sparc").is_none());
    }

    #[test]
    fn digests_are_listed_for_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("photon-b.zip", "abc"), ("photon-a.tar.gz", ""), ("other", "x")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let expected = format!("{empty}  photon-a.tar.gz\n{abc}  photon-b.zip\n");
        assert_eq!(sums(folder.path()).unwrap(), expected);
    }
}
