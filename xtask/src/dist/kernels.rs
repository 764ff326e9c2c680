//! Compiled kernels, which lie beside a program and are chosen when it runs. Of CUDA's: by the GPU's architecture, and CUDA
//! 13's where the driver takes them, CUDA 12's elsewhere.
use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::{archive::Entry, tools::Absent};
use crate::{cargo, cuda_check, root};

/// Where the program looks for CUDA's, beside itself.
const FOLDER: &str = "cuda-kernels";
/// Where the program looks for Metal's.
const METAL_FOLDER: &str = "metal-kernels";

/// What must be there: an architecture, a version of CUDA, and who needs it. Thor's driver is of CUDA 13; those of Orin and
/// GH200 may be of either.
const NEEDED: &[(&str, &str, &str)] = &[
    ("sm_80", "cuda12", "A100"),
    ("sm_86", "cuda12", "GeForce 30"),
    ("sm_87", "cuda12", "Orin"),
    ("sm_89", "cuda12", "GeForce 40, L4"),
    ("sm_90a", "cuda12", "H100, GH200"),
    ("sm_90a", "cuda13", "H100, GH200"),
    ("sm_100a", "cuda12", "B200"),
    ("sm_100a", "cuda13", "B200"),
    ("sm_110a", "cuda13", "Thor"),
    ("sm_120a", "cuda12", "GeForce 50"),
    ("sm_120a", "cuda13", "GeForce 50"),
];

/// Compiles what is not compiled yet.
pub(crate) fn compile_cuda() -> Result<Vec<Entry>> {
    let tables = cuda_check::compile(&[])?.map_err(Absent)?;
    let paths = tables.iter().map(|table| table.with_extension("gz"));
    check(paths.map(|path| read_one(FOLDER, &path)).collect::<Result<_>>()?)
}

/// Has Apple's compiler compile all.
pub(crate) fn compile_metal() -> Result<Vec<Entry>> {
    let folder = root().join("target").join(METAL_FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let to = folder.to_str().context("the folder's name is not UTF-8")?;
    cargo(&["run", "--quiet", "-p", "photon-metal", "--example", "metallib", "--", to])?;
    read(METAL_FOLDER, &folder, "metallib")
}

/// Takes what is compiled.
pub(crate) fn read_cuda(folder: &Path) -> Result<Vec<Entry>> {
    check(read(FOLDER, folder, "gz")?)
}

/// The files of a folder with an extension, for a folder of the archive.
fn read(to: &str, folder: &Path, extension: &str) -> Result<Vec<Entry>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let binaries = paths.iter().filter(|path| path.extension().is_some_and(|e| e == extension));
    binaries.map(|path| read_one(to, path)).collect()
}

fn read_one(to: &str, path: &Path) -> Result<Entry> {
    let name = path.file_name().and_then(|name| name.to_str()).context("a kernel's name")?;
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    Ok(Entry::file(format!("{to}/{name}"), bytes))
}

/// Whether there are kernels for every machine.
fn check(files: Vec<Entry>) -> Result<Vec<Entry>> {
    let lacks = NEEDED.iter().filter(|(architecture, cuda, _)| {
        let part = format!("-{architecture}-{cuda}-");
        !files.iter().any(|file| file.path.contains(&part))
    });
    let lacks: Vec<String> = lacks.map(|(a, cuda, who)| format!("{a} of {cuda} ({who})")).collect();
    ensure!(lacks.is_empty(), "no compiled kernels for {}", lacks.join(", "));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_lack_a_machine_are_refused() {
        let file = |(a, cuda, _): &(&str, &str, &str)| {
            Entry::file(format!("{FOLDER}/rows-{a}-{cuda}-0123456789abcdef.cubin.gz"), "")
        };
        assert_eq!(check(NEEDED.iter().map(file).collect()).unwrap().len(), NEEDED.len());
        let thor = |needed: &&(&str, &str, &str)| needed.2 != "Thor";
        let error = check(NEEDED.iter().filter(thor).map(file).collect()).unwrap_err();
        assert_eq!(error.to_string(), "no compiled kernels for sm_110a of cuda13 (Thor)");
    }
}
