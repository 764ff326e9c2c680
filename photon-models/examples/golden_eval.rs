//! What formats of weights, and of keys and values, cost: `golden_eval`, as tables in Markdown.
//!
//! The first table is of the tiny models whose outputs the public reference recorded: how far logits are from
//! the recorded ones, in the range of the logits, and how many of the recorded greedy tokens are
//! the likeliest, each after the recorded ones before it. Weights and activations of those models are random, so
//! nothing in them forgives an error: a trained model loses less. The second table is of one layer of Moondream 2's
//! size: the error of its output, relative to the output.
#![allow(clippy::print_stdout, reason = "an example talks to its user")]
#![allow(clippy::unwrap_used, reason = "what is recorded is there")]
#[path = "../tests/models/golden/run.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod run;

use photon_core::{DType, WeightFormat, convert, quant};
use photon_models::{
    Precision, Quant,
    config::{Config, Family, TauGelu},
    prompt::Input,
    quant::format_name,
};
use run::{Golden, PICTURES, Run, inputs, query_logits};
use serde_json::Value;

const FORMATS: [WeightFormat; 6] = [
    WeightFormat::Float(DType::F32),
    WeightFormat::Float(DType::Bf16),
    WeightFormat::Int8,
    WeightFormat::Fp8,
    WeightFormat::Int4 { group: 32 },
    WeightFormat::Int4 { group: 128 },
];
const KV: [DType; 3] = [DType::Bf16, DType::Int8, DType::Fp8];

fn main() {
    models();
    println!();
    layers();
}

/// Weights in one format, everything else in f32.
fn weights(format: WeightFormat) -> Precision {
    match format {
        WeightFormat::Float(weights) => Precision { weights, ..Precision::F32 },
        format => {
            let quant = Quant { text: Some(format), vision: Some(format), head: None };
            Precision { quant, ..Precision::F32 }
        }
    }
}

/// What is measured, and what it is called.
fn precisions() -> Vec<(String, Precision)> {
    let of_weights = FORMATS.map(|format| match format {
        WeightFormat::Float(DType::F32) => ("f32 throughout".into(), Precision::F32),
        format => (format!("{} weights", format_name(format)), weights(format)),
    });
    let head = Quant { head: Some(WeightFormat::Int8), ..Quant::NONE };
    let head = ("int8 head".into(), Precision { quant: head, ..Precision::F32 });
    let kv = KV.map(|kv| (format!("{kv} keys and values"), Precision { kv, ..Precision::F32 }));
    // As a processor with instructions for bf16 has it, and a GPU but for what goes from block to block.
    let all = KV.map(|kv| {
        let precision = Precision { inner: DType::Bf16, kv, ..Precision::mixed(DType::Bf16) };
        (format!("bf16 weights and within blocks, {kv} keys and values"), precision)
    });
    of_weights.into_iter().chain([head]).chain(kv).chain(all).collect()
}

/// How far a model is from what was recorded.
#[derive(Default)]
struct Distance {
    largest: f64,
    squares: f64,
    count: f64,
    agreed: usize,
    tokens: usize,
}

impl Distance {
    fn add_logits(&mut self, got: &[f32], want: &[f32]) {
        let low = want.iter().copied().fold(f32::MAX, f32::min);
        let range = f64::from(want.iter().copied().fold(f32::MIN, f32::max) - low);
        for (got, want) in got.iter().zip(want) {
            let error = f64::from((got - want).abs()) / range;
            self.largest = self.largest.max(error);
            self.squares += error * error;
            self.count += 1.0;
        }
    }

    fn cells(&self) -> String {
        let rms = (self.squares / self.count).sqrt();
        let (largest, rms) = (100.0 * self.largest, 100.0 * rms);
        format!("{largest:.2} % | {rms:.3} % | {} of {}", self.agreed, self.tokens)
    }
}

fn models() {
    println!("| model | format | logit error, largest | RMS | tokens |\n|---|---|---|---|---|");
    for (model, family, gelu) in [
        ("Moondream 2", Family::Moondream2, TauGelu::Tanh),
        ("Moondream 3, tau by tanh", Family::Moondream3, TauGelu::Tanh),
        ("Moondream 3, tau by erf", Family::Moondream3, TauGelu::Erf),
    ] {
        let golden = Golden::open(family);
        let mut config = golden.config();
        config.text.tau_gelu = gelu;
        let name = if gelu == TauGelu::Tanh { "tanh" } else { "erf" };
        for (format, precision) in precisions() {
            let cells = distance(&golden, name, &config, precision).cells();
            println!("| {model} | {format} | {cells} |");
        }
    }
}

fn distance(golden: &Golden, gelu: &str, config: &Config, precision: Precision) -> Distance {
    let mut run = Run::new(config, precision);
    let mut distance = Distance::default();
    // Moondream 2's captions are recorded as its questions are.
    let (captions, banned) = match config.family() {
        Family::Moondream2 => (&["caption_short", "caption_normal", "caption_long"][..], Some(3)),
        Family::Moondream3 => (&[][..], None),
    };
    for picture in PICTURES {
        let record = golden.record(gelu, picture);
        let logits = query_logits(&mut run, picture, &record["query"]["prompt"]);
        distance.add_logits(&logits, &golden.query_logits(gelu, picture));
        agree(&mut run, &mut distance, &record["query"], logits, banned);
        for caption in captions {
            let prompt = inputs(&record[caption]["prompt"], config.vision.patches());
            let logits = run.logits(&prompt, 0);
            distance.add_logits(&logits, &golden.floats(&format!("{picture}.{caption}_logits")));
            agree(&mut run, &mut distance, &record[caption], logits, banned);
        }
    }
    distance
}

/// Counts the recorded tokens that are the likeliest after those before them; an answer of Moondream 2 may not
/// hold the id `banned`.
fn agree(
    run: &mut Run,
    distance: &mut Distance,
    record: &Value,
    mut logits: Vec<f32>,
    banned: Option<usize>,
) {
    let prompt = inputs(&record["prompt"], run.model.config().vision.patches());
    for (position, token) in (prompt.len()..).zip(record["tokens"].as_array().unwrap()) {
        let token = token.as_u64().unwrap() as u32;
        let legal = (0..logits.len()).filter(|id| Some(*id) != banned);
        let best = legal.max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        distance.agreed += usize::from(best == Some(token as usize));
        distance.tokens += 1;
        logits = run.logits(&[Input::Token(token)], position);
    }
}

fn layers() {
    let sizes = [("fc1", 8192, 2048), ("fc2", 2048, 8192)];
    let kinds = [("normal", 0), ("one weight in 1,000 ten times as large", 1000)];
    let columns = sizes.iter().flat_map(|(name, n, k)| {
        kinds.map(|(kind, outliers)| (format!("{name} [{n}, {k}], {kind}"), *n, *k, outliers))
    });
    let columns: Vec<_> = columns.collect();
    let names: Vec<_> = columns.iter().map(|(name, ..)| name.as_str()).collect();
    println!("| format | {} |", names.join(" | "));
    println!("|{}", "---|".repeat(1 + columns.len()));
    let errors: Vec<_> =
        columns.iter().map(|&(_, n, k, outliers)| layer_errors(n, k, outliers)).collect();
    for (i, format) in FORMATS.into_iter().enumerate().skip(1) {
        let cells: Vec<_> = errors.iter().map(|e| format!("{:.3} %", 100.0 * e[i])).collect();
        println!("| {} weights | {} |", format_name(format), cells.join(" | "));
    }
}

/// `|W' x - W x| / |W x|` of normal `W [n, k]` and `x` by the format of `W'`; of every `outliers` weights one
/// is ten times as large.
fn layer_errors(n: usize, k: usize, outliers: usize) -> [f64; 6] {
    let mut rng = Rng(1);
    let rows = 8;
    let x: Vec<f32> = (0..rows * k).map(|_| rng.normal()).collect();
    let mut w: Vec<f32> = (0..n * k).map(|_| 0.02 * rng.normal()).collect();
    if outliers > 0 {
        w.chunks_exact_mut(outliers).for_each(|chunk| chunk[rng.below(outliers)] *= 10.0);
    }
    FORMATS.map(|format| {
        let coded = stand_for(format, k, &w);
        let (mut squares, mut all) = (0.0, 0.0);
        for (w, coded) in w.chunks_exact(k).zip(coded.chunks_exact(k)) {
            for x in x.chunks_exact(k) {
                let dot = |w: &[f32]| -> f64 {
                    w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
                };
                let want = dot(w);
                squares += (dot(coded) - want).powi(2);
                all += want * want;
            }
        }
        (squares / all).sqrt()
    })
}

/// What weights are after they were stored in a format.
fn stand_for(format: WeightFormat, k: usize, w: &[f32]) -> Vec<f32> {
    let WeightFormat::Float(dtype) = format else {
        let coded = quant::quantize(format, k, w).unwrap();
        return quant::dequantize(format, k, &coded.bytes, &coded.scales);
    };
    let wide: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
    let stored = convert(&wide, DType::F32, dtype).into_owned();
    let back = convert(&stored, dtype, DType::F32);
    back.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// From above 0 to 1.
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Box and Muller's.
    fn normal(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }
}
