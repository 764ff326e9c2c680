//! Checks and measures Photon on a Mac: builds it, has Apple's compiler take every kernel, runs the suite, the
//! models that have known answers, and benchmarks. One JSON and one table, below `target/metal-check`.
//!
//! Stages fail by themselves; the next run nevertheless, and the command fails if any did. What cannot be
//! checked on a machine (virtual Macs have no GPU that the kernels run on) says SKIPPED and why.
use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::root;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these stages: build, compile, doctor, conformance, golden, demo, bench
    stages: Vec<String>,
}

/// A finished stage: what was found, or why there is nothing to find here.
enum Outcome {
    Found(Value),
    Skipped(String),
}

use Outcome::{Found, Skipped};

type Stage = fn() -> Result<Outcome>;

const STAGES: &[(&str, Stage)] = &[
    ("build", build),
    ("compile", compile),
    ("doctor", doctor),
    ("conformance", conformance),
    ("golden", golden),
    ("demo", demo),
    ("bench", bench),
];

/// Models that are measured, by how their weights are stored.
const BENCHES: &[(&str, &str)] = &[
    ("moondream2", "none"),
    ("moondream2", "int8"),
    ("moondream2", "text=int4-32"),
    ("moondream3", "text=int4-32"),
];

pub(crate) fn run(args: &Args) -> Result<()> {
    if !cfg!(target_os = "macos") {
        println!("metal-check: NOT CHECKED: this is not a Mac");
        return Ok(());
    }
    let mut results = Map::new();
    let mut failed = Vec::new();
    for (name, stage) in STAGES {
        if !args.stages.is_empty() && !args.stages.iter().any(|stage| stage == name) {
            continue;
        }
        eprintln!("== {name}");
        let begun = Instant::now();
        let outcome = stage();
        let seconds = begun.elapsed().as_secs_f64();
        let result = match outcome {
            Ok(Found(data)) => json!({"ok": true, "seconds": seconds, "data": data}),
            Ok(Skipped(why)) => json!({"ok": true, "seconds": seconds, "skipped": why}),
            Err(error) => {
                failed.push(*name);
                json!({"ok": false, "seconds": seconds, "error": format!("{error:#}")})
            }
        };
        results.insert((*name).to_owned(), result);
        write(&results)?;
    }
    println!("{}", fs::read_to_string(folder().join("report.md"))?);
    ensure!(failed.is_empty(), "metal-check: failed: {}", failed.join(", "));
    Ok(())
}

fn folder() -> PathBuf {
    root().join("target/metal-check")
}

fn write(results: &Map<String, Value>) -> Result<()> {
    fs::create_dir_all(folder())?;
    fs::write(folder().join("report.json"), serde_json::to_vec_pretty(results)?)?;
    fs::write(folder().join("report.md"), markdown(results))?;
    Ok(())
}

fn markdown(results: &Map<String, Value>) -> String {
    let mut text = "| stage | outcome | seconds |\n|---|---|---|\n".to_owned();
    for (name, result) in results {
        let outcome = match (&result["error"], &result["skipped"]) {
            (Value::String(error), _) => format!("FAILED: {}", one_line(error)),
            (_, Value::String(why)) => format!("SKIPPED: {}", one_line(why)),
            _ => summary(name, &result["data"]),
        };
        let seconds = result["seconds"].as_f64().unwrap_or_default();
        let _ = writeln!(text, "| {name} | {outcome} | {seconds:.0} |");
    }
    let benches = results.get("bench").and_then(|bench| bench["data"].as_array());
    if let Some(benches) = benches {
        text += "\n| model | weights | phase | ms, median | tokens/s |\n|---|---|---|---|---|\n";
        for bench in benches {
            for phase in bench["report"]["phases"].as_array().into_iter().flatten() {
                let ms = 1e3 * phase["median_s"].as_f64().unwrap_or_default();
                let rate = phase["tokens_per_s"].as_f64().map_or("".into(), |r| format!("{r:.1}"));
                let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let (model, quant) = (word(&bench["model"]), word(&bench["quant"]));
                let phase = word(&phase["name"]);
                let _ = writeln!(text, "| {model} | {quant} | {phase} | {ms:.2} | {rate} |");
            }
        }
    }
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "/")
}

/// What is worth a line of a stage that found something.
fn summary(name: &str, data: &Value) -> String {
    match name {
        "doctor" => one_line(data.as_str().unwrap_or_default()),
        "bench" => format!("{} runs, below", data.as_array().map_or(0, Vec::len)),
        _ => data.to_string().replace(['{', '}', '"'], "").replace(':', " "),
    }
}

fn photon() -> Command {
    let mut command = Command::new(root().join("target/release/photon"));
    command.current_dir(root());
    command
}

/// What a command prints; an error with the end of what it said if it fails.
fn output(command: &mut Command) -> Result<String> {
    let name = format!("{command:?}");
    let output = command.output().with_context(|| name.clone())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let said = format!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
        let last: Vec<&str> = said.lines().rev().take(20).collect();
        bail!("{name}: {}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    Ok(text)
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

fn build() -> Result<Outcome> {
    let status = cargo().args(["build", "--release", "-p", "photon-cli"]).status()?;
    ensure!(status.success(), "photon-cli does not build");
    Ok(Found(json!({"version": output(photon().arg("--version"))?.trim()})))
}

/// Every kernel by Apple's offline compiler: without and with bfloat, as the GPUs' generations differ.
fn compile() -> Result<Outcome> {
    let metal = ["-sdk", "macosx", "metal"];
    if output(Command::new("xcrun").args(metal).arg("--version")).is_err() {
        return Ok(Skipped("xcrun metal is absent: it is part of Xcode".into()));
    }
    let kernels = root().join("photon-metal/kernels");
    let object = folder().join("kernel.air");
    fs::create_dir_all(folder())?;
    let (mut count, mut left_out) = (0, Vec::new());
    for file in files(&kernels)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let needs_tensor_ops = fs::read_to_string(&file)?.contains("#include <metal_tensor>");
        let forms: &[&[&str]] = match needs_tensor_ops {
            true => &[&["-std=metal4.0"]],
            false => &[&["-std=metal3.0"], &["-std=metal3.1", "-DPHOTON_BFLOAT=1"]],
        };
        for form in forms {
            let mut command = Command::new("xcrun");
            command.args(metal).args(*form).args(["-fno-fast-math", "-Wall", "-I"]).arg(&kernels);
            match output(command.arg("-c").arg(&file).arg("-o").arg(&object)) {
                Ok(_) => count += 1,
                Err(error) if needs_tensor_ops => {
                    // An older Xcode has no such library; the program then does without it, too.
                    left_out.push(format!("{name}: {}", one_line(&format!("{error:#}"))));
                }
                Err(error) => return Err(error.context(name)),
            }
        }
    }
    Ok(Found(json!({"compiled": count, "left out": left_out})))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|e| e == "metal"));
    files.sort();
    Ok(files)
}

/// What `photon doctor` says of Metal; the inner error why it cannot be used.
fn metal() -> Result<Result<String, String>> {
    // Its exit code says whether every device can be used; what it prints is what counts here.
    let said = photon().args(["doctor", "--json"]).output().context("photon doctor")?;
    let found: Value = serde_json::from_slice(&said.stdout).context("photon doctor --json")?;
    let devices = found["devices"].as_array().into_iter().flatten();
    let metal = devices.into_iter().find(|device| device["device"] == "metal");
    let metal = metal.context("a photon without Metal")?;
    let words = metal["found"].as_str().unwrap_or_default().to_owned();
    Ok(if metal["ok"] == true { Ok(words) } else { Err(words) })
}

/// Does the rest of a stage where the GPU can be used.
fn on_gpu(rest: impl FnOnce() -> Result<Value>) -> Result<Outcome> {
    match metal()? {
        Ok(_) => rest().map(Found),
        // Anything else that is wrong with a GPU is a failure of ours.
        Err(why) if why.contains("virtual machine") => Ok(Skipped(why)),
        Err(why) => bail!("{why}"),
    }
}

fn doctor() -> Result<Outcome> {
    on_gpu(|| Ok(json!(metal()?.unwrap_or_default())))
}

/// How many tests passed; one after the other, as together they would need the memory of all.
fn tests(args: &[&str]) -> Result<Value> {
    let text = output(cargo().arg("test").arg("--release").args(args))?;
    let passed = text.lines().filter(|line| line.ends_with("... ok")).count();
    ensure!(passed > 0, "no test ran");
    Ok(json!({"passed": passed}))
}

fn conformance() -> Result<Outcome> {
    on_gpu(|| tests(&["-p", "photon-metal", "--test", "device", "--", "--test-threads", "1"]))
}

fn golden() -> Result<Outcome> {
    let args = ["-p", "photon", "--features", "metal", "--test", "engine", "--"];
    on_gpu(|| tests(&[&args[..], &["on_this_mac", "--test-threads", "1"]].concat()))
}

/// The sample pictures' answers, as the processor gives them.
fn demo() -> Result<Outcome> {
    on_gpu(|| {
        let mut counts = Map::new();
        for model in ["demo", "demo3"] {
            let answers = |device: &str| -> Result<Vec<Value>> {
                let mut command = photon();
                command.args([
                    "batch",
                    "--images",
                    "assets/*.png",
                    "--skill",
                    "caption",
                    "--ordered",
                    "--model",
                    model,
                ]);
                command.args(["--device", device, "--dtype", "f32", "--temperature", "0"]);
                let answer = |line: &str| -> Result<Value> {
                    let mut answer: Value = serde_json::from_str(line)?;
                    let kept = ["id", "status", "result", "error"];
                    let answer = answer.as_object_mut().context("an answer")?;
                    answer.retain(|key, _| kept.contains(&key.as_str()));
                    Ok(Value::Object(answer.clone()))
                };
                output(&mut command)?.lines().map(answer).collect()
            };
            let (cpu, gpu) = (answers("cpu")?, answers("metal")?);
            ensure!(cpu.len() == gpu.len() && !cpu.is_empty(), "{model}: {} answers", gpu.len());
            let differ: Vec<_> = cpu.iter().zip(&gpu).filter(|(a, b)| a != b).collect();
            if let Some((a, b)) = differ.first() {
                bail!("{model}: {} of {} differ, first {b} for {a}", differ.len(), cpu.len());
            }
            counts.insert(model.into(), cpu.len().into());
        }
        Ok(Value::Object(counts))
    })
}

/// Phases of models of real size; those that do not fit into this Mac's memory say so.
fn bench() -> Result<Outcome> {
    on_gpu(|| {
        let mut measured = Vec::new();
        for (model, quant) in BENCHES {
            let mut command = photon();
            command.args(["bench", "model", "--json", "--device", "metal", "--synthetic", model]);
            command.args(["--quant", quant, "--concurrency", "1,4,16", "--repeats", "5"]);
            let report = match output(&mut command) {
                Ok(text) => serde_json::from_str(&text).context("what photon bench printed")?,
                Err(error) if format!("{error:#}").contains("out of ") => {
                    json!({"skipped": one_line(&format!("{error:#}"))})
                }
                Err(error) => return Err(error),
            };
            measured.push(json!({"model": model, "quant": quant, "report": report}));
        }
        Ok(json!(measured))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_failed_and_what_was_skipped() {
        let phase = json!({"name": "decode", "median_s": 0.03, "tokens_per_s": 33.3});
        let bench = json!({"model": "moondream2", "quant": "none", "report": {"phases": [phase]}});
        let Value::Object(results) = json!({
            "build": {"ok": true, "seconds": 61.2, "data": {"version": "photon 0.1.0"}},
            "conformance": {"ok": false, "seconds": 3.0, "error": "a\n| b"},
            "golden": {"ok": true, "seconds": 0.0, "skipped": "no GPU"},
            "bench": {"ok": true, "seconds": 9.0, "data": [bench]},
        }) else {
            unreachable!("an object")
        };
        let text = markdown(&results);
        for line in [
            "| build | version photon 0.1.0 | 61 |",
            "| conformance | FAILED: a / b | 3 |",
            "| golden | SKIPPED: no GPU | 0 |",
            "| moondream2 | none | decode | 30.00 | 33.3 |",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
