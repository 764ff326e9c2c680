//! `inspect`: what is in a file of weights.
use std::collections::{BTreeMap, BTreeSet};

use photon::inspect::{Inspection, Origin, inspect as look};

use crate::{
    Failure,
    adapter::describe,
    args::InspectArgs,
    output::{bytes, line},
};

/// Names of a list that are printed; `--json` prints all.
const MAX_NAMES: usize = 10;

pub(crate) fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let found = look(&args.path)?;
    if args.json {
        line(&serde_json::to_string(&found)?)?;
    } else {
        print(args, &found)?;
    }
    match found.is_complete() {
        true => Ok(()),
        false => Err(anyhow::anyhow!("{} is not a whole model", args.path.display()).into()),
    }
}

fn print(args: &InspectArgs, found: &Inspection) -> std::io::Result<()> {
    line(&format!("{}: {}, names as of {}", args.path.display(), found.family, found.layout))?;
    if let (Some(adapter), Some(rank)) = (&found.adapter, found.rank) {
        line(&format!("{}; needs --adapter-rank {rank}", describe(adapter)))?;
    } else {
        let config = if found.has_config { "config.json" } else { "the published model" };
        line(&format!("dimensions of {config}"))?;
    }
    if let Some(origin) = &found.origin {
        let Origin { version, source, formats } = origin;
        let formats =
            if formats.is_empty() { String::new() } else { format!(", weights {formats}") };
        line(&format!("written by Photon (format {version}) from {source}{formats}"))?;
    }
    line("")?;
    // `model.text.blocks.0...` belongs to `model.text`.
    let part = |name: &str| name.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
    let mut parts: BTreeMap<String, (usize, u64, u64, BTreeSet<&str>)> = BTreeMap::new();
    for tensor in &found.tensors {
        let (count, elements, size, formats) = parts.entry(part(&tensor.name)).or_default();
        *count += 1;
        *elements += tensor.shape.iter().product::<usize>() as u64;
        *size += tensor.bytes;
        formats.insert(&tensor.format);
    }
    line(&format!(
        "{:<16} {:>8} {:>14} {:>10}  formats",
        "part", "tensors", "parameters", "bytes"
    ))?;
    for (name, (count, elements, size, formats)) in &parts {
        let formats = formats.iter().copied().collect::<Vec<_>>().join(", ");
        line(&format!("{name:<16} {count:>8} {elements:>14} {:>10}  {formats}", bytes(*size)))?;
    }
    let (count, elements) = (found.tensors.len(), found.parameters);
    line(&format!("{:<16} {count:>8} {elements:>14} {:>10}", "all", bytes(found.bytes)))?;
    if args.tensors {
        line("")?;
        for tensor in &found.tensors {
            let shape = format!("{:?}", tensor.shape);
            line(&format!("{:<56} {shape:<20} {}", tensor.name, tensor.format))?;
        }
    }
    let lists = [
        ("missing", &found.missing),
        ("unknown", &found.unknown),
        ("of another shape", &found.misshapen),
    ];
    for (what, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
        line(&format!("\n{what}: {}", names.len()))?;
        names.iter().take(MAX_NAMES).try_for_each(|name| line(&format!("  {name}")))?;
        if names.len() > MAX_NAMES {
            line(&format!("  and {} more", names.len() - MAX_NAMES))?;
        }
    }
    if !found.ignored.is_empty() {
        line(&format!(
            "\nnot used: {} static scales of keys and values; Photon's carry their own",
            found.ignored.len()
        ))?;
    }
    if found.is_complete() {
        line("\nnothing is missing")?;
    }
    Ok(())
}
