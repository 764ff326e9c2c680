//! Offline jobs that lose a worker half-way.
use std::{
    collections::HashMap,
    fmt, fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    Part,
    running::{Running, signal},
    setup::Found,
};

const TO_DRAW: Duration = Duration::from_secs(120);
/// Longer than 2,000 pictures take on two slow cores.
const TO_END: Duration = Duration::from_secs(600);
/// What is asked of each picture.
const ASKS: [&str; 2] = ["caption:short", "detect:circle"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    RayData,
    Daft,
}

impl Job {
    pub(super) const ALL: [Job; 2] = [Job::RayData, Job::Daft];

    pub(super) fn part(self) -> Part {
        match self {
            Job::RayData => Part::RayData,
            Job::Daft => Part::Daft,
        }
    }

    fn program(self) -> &'static str {
        match self {
            Job::RayData => "offline/ray_data.py",
            Job::Daft => "offline/daft_job.py",
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Job::RayData => "Ray Data",
            Job::Daft => "Daft",
        })
    }
}

/// What a job left.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) expected: usize,
    pub(super) missing: usize,
    pub(super) twice: usize,
    pub(super) failed: usize,
    /// Answers that were there when the worker was killed.
    pub(super) killed_after: Option<u64>,
    pub(super) seconds: f64,
}

impl Done {
    /// Whether every answer is there once, although a worker was killed.
    pub(super) fn is_whole(&self) -> bool {
        self.missing + self.twice + self.failed == 0 && self.killed_after.is_some()
    }

    /// Compares results, as lines of JSON, with so many as there must be.
    fn count(lines: impl Iterator<Item = String>, expected: usize) -> Result<Done> {
        let (mut seen, mut failed) = (HashMap::<String, usize>::new(), 0);
        for line in lines {
            let line: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            *seen.entry(format!("{} {}", line["id"], line["ask"])).or_default() += 1;
            failed += usize::from(line.get("result").is_none());
        }
        let twice = seen.values().filter(|&&count| 1 < count).count();
        let missing = expected.saturating_sub(seen.len());
        Ok(Done { expected, missing, twice, failed, ..Done::default() })
    }
}

/// Draws what jobs are about.
pub(super) fn draw(pictures: usize, found: &Found) -> Result<()> {
    let source = found.folder.join("pictures");
    clear(&source)?;
    let mut draw = found.command("check/pictures.py");
    draw.arg(&source).args(["--count", &pictures.to_string()]);
    let draw = Running::start(&mut draw, &found.folder.join("pictures.log"))?;
    draw.finish(TO_DRAW).context("pictures.py").map(drop)
}

/// Runs a job, kills one of its workers when half of the answers are there, and counts what is there at its end.
pub(super) fn run(job: Job, pictures: usize, found: &Found) -> Result<Done> {
    let out = found.folder.join("results").join(job.to_string().replace(' ', "-"));
    clear(&out)?;
    let begun = Instant::now();
    let mut command = found.command(job.program());
    command.arg(found.folder.join("pictures")).arg(&out).args(["--workers", "2", "--engine"]);
    command.arg(&found.photon).args(["--option=--threads=1", "--together", "64"]);
    command.args(ASKS.iter().flat_map(|ask| ["--ask", ask]));
    let expected = pictures * ASKS.len();
    let mut running = Running::start(&mut command, &found.folder.join("job.log"))?;
    let (killed_after, worker) = running.find(TO_END, |said| half(said, expected as u64))?;
    signal("KILL", worker).context("the worker")?;
    running.finish(TO_END).with_context(|| job.to_string())?;
    let seconds = begun.elapsed().as_secs_f64();
    let mut lines = Vec::new();
    for file in fs::read_dir(&out)? {
        let path = file?.path();
        if path.extension().is_some_and(|kind| kind == "jsonl") {
            lines.extend(fs::read_to_string(path)?.lines().map(str::to_owned));
        }
    }
    let done = Done::count(lines.into_iter(), expected)?;
    Ok(Done { killed_after: Some(killed_after), seconds, ..done })
}

/// Once half of the answers are there: how many, and the worker that gave the last of them.
fn half(said: &str, expected: u64) -> Option<(u64, u32)> {
    let mut answers = 0;
    for line in said.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        answers += line["answers"].as_u64().unwrap_or(0);
        if expected <= 2 * answers {
            return Some((answers, u32::try_from(line["worker"].as_u64()?).ok()?));
        }
    }
    None
}

fn clear(folder: &Path) -> Result<()> {
    match folder.exists() {
        true => fs::remove_dir_all(folder).with_context(|| folder.display().to_string()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_twice_or_failed_is_counted() {
        let line = |id: u32, end: &str| format!(r#"{{"id": "{id}", "ask": 0, {end}}}"#);
        let right = || (0..3).map(|id| line(id, r#""result": {}"#));
        let killed = |done| Done { killed_after: Some(1), ..done };
        let whole = |lines: Vec<String>| killed(Done::count(lines.into_iter(), 3).unwrap());
        assert!(whole(right().collect()).is_whole());
        assert!(!Done::count(right(), 3).unwrap().is_whole(), "nobody was killed");
        assert_eq!(whole(right().skip(1).collect()).missing, 1);
        assert_eq!(whole(right().chain(right().take(2)).collect()).twice, 2);
        let wrong = right().take(2).chain([line(2, r#""error": "why""#)]);
        assert_eq!(whole(wrong.collect()).failed, 1);
    }

    #[test]
    fn the_worker_of_the_answer_in_the_middle_is_killed() {
        let said = "a warning\n{\"answers\": 4, \"worker\": 7}\n{\"answers\": 4, \"worker\": 8}\n";
        assert_eq!(half(said, 20), None);
        assert_eq!(half(said, 10), Some((8, 8)));
        assert_eq!(half(said, 8), Some((4, 7)));
    }
}
