//! How fast a model of given dimensions runs on a device: the phases of a request, each by itself.
//!
//! Weights are synthetic (never zeros: some processors multiply those faster), so nothing needs to
//! be downloaded; pictures are noise. What is measured is what requests run, through the same code.
use std::{path::Path, time::Instant};

use photon_core::{Kernels, SampleParams};
use photon_models::{
    LoadError, Moondream, batch::Row, checkpoint::Checkpoint, config::Config, expected_tensors,
    image::Tiling, prompt::Input,
};
use serde::Serialize;

use crate::{
    BuildError, DType, Device,
    engine::{
        EngineOptions, Sizes, precision,
        runner::{EncodeJob, Heads, Runner},
    },
};

/// The dimensions of a model, without its weights.
#[derive(Clone, Debug)]
pub struct BenchModel {
    config: Config,
}

impl BenchModel {
    /// Moondream 2.
    pub fn moondream2() -> Self {
        BenchModel { config: Config::default() }
    }

    /// As the folder's `config.json` says.
    pub fn from_dir(dir: &Path) -> Result<Self, BuildError> {
        let path = dir.join("config.json");
        let json = std::fs::read(&path)
            .map_err(|e| BuildError::NoModel(format!("cannot read {}: {e}", path.display())))?;
        Ok(BenchModel { config: Config::from_json(&json).map_err(LoadError::from)? })
    }
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The dimensions.
    pub model: BenchModel,
    /// Seed of the weights.
    pub seed: u64,
    /// How often each phase is run after a warm-up; the median is reported.
    pub repeats: usize,
    /// Tokens to decode in a row for the decode speed.
    pub decode_tokens: usize,
}

/// One phase.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Median of the repeats, in seconds.
    pub median_s: f64,
    /// Fastest repeat, in seconds.
    pub min_s: f64,
    /// Slowest repeat, in seconds.
    pub max_s: f64,
    /// Tokens per second, for decode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Where.
    pub device: String,
    /// Type of weights, keys and values.
    pub dtype: String,
    /// Parameters of the model.
    pub parameters: u64,
    /// Making and packing the weights, in seconds.
    pub load_s: f64,
    /// The phases.
    pub phases: Vec<Phase>,
    /// Most memory of the process so far, in bytes, where the system tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

/// Measures on a device.
pub fn run(
    device: Device,
    bench: &BenchOptions,
    options: &EngineOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<BenchReport, BuildError> {
    crate::backend::bench(device, bench, options, progress)
}

pub(crate) fn measure<D: Kernels>(
    device: D,
    bench: &BenchOptions,
    options: &EngineOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<BenchReport, BuildError> {
    let config = &bench.model.config;
    let dtype = options.dtype.unwrap_or(DType::Bf16);
    let checkpoint = Checkpoint::synthetic(bench.seed, expected_tensors(config));
    progress("making weights");
    let begun = Instant::now();
    let model = Moondream::load(&device, &checkpoint, config, precision(dtype), &mut |_, _| {})?;
    // One row: what is measured is a request by itself.
    let options = EngineOptions { max_seqs: Some(1), no_capture: true, ..options.clone() };
    let sizes = Sizes::choose(&device, config, precision(dtype), &options)?;
    let mut runner = Runner::new(device, model, sizes.runner)?;
    let load_s = begun.elapsed().as_secs_f64();

    let device_name = runner.device.name();
    let mut phases = Vec::new();
    let bytes = config.vision.crop_size.pow(2) * 3;
    let tilings = [Tiling { rows: 1, cols: 1 }, Tiling { rows: 2, cols: 4 }];
    for tiling in tilings.into_iter().filter(|t| t.num_tiles() <= config.vision.max_crops) {
        let name = format!("vision, crops: {}", tiling.num_crops());
        let name = name.as_str();
        progress(name);
        let crops = noise(bytes * tiling.num_crops());
        phases.push(phase(name, bench.repeats, || {
            runner.encode(&[EncodeJob { tiling, crops: &crops, slot: 0 }])
        })?);
    }

    let image = 1 + config.vision.patches();
    let text = |n: usize| (0..n).map(|i| Input::Token((17 + 31 * i) as u32 % 1000));
    let mut prompt = vec![Input::Token(config.tokenizer.bos_id)];
    prompt.extend((0..config.vision.patches() as u32).map(Input::Image));
    prompt.extend(text(20));
    let block_table: Vec<u32> = (1..sizes.runner.num_blocks as u32).collect();
    let mut drew = Vec::new();
    let mut step = |inputs: &[Input], start: usize| {
        let (block_table, sample) = (&block_table[..], Some(SampleParams::GREEDY));
        let row = Row { inputs, start, block_table, prefix_len: image, image_offset: 0, sample };
        let step = runner.step(std::iter::once(row), Heads::default())?;
        runner.finish(step, &mut drew)
    };
    let name = format!("prefill, {} tokens", prompt.len());
    progress(&name);
    phases.push(phase(&name, bench.repeats, || step(&prompt, 0))?);

    let first = prompt.len() + 20;
    progress("decode");
    let fill: Vec<Input> = text(20).collect();
    step(&fill, prompt.len()).map_err(run_error)?;
    let inputs: Vec<Input> = text(bench.decode_tokens).collect();
    let name = format!("decode, {} tokens from context {first}", inputs.len());
    let mut decode = phase(&name, bench.repeats, || {
        (0..inputs.len()).try_for_each(|i| step(&inputs[i..=i], first + i))
    })?;
    decode.tokens_per_s = Some(inputs.len() as f64 / decode.median_s);
    phases.push(decode);

    let parameters =
        expected_tensors(config).iter().map(|(_, s)| s.iter().product::<usize>() as u64).sum();
    Ok(BenchReport {
        device: device_name,
        dtype: dtype.to_string(),
        parameters,
        load_s,
        phases,
        peak_memory_bytes: peak_memory(),
    })
}

fn run_error(error: impl Into<crate::RunError>) -> BuildError {
    match error.into() {
        crate::RunError::Device(error) => BuildError::Device(error),
        other => BuildError::NoModel(other.to_string()),
    }
}

/// Runs once to warm up, then `repeats` times.
fn phase<E: Into<crate::RunError>>(
    name: &str,
    repeats: usize,
    mut run: impl FnMut() -> Result<(), E>,
) -> Result<Phase, BuildError> {
    run().map_err(run_error)?;
    let mut seconds = Vec::with_capacity(repeats);
    for _ in 0..repeats.max(1) {
        let begun = Instant::now();
        run().map_err(run_error)?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(Phase {
        name: name.into(),
        median_s: seconds[seconds.len() / 2],
        min_s: seconds[0],
        max_s: seconds[seconds.len() - 1],
        tokens_per_s: None,
    })
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

/// `VmHWM` of `/proc/self/status`.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
