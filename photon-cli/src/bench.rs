//! `bench`: how fast this machine is.
use std::path::Path;

use photon::{
    EngineOptions,
    bench::{BenchModel, BenchOptions, BenchReport},
};

use crate::{
    Failure,
    args::{BenchArgs, BenchModelArgs, BenchWhat},
    output::{self, line},
};

pub(crate) fn bench(args: BenchArgs) -> Result<(), Failure> {
    let BenchWhat::Model(args) = args.what;
    model(&args)
}

fn model(args: &BenchModelArgs) -> Result<(), Failure> {
    let model = match args.synthetic.as_str() {
        "moondream2" => BenchModel::moondream2(),
        dir if Path::new(dir).is_dir() => BenchModel::from_dir(Path::new(dir))?,
        other => {
            return Err(Failure::Usage(format!(
                "--synthetic {other:?} is neither moondream2 nor a folder with a config.json"
            )));
        }
    };
    let bench = BenchOptions {
        model,
        seed: args.seed,
        repeats: args.repeats,
        decode_tokens: args.decode_tokens,
    };
    let options = EngineOptions {
        threads: args.device.threads.map(Into::into),
        dtype: args.device.dtype.map(Into::into),
        ..EngineOptions::default()
    };
    let progress = &mut |what: &str| output::note(what);
    let report = photon::bench::run(args.device.device, &bench, &options, progress)?;
    match args.json {
        true => line(&serde_json::to_string(&report)?)?,
        false => table(&report)?,
    }
    Ok(())
}

fn table(report: &BenchReport) -> std::io::Result<()> {
    line(&format!(
        "{} parameters, {} weights, {}; weights made in {:.1} s",
        report.parameters, report.dtype, report.device, report.load_s
    ))?;
    line(&format!("{:<40} {:>9} {:>9} {:>9}", "phase", "median s", "min s", "max s"))?;
    for phase in &report.phases {
        let speed = phase.tokens_per_s.map_or(String::new(), |s| format!("  {s:.2} tokens/s"));
        line(&format!(
            "{:<40} {:>9.3} {:>9.3} {:>9.3}{speed}",
            phase.name, phase.median_s, phase.min_s, phase.max_s
        ))?;
    }
    if let Some(bytes) = report.peak_memory_bytes {
        line(&format!("peak memory {}", output::bytes(bytes)))?;
    }
    Ok(())
}
