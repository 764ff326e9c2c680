//! What was measured, as tables and as JSON.
//!
//! A ratio is the median of the rounds' ratios: the two times of a round were taken one right after the other, so what
//! else the machine did then is in both.
use std::{collections::BTreeMap, fmt::Write, fs};

use serde_json::{Value, json};

use super::{
    LeftOut, Terms,
    lineup::{Compared, compared},
};

/// The part of the processors' time that other programs may have before ratios are worth little.
const QUIET: f64 = 0.05;
const NOISE: &str = "\n**That is not quiet**: an engine whose threads spin until all have come loses far more time \
                     to others than one whose threads do not wait, so ratios say little.\n";

/// Times of one engine.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) name: String,
    /// Whether it is Photon.
    pub(super) ours: bool,
    /// The engine and its version, as it says itself.
    pub(super) engine: String,
    /// The fastest way to run each phase.
    pub(super) ways: BTreeMap<String, String>,
    /// By phase, one per round.
    pub(super) seconds: BTreeMap<String, Vec<f64>>,
    pub(super) peak_memory_bytes: Option<u64>,
}

impl Record {
    pub(super) fn new(name: &str, ours: bool, engine: &str) -> Record {
        Record {
            name: name.into(),
            ours,
            engine: engine.into(),
            ways: BTreeMap::new(),
            seconds: BTreeMap::new(),
            peak_memory_bytes: None,
        }
    }

    /// The phase of this engine that stands in a line.
    fn phase<'a>(&self, line: &'a Compared) -> &'a str {
        if self.ours { &line.ours } else { &line.theirs }
    }

    fn times(&self, line: &Compared) -> Option<&[f64]> {
        self.seconds.get(self.phase(line)).map(Vec::as_slice).filter(|times| !times.is_empty())
    }

    /// `1.90 s (1.88-1.97)`, or tokens a second where tokens are decoded.
    fn cell(&self, line: &Compared) -> String {
        let Some(times) = self.times(line) else { return "-".into() };
        let (least, most) = range(times);
        match line.tokens.filter(|_| line.ours.starts_with("decode")) {
            None => format!("{:.2} s ({least:.2}-{most:.2})", median(times)),
            Some(tokens) => {
                let speed = |seconds: f64| tokens as f64 / seconds;
                let (median, least, most) = (speed(median(times)), speed(most), speed(least));
                format!("{median:.2} tokens/s ({least:.2}-{most:.2})")
            }
        }
    }

    fn json(&self, lines: &[Compared]) -> Value {
        let phases = self.seconds.iter().map(|(name, seconds)| {
            let tokens = lines.iter().find(|line| self.phase(line) == name).and_then(|l| l.tokens);
            let phase = json!({
                "median_s": median(seconds),
                "seconds": seconds,
                "tokens_per_s": tokens.map(|tokens| tokens as f64 / median(seconds)),
                "way": self.ways.get(name).filter(|way| !way.is_empty()),
            });
            (name.clone(), phase)
        });
        json!({
            "name": self.name,
            "engine": self.engine,
            "phases": phases.collect::<serde_json::Map<_, _>>(),
            "peak_memory_bytes": self.peak_memory_bytes,
        })
    }
}

/// A bout that is over.
#[derive(Debug)]
pub(super) struct Played {
    pub(super) name: &'static str,
    pub(super) records: Vec<Record>,
    /// The part of the processors' time that other programs had, where it is known.
    pub(super) others: Option<f64>,
}

/// All that was measured.
#[derive(Debug)]
pub(super) struct Report {
    machine: String,
    threads: usize,
    rounds: usize,
    quick: bool,
    lines: Vec<Compared>,
    pub(super) bouts: Vec<Played>,
    pub(super) left_out: Vec<LeftOut>,
}

impl Report {
    pub(super) fn new(terms: &Terms, rounds: usize, quick: bool) -> Report {
        Report {
            machine: machine(),
            threads: terms.threads,
            rounds,
            quick,
            lines: compared(terms),
            bouts: Vec::new(),
            left_out: Vec::new(),
        }
    }

    pub(super) fn markdown(&self) -> String {
        let layers = if self.quick { ", 4 layers of each model" } else { "" };
        let mut text = format!(
            "{}, threads: {}, rounds: {}{layers}. Medians, and in brackets the least and the most; ratios are medians of \
             the rounds' ratios, above 1 where Photon is faster.\n",
            self.machine, self.threads, self.rounds
        );
        for bout in &self.bouts {
            self.table(&mut text, bout);
            if let Some(others) = bout.others {
                let others_percent = 100.0 * others;
                let _ =
                    writeln!(text, "\nOther programs had {others_percent:.0} % of the processors.");
                if QUIET < others {
                    text += NOISE;
                }
            }
        }
        let ways: Vec<String> = self.records().filter_map(|r| self.ways(r)).collect();
        if !ways.is_empty() {
            let _ = writeln!(text, "\nThe fastest ways: {}.", ways.join("; "));
        }
        let engines: std::collections::BTreeSet<&str> =
            self.records().map(|record| record.engine.as_str()).collect();
        let engines: Vec<&str> = engines.into_iter().collect();
        let _ = writeln!(text, "\nEngines: {}.", engines.join("; "));
        for LeftOut { name, why } in &self.left_out {
            let _ = writeln!(text, "\n{name} is left out: {why}.");
        }
        text
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        self.bouts.iter().flat_map(|bout| &bout.records)
    }

    fn table(&self, text: &mut String, Played { name, records, .. }: &Played) {
        let (ours, theirs): (Vec<&Record>, Vec<&Record>) = records.iter().partition(|r| r.ours);
        let pairs: Vec<_> = ours
            .iter()
            .flat_map(|ours| theirs.iter().map(move |theirs| (*ours, *theirs)))
            .collect();
        let _ = write!(text, "\n| {name} |");
        for record in records {
            let _ = write!(text, " {} |", record.name);
        }
        for (ours, theirs) in &pairs {
            let _ = match pairs.len() {
                1 => write!(text, " ratio |"),
                _ => write!(text, " {} : {} |", ours.name, theirs.name),
            };
        }
        let _ = writeln!(text, "\n|{}", "---|".repeat(1 + records.len() + pairs.len()));
        // Of vision a rival without it says nothing.
        for line in self.lines.iter().filter(|l| theirs.iter().any(|r| r.times(l).is_some())) {
            let cells = records.iter().map(|record| record.cell(line));
            let ratios = pairs.iter().map(|(ours, theirs)| match ratio(ours, theirs, line) {
                Some(ratio) => format!("{ratio:.2}"),
                None => "-".into(),
            });
            let cells: Vec<String> = cells.chain(ratios).collect();
            let _ = writeln!(text, "| {} | {} |", line.title, cells.join(" | "));
        }
        let memory = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
        let memory = records.iter().map(|r| r.peak_memory_bytes.map_or("-".into(), memory));
        let cells: Vec<String> = memory.chain(pairs.iter().map(|_| String::new())).collect();
        let _ = writeln!(text, "| most memory | {} |", cells.join(" | "));
    }

    /// `PyTorch bf16: prefill compiled, decode 1 eager`.
    fn ways(&self, record: &Record) -> Option<String> {
        let ways = record.ways.iter().filter(|(_, way)| !way.is_empty());
        let ways: Vec<String> = ways.map(|(phase, way)| format!("{phase} {way}")).collect();
        (!ways.is_empty()).then(|| format!("{}: {}", record.name, ways.join(", ")))
    }

    pub(super) fn json(&self) -> Value {
        let bouts = self.bouts.iter().map(|Played { name, records, others }| {
            let peers: Vec<Value> = records.iter().map(|r| r.json(&self.lines)).collect();
            let mut ratios = Vec::new();
            for ours in records.iter().filter(|record| record.ours) {
                for theirs in records.iter().filter(|record| !record.ours) {
                    let known = |line| Some((line, ratio(ours, theirs, line)?));
                    ratios.extend(self.lines.iter().filter_map(known).map(|(line, ratio)| {
                        json!({"what": line.title, "ours": ours.name, "theirs": theirs.name, "ratio": ratio})
                    }));
                }
            }
            json!({"name": name, "peers": peers, "ratios": ratios, "share_of_others": others})
        });
        json!({
            "machine": self.machine,
            "threads": self.threads,
            "rounds": self.rounds,
            "quick": self.quick,
            "bouts": bouts.collect::<Vec<Value>>(),
            "left_out": self.left_out.iter().map(LeftOut::json).collect::<Vec<Value>>(),
        })
    }
}

/// How many times as fast Photon was.
fn ratio(ours: &Record, theirs: &Record, line: &Compared) -> Option<f64> {
    let (ours, theirs) = (ours.times(line)?, theirs.times(line)?);
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| theirs / ours).collect();
    Some(median(&ratios))
}

/// Of at least one.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

fn range(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    (least, values.iter().copied().fold(0.0, f64::max))
}

/// The processor's name, where the system tells.
pub(crate) fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, ours: bool, times: &[(&str, [f64; 3])]) -> Record {
        let seconds = times.iter().map(|(phase, times)| ((*phase).to_owned(), times.to_vec()));
        Record { seconds: seconds.collect(), ..Record::new(name, ours, name) }
    }

    fn report(records: Vec<Record>) -> Report {
        let terms =
            Terms { threads: 2, vision_layers: 4, text_layers: 4, decode_tokens: 8, sequences: 8 };
        let bouts = vec![Played { name: "16 bits", records, others: Some(0.031) }];
        Report { bouts, machine: "A processor".into(), ..Report::new(&terms, 3, false) }
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn tables_compare_what_does_the_same_work_round_by_round() {
        let ours = [("vision 1", [2.0, 4.0, 2.0]), ("decode 1", [0.5, 1.0, 0.5])];
        // The second round was slow for both: the ratio does not see it.
        let theirs = [
            ("vision 1", [1.0, 2.0, 1.0]),
            ("vision 2", [4.0, 8.0, 4.2]),
            ("decode 1", [2.0, 4.0, 2.0]),
        ];
        let mut report =
            report(vec![record("Photon bf16", true, &ours), record("Rival bf16", false, &theirs)]);
        report.left_out.push(LeftOut { name: "Other".into(), why: "no network".into() });
        let text = report.markdown();
        for line in [
            "| 16 bits | Photon bf16 | Rival bf16 | ratio |",
            "|---|---|---|---|",
            "| vision, 1 crop | 2.00 s (2.00-4.00) | 1.00 s (1.00-2.00) | 0.50 |",
            "| vision of an uncut picture, 1 crop against 2 | 2.00 s (2.00-4.00) | 4.20 s (4.00-8.00) | 2.00 |",
            "| decode at context 770 | 16.00 tokens/s (8.00-16.00) | 4.00 tokens/s (2.00-4.00) | 4.00 |",
            "Other programs had 3 % of the processors.",
            "Other is left out: no network.",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\nis not in\n{text}");
        }
        assert!(!text.contains("prefill"), "nobody ran it: {text}");
        assert!(!text.contains(NOISE));
        report.bouts[0].others = Some(0.3);
        assert!(report.markdown().contains(NOISE));
        let json = report.json();
        assert_eq!(json["bouts"][0]["ratios"][1]["ratio"], 2.0);
        assert_eq!(json["bouts"][0]["peers"][1]["phases"]["decode 1"]["tokens_per_s"], 4.0);
        assert_eq!(json["left_out"][0]["why"], "no network");
    }
}
