//! Compiles every CUDA kernel for every architecture, with the compilers of CUDA 12 and 13, without a GPU.
//!
//! NVRTC comes from PyPI's wheels, into a folder under `target`: build tools, which we may use and not pass
//! on. A warning is an error. What ptxas says of registers, spills and shared memory is compared with
//! `photon-cuda/kernels/resources.tsv`: more than there fails, and so does a spill in a kernel that is not
//! `cold`. Compilations are kept by the digest of their sources, so only what changed is compiled again.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{root, wheels};

/// Compilers: the major version of CUDA, PyPI's package, and the library in it.
const COMPILERS: &[(&str, &str, &str)] = &[
    ("12", "nvidia-cuda-nvrtc-cu12==12.9.86", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"),
    ("13", "nvidia-cuda-nvrtc==13.5.37", "nvidia/cu13/lib/libnvrtc.so.13"),
];

const TABLE: &str = "photon-cuda/kernels/resources.tsv";
const HEAD: &str = "\
# What ptxas gives each kernel, for each architecture: registers/spilled bytes/static shared bytes, the larger of
# CUDA 12 and 13. Written by `cargo xtask cuda-check --update`; `hot` or `cold` is kept. Only cold kernels may spill.
";

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Write what was found to the table
    #[arg(long)]
    update: bool,
    /// Only these architectures, such as 80 or 90a
    #[arg(conflicts_with = "update")]
    targets: Vec<String>,
}

impl Args {
    /// What the gate has time for: the oldest architecture, the one with kernels of its own, and the newest.
    pub(crate) fn gate() -> Args {
        Args { update: false, targets: ["80", "90a", "120a"].map(str::to_owned).to_vec() }
    }
}

/// Registers, spilled bytes, static shared bytes.
type Resources = [u32; 3];
/// By kernel, then by architecture.
type Found = BTreeMap<String, BTreeMap<String, Resources>>;

pub(crate) fn run(args: &Args) -> Result<()> {
    let tables = match compile(&args.targets)? {
        Ok(tables) => tables,
        Err(why) => return not_checked(&why),
    };
    let found = read(&tables)?;
    ensure!(!found.is_empty(), "no kernel was compiled");
    compare(&found, args.update)?;
    println!("cuda-check: {} kernels, {} binaries", found.len(), tables.len());
    Ok(())
}

/// Where there is no compiler: an error on the gate's machine, a remark elsewhere.
fn not_checked(why: &str) -> Result<()> {
    if std::env::var_os("CI").is_some_and(|ci| ci == "true") {
        bail!("the CUDA kernels cannot be checked: {why}");
    }
    println!("cuda-check: NOT CHECKED: {why}");
    Ok(())
}

/// Where the compiled kernels are.
pub(crate) fn binaries() -> PathBuf {
    root().join("target/cuda-kernels")
}

/// Compiles what is not compiled yet; the tables of what ptxas said, one per binary. The inner error says
/// why there is no compiler.
pub(crate) fn compile(targets: &[String]) -> Result<Result<Vec<PathBuf>, String>> {
    let compilers = COMPILERS.iter().map(|(major, package, library)| {
        compiler(major, package, library).map(|nvrtc| (major, nvrtc))
    });
    let compilers = match compilers.collect::<Result<Vec<_>>>() {
        Ok(compilers) => compilers,
        Err(error) => return Ok(Err(format!("{error:#}"))),
    };
    // Each keeps one processor busy for minutes, so both run at once.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let begin = |nvrtc: &Path| {
        Command::new(&cargo)
            .current_dir(root())
            .args(["run", "--quiet", "-p", "photon-cuda", "--example", "compile", "--"])
            .args([nvrtc, &binaries()])
            .args(targets)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run cargo")
    };
    let running = compilers.iter().map(|(major, nvrtc)| Ok((major, begin(nvrtc)?)));
    let running = running.collect::<Result<Vec<_>>>()?;
    let mut tables = Vec::new();
    for (major, child) in running {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "kernels do not compile with CUDA {major}: see above");
        tables.extend(String::from_utf8(output.stdout)?.lines().map(PathBuf::from));
    }
    Ok(Ok(tables))
}

/// Path of a compiler's library, which is downloaded if it is not there.
fn compiler(major: &str, package: &str, library: &str) -> Result<PathBuf> {
    let folder = root().join("target/cuda-wheels").join(major);
    wheels::fetch(&folder, &[package], library)?;
    Ok(folder.join(library))
}

/// Reads the tables, taking the larger numbers where both compilers say something.
fn read(tables: &[PathBuf]) -> Result<Found> {
    let mut found = Found::new();
    for path in tables {
        let name = path.file_name().and_then(|name| name.to_str()).context("a table's name")?;
        let target = name.split("-sm_").nth(1).and_then(|rest| rest.split('-').next());
        // Thor, as CUDA 12 called it.
        let target = target.context("a table's name")?.replace("101a", "110a");
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        for line in text.lines() {
            let [kernel, numbers @ ..] = &line.split('\t').collect::<Vec<_>>()[..] else {
                continue;
            };
            let by_target = found.entry((*kernel).to_owned()).or_default();
            let entry = by_target.entry(target.clone()).or_default();
            for (largest, number) in entry.iter_mut().zip(numbers) {
                *largest = (*largest).max(number.parse().with_context(|| name.to_owned())?);
            }
        }
    }
    Ok(found)
}

/// A row of the committed table.
struct Row {
    is_hot: bool,
    /// By architecture; a kernel need not exist for all.
    cells: BTreeMap<String, Resources>,
}

fn compare(found: &Found, update: bool) -> Result<()> {
    let path = root().join(TABLE);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let rows = parse(&text)?;
    let is_hot = |kernel: &str| rows.get(kernel).is_none_or(|row| row.is_hot);
    if update {
        std::fs::write(&path, write(found, is_hot)).with_context(|| TABLE.to_owned())?;
    }
    let mut problems = Vec::new();
    for (kernel, by_target) in found {
        let row = rows.get(kernel);
        if row.is_none() && !update {
            problems.push(format!("{kernel} is not in the table"));
        }
        for (target, now) in by_target {
            if is_hot(kernel) && now[1] > 0 {
                problems
                    .push(format!("{kernel} spills {} bytes on sm_{target}, and is hot", now[1]));
            }
            let before = row.and_then(|row| row.cells.get(target)).copied();
            let grew = before.is_some_and(|before| now.iter().zip(before).any(|(n, b)| *n > b));
            if grew && !update {
                let before = before.map(|cell| show(&cell)).unwrap_or_default();
                problems.push(format!("{kernel} on sm_{target}: {} after {before}", show(now)));
            }
        }
    }
    let compiled: BTreeSet<&String> = found.values().flat_map(BTreeMap::keys).collect();
    for (kernel, row) in rows.iter().filter(|_| !update) {
        let is_found = |target| found.get(kernel).is_some_and(|here| here.contains_key(target));
        if compiled.iter().any(|target| row.cells.contains_key(*target) && !is_found(*target)) {
            problems.push(format!("{kernel} is in the table, and nowhere else"));
        }
    }
    for problem in &problems {
        println!("cuda-check: {problem}");
    }
    ensure!(
        problems.is_empty(),
        "{} problems; where more is wanted, `cargo xtask cuda-check --update`",
        problems.len()
    );
    Ok(())
}

/// All architectures, oldest first: 90a before 100a.
fn architectures(found: &Found) -> Vec<&String> {
    let all: BTreeSet<&String> = found.values().flat_map(BTreeMap::keys).collect();
    let mut list: Vec<_> = all.into_iter().collect();
    list.sort_by_key(|target| target.trim_end_matches('a').parse::<u32>().unwrap_or(0));
    list
}

fn show(cell: &Resources) -> String {
    cell.map(|n| n.to_string()).join("/")
}

fn write(found: &Found, is_hot: impl Fn(&str) -> bool) -> String {
    let mut text = HEAD.to_owned();
    let targets = architectures(found);
    let names: Vec<&str> = targets.iter().map(|target| target.as_str()).collect();
    text += &format!("kernel\t\t{}\n", names.join("\t"));
    for (kernel, by_target) in found {
        let hot = if is_hot(kernel) { "hot" } else { "cold" };
        let cell = |target: &&String| by_target.get(*target).map_or("-".to_owned(), show);
        let cells: Vec<String> = targets.iter().map(cell).collect();
        text += &format!("{kernel}\t{hot}\t{}\n", cells.join("\t"));
    }
    text
}

fn parse(text: &str) -> Result<BTreeMap<String, Row>> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let targets: Vec<&str> = lines.next().unwrap_or_default().split('\t').skip(2).collect();
    let row = |line: &str| {
        let mut cells = line.split('\t');
        let kernel = cells.next()?.to_owned();
        let is_hot = match cells.next()? {
            "hot" => true,
            "cold" => false,
            _ => return None,
        };
        let cell = |(target, cell): (&&str, &str)| {
            let numbers: Vec<u32> = cell.split('/').map_while(|n| n.parse().ok()).collect();
            Some(((*target).to_owned(), Resources::try_from(numbers).ok()?))
        };
        let cells = targets.iter().zip(cells).filter(|(_, cell)| *cell != "-").map(cell);
        Some((kernel, Row { is_hot, cells: cells.collect::<Option<_>>()? }))
    };
    lines.map(|line| row(line).with_context(|| format!("{TABLE}: {line:?}"))).collect()
}

/// Copies the binaries made of the sources as they are now.
pub(crate) fn copy_to(tables: &[PathBuf], folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for table in tables {
        let binary = table.with_extension("gz");
        let name = binary.file_name().context("a binary's name")?;
        std::fs::copy(&binary, folder.join(name)).with_context(|| binary.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(cells: &[(&str, Resources)]) -> Found {
        let by_target = cells.iter().map(|(target, cell)| ((*target).to_owned(), *cell)).collect();
        Found::from([("rows".to_owned(), by_target)])
    }

    #[test]
    fn the_table_is_read_as_it_was_written() {
        let text = write(&found(&[("100a", [40, 0, 16]), ("90a", [32, 8, 0])]), |_| false);
        assert!(text.contains("kernel\t\t90a\t100a\nrows\tcold\t32/8/0\t40/0/16\n"), "{text}");
        let rows = parse(&text).unwrap();
        assert!(!rows["rows"].is_hot);
        let cells = |row: &Row| row.cells.clone().into_iter().collect::<Vec<_>>();
        let want = [("100a".to_owned(), [40, 0, 16]), ("90a".to_owned(), [32, 8, 0])];
        assert_eq!(cells(&rows["rows"]), want);
        assert!(parse("kernel\t\t90a\nrows\twarm\t1/2/3\n").is_err());
        let rows = parse("kernel\t\t80\t90a\nrows\thot\t-\t1/2/3\n").unwrap();
        assert_eq!(cells(&rows["rows"]), [("90a".to_owned(), [1, 2, 3])]);
    }
}
