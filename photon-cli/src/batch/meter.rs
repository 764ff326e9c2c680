//! How far a batch is and how fast: a bar on a terminal, a line now and then elsewhere, a summary.
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use super::journal::{Outcome, Usage};
use crate::output::{self, percentile};

/// Between lines where nobody watches a bar.
const NOTE_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Meter {
    bar: Option<ProgressBar>,
    /// What is counted: "lines" or "images".
    unit: &'static str,
    total: Option<u64>,
    begun: Instant,
    noted: Instant,
    ok: u64,
    failed: u64,
    skipped: u64,
    /// Failures of earlier runs that stay.
    failed_before: u64,
    input_tokens: usize,
    output_tokens: usize,
    latencies_ms: Vec<f32>,
}

/// The end of a batch in numbers.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) ok: u64,
    pub(super) failed: u64,
    /// Answered by an earlier run.
    pub(super) skipped: u64,
    /// Of those, failures.
    pub(super) failed_before: u64,
    pub(super) interrupted: bool,
    seconds: f64,
    per_second: f64,
    input_tokens: usize,
    output_tokens: usize,
    tokens_per_second: f64,
    latency_ms: Value,
    #[serde(skip)]
    unit: &'static str,
}

impl Meter {
    pub(super) fn new(unit: &'static str, total: Option<u64>, failed_before: u64) -> Meter {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total.unwrap_or(0));
            let template = match total {
                Some(_) => "{wide_bar} {pos}/{len}  {msg}  {eta}",
                None => "{spinner} {pos}  {msg}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let now = Instant::now();
        Meter {
            bar,
            unit,
            total,
            begun: now,
            noted: now,
            ok: 0,
            failed: 0,
            skipped: 0,
            failed_before,
            input_tokens: 0,
            output_tokens: 0,
            latencies_ms: Vec::new(),
        }
    }

    pub(super) fn skip(&mut self) {
        self.skipped += 1;
        self.show();
    }

    pub(super) fn count(&mut self, outcome: &Outcome, took: Duration) {
        match outcome {
            Outcome::Ok { usage: Usage { input_tokens, output_tokens }, .. } => {
                self.ok += 1;
                self.input_tokens += input_tokens;
                self.output_tokens += output_tokens;
                self.latencies_ms.push(took.as_secs_f32() * 1000.0);
            }
            Outcome::Error { .. } => self.failed += 1,
        }
        self.show();
    }

    fn per_second(&self) -> f64 {
        (self.ok + self.failed) as f64 / self.begun.elapsed().as_secs_f64().max(1e-9)
    }

    fn show(&mut self) {
        let done = self.ok + self.failed + self.skipped;
        let state = || {
            let failed = self.failed + self.failed_before;
            format!("{:.1} {}/s, {failed} failed", self.per_second(), self.unit)
        };
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(state());
        } else if self.noted.elapsed() >= NOTE_EVERY {
            let of = self.total.map_or(String::new(), |total| format!(" of {total}"));
            output::note(&format!("{done}{of} {}, {}", self.unit, state()));
            self.noted = Instant::now();
        }
    }

    pub(super) fn finish(mut self, interrupted: bool) -> Summary {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        self.latencies_ms.sort_by(f32::total_cmp);
        let latency = |p| percentile(&self.latencies_ms, p);
        Summary {
            ok: self.ok,
            failed: self.failed,
            skipped: self.skipped,
            failed_before: self.failed_before,
            interrupted,
            seconds,
            per_second: self.per_second(),
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            tokens_per_second: self.output_tokens as f64 / seconds.max(1e-9),
            latency_ms: json!({"p50": latency(0.5), "p95": latency(0.95)}),
            unit: self.unit,
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ok, {} failed", self.ok, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} answered before", self.skipped)?;
        }
        if self.failed_before > 0 {
            write!(f, " ({} of them failed)", self.failed_before)?;
        }
        write!(f, "; {:.1} s, {:.1} {}/s", self.seconds, self.per_second, self.unit)?;
        if let (Some(p50), Some(p95)) =
            (self.latency_ms["p50"].as_f64(), self.latency_ms["p95"].as_f64())
        {
            let speed = self.tokens_per_second;
            write!(f, ", {speed:.1} tokens/s, latency p50 {p50:.0} ms, p95 {p95:.0} ms")?;
        }
        Ok(())
    }
}
