//! `bench --compare`: two records side by side, B over A.
use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::{
    record::{Spread, Values},
    table::{grid, number},
};
use crate::{Failure, output::line};

/// What is not a speed, or says the same as another number.
const LEFT_OUT: [&str; 6] =
    ["seconds", "steps", "hit_rate", "vision_share", "step_share", "scheduler_share"];

/// What comparing needs of a record; other versions of Photon may know more.
#[derive(Clone, Debug, Deserialize)]
struct Cell {
    cell: String,
    version: String,
    commit: Option<String>,
    device: String,
    processor: Option<String>,
    model: String,
    precision: String,
    seed: u64,
    images: usize,
    requests: usize,
    values: Values,
}

impl Cell {
    /// Where it was measured.
    fn place(&self) -> String {
        let commit = self.commit.as_ref().map_or(String::new(), |commit| format!(" ({commit})"));
        let processor = self.processor.as_ref().map_or(String::new(), |name| format!(", {name}"));
        format!(
            "photon {}{commit}, {}, {}, {}{processor}",
            self.version, self.model, self.precision, self.device
        )
    }
}

pub(super) fn compare(a: &Path, b: &Path) -> Result<(), Failure> {
    let (a, b) = (read(a)?, read(b)?);
    for (name, cells) in [("A", &a), ("B", &b)] {
        line(&format!("{name}: {}", cells[0].place()))?;
    }
    line("")?;
    let other: BTreeMap<&str, &Cell> = b.iter().map(|cell| (cell.cell.as_str(), cell)).collect();
    let rows: Vec<Vec<String>> =
        a.iter().filter_map(|a| Some(rows(a, other.get(a.cell.as_str())?))).flatten().collect();
    if !rows.is_empty() {
        grid(&["cell", "number", "A", "B", "B/A", ""], &rows)?;
    }
    for (name, cells, others) in [("B", &a, &b), ("A", &b, &a)] {
        let missing = |cell: &&Cell| !others.iter().any(|other| other.cell == cell.cell);
        for cell in cells.iter().filter(missing) {
            line(&format!("{name} has no cell {:?}", cell.cell))?;
        }
    }
    Ok(())
}

fn rows(a: &Cell, b: &Cell) -> Vec<Vec<String>> {
    let same = (a.seed, a.images, a.requests) == (b.seed, b.images, b.requests);
    let numbers = a.values.iter().filter(|(name, _)| !LEFT_OUT.contains(&name.as_str()));
    let row = |(name, from): (&String, &Spread)| {
        let to = b.values.get(name)?;
        let remark = match (same, within_the_spread(from, to)) {
            (false, _) => "another workload",
            (true, true) => "within the spread",
            (true, false) => "",
        };
        let ratio = to.median / from.median;
        let ratio = if ratio.is_finite() { format!("{ratio:.3}") } else { "-".into() };
        let (from, to) = (number(from.median), number(to.median));
        Some(vec![a.cell.clone(), name.clone(), from, to, ratio, remark.into()])
    };
    numbers.filter_map(row).collect()
}

/// Whether some round of one was not slower than some round of the other, and the other way round.
fn within_the_spread(a: &Spread, b: &Spread) -> bool {
    a.min <= b.max && b.min <= a.max
}

/// The cells of a file, at least one.
fn read(path: &Path) -> anyhow::Result<Vec<Cell>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let mut cells: Vec<Cell> = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let cell: Cell = serde_json::from_str(line).with_context(|| {
            format!("{shown}, line {number} is not of `photon bench workload --out`")
        })?;
        if cells.iter().any(|other| other.cell == cell.cell) {
            bail!("{shown}, line {number}: there is a cell {:?} above", cell.cell);
        }
        cells.push(cell);
    }
    if cells.is_empty() {
        bail!("{shown} has no cells");
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(seed: u64, min: f64, max: f64) -> Cell {
        let spread = Spread { median: (min + max) / 2.0, min, max };
        Cell {
            cell: "closed direct 1".into(),
            version: "0".into(),
            commit: None,
            device: "cpu".into(),
            processor: None,
            model: "demo".into(),
            precision: "f32".into(),
            seed,
            images: 2,
            requests: 3,
            values: [("seconds", spread), ("requests_per_s", spread)]
                .map(|(name, spread)| (name.to_owned(), spread))
                .into(),
        }
    }

    #[test]
    fn a_ratio_counts_only_beyond_the_spread() {
        let check = |a, b, ratio: &str, remark: &str| {
            let rows = rows(&a, &b);
            assert_eq!(rows.len(), 1, "{rows:?}");
            assert_eq!(rows[0][4..], [ratio, remark]);
        };
        check(cell(0, 9.0, 11.0), cell(0, 19.0, 21.0), "2.000", "");
        check(cell(0, 9.0, 11.0), cell(0, 10.5, 13.5), "1.200", "within the spread");
        check(cell(0, 9.0, 11.0), cell(1, 9.0, 11.0), "1.000", "another workload");
        check(cell(0, 0.0, 0.0), cell(0, 1.0, 1.0), "-", "");
    }
}
