//! How fast a model of given dimensions runs on a device: the phases of a request, each by itself.
//!
//! Weights are synthetic (never zeros: some processors multiply those faster), so nothing needs to
//! be downloaded; pictures are noise. What is measured is what requests run, through the same code.
use std::time::{Duration, Instant};

use photon_core::{Kernels, SampleParams, WeightFormat};
use photon_models::{
    Moondream, Quant, batch::Row, checkpoint::Checkpoint, config::Config, expected_tensors,
    image::Tiling, prompt::Input,
};
use serde::Serialize;

use crate::{
    BuildError, DType, Device, Model,
    engine::{
        EngineOptions, Sizes, precision,
        runner::{EncodeJob, Heads, Runner},
    },
};

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

pub(crate) fn measure<D: Kernels>(
    device: D,
    bench: &BenchOptions,
    options: &EngineOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<BenchReport, BuildError> {
    let config = &bench.model.dimensions().map_err(BuildError::from)?;
    let dtype = options.dtype.unwrap_or_else(|| device.model_dtype(DType::Bf16));
    let precision = precision(&device, dtype, options);
    let checkpoint = Checkpoint::synthetic(bench.seed, expected_tensors(config));
    progress("making weights");
    let begun = Instant::now();
    let mut said = begun;
    let mut loading = |taken: u64, total: u64| {
        if said.elapsed() >= SILENCE {
            said = Instant::now();
            progress(&format!("making weights, {} %", 100 * taken / total.max(1)));
        }
    };
    let model = Moondream::load(&device, &checkpoint, config, precision, &mut loading)?;
    let max_seqs = bench.batches.iter().copied().max().unwrap_or(1);
    let speculate = bench.drafts.iter().copied().max().unwrap_or(0);
    let options = EngineOptions { max_seqs: Some(max_seqs), speculate, ..options.clone() };
    let sizes = Sizes::choose(&device, config, precision, &options)?;
    let runner = Runner::new(device, model, sizes.runner)?;
    let load_s = begun.elapsed().as_secs_f64();

    let mut rig = Rig { runner, config, bench, progress, phases: Vec::new() };
    rig.vision()?;
    rig.text(sizes.runner.num_blocks, sizes.runner.block_size)?;
    let parameters =
        expected_tensors(config).iter().map(|(_, s)| s.iter().product::<usize>() as u64).sum();
    Ok(BenchReport {
        device: rig.runner.device.name(),
        dtype: dtype.to_string(),
        quant: quantized(precision.quant),
        parameters,
        load_s,
        phases: rig.phases,
        peak_memory_bytes: peak_memory(),
    })
}

/// How long nothing is said while weights are made, which takes minutes at the size of Moondream 3.
const SILENCE: Duration = Duration::from_secs(10);

/// Which matrices are quantized, and how.
fn quantized(quant: Quant) -> Option<String> {
    let part = |name: &str, format: Option<WeightFormat>| Some(format!("{name} {}", format?));
    let parts = [part("text", quant.text), part("vision", quant.vision)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// A model on a device, and what has been measured of it.
struct Rig<'a, D: Kernels> {
    runner: Runner<D>,
    config: &'a Config,
    bench: &'a BenchOptions,
    progress: &'a mut dyn FnMut(&str),
    phases: Vec<Phase>,
}

impl<D: Kernels> Rig<'_, D> {
    fn vision(&mut self) -> Result<(), BuildError> {
        let vision = &self.config.vision;
        let bytes = vision.crop_size.pow(2) * 3;
        let tilings = [Tiling { rows: 1, cols: 1 }, Tiling { rows: 2, cols: 4 }];
        for tiling in tilings.into_iter().filter(|t| t.num_tiles() <= vision.max_crops) {
            let name = format!("vision, crops: {}", tiling.num_crops());
            (self.progress)(&name);
            let crops = noise(bytes * tiling.num_crops());
            let jobs = [EncodeJob { tiling, crops: &crops, slot: 0 }];
            let phase = phase(name, self.bench.repeats, || {
                let done = self.runner.encode(&jobs)?;
                self.runner.device.wait(&done)
            })?;
            self.phases.push(phase);
        }
        Ok(())
    }

    /// A prompt, then tokens after it, for one sequence and for several at once.
    fn text(&mut self, num_blocks: usize, block_size: usize) -> Result<(), BuildError> {
        let patches = self.config.vision.patches();
        let mut prompt = vec![Input::Token(self.config.tokenizer.bos_id)];
        prompt.extend((0..patches as u32).map(Input::Image));
        prompt.extend(text(20));
        let first = prompt.len() + 20;
        let inputs: Vec<Input> = text(self.bench.decode_tokens).collect();
        let longest = self.bench.drafts.iter().copied().max().unwrap_or(0);
        let blocks_per_row = (first + inputs.len() + longest).div_ceil(block_size);
        let table = |row: usize| -> Vec<u32> {
            let start = 1 + row * blocks_per_row;
            (start as u32..(start + blocks_per_row) as u32).collect()
        };

        let repeats = self.bench.repeats;
        let name = format!("prefill, {} tokens", prompt.len());
        (self.progress)(&name);
        let prefill = phase(name, repeats, || self.step(&prompt, 0, &[table(0)], 0))?;
        self.phases.push(prefill);
        (self.progress)("decode");
        self.step(&text(20).collect::<Vec<_>>(), prompt.len(), &[table(0)], 0)
            .map_err(run_error)?;
        for batch in self.bench.batches.clone() {
            let tables: Vec<Vec<u32>> = (0..batch).map(table).collect();
            let together =
                if batch == 1 { String::new() } else { format!(" of {batch} sequences") };
            if 1 + batch * blocks_per_row > num_blocks {
                (self.progress)(&format!("no room for the keys and values of {batch} sequences"));
                continue;
            }
            for (&from, &to) in tables[1..].iter().flat_map(|table| tables[0].iter().zip(table)) {
                self.runner.copy_block(from, to, block_size);
            }
            for draft in self.bench.drafts.clone() {
                let ahead =
                    if draft == 0 { String::new() } else { format!(", {draft} guessed ahead") };
                let tokens = inputs.len();
                let name = format!("decode, {tokens} tokens{together} from context {first}{ahead}");
                (self.progress)(&name);
                let mut decode = phase(name, repeats, || {
                    let step = |i| self.step(&inputs[i..=i], first + i, &tables, draft);
                    (0..tokens).try_for_each(step)
                })?;
                decode.tokens_per_s = Some((batch * tokens) as f64 / decode.median_s);
                decode.batch = Some(batch);
                decode.tokens = Some(tokens);
                decode.draft = Some(draft).filter(|&draft| 0 < draft);
                self.phases.push(decode);
            }
            // What a decode step costs where a place is drawn, and not a word.
            let places = vec![Input::Coord(0.5); inputs.len()];
            let name = format!("places, {}{together} from context {first}", places.len());
            (self.progress)(&name);
            let phase = phase(name, repeats, || {
                let step = |i| self.step(&places[i..=i], first + i, &tables, 0);
                (0..places.len()).try_for_each(step)
            })?;
            self.phases.push(phase);
        }
        Ok(())
    }

    /// Computes `inputs`, words or a coordinate that another follows, from position `start` and as many guessed ids as `draft` says, once per block table.
    fn step(
        &mut self,
        inputs: &[Input],
        start: usize,
        tables: &[Vec<u32>],
        draft: usize,
    ) -> photon_core::Result<()> {
        let draft: Vec<u32> = (0..draft as u32).collect();
        let ids = &self.config.tokenizer;
        let mut sample = SampleParams::GREEDY;
        let heads = Heads { coord: matches!(inputs, [Input::Coord(_)]), size: false };
        if heads.coord {
            sample.allowed = [ids.coord_id as i32, ids.eos_id as i32, -1, -1];
        }
        let rows = tables.iter().map(|block_table| Row {
            inputs,
            draft: &draft,
            start,
            block_table,
            images: &[0],
            adapter: None,
            sample: Some(sample),
            mask: None,
        });
        let step = self.runner.step(rows, heads)?;
        self.runner.finish(step, &mut Vec::new())
    }
}

/// Ids that differ.
fn text(n: usize) -> impl Iterator<Item = Input> {
    (0..n).map(|i| Input::Token((17 + 31 * i) as u32 % 500))
}

fn run_error(error: impl Into<crate::RunError>) -> BuildError {
    match error.into() {
        crate::RunError::Device(error) => BuildError::Device(error),
        other => BuildError::NoModel(other.to_string()),
    }
}

/// Runs once to warm up, then `repeats` times.
fn phase<E: Into<crate::RunError>>(
    name: String,
    repeats: usize,
    mut run: impl FnMut() -> Result<(), E>,
) -> Result<Phase, BuildError> {
    run().map_err(run_error)?;
    let repeats = repeats.max(1);
    let mut seconds = Vec::with_capacity(repeats);
    let cpu = cpu_seconds();
    for _ in 0..repeats {
        let begun = Instant::now();
        run().map_err(run_error)?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let cpu_s = cpu_seconds().zip(cpu).map(|(after, before)| (after - before) / repeats as f64);
    seconds.sort_by(f64::total_cmp);
    Ok(Phase {
        name,
        median_s: seconds[seconds.len() / 2],
        min_s: seconds[0],
        max_s: seconds[seconds.len() - 1],
        cpu_s,
        batch: None,
        tokens: None,
        draft: None,
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
