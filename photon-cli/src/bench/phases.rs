//! `bench model`: the phases of a request by themselves.
use std::path::Path;

use photon::{
    DType, EngineOptions, Family, Model,
    bench::{BenchOptions, BenchReport},
};

use crate::{
    Failure,
    args::{BenchModelArgs, DeviceArgs},
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
    };
    let dtype = args.device.dtype.map(Into::into);
    let report = measure(&bench, &args.device, dtype, &mut |what| output::note(what))?;
    match args.json {
        true => line(&serde_json::to_string(&report)?)?,
        false => table(&report)?,
    }
    Ok(())
}

pub(super) fn measure(
    bench: &BenchOptions,
    device: &DeviceArgs,
    dtype: Option<DType>,
    progress: &mut dyn FnMut(&str),
) -> Result<BenchReport, Failure> {
    let options = EngineOptions {
        threads: device.threads.map(Into::into),
        dtype,
        quant: device.quant,
        kv_dtype: device.kv_dtype.map(Into::into),
        kv_memory: device.kv_memory,
        ..EngineOptions::default()
    };
    Ok(photon::bench::run(device.device, bench, &options, progress)?)
}

fn table(report: &BenchReport) -> std::io::Result<()> {
    line(&format!(
        "{} parameters, {} weights, {}; weights made in {:.1} s",
        report.parameters, report.dtype, report.device, report.load_s
    ))?;
    line(&format!("{:<54} {:>9} {:>9} {:>9}", "phase", "median s", "min s", "max s"))?;
    for phase in &report.phases {
        let speed = phase.tokens_per_s.map_or(String::new(), |s| format!("  {s:.2} tokens/s"));
        line(&format!(
            "{:<54} {:>9.3} {:>9.3} {:>9.3}{speed}",
            phase.name, phase.median_s, phase.min_s, phase.max_s
        ))?;
    }
    if let Some(bytes) = report.peak_memory_bytes {
        line(&format!("peak memory {}", output::bytes(bytes)))?;
    }
    Ok(())
}
