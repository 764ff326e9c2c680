//! What `run` of a bundle does on a GPU's machine: stage after stage, each in a time of its own.
//!
//! A stage that was done is not done again, and a report is written after each, so that whatever time
//! there was leaves something. The order is that of use: what the machine can do, whether results are
//! right, how fast they come, and last the sanitizers, which take longest. Where the first stage finds
//! that CUDA cannot be used, the others say so and are not begun.
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

mod floors;
mod report;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this stage, even if it was done
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
}

/// A bundle on a machine.
struct Host {
    bundle: PathBuf,
    results: PathBuf,
}

struct Stage {
    name: &'static str,
    /// Seconds after which it is ended.
    limit_s: u64,
    run: fn(&Host, &Task<'_>) -> Result<Value>,
}

/// A stage under way.
struct Task<'a> {
    stage: &'a Stage,
    ends: Instant,
}

const STAGES: &[Stage] = &[
    Stage { name: "doctor", limit_s: 60, run: doctor },
    Stage { name: "ceilings", limit_s: 60, run: ceilings },
    Stage { name: "conformance", limit_s: 180, run: conformance },
    Stage { name: "models", limit_s: 120, run: models },
    Stage {
        name: "bench-moondream2",
        limit_s: 240,
        run: |h, t| phases(h, t, "moondream2", "none"),
    },
    Stage { name: "workload-moondream2", limit_s: 420, run: |h, t| workload(h, t, "moondream2") },
    Stage {
        name: "bench-moondream3",
        limit_s: 600,
        run: |h, t| phases(h, t, "moondream3", "text=fp8"),
    },
    Stage { name: "workload-moondream3", limit_s: 900, run: |h, t| workload(h, t, "moondream3") },
    Stage { name: "memcheck", limit_s: 600, run: |h, t| sanitizer(h, t, "memcheck") },
    Stage { name: "racecheck", limit_s: 600, run: |h, t| sanitizer(h, t, "racecheck") },
];

pub(crate) fn run(args: &Args) -> Result<()> {
    let program = std::env::current_exe()?;
    let bundle = program.parent().and_then(Path::parent).context("a bundle around the program")?;
    ensure!(bundle.join("run").is_file(), "{} is no bundle", bundle.display());
    let host = Host { bundle: bundle.to_owned(), results: bundle.join("results") };
    fs::create_dir_all(&host.results)?;
    if let Some(name) = &args.stage
        && !STAGES.iter().any(|stage| stage.name == name)
    {
        let names: Vec<_> = STAGES.iter().map(|stage| stage.name).collect();
        bail!("there is no stage {name}; there are {}", names.join(", "));
    }
    for stage in STAGES {
        let asked = args.stage.as_deref().is_some_and(|name| name == stage.name);
        let done = host
            .result(stage.name)
            .is_some_and(|result| result["ok"] == true && result["data"]["incomplete"].is_null());
        if !asked && (args.stage.is_some() || done) {
            continue;
        }
        let begun = Instant::now();
        eprintln!("== {} (at most {} s)", stage.name, stage.limit_s);
        let ends = begun + Duration::from_secs(stage.limit_s);
        let outcome = match host.result("doctor") {
            Some(doctor)
                if doctor["ok"] == false && args.stage.is_none() && stage.name != "doctor" =>
            {
                Err(anyhow::anyhow!("not begun, as CUDA cannot be used"))
            }
            _ => (stage.run)(&host, &Task { stage, ends }),
        };
        let seconds = begun.elapsed().as_secs_f64();
        let result = match outcome {
            Ok(data) => json!({"ok": true, "seconds": seconds, "data": data}),
            Err(error) => json!({"ok": false, "seconds": seconds, "error": format!("{error:#}")}),
        };
        eprintln!(
            "== {}: {seconds:.0} s{}",
            stage.name,
            match &result["error"] {
                Value::String(error) => format!(", FAILED: {error}"),
                _ => String::new(),
            }
        );
        fs::write(host.results.join(format!("{}.json", stage.name)), result.to_string())?;
        host.report()?;
    }
    let report = host.results.join("report.md");
    println!("{}\n{}", fs::read_to_string(&report)?, report.display());
    Ok(())
}

impl Host {
    /// What a stage left, if it ran.
    fn result(&self, stage: &str) -> Option<Value> {
        let text = fs::read(self.results.join(format!("{stage}.json"))).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn report(&self) -> Result<()> {
        let results = STAGES.iter().filter_map(|s| Some((s.name.to_owned(), self.result(s.name)?)));
        let results: serde_json::Map<String, Value> = results.collect();
        fs::write(self.results.join("report.md"), report::markdown(&results))?;
        fs::write(self.results.join("report.json"), serde_json::to_vec_pretty(&results)?)?;
        Ok(())
    }

    fn program(&self, name: &str) -> Command {
        Command::new(self.bundle.join("bin").join(name))
    }

    /// Runs a command until the stage's end; what it printed. It is an error if it fails, or must be ended.
    fn output(&self, task: &Task<'_>, log: &str, command: &mut Command) -> Result<String> {
        let (text, outcome) = self.attempt(task, log, command)?;
        outcome.map(|()| text)
    }

    /// As [`Host::output`], with what was printed even if it failed.
    fn attempt(
        &self,
        task: &Task<'_>,
        log: &str,
        command: &mut Command,
    ) -> Result<(String, Result<()>)> {
        let path = |end: &str| self.results.join(format!("{}{log}.{end}", task.stage.name));
        let (out, err) = (path("out"), path("log"));
        command.current_dir(&self.bundle).stdin(Stdio::null());
        command.stdout(File::create(&out)?).stderr(File::create(&err)?);
        own_group(command);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().with_context(|| program.clone())?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if Instant::now() >= task.ends {
                end_group(child.id());
                child.wait()?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let mut text = String::new();
        File::open(&out)?.read_to_string(&mut text)?;
        let said = fs::read_to_string(&err).unwrap_or_default();
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").to_owned();
        let outcome = match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(anyhow::anyhow!("{program}: {status}: {last}")),
            None => Err(anyhow::anyhow!("{program} was ended after {} s", task.stage.limit_s)),
        };
        Ok((text, outcome))
    }
}

/// A group of its own, so that whatever it starts ends with it.
#[cfg(unix)]
fn own_group(command: &mut Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
}

#[cfg(not(unix))]
fn own_group(_: &mut Command) {}

fn end_group(leader: u32) {
    // Without it the command would run on, which the next stage's times would show.
    let _ = Command::new("kill").args(["-KILL", "--", &format!("-{leader}")]).status();
}

fn doctor(host: &Host, task: &Task<'_>) -> Result<Value> {
    // Its exit code says whether every device can be used; what it prints is what counts here.
    let (text, _) = host.attempt(task, "", host.program("photon").args(["doctor", "--json"]))?;
    let found: Value = serde_json::from_str(&text).context("photon doctor --json")?;
    let devices = found["devices"].as_array().into_iter().flatten();
    let cuda = devices.into_iter().find(|device| device["device"] == "cuda");
    let cuda = cuda.context("a photon without CUDA")?;
    let words = cuda["found"].as_str().unwrap_or_default().to_owned();
    ensure!(cuda["ok"] == true, "{words}");
    Ok(json!({"found": words, "version": found["version"]}))
}

fn ceilings(host: &Host, task: &Task<'_>) -> Result<Value> {
    let text = host.output(task, "", &mut host.program("ceilings"))?;
    serde_json::from_str(&text).context("what ceilings printed")
}

fn conformance(host: &Host, task: &Task<'_>) -> Result<Value> {
    // One after the other: together they would need the memory of all.
    let mut command = host.program("conformance");
    let (text, outcome) = host.attempt(task, "", command.args(["--test-threads", "1"]))?;
    let count = |end: &str| text.lines().filter(|line| line.ends_with(end)).count();
    let (passed, failed) = (count("... ok"), count("... FAILED"));
    let names = text.lines().filter_map(|line| line.strip_suffix(" ... FAILED"));
    let names: Vec<&str> = names.filter_map(|line| line.strip_prefix("test ")).collect();
    let log = fs::read_to_string(host.results.join("conformance.log")).unwrap_or_default();
    ensure!(!log.contains("does not have the device"), "{}", log.lines().next().unwrap_or(""));
    ensure!(failed == 0, "{passed} cases passed, {failed} failed: {}", names.join(", "));
    outcome.with_context(|| format!("{passed} cases passed before"))?;
    Ok(json!({"passed": passed}))
}

/// The same answers as the processor gives.
fn models(host: &Host, task: &Task<'_>) -> Result<Value> {
    let mut counts = serde_json::Map::new();
    for model in ["demo", "demo3", "models/moondream2", "models/moondream3"] {
        let name = model.replace('/', "-");
        if let Some(family) = model.strip_prefix("models/")
            && !host.bundle.join(model).is_dir()
        {
            let mut command = host.program("golden-checkpoint");
            host.output(task, &format!("-{name}"), command.args([model, family]))?;
        }
        let answers = |device: &str| {
            let mut command = host.program("photon");
            command.args(["batch", "requests.jsonl", "--ordered", "--model", model]);
            command.args(["--device", device, "--dtype", "f32", "--temperature", "0"]);
            let text = host.output(task, &format!("-{name}-{device}"), &mut command)?;
            let answer = |line: &str| -> Result<Value> {
                let mut answer: Value = serde_json::from_str(line)?;
                answer.as_object_mut().context("an answer")?.retain(|key, _| {
                    ["line_index", "id", "status", "result", "error"].contains(&key.as_str())
                });
                Ok(answer)
            };
            text.lines().map(answer).collect::<Result<Vec<Value>>>()
        };
        let (cpu, cuda) = (answers("cpu")?, answers("cuda")?);
        ensure!(cpu.len() == cuda.len() && !cpu.is_empty(), "{model}: {} answers", cuda.len());
        let differ: Vec<_> = cpu.iter().zip(&cuda).filter(|(a, b)| a != b).collect();
        if let Some((a, b)) = differ.first() {
            bail!("{model}: {} of {} answers differ, first {b} for {a}", differ.len(), cpu.len());
        }
        counts.insert(name, cpu.len().into());
    }
    Ok(Value::Object(counts))
}

/// The phases of a request, by themselves.
fn phases(host: &Host, task: &Task<'_>, model: &str, quant: &str) -> Result<Value> {
    let mut command = host.program("photon");
    command.args(["bench", "model", "--json", "--device", "cuda", "--synthetic", model]);
    command.args(["--quant", quant, "--concurrency", "1,4,16,64", "--repeats", "5"]);
    let text = host.output(task, "", &mut command)?;
    serde_json::from_str(&text).context("what photon bench printed")
}

/// Questions about charts.
fn workload(host: &Host, task: &Task<'_>, model: &str) -> Result<Value> {
    let mut command = host.program("photon");
    command.args(["bench", "workload", "--json", "--device", "cuda", "--synthetic", model]);
    if model == "moondream3" {
        command.args(["--quant", "text=fp8"]);
    }
    // Weights are made for every cell, so none is measured twice.
    command.args(["--modes", "engine", "--repeats", "1", "--concurrency", "1,4,16,64"]);
    let (text, outcome) = host.attempt(task, "", &mut command)?;
    // A cell that was measured counts, even if there was no time for the next.
    let cells: Vec<Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    match outcome {
        Err(error) if cells.is_empty() => Err(error),
        outcome => {
            let incomplete = outcome.err().map(|error| format!("{error:#}"));
            Ok(json!({"cells": cells, "incomplete": incomplete}))
        }
    }
}

/// The suite under compute-sanitizer, without its largest cases.
fn sanitizer(host: &Host, task: &Task<'_>, tool: &str) -> Result<Value> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os).map(PathBuf::from);
    let folders = homes.chain(["/usr/local/cuda".into()]);
    let named = folders.map(|folder| folder.join("bin/compute-sanitizer")).find(|p| p.is_file());
    let program = named.unwrap_or_else(|| "compute-sanitizer".into());
    if Command::new(&program).arg("--version").output().is_err() {
        return Ok(json!({"skipped": "there is no compute-sanitizer here"}));
    }
    let mut command = Command::new(program);
    command.args(["--tool", tool, "--error-exitcode", "9"]);
    command.arg(host.bundle.join("bin/conformance")).args(["--test-threads", "1"]);
    command.args(["--skip", "real", "--skip", "distribution", "--skip", "streams_are_independent"]);
    let (text, outcome) = host.attempt(task, "", &mut command)?;
    let passed = text.lines().filter(|line| line.ends_with("... ok")).count();
    let summary = text.lines().rev().find(|line| line.contains("ERROR SUMMARY"));
    outcome
        .with_context(|| format!("{passed} cases passed; {}", summary.unwrap_or("no summary")))?;
    Ok(json!({"passed": passed, "summary": summary}))
}
