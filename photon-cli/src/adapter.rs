//! `adapter`: files with adapters, and the folder in which they have names.
use photon::{
    Model,
    adapters::{AdapterFolder, AdapterSummary, convert, inspect},
};
use serde_json::{Value, json};

use crate::{
    Failure,
    args::{AdapterArgs, AdapterCommand, AdapterConvertArgs, AdapterInspectArgs, AdapterListArgs},
    output::line,
};

pub(crate) fn adapter(args: &AdapterArgs) -> Result<(), Failure> {
    match &args.what {
        AdapterCommand::Convert(args) => write(args),
        AdapterCommand::Inspect(args) => look(args),
        AdapterCommand::List(args) => list(args),
    }
}

fn named(model: Option<&str>) -> Result<Option<Model>, Failure> {
    Ok(model.map(Model::named).transpose()?)
}

fn write(args: &AdapterConvertArgs) -> Result<(), Failure> {
    let (model, dtype) = (named(args.model.as_deref())?, args.dtype.map(Into::into));
    let summary = convert(&args.from, &args.to, dtype, model.as_ref(), args.force)?;
    match args.json {
        true => line(&json_of(&summary, &args.to.display().to_string())?.to_string())?,
        false => line(&format!("{}: {}", args.to.display(), describe(&summary)))?,
    }
    Ok(())
}

fn look(args: &AdapterInspectArgs) -> Result<(), Failure> {
    let summary = inspect(&args.path, named(args.model.as_deref())?.as_ref())?;
    match args.json {
        true => line(&json_of(&summary, &args.path.display().to_string())?.to_string())?,
        false => line(&format!("{}: {}", args.path.display(), describe(&summary)))?,
    }
    Ok(())
}

fn list(args: &AdapterListArgs) -> Result<(), Failure> {
    let found = AdapterFolder::from(args.adapters.clone()).list()?;
    let mut rows = Vec::new();
    for (name, path) in &found {
        let summary = inspect(path, None);
        if !args.json {
            let what = summary.as_ref().map_or_else(ToString::to_string, describe);
            line(&format!("{name:<36} {what}"))?;
            continue;
        }
        let mut row = match &summary {
            Ok(summary) => json_of(summary, &path.display().to_string())?,
            Err(error) => json!({ "file": path, "error": error.to_string() }),
        };
        row["name"] = name.to_string().into();
        rows.push(row);
    }
    if args.json {
        line(&json!({ "adapters": rows }).to_string())?;
    } else if found.is_empty() {
        line(&format!("no adapters in {}: none is named ID@STEP", args.adapters.display()))?;
    }
    Ok(())
}

fn json_of(summary: &AdapterSummary, file: &str) -> anyhow::Result<Value> {
    let mut object = json!({ "file": file });
    for (key, value) in serde_json::to_value(summary)?.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    Ok(object)
}

/// One line for people.
pub(crate) fn describe(summary: &AdapterSummary) -> String {
    let mut parts = Vec::new();
    if summary.dense_blocks > 0 {
        let attention = if summary.attention { ", attention too" } else { "" };
        let (rank, blocks) = (summary.rank, summary.dense_blocks);
        parts.push(format!("rank {rank} in {blocks} dense blocks{attention}"));
    }
    if summary.expert_blocks > 0 {
        let (rank, blocks) = (summary.expert_rank, summary.expert_blocks);
        parts
            .push(format!("rank {rank} in each of {} experts of {blocks} blocks", summary.experts));
    }
    parts.push(format!("{} parameters", summary.parameters));
    parts.push(match summary.fits.is_empty() {
        true => "fits no published model".into(),
        false => format!("fits {}", summary.fits.join(" and ")),
    });
    parts.join("; ")
}
