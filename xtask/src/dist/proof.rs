//! A program, running: what it writes for its archive, and what it answers out of it.
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{SHELLS, archive, archive::Entry, name, program, targets::Target};
use crate::root;

/// A picture that the demo model describes, and a word it cannot do without.
const PICTURE: (&str, &str) = ("assets/shapes.png", "circle");
const STARTS: usize = 5;

/// That a program answers, and how soon.
#[derive(Debug)]
pub(crate) struct Proof {
    answer: String,
    /// Until `--version` has ended: the median of some.
    start: Duration,
    /// Until a picture is described, the program's start and the model's with it.
    caption: Duration,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Proof { answer, start, caption } = self;
        let ms = |time: &Duration| 1e3 * time.as_secs_f64();
        write!(f, "starts in {:.1} ms, says {answer:?} in {:.0} ms", ms(start), ms(caption))
    }
}

/// Completions and pages, which the program writes.
pub(crate) fn written_by(
    target: &Target,
    runner: &[String],
    program: &Entry,
) -> Result<Vec<Entry>> {
    let folder = tempfile::tempdir()?;
    let path = write(folder.path(), program)?;
    let run = |args: &[&str]| run(runner, &path, folder.path(), args);
    let mut files = Vec::new();
    for (shell, name) in SHELLS {
        let text = run(&["completions", shell])?;
        files.push(Entry::file(format!("completions/{name}"), text));
    }
    if target.is_windows() {
        return Ok(files);
    }
    run(&["man", "man"])?;
    for entry in fs::read_dir(folder.path().join("man"))? {
        let entry = entry?;
        let path = format!("man/{}", entry.file_name().to_string_lossy());
        files.push(Entry::file(path, fs::read(entry.path())?));
    }
    Ok(files)
}

/// Unpacks an archive into an empty folder, and asks the program there.
pub(crate) fn answers(target: &Target, runner: &[String], bytes: &[u8]) -> Result<Proof> {
    let folder = tempfile::tempdir()?;
    for file in archive::unpack(target.extension(), bytes)? {
        write(folder.path(), &file)?;
    }
    let program = folder.path().join(name(target)).join(target.program());
    let home = tempfile::tempdir()?;
    let picture = root().join(PICTURE.0);
    let picture = picture.to_str().context("a path that is not UTF-8")?;
    let timed = |args: &[&str]| {
        let begun = Instant::now();
        let answer = run(runner, &program, home.path(), args)?;
        Ok::<_, anyhow::Error>((begun.elapsed(), answer))
    };
    let starts = (0..STARTS).map(|_| Ok(timed(&["--version"])?.0));
    let mut starts = starts.collect::<Result<Vec<_>>>()?;
    starts.sort();
    let (caption, answer) = timed(&["caption", picture, "--length", "short"])?;
    let answer = answer.trim().to_owned();
    ensure!(answer.contains(PICTURE.1), "{picture}: {answer:?} without {:?}", PICTURE.1);
    let left: Vec<_> = fs::read_dir(home.path())?.collect();
    ensure!(left.is_empty(), "a question left files in the home folder");
    Ok(Proof { answer, start: starts[STARTS / 2], caption })
}

fn run(runner: &[String], program: &Path, home: &Path, args: &[&str]) -> Result<String> {
    let output = program::alone(runner, program, home).args(args).output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "photon {}: {}", args.join(" "), said.trim());
    Ok(String::from_utf8(output.stdout)?)
}

fn write(folder: &Path, file: &Entry) -> Result<PathBuf> {
    let path = folder.join(&file.path);
    fs::create_dir_all(path.parent().context("a file's folder")?)?;
    fs::write(&path, &file.bytes).with_context(|| path.display().to_string())?;
    #[cfg(unix)]
    if file.is_program {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(path)
}
