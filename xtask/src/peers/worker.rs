//! One engine in a process of its own, and what is said to it and by it: see `tools/bench/worker.py`.
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Longer than any engine makes weights, or compiles.
const PATIENCE: Duration = Duration::from_secs(900);

/// What an engine says of itself when its model is loaded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) engine: String,
    /// The ways to run each phase.
    pub(super) phases: BTreeMap<String, Vec<String>>,
}

impl Ready {
    fn parse(line: &str) -> Result<Ready> {
        let said: Value = serde_json::from_str(line).context("not JSON")?;
        let engine = said["engine"].as_str().context("no engine")?.to_owned();
        let phases = said["phases"].as_object().context("no phases")?;
        let ways = |ways: &Value| -> Option<Vec<String>> {
            ways.as_array()?.iter().map(|way| Some(way.as_str()?.to_owned())).collect()
        };
        let phases = phases
            .iter()
            .map(|(name, value)| {
                let ways = ways(value).filter(|ways| !ways.is_empty());
                Ok((name.clone(), ways.with_context(|| format!("no ways to run {name}"))?))
            })
            .collect::<Result<_>>()?;
        Ok(Ready { engine, phases })
    }
}

/// What came of a phase: seconds, or why it cannot be run this way.
fn parse_answer(line: &str) -> Result<Result<f64, String>> {
    let said: Value = serde_json::from_str(line).context("not JSON")?;
    match (said["seconds"].as_f64(), said["error"].as_str()) {
        (Some(seconds), None) if 0.0 < seconds && seconds.is_finite() => Ok(Ok(seconds)),
        (None, Some(error)) => Ok(Err(error.to_owned())),
        _ => bail!("neither seconds nor an error"),
    }
}

/// A running engine.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    orders: ChildStdin,
    lines: Receiver<String>,
    /// Where its standard error goes.
    log: PathBuf,
}

impl Worker {
    /// Starts a worker and waits until its model is loaded.
    pub(super) fn start(command: &mut Command, log: &Path) -> Result<(Worker, Ready)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(log).with_context(|| log.display().to_string())?);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
        let orders = child.stdin.take().context("its input is piped")?;
        let output = BufReader::new(child.stdout.take().context("its output is piped")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // It ends with the process, or with the harness.
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut worker = Worker { child, orders, lines, log: log.to_owned() };
        let line = worker.line()?;
        let ready = Ready::parse(&line).with_context(|| format!("it says {line:?}"))?;
        Ok((worker, ready))
    }

    /// Runs a phase once. The outer error is the end of the worker.
    pub(super) fn run(&mut self, phase: &str, way: &str) -> Result<Result<f64, String>> {
        let order = if way.is_empty() { phase.to_owned() } else { format!("{phase},{way}") };
        if writeln!(self.orders, "{order}").is_err() {
            bail!("{}", self.last_words());
        }
        let line = self.line()?;
        parse_answer(&line).with_context(|| format!("asked for {phase}, it says {line:?}"))
    }

    /// Seconds that all processors together spent on it so far, where the system tells.
    pub(super) fn processor_seconds(&self) -> Option<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        // The name before may hold anything; the 12th and 13th field after it are ticks of 10 ms.
        let fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
        let ticks = fields.map(|ticks| ticks.parse::<f64>().ok()).sum::<Option<f64>>()?;
        Some(ticks / 100.0)
    }

    /// Most memory of the process so far, in bytes, where the system tells.
    pub(super) fn peak_memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(1024 * line.split_whitespace().next()?.parse::<u64>().ok()?)
    }

    fn line(&mut self) -> Result<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => {
                bail!("it did not answer for {} minutes", PATIENCE.as_secs() / 60)
            }
            Err(RecvTimeoutError::Disconnected) => bail!("{}", self.last_words()),
        }
    }

    /// How it ended, and the last it said.
    fn last_words(&mut self) -> String {
        let status = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        format!("it ended ({status}): {}", last.unwrap_or("it said nothing"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_tells_its_phases_and_the_ways_to_run_them() {
        let ready = Ready::parse(r#"{"engine": "X 1", "phases": {"prefill": ["a", "b"]}}"#);
        let phases = [("prefill".to_owned(), vec!["a".to_owned(), "b".to_owned()])].into();
        assert_eq!(ready.unwrap(), Ready { engine: "X 1".into(), phases });
        for bad in ["loading", r#"{"engine": "X"}"#, r#"{"engine": "X", "phases": {"p": []}}"#] {
            assert!(Ready::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_answer_is_a_time_or_a_reason() {
        assert_eq!(parse_answer(r#"{"seconds": 1.5}"#).unwrap(), Ok(1.5));
        assert_eq!(parse_answer(r#"{"error": "no compiler"}"#).unwrap(), Err("no compiler".into()));
        for bad in ["", "1.5", r#"{"seconds": 0}"#, r#"{"seconds": 1, "error": "both"}"#] {
            assert!(parse_answer(bad).is_err(), "{bad}");
        }
    }
}
