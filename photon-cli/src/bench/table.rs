//! Records as tables for people.
use std::{collections::BTreeMap, io};

use super::{
    record::{Record, Spread},
    workload::Workload,
};
use crate::output::line;

pub(super) fn print(records: &[Record], workload: &Workload) -> io::Result<()> {
    let Some(first) = records.first() else { return Ok(()) };
    let setup = &first.setup;
    let processor = setup.processor.as_ref().map_or(String::new(), |name| format!(", {name}"));
    let (model, precision, device) = (&setup.model, &setup.precision, &setup.device);
    line(&format!("{model}, {precision}, {device}{processor}"))?;
    line(&format!(
        "{} pictures of {} KB on average, {} questions, seed {}; median of {} rounds (least-most)",
        workload.pictures.len(),
        workload.picture_bytes() / 1000,
        workload.asks.len(),
        workload.seed,
        first.rounds
    ))?;
    if let Some(record) = records.iter().find(|record| !record.crops.is_empty()) {
        line(&format!("pictures by crops: {}", histogram(&record.crops)))?;
    }
    let many = |record: &&Record| record.values.contains_key("requests_per_s");
    let (many, others): (Vec<&Record>, Vec<&Record>) = records.iter().partition(many);
    if !many.is_empty() {
        line("")?;
        grid(&MANY.map(|(title, _)| title), &many.into_iter().map(row).collect::<Vec<_>>())?;
    }
    for record in others {
        line("")?;
        let numbers = record.values.iter();
        let rows: Vec<Vec<String>> =
            numbers.map(|(name, spread)| vec![name.clone(), with_ends(spread)]).collect();
        grid(&[record.cell.as_str(), ""], &rows)?;
    }
    Ok(())
}

/// The columns of cells of many requests. A share is of the time from begin to end.
const MANY: [(&str, &str); 11] = [
    ("cell", ""),
    ("requests/s", "requests_per_s"),
    ("p50 ms", "latency_p50_ms"),
    ("p90 ms", "latency_p90_ms"),
    ("p99 ms", "latency_p99_ms"),
    ("first token p50", "ttft_p50_ms"),
    ("cached", "hit_rate"),
    ("vision", "vision_share"),
    ("steps", "step_share"),
    ("scheduler", "scheduler_share"),
    ("us/step", "scheduler_us_per_step"),
];

fn row(record: &Record) -> Vec<String> {
    let cell = |&(_, name): &(&str, &str)| match record.values.get(name) {
        None => record.cell.clone(),
        Some(spread) if name == "requests_per_s" => with_ends(spread),
        Some(spread) if name == "scheduler_share" => format!("{:.2} %", 100.0 * spread.median),
        Some(spread) if name.ends_with("share") || name == "hit_rate" => {
            format!("{:.0} %", 100.0 * spread.median)
        }
        Some(spread) => number(spread.median),
    };
    MANY.iter().map(cell).collect()
}

fn histogram(crops: &BTreeMap<usize, usize>) -> String {
    let parts: Vec<String> =
        crops.iter().map(|(crops, pictures)| format!("{pictures} of {crops}")).collect();
    parts.join(", ")
}

/// Three digits that count.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        99.5.. => format!("{value:.0}"),
        9.95.. => format!("{value:.1}"),
        0.995.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn with_ends(spread: &Spread) -> String {
    format!("{} ({}-{})", number(spread.median), number(spread.min), number(spread.max))
}

/// Columns as wide as what is in them; the first to the left, the others to the right.
pub(super) fn grid(header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let header = header.iter().map(ToString::to_string).collect::<Vec<_>>();
    let all = || std::iter::once(&header).chain(rows);
    let width = |i: usize| all().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    for row in all() {
        let cells = row.iter().zip(&widths).enumerate().map(|(i, (text, &width))| match i {
            0 => format!("{text:<width$}"),
            _ => format!("{text:>width$}"),
        });
        line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_have_the_digits_that_count() {
        let cases = [(0.0, "0"), (0.0123, "0.012"), (1.0, "1.00"), (9.999, "10.0"), (123.4, "123")];
        for (value, text) in cases {
            assert_eq!(super::number(value), text);
        }
    }
}
