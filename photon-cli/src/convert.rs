//! `convert` and `quantize`: a model written anew.
use std::{
    ops::ControlFlow,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context;
use photon::{
    Model, Quant,
    convert::{ConvertError, ConvertOptions, SHARD_BYTES, convert as write},
};

use crate::{
    Failure,
    args::{ConversionArgs, ConvertArgs, QuantizeArgs},
    output::{self, bytes, line},
    run::progress_bar,
};

pub(crate) fn convert(args: &ConvertArgs) -> Result<(), Failure> {
    run(&args.what, args.quant)
}

pub(crate) fn quantize(args: &QuantizeArgs) -> Result<(), Failure> {
    match args.quant {
        Quant::NONE => Err(Failure::Usage("--quant none quantizes nothing; see: convert".into())),
        quant => run(&args.what, quant),
    }
}

fn run(args: &ConversionArgs, quant: Quant) -> Result<(), Failure> {
    let model = Model::named(&args.model)?;
    let options = ConvertOptions {
        quant,
        dtype: args.dtype.map(Into::into),
        shard_bytes: args.shard_size.unwrap_or(SHARD_BYTES),
        tokenizer: args.tokenizer.clone(),
        force: args.force,
    };
    let stop = stop_on_signal()?;
    let bar = progress_bar(if quant == Quant::NONE { "converting" } else { "quantizing" });
    let written = write(&model, &args.out, &options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        match stop.load(Ordering::SeqCst) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    bar.finish_and_clear();
    let written = match written {
        Err(ConvertError::Cancelled) => {
            output::note(&ConvertError::Cancelled.to_string());
            return Err(Failure::Interrupted);
        }
        written => written?,
    };
    if args.json {
        line(&serde_json::to_string(&written)?)?;
        return Ok(());
    }
    let (before, after) = (written.bytes_before, written.bytes_after);
    let share = 100.0 * after as f64 / before.max(1) as f64;
    line(&format!("{}: {} as {}", args.out.display(), written.source, written.formats))?;
    line(&format!("{} before, {} now ({share:.0} %)", bytes(before), bytes(after)))?;
    Ok(())
}

/// A flag that the first interrupt sets; the second ends the program.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            process::exit(130);
        }
    })
    .context("cannot listen for interrupts")?;
    Ok(stop)
}
