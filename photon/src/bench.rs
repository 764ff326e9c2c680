//! How fast a model of given dimensions runs on a device: the phases of a request, each by itself.
//!
//! Weights are synthetic (never zeros: some processors multiply those faster), so nothing needs to
//! be downloaded; pictures are noise. What is measured is what requests run, through the same code.
//!
//! [`run`] times every phase by itself; [`open`] leaves to the caller which phase is run when, so that
//! other programs can take turns with it. [`load`](load()) times the stages of a start, from files to an engine that
//! could answer.
use std::time::{Duration, Instant};

use photon_core::{Kernels, WeightFormat};
use photon_models::{Moondream, Quant, checkpoint::Checkpoint, expected_tensors};
use serde::Serialize;

use self::rig::{Rig, Work};
use crate::{
    BuildError, DType, Device, Model,
    engine::{EngineOptions, Sizes, precision, runner::Runner},
};

pub use self::load::LoadReport;
pub(crate) use self::load::load as load_on;

mod load;
mod rig;

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The dimensions; its weights are not read.
    pub model: Model,
    /// Seed of the weights.
    pub seed: u64,
    /// How often each phase is run after a warm-up; the median is reported.
    pub repeats: usize,
    /// Tokens to decode in a row for the decode speed.
    pub decode_tokens: usize,
    /// Numbers of sequences to decode together. What there is no memory for is left out.
    pub batches: Vec<usize>,
    /// Numbers of tokens guessed ahead in each step, each measured with each number of sequences.
    pub drafts: Vec<usize>,
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
    /// Processor time of all threads in a repeat on average, in seconds, where the system tells. On a
    /// processor that has nothing else to do it is the time it took, as often as there are threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_s: Option<f64>,
    /// Sequences decoded together, for decode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Tokens decoded in a row, each in a step of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Tokens guessed ahead in each step, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft: Option<usize>,
    /// Tokens per second, for decode, all sequences together, guessed ones not counted.
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
    /// Formats of the matrices that were quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quant: Option<String>,
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

/// Starts a model `repeats` times on a device, the first time with whatever the system still holds of its files.
pub fn load(
    device: Device,
    model: &Model,
    options: &EngineOptions,
    repeats: usize,
) -> Result<LoadReport, BuildError> {
    crate::backend::bench_load(device, model, options, repeats)
}

/// A model whose phases are run one at a time, by name.
pub trait Phases {
    /// Their names: `vision 1`, `prefill`, `decode 8`, where the number is that of crops, or of sequences.
    fn names(&self) -> Vec<String>;

    /// Runs a phase once and says how long it took; `None` if there is none of that name.
    fn run(&mut self, name: &str) -> Option<Result<Duration, BuildError>>;

    /// Where it runs.
    fn device(&self) -> String;
}

/// Loads the model on a device; the repeats of `bench` are not used.
pub fn open(
    device: Device,
    bench: &BenchOptions,
    options: &EngineOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Box<dyn Phases>, BuildError> {
    crate::backend::open_bench(device, bench, options, progress)
}

pub(crate) fn open_on<D: Kernels>(
    device: D,
    bench: &BenchOptions,
    options: &EngineOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Box<dyn Phases>, BuildError> {
    let mut rig = synthetic(device, bench, options, progress)?;
    rig.run(Work::Prefill)?;
    rig.ask()?;
    rig.share(bench.batches.iter().copied().max().unwrap_or(1));
    Ok(Box::new(Named { works: rig.named(&bench.batches), rig }))
}

/// Work under the names that [`Phases`] has for it.
struct Named<D: Kernels> {
    rig: Rig<D>,
    works: Vec<(String, Work)>,
}

impl<D: Kernels> Phases for Named<D> {
    fn names(&self) -> Vec<String> {
        self.works.iter().map(|(name, _)| name.clone()).collect()
    }

    fn run(&mut self, name: &str) -> Option<Result<Duration, BuildError>> {
        let &(_, work) = self.works.iter().find(|(other, _)| other == name)?;
        let begun = Instant::now();
        Some(self.rig.run(work).map(|()| begun.elapsed()).map_err(BuildError::from))
    }

    fn device(&self) -> String {
        self.rig.device()
    }
}

pub(crate) fn measure<D: Kernels>(
    device: D,
    bench: &BenchOptions,
    options: &EngineOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<BenchReport, BuildError> {
    let begun = Instant::now();
    let mut rig = synthetic(device, bench, options, progress)?;
    let load_s = begun.elapsed().as_secs_f64();
    let mut time = |rig: &mut Rig<D>, work| {
        let name = rig.describe(work);
        progress(&name);
        phase(name, bench.repeats, || rig.run(work))
    };
    let mut phases = Vec::new();
    for tiling in rig.tilings() {
        phases.push(time(&mut rig, Work::Vision(tiling))?);
    }
    phases.push(time(&mut rig, Work::Prefill)?);
    rig.ask()?;
    let room = rig.room();
    for &batch in bench.batches.iter().filter(|&&batch| batch <= room) {
        rig.share(batch);
        for &draft in &bench.drafts {
            let tokens = bench.decode_tokens;
            let decode = time(&mut rig, Work::Decode { batch, draft })?;
            phases.push(Phase {
                tokens_per_s: Some((batch * tokens) as f64 / decode.median_s),
                batch: Some(batch),
                tokens: Some(tokens),
                draft: Some(draft).filter(|&draft| 0 < draft),
                ..decode
            });
        }
        phases.push(time(&mut rig, Work::Places { batch })?);
    }
    for &batch in bench.batches.iter().filter(|&&batch| room < batch) {
        progress(&format!("no room for the keys and values of {batch} sequences"));
    }
    Ok(BenchReport {
        device: rig.device(),
        dtype: rig.precision().weights.to_string(),
        quant: quantized(rig.precision().quant),
        parameters: rig.parameters(),
        load_s,
        phases,
        peak_memory_bytes: peak_memory(),
    })
}

/// Makes the weights, and what runs them.
fn synthetic<D: Kernels>(
    device: D,
    bench: &BenchOptions,
    options: &EngineOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Rig<D>, BuildError> {
    let config = bench.model.dimensions().map_err(BuildError::from)?;
    let dtype = options.dtype.unwrap_or_else(|| device.model_dtype(DType::Bf16));
    let precision = precision(&device, dtype, options);
    let checkpoint = Checkpoint::synthetic(bench.seed, expected_tensors(&config));
    progress("making weights");
    let mut said = Instant::now();
    let mut loading = |taken: u64, total: u64| {
        if said.elapsed() >= SILENCE {
            said = Instant::now();
            progress(&format!("making weights, {} %", 100 * taken / total.max(1)));
        }
    };
    let model = Moondream::load(&device, &checkpoint, &config, precision, &mut loading)?;
    let max_seqs = bench.batches.iter().copied().max().unwrap_or(1);
    let speculate = bench.drafts.iter().copied().max().unwrap_or(0);
    let options = EngineOptions { max_seqs: Some(max_seqs), speculate, ..options.clone() };
    let sizes = Sizes::choose(&device, &config, precision, &options)?;
    let runner = Runner::new(device, model, sizes.runner)?;
    Ok(Rig::new(runner, config, sizes.runner, bench))
}

/// How long nothing is said while weights are made, which takes minutes at the size of Moondream 3.
const SILENCE: Duration = Duration::from_secs(10);

/// Which matrices are quantized, and how.
fn quantized(quant: Quant) -> Option<String> {
    let part = |name: &str, format: Option<WeightFormat>| Some(format!("{name} {}", format?));
    let parts = [part("text", quant.text), part("vision", quant.vision), part("head", quant.head)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// Runs once to warm up, then `repeats` times.
fn phase(
    name: String,
    repeats: usize,
    mut run: impl FnMut() -> photon_core::Result<()>,
) -> Result<Phase, BuildError> {
    run()?;
    let repeats = repeats.max(1);
    let mut seconds = Vec::with_capacity(repeats);
    let cpu = cpu_seconds();
    for _ in 0..repeats {
        let begun = Instant::now();
        run()?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let cpu_s = cpu_seconds().zip(cpu).map(|(after, before)| (after - before) / repeats as f64);
    Ok(Phase::new(name, seconds, cpu_s))
}

impl Phase {
    /// Of the seconds of every repeat, one at least.
    fn new(name: String, mut seconds: Vec<f64>, cpu_s: Option<f64>) -> Phase {
        seconds.sort_by(f64::total_cmp);
        Phase {
            name,
            median_s: seconds[seconds.len() / 2],
            min_s: seconds[0],
            max_s: seconds[seconds.len() - 1],
            cpu_s,
            batch: None,
            tokens: None,
            draft: None,
            tokens_per_s: None,
        }
    }
}

/// `utime` and `stime` of `/proc/self/stat`, which are in hundredths of a second on every Linux.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the program's name, which may hold spaces, they are the 12th and the 13th.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(|t| t.parse::<u64>().ok());
    Some(ticks.sum::<Option<u64>>()? as f64 / 100.0)
}

/// `VmHWM` of `/proc/self/status`.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
