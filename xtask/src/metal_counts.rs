//! What a step of Moondream at its real size consists of on Metal: launches by kernel, barriers, and the bytes that
//! launches name, counted by the backend's own host code on the simulator, which then runs nothing; and what an Apple GPU
//! would take for it by a model of two numbers, marked as the prediction it is.
//!
//! Layers are alike, but for the last, which computes the last token of a prompt alone: models of few are counted, and the
//! difference that one more makes is multiplied.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{cargo, root};

/// GPUs, and what of their TFLOP/s and GB/s large kernels are taken to reach: some 84 % and 90 % of what they have,
/// of M5 Max without its tensor operations, which are off unless asked for.
const GPUS: &[(&str, f64, f64)] = &[("M2", 3.0, 92.0), ("M4", 3.4, 110.0), ("M5 Max", 15.0, 550.0)];
/// What a barrier costs: the GPU runs dry and fills again.
const BARRIER_S: f64 = 1.5e-6;
/// Tokens in the cache when a token is decoded: a picture and a question.
const CONTEXT: f64 = 770.0;
/// Layers of the real models: vision, text, and of Moondream 3's text those without experts.
const LAYERS: [f64; 3] = [27.0, 24.0, 4.0];

/// Of one pass.
#[derive(Clone, Debug, Default)]
struct Counted {
    barriers: f64,
    /// Named by launches, keys and values aside.
    bytes: f64,
    /// Launches by kernel.
    kernels: BTreeMap<String, f64>,
}

impl Counted {
    /// `self + factor * (to - from)`.
    fn plus(&self, factor: f64, to: &Counted, from: &Counted) -> Counted {
        let sum = |of: &dyn Fn(&Counted) -> f64| of(self) + factor * (of(to) - of(from));
        let names = [self, to, from].into_iter().flat_map(|counted| counted.kernels.keys());
        let kernels = names.map(|name| (name.clone(), sum(&|counted| counted.launches(name))));
        Counted {
            barriers: sum(&|counted| counted.barriers),
            bytes: sum(&|counted| counted.bytes),
            kernels: kernels.collect(),
        }
    }

    fn launches(&self, kernel: &str) -> f64 {
        self.kernels.get(kernel).copied().unwrap_or_default()
    }

    fn dispatches(&self) -> f64 {
        self.kernels.values().sum()
    }
}

/// The passes of one run: one crop, nine crops, a prompt of 750 tokens, a token for one sequence and for four.
type Passes = [Counted; 5];

pub(crate) fn run() -> Result<()> {
    cargo(&["build", "--quiet", "-p", "photon-cli", "--features", "sim"])?;
    let md2 = |layers: u32| {
        count(&format!("md2-{layers}"), &json!({"text": {"n_layers": layers}}), layers, 1.0)
    };
    // A token goes to 8 of 64 experts, four tokens to 26 on average, a prompt's to all.
    let md3 = |layers: u32, dense: u32| {
        let moe = json!({"start_layer": dense});
        let text = json!({"n_layers": layers, "tau_attn": true, "max_context": 4096, "moe": moe});
        count(&format!("md3-{layers}-{dense}"), &json!({"text": text}), 1, 8.0 / 64.0)
    };
    let (one, two) = (md2(1)?, md2(2)?);
    let [vision, text, dense] = LAYERS;
    let whole = |i: usize| {
        let layers = if i < 2 { vision } else { text };
        one[i].plus(layers - 1.0, &two[i], &one[i])
    };
    // TFLOP of the prompt; GB of weights, read once, and of keys and values: both from the shapes of the layers.
    report("Moondream 2", 1.97, [0.89, 0.89, 2.63, 2.78, 3.23], &std::array::from_fn(whole));
    let (base, expert, plain) = (md3(2, 1)?, md3(3, 1)?, md3(3, 2)?);
    // Of the vision tower, which is the same, these have a layer.
    let whole = |i: usize| match i {
        0 | 1 => one[i].plus(vision - 1.0, &two[i], &one[i]),
        _ => {
            let dense_layers = base[i].plus(dense - 1.0, &plain[i], &base[i]);
            dense_layers.plus(text - dense - 1.0, &expert[i], &base[i])
        }
    };
    report("Moondream 3", 2.50, [0.89, 0.89, 17.4, 3.45, 8.43], &std::array::from_fn(whole));
    Ok(())
}

/// Counts the passes of a model. `experts`: which part of the experts' weights one token reads.
fn count(name: &str, config: &Value, vision_layers: u32, experts: f64) -> Result<Passes> {
    let folder = root().join("target/metal-counts").join(name);
    fs::create_dir_all(&folder)?;
    let mut config = config.clone();
    config["vision"] = json!({"enc_n_layers": vision_layers});
    fs::write(folder.join("config.json"), json!({"config": config}).to_string())?;
    let file = folder.join("counts.jsonl");
    if file.exists() {
        fs::remove_file(&file)?;
    }
    let status = Command::new(root().join("target/debug/photon"))
        .args(["bench", "model", "--device", "sim-metal", "--dtype", "f16", "--json"])
        .args(["--repeats", "1", "--decode-tokens", "1", "--concurrency", "1,4"])
        .args(["--kv-memory", "128MiB", "--synthetic"])
        .arg(&folder)
        .env("PHOTON_SIM_COUNT", &file)
        .stdout(std::process::Stdio::null())
        .status()?;
    ensure!(status.success(), "photon bench fails on {name}");
    passes(&file, experts)
}

fn passes(file: &Path, experts: f64) -> Result<Passes> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    // Every phase twice, to warm up and to be timed: one crop, nine in two submits, the prompt, then once the
    // question's 20 tokens, then decoding, and decoding that finds places, for one sequence and for four.
    let lines: [&[Value]; 5] = match lines.len() {
        17 => [1..2, 4..6, 7..8, 10..11, 14..15].map(|range| &lines[range]),
        other => anyhow::bail!("{} submits in {}, of 17", other, file.display()),
    };
    let parts = [1.0, 1.0, 1.0, experts, (experts * 3.25).min(1.0)];
    let mut passes = Passes::default();
    for ((pass, lines), part) in passes.iter_mut().zip(lines).zip(parts) {
        for line in lines {
            add(pass, line, part);
        }
    }
    Ok(passes)
}

/// Adds a submit, of whose experts' weights a part is read.
fn add(pass: &mut Counted, line: &Value, part: f64) {
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    pass.barriers += number(&line["barriers"]);
    for (kernel, of) in line["kernels"].as_object().into_iter().flatten() {
        *pass.kernels.entry(kernel.clone()).or_default() += number(&of[0]);
        let bytes = number(&of[1]);
        // Some name a whole cache or table, of which they touch a sequence's part, or some rows.
        let names_more = ["paged_attention", "rope_store", "move_rows", "convert_rows"];
        pass.bytes += match kernel.as_str() {
            k if names_more.iter().any(|name| k.starts_with(name)) => 0.0,
            k if k.starts_with("grouped") => bytes * part,
            _ => bytes,
        };
    }
}

const PASSES: [&str; 5] =
    ["vision, 1 crop", "vision, 9 crops", "prefill, 750 tokens", "decode", "decode of 4"];

fn report(model: &str, prompt_tflop: f64, least_gb: [f64; 5], passes: &Passes) {
    // Keys and values of 24 layers of 2048 features in f16.
    let kv = CONTEXT * 24.0 * 2.0 * 2048.0 * 2.0;
    let tflop = [0.67, 6.0, prompt_tflop, 0.0, 0.0];
    println!(
        "\n| {model}, f16 | dispatches | barriers | GB named | least GB | M2, predicted | M4, predicted | M5 Max, predicted |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (i, (name, pass)) in PASSES.iter().zip(passes).enumerate() {
        let cached = match i {
            3 => kv,
            4 => 4.0 * kv,
            _ => 0.0,
        };
        let bytes = pass.bytes + cached;
        let predicted = |(_, tflops, gbs): &(&str, f64, f64)| {
            let seconds = (tflop[i] / tflops).max(bytes / gbs / 1e9) + pass.barriers * BARRIER_S;
            format!("{:.1} ms", 1e3 * seconds)
        };
        let predicted: Vec<String> = GPUS.iter().map(predicted).collect();
        println!(
            "| {name} | {:.0} | {:.0} | {:.2} | {:.2} | {} |",
            pass.dispatches(),
            pass.barriers,
            bytes / 1e9,
            least_gb[i],
            predicted.join(" | ")
        );
    }
    launches(model, passes);
}

/// Which kernels it is that are launched.
fn launches(model: &str, passes: &Passes) {
    println!("\n| {model}, launches of | {} |\n|---|{}", PASSES.join(" | "), "---|".repeat(5));
    let kernels: BTreeSet<&String> = passes.iter().flat_map(|pass| pass.kernels.keys()).collect();
    for kernel in kernels {
        let of = passes.iter().map(|pass| match pass.launches(kernel) {
            0.0 => String::new(),
            launches => format!("{launches:.0}"),
        });
        println!("| `{kernel}` | {} |", of.collect::<Vec<_>>().join(" | "));
    }
}
