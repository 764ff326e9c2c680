//! `bench workload`: which cells there are, in which order they are run, what becomes of the numbers.
//!
//! Every cell is run once before any is run again, so that a machine that gets slower or busier does
//! so to all of them. What is known of a cell after its last run is written then: who is stopped leaves
//! something.
use std::{
    collections::BTreeMap,
    fs::File,
    io::{IsTerminal, Write},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use photon::{DType, Model, Photon, bench::BenchOptions};

use super::{
    drive::{Driver, Sample, alphabet},
    phases,
    record::{self, Record, Setup},
    table,
    workload::{Workload, usual_questions},
};
use crate::{
    Failure,
    args::{BenchAnswer, BenchMode, BenchWorkloadArgs},
    output, run,
};

/// Pictures asked twice to set hits against misses.
const TWICE: usize = 60;
/// Tokens decoded in a row to time a step.
const STEPS: usize = 16;

/// What is measured by itself.
#[derive(Clone, Copy, Debug)]
enum Cell {
    Many { mode: BenchMode, answer: BenchAnswer, concurrency: usize },
    Twice { decoded: bool },
}

impl Cell {
    /// In the order of the table.
    fn all(args: &BenchWorkloadArgs, concurrency: &[usize]) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &mode in &args.modes {
            match mode {
                BenchMode::Phases => {}
                BenchMode::Again => cells.extend([true, false].map(|d| Cell::Twice { decoded: d })),
                BenchMode::Parity | BenchMode::Engine | BenchMode::Closed => {
                    for &answer in &args.answers {
                        let cell = |&concurrency| Cell::Many { mode, answer, concurrency };
                        cells.extend(concurrency.iter().map(cell));
                    }
                }
            }
        }
        cells
    }

    fn name(self) -> String {
        match self {
            Cell::Many { mode, answer, concurrency } => {
                let answer = match answer {
                    BenchAnswer::Direct => "direct",
                    BenchAnswer::Thought => "thought",
                };
                format!("{} {answer} {concurrency}", mode_name(mode))
            }
            Cell::Twice { decoded: true } => "again pixels".into(),
            Cell::Twice { decoded: false } => "again file".into(),
        }
    }

    fn mode(self) -> BenchMode {
        match self {
            Cell::Many { mode, .. } => mode,
            Cell::Twice { .. } => BenchMode::Again,
        }
    }

    fn concurrency(self) -> usize {
        match self {
            Cell::Many { concurrency, .. } => concurrency,
            Cell::Twice { .. } => 1,
        }
    }
}

fn mode_name(mode: BenchMode) -> &'static str {
    match mode {
        BenchMode::Parity => "parity",
        BenchMode::Engine => "engine",
        BenchMode::Closed => "closed",
        BenchMode::Again => "again",
        BenchMode::Phases => "phases",
    }
}

pub(super) fn workload(args: &BenchWorkloadArgs) -> Result<(), Failure> {
    let concurrency = if args.quick { &[1, 16][..] } else { &args.concurrency };
    let images = if args.quick { 24 } else { args.images };
    let questions = args.questions.unwrap_or_else(|| usual_questions(images));
    if !(images..=2 * images).contains(&questions) {
        return Err(Failure::Usage(format!(
            "{questions} questions about {images} pictures: each picture has one or two"
        )));
    }
    let model = match &args.synthetic {
        Some(name) => phases::synthetic(name, args.seed)?,
        None => Model::named(&args.model.model)?,
    };
    // Before the work, not after it.
    let mut out = args.out.as_deref().map(create).transpose()?;
    let drawn = Workload::draw(args.seed, images, questions);
    if let Some(dir) = &args.save {
        return Ok(drawn.save(dir)?);
    }

    let mut keep = |record: &Record| -> Result<(), Failure> {
        let line = serde_json::to_string(record)?;
        if let Some((file, path)) = &mut out {
            writeln!(file, "{line}").with_context(|| format!("cannot write {}", path.display()))?;
        }
        if args.json {
            output::line(&line)?;
        }
        Ok(())
    };
    let records = Rounds { args, model, workload: &drawn, concurrency }.run(&mut keep)?;
    if !args.json {
        table::print(&records, &drawn)?;
    }
    Ok(())
}

fn create(path: &Path) -> anyhow::Result<(File, &Path)> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok((file, path))
}

struct Rounds<'a> {
    args: &'a BenchWorkloadArgs,
    model: Model,
    workload: &'a Workload,
    concurrency: &'a [usize],
}

impl Rounds<'_> {
    fn run(
        &self,
        keep: &mut dyn FnMut(&Record) -> Result<(), Failure>,
    ) -> Result<Vec<Record>, Failure> {
        let cells = Cell::all(self.args, self.concurrency);
        let first = self.open(cells.first().map_or(1, |cell| cell.concurrency()))?;
        let dtype = first.dtype();
        let setup = self.setup(first.device_name(), dtype);
        let alphabet = alphabet(&first)?;
        let mut first = Some(first);

        let bar = self.bar(&cells);
        let driver = Driver { workload: self.workload, alphabet: &alphabet, bar: &bar };
        let mut samples: Vec<Vec<Sample>> = cells.iter().map(|_| Vec::new()).collect();
        let mut records = Vec::new();
        for round in 1..=self.args.repeats {
            for (cell, samples) in cells.iter().zip(&mut samples) {
                bar.set_message(format!("round {round}, {}", cell.name()));
                let photon = match first.take() {
                    Some(first) => first,
                    None => self.open(cell.concurrency())?,
                };
                samples.push(match *cell {
                    Cell::Many { mode, answer, concurrency } => {
                        driver.run(&photon, mode, answer, concurrency)?
                    }
                    Cell::Twice { decoded } => driver.twice(&photon, self.twice(), decoded)?,
                });
                if round == self.args.repeats {
                    let record = self.record(*cell, samples, &setup);
                    keep(&record)?;
                    records.push(record);
                }
            }
            if !std::io::stderr().is_terminal() {
                output::note(&format!("round {round} of {} is done", self.args.repeats));
            }
        }
        bar.finish_and_clear();
        // Of phases alone nothing was run.
        drop(first);
        if self.args.modes.contains(&BenchMode::Phases) {
            let record = self.phases(&setup, dtype)?;
            keep(&record)?;
            records.push(record);
        }
        Ok(records)
    }

    fn open(&self, max_seqs: usize) -> Result<Photon, Failure> {
        let args = &self.args.model;
        let mut builder = run::builder(args, self.model.clone(), args.adapter.as_deref());
        if let Some(dtype) = self.dtype() {
            builder = builder.dtype(dtype);
        }
        Ok(builder.max_seqs(max_seqs).max_waiting(self.workload.asks.len().max(512)).build()?)
    }

    /// Random weights are made in f32, which nobody would choose to run.
    fn dtype(&self) -> Option<DType> {
        let asked = self.args.model.device.dtype.map(Into::into);
        asked.or(self.args.synthetic.is_some().then_some(DType::Bf16))
    }

    fn twice(&self) -> usize {
        self.workload.pictures.len().min(TWICE)
    }

    fn bar(&self, cells: &[Cell]) -> ProgressBar {
        let requests = |cell: &Cell| match cell {
            Cell::Many { .. } => self.workload.asks.len(),
            Cell::Twice { .. } => 2 * self.twice(),
        };
        let total = self.args.repeats * cells.iter().map(requests).sum::<usize>();
        // Hides itself where nobody watches.
        let bar = ProgressBar::new(total as u64);
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}  {eta}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    fn setup(&self, device: String, dtype: DType) -> Setup {
        let precision = match self.args.model.device.kv_dtype.map(DType::from) {
            Some(kv) if kv != dtype => format!("{dtype} with {kv} keys and values"),
            _ => dtype.to_string(),
        };
        let model = match &self.args.synthetic {
            Some(name) => format!("random weights, {name}"),
            None => self.args.model.model.clone(),
        };
        Setup {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("PHOTON_COMMIT"),
            device,
            processor: processor(),
            model,
            precision,
            seed: self.args.seed,
        }
    }

    fn record(&self, cell: Cell, samples: &[Sample], setup: &Setup) -> Record {
        let values = match cell {
            Cell::Many { .. } => record::of_many(samples),
            Cell::Twice { .. } => record::of_twice(samples),
        };
        let first = &samples[0].requests;
        let mut prompts: Vec<usize> = first.iter().map(|done| done.metrics.input_tokens).collect();
        prompts.sort_unstable();
        Record {
            cell: cell.name(),
            mode: mode_name(cell.mode()).into(),
            setup: setup.clone(),
            concurrency: cell.concurrency(),
            images: first.iter().map(|done| done.picture).max().map_or(0, |last| last + 1),
            requests: first.len(),
            rounds: self.args.repeats,
            input_tokens: Some(prompts[prompts.len() / 2]),
            tokens_out: Some(first.iter().map(|done| done.metrics.output_tokens).sum()),
            crops: record::crops(first),
            values,
        }
    }

    fn phases(&self, setup: &Setup, dtype: DType) -> Result<Record, Failure> {
        let bench = BenchOptions {
            model: self.model.clone(),
            seed: self.args.seed,
            repeats: self.args.repeats,
            decode_tokens: STEPS,
            batches: self.concurrency.to_vec(),
            drafts: vec![0],
        };
        let device = &self.args.model.device;
        let report = phases::measure(&bench, device, Some(dtype), &mut |what| output::note(what))?;
        Ok(Record {
            cell: "phases".into(),
            mode: mode_name(BenchMode::Phases).into(),
            setup: setup.clone(),
            concurrency: 1,
            images: 0,
            requests: 0,
            rounds: self.args.repeats,
            input_tokens: None,
            tokens_out: None,
            crops: BTreeMap::new(),
            values: record::of_phases(&report),
        })
    }
}

/// The processor's name, where the system tells.
fn processor() -> Option<String> {
    let found = photon::doctor().into_iter().find_map(|doctor| doctor.found.ok())?;
    let name = found.lines().find_map(|line| line.strip_prefix("processor"))?.trim();
    Some(name.to_owned())
}
