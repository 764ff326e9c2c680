//! `bench model` and `bench load`: the phases of a request and of a start by themselves.
use std::{io, path::Path};

use photon::{
    DType, EngineOptions, Family, Model,
    bench::{BenchOptions, BenchReport, LoadReport, Phase},
};
use serde_json::json;

use crate::{
    Failure,
    args::{BenchLoadArgs, BenchModelArgs, DeviceArgs},
    output::{self, line},
};

/// Random weights of the dimensions a user names.
pub(super) fn synthetic(name: &str, seed: u64) -> Result<Model, Failure> {
    match name {
        "moondream2" => Ok(Model::Synthetic { family: Family::Moondream2, dir: None, seed }),
        "moondream3" => Ok(Model::Synthetic { family: Family::Moondream3, dir: None, seed }),
        dir if Path::new(dir).is_dir() => {
            // A folder's config.json says by its fields which family it is of.
            Ok(Model::Synthetic { family: Family::Moondream2, dir: Some(dir.into()), seed })
        }
        other => Err(Failure::Usage(format!(
            "--synthetic {other:?} is neither moondream2 nor moondream3 nor a folder with a \
             config.json"
        ))),
    }
}

pub(super) fn model(args: &BenchModelArgs) -> Result<(), Failure> {
    let bench = BenchOptions {
        model: synthetic(&args.synthetic, args.seed)?,
        seed: args.seed,
        repeats: args.repeats,
        decode_tokens: args.decode_tokens,
        batches: args.concurrency.clone(),
        drafts: args.drafts.iter().map(|&draft| draft.into()).collect(),
    };
    let dtype = args.device.dtype.map(Into::into);
    if args.by_name {
        return by_name(&bench, &args.device, dtype);
    }
    let report = measure(&bench, &args.device, dtype, &mut |what| output::note(what))?;
    match args.json {
        true => line(&serde_json::to_string(&report)?)?,
        false => print(&report)?,
    }
    Ok(())
}

pub(super) fn measure(
    bench: &BenchOptions,
    device: &DeviceArgs,
    dtype: Option<DType>,
    progress: &mut dyn FnMut(&str),
) -> Result<BenchReport, Failure> {
    Ok(photon::bench::run(device.device, bench, &engine(device, dtype), progress)?)
}

fn engine(device: &DeviceArgs, dtype: Option<DType>) -> EngineOptions {
    EngineOptions {
        threads: device.threads.map(Into::into),
        dtype,
        quant: device.quant,
        kv_dtype: device.kv_dtype.map(Into::into),
        kv_memory: device.kv_memory,
        ..EngineOptions::default()
    }
}

/// The worker of `cargo xtask peers`: a line of JSON that tells the phases' names, then for every line of standard
/// input, which is such a name, one with the seconds it took.
fn by_name(bench: &BenchOptions, device: &DeviceArgs, dtype: Option<DType>) -> Result<(), Failure> {
    let options = engine(device, dtype);
    let mut phases = photon::bench::open(device.device, bench, &options, &mut output::note)?;
    // There is one way to run each.
    let names = phases.names().into_iter().map(|name| (name, json!([""])));
    let names: serde_json::Map<_, _> = names.collect();
    let engine = format!("Photon {}, {}", env!("CARGO_PKG_VERSION"), phases.device());
    line(&json!({"engine": engine, "phases": names}).to_string())?;
    for name in io::stdin().lines() {
        let name = name?;
        let took = phases.run(&name);
        let took = took.ok_or_else(|| Failure::Usage(format!("there is no phase {name:?}")))??;
        line(&json!({"seconds": took.as_secs_f64()}).to_string())?;
    }
    Ok(())
}

pub(super) fn load(args: &BenchLoadArgs) -> Result<(), Failure> {
    let dtype = args.device.dtype.map(Into::into);
    let (model, options) = (Model::named(&args.model)?, engine(&args.device, dtype));
    let report = photon::bench::load(args.device.device, &model, &options, args.repeats)?;
    if args.json {
        return Ok(line(&serde_json::to_string(&report)?)?);
    }
    let LoadReport { device, dtype, quant, stored_bytes, phases, peak_memory_bytes } = &report;
    line(&format!(
        "{} of tensors, as {dtype} weights{}, {device}",
        output::bytes(*stored_bytes),
        in_brackets(quant.as_deref())
    ))?;
    Ok(table(phases, *peak_memory_bytes)?)
}

fn in_brackets(quant: Option<&str>) -> String {
    quant.map_or(String::new(), |quant| format!(" ({quant})"))
}

fn print(report: &BenchReport) -> std::io::Result<()> {
    let quant = in_brackets(report.quant.as_deref());
    line(&format!(
        "{} parameters, {} weights{quant}, {}; weights made in {:.1} s",
        report.parameters, report.dtype, report.device, report.load_s
    ))?;
    table(&report.phases, report.peak_memory_bytes)
}

fn table(phases: &[Phase], peak_memory_bytes: Option<u64>) -> std::io::Result<()> {
    line(&format!(
        "{:<54} {:>9} {:>9} {:>9} {:>9}",
        "phase", "median s", "min s", "max s", "cpu s"
    ))?;
    for phase in phases {
        let speed = phase.tokens_per_s.map_or(String::new(), |s| format!("  {s:.2} tokens/s"));
        let cpu = phase.cpu_s.map_or("?".into(), |s| format!("{s:.3}"));
        line(&format!(
            "{:<54} {:>9.3} {:>9.3} {:>9.3} {cpu:>9}{speed}",
            phase.name, phase.median_s, phase.min_s, phase.max_s
        ))?;
    }
    if let Some(bytes) = peak_memory_bytes {
        line(&format!("peak memory {}", output::bytes(bytes)))?;
    }
    Ok(())
}
