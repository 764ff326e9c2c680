//! The results of a run as Markdown: what passed, and how fast, beside what the machine could do at most.
use std::fmt::Write;

use serde_json::{Map, Value};

use super::floors::{Ceilings, Text};

pub(super) fn markdown(results: &Map<String, Value>) -> String {
    let mut text = String::from("# Photon on this GPU\n\n");
    if let Some(found) = results.get("doctor").and_then(|r| r["data"]["found"].as_str()) {
        let _ = writeln!(text, "```text\n{found}\n```\n");
    }
    text += "| stage | outcome | seconds |\n|---|---|---|\n";
    for (name, result) in results {
        let data = &result["data"];
        let cells = data["cells"].as_array().map_or(0, Vec::len);
        let outcome = match (&result["error"], &data["skipped"], &data["incomplete"]) {
            (Value::String(error), ..) => format!("FAILED: {}", one_line(error)),
            (_, Value::String(why), _) => format!("skipped: {why}"),
            (.., Value::String(why)) => format!("{cells} cells, then: {}", one_line(why)),
            _ => match data["passed"].as_u64() {
                Some(passed) => format!("ok, {passed} cases"),
                None => "ok".into(),
            },
        };
        let seconds = result["seconds"].as_f64().unwrap_or_default();
        let _ = writeln!(text, "| {name} | {outcome} | {seconds:.0} |");
    }
    let can = results.get("ceilings").and_then(|result| Ceilings::of(&result["data"]));
    if let Some(can) = can {
        let (tb, tf) = (can.bytes_per_s / 1e12, known(can.flops / 1e12, 0));
        let _ = writeln!(text, "\nCeilings: copy {tb:.2} TB/s, bf16 product {tf} TFLOP/s.");
    }
    for model in ["moondream2", "moondream3"] {
        if let Some(result) = results.get(&format!("bench-{model}")) {
            phases(&mut text, model, &result["data"], can);
        }
        if let Some(result) = results.get(&format!("workload-{model}")) {
            workload(&mut text, model, &result["data"], can);
        }
    }
    text
}

/// In a cell of a table.
fn one_line(text: &str) -> String {
    text.replace(['|', '\n'], " ")
}

/// A number, if it is one.
fn known(x: f64, digits: usize) -> String {
    if x.is_finite() { format!("{x:.digits$}") } else { "?".into() }
}

/// A number out of a phase's name: `crops: 9`, `prefill, 751 tokens`, `from context 771`.
fn number_after(name: &str, mark: &str) -> Option<f64> {
    let rest = name.split_once(mark)?.1.trim_start();
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Its least time in seconds, and that of one of its steps.
fn floor(model: Text, phase: &Value, can: Ceilings) -> Option<f64> {
    let name = phase["name"].as_str()?;
    if name.starts_with("vision") {
        return Some(model.vision_s(number_after(name, "crops:")?, can));
    }
    if name.starts_with("prefill") {
        return Some(model.prefill_s(number_after(name, "prefill,")?, can));
    }
    let (batch, tokens) = (phase["batch"].as_f64()?, phase["tokens"].as_f64()?);
    let context = number_after(name, "from context")? + tokens / 2.0;
    Some(tokens * model.decode_s(batch, context, can))
}

fn phases(text: &mut String, model: &str, data: &Value, can: Option<Ceilings>) {
    let Some(phases) = data["phases"].as_array() else { return };
    let format = data["quant"].as_str().unwrap_or("bf16");
    let _ = writeln!(text, "\n## {model}, phases ({format}, random weights)\n");
    *text += "| phase | ms | ms a step | floor ms | % of floor |\n|---|---|---|---|---|\n";
    for phase in phases {
        let (Some(name), Some(took)) = (phase["name"].as_str(), phase["median_s"].as_f64()) else {
            continue;
        };
        let step = phase["tokens"].as_f64().map(|tokens| format!("{:.3}", 1e3 * took / tokens));
        let least = can.and_then(|can| floor(Text::of(model), phase, can)).unwrap_or(f64::NAN);
        let (floor, share) = (known(1e3 * least, 3), known(100.0 * least / took, 0));
        let step = step.unwrap_or_default();
        let _ = writeln!(text, "| {name} | {:.3} | {step} | {floor} | {share} |", 1e3 * took);
    }
}

fn workload(text: &mut String, model: &str, data: &Value, can: Option<Ceilings>) {
    let Some(cells) = data["cells"].as_array() else { return };
    let _ = writeln!(text, "\n## {model}, questions about charts\n");
    *text += "| cell | requests/s | p50 ms | p99 ms | floor req/s | % of floor |\n|---|---|---|---|---|---|\n";
    for cell in cells {
        let median = |name: &str| cell["values"][name]["median"].as_f64();
        let Some(rate) = median("requests_per_s") else { continue };
        let name = cell["cell"].as_str().unwrap_or("?");
        let steps = if name.contains("thought") { 29.0 } else { 2.3 };
        let batch = cell["concurrency"].as_f64().unwrap_or(1.0);
        let most = can.map(|can| Text::of(model).requests_per_s(batch, steps, can));
        let most = most.unwrap_or(f64::NAN);
        let (floor, share) = (known(most, 0), known(100.0 * rate / most, 0));
        let ms = |name: &str| median(name).map_or("?".into(), |ms| format!("{ms:.1}"));
        let (p50, p99) = (ms("latency_p50_ms"), ms("latency_p99_ms"));
        let _ = writeln!(text, "| {name} | {rate:.1} | {p50} | {p99} | {floor} | {share} |");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_has_percentages_and_failures() {
        let decode = "decode, 16 tokens of 4 sequences from context 771";
        let results = json!({
            "doctor": {"ok": true, "seconds": 1.0, "data": {"found": "GPU 0  NVIDIA H200"}},
            "ceilings": {"ok": true, "seconds": 3.0,
                "data": {"copy_bytes_per_s": 4.3e12, "gemm_flops": 790e12}},
            "conformance": {"ok": false, "seconds": 9.0, "error": "1 failed: a | b"},
            "racecheck": {"ok": true, "seconds": 0.0, "data": {"skipped": "none here"}},
            "bench-moondream2": {"ok": true, "seconds": 60.0, "data": {"phases": [
                {"name": "vision, crops: 9", "median_s": 0.0152},
                {"name": "prefill, 751 tokens", "median_s": 0.005},
                {"name": decode, "median_s": 0.016, "batch": 4, "tokens": 16},
            ]}},
            "workload-moondream2": {"ok": true, "seconds": 60.0, "data": {"cells": [
                {"cell": "engine direct 64", "concurrency": 64, "values": {
                    "requests_per_s": {"median": 84.0}, "latency_p50_ms": {"median": 500.0}}},
            ], "incomplete": "photon was ended after 420 s"}},
        });
        let text = markdown(results.as_object().unwrap());
        assert!(text.contains("| conformance | FAILED: 1 failed: a   b | 9 |"), "{text}");
        assert!(text.contains("| racecheck | skipped: none here | 0 |"), "{text}");
        let ended = "| workload-moondream2 | 1 cells, then: photon was ended after 420 s | 60 |";
        assert!(text.contains(ended), "{text}");
        assert!(text.contains("| vision, crops: 9 | 15.200 |  | 7.653 | 50 |"), "{text}");
        assert!(text.contains(&format!("| {decode} | 16.000 | 1.000 |")), "{text}");
        assert!(text.contains("| engine direct 64 | 84.0 | 500.0 | ? | 171 | 49 |"), "{text}");
    }
}
