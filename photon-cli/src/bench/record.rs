//! What is kept of a cell: one JSON object, of numbers with their spread over the rounds.
use std::collections::BTreeMap;

use photon::bench::BenchReport;
use serde::{Deserialize, Serialize};

use super::drive::{Done, Sample};

/// A number over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// # Panics
    /// Of nothing.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
        Spread { median, min: values[0], max: values[values.len() - 1] }
    }
}

pub(super) type Values = BTreeMap<String, Spread>;

/// Where and of what a record is.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Setup {
    pub(super) version: &'static str,
    /// The commit, in builds that were told it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) commit: Option<&'static str>,
    pub(super) device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) processor: Option<String>,
    pub(super) model: String,
    pub(super) precision: String,
    pub(super) seed: u64,
}

/// A cell.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    /// The name that comparing goes by.
    pub(super) cell: String,
    pub(super) mode: String,
    #[serde(flatten)]
    pub(super) setup: Setup,
    pub(super) concurrency: usize,
    pub(super) images: usize,
    pub(super) requests: usize,
    pub(super) rounds: usize,
    /// Positions before an answer, the picture's too; the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) input_tokens: Option<usize>,
    /// Drawn in a round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tokens_out: Option<usize>,
    /// How many pictures have so many crops.
    pub(super) crops: BTreeMap<usize, usize>,
    pub(super) values: Values,
}

/// The value that the share `p` of `values` is not above.
fn percentile(values: impl Iterator<Item = f64>, p: f64) -> f64 {
    let mut values: Vec<f32> = values.map(|value| value as f32).collect();
    values.sort_by(f32::total_cmp);
    crate::output::percentile(&values, p).unwrap_or_default()
}

/// The numbers of a cell of many requests.
pub(super) fn of_many(samples: &[Sample]) -> Values {
    let mut values = Values::new();
    let mut put = |name: &str, of: &dyn Fn(&Sample) -> f64| {
        values.insert(name.into(), Spread::of(samples.iter().map(of)));
    };
    put("seconds", &|s| s.seconds);
    put("requests_per_s", &|s| s.requests.len() as f64 / s.seconds);
    for p in [50, 90, 99] {
        let share = f64::from(p) / 100.0;
        let over = |s: &Sample, of: fn(&Done) -> f64| percentile(s.requests.iter().map(of), share);
        put(&format!("latency_p{p}_ms"), &|s| over(s, |done| done.latency_ms));
        put(&format!("ttft_p{p}_ms"), &|s| over(s, |done| done.metrics.ttft_ms));
        // From the first step to the last token: what is left without waiting and decoding.
        put(&format!("compute_p{p}_ms"), &|s| {
            over(s, |Done { metrics: m, .. }| {
                m.vision_time_ms + m.prefill_time_ms + m.decode_time_ms
            })
        });
    }
    let per = |a: u64, b: u64| a as f64 / b.max(1) as f64;
    put("steps", &|s| s.work.steps as f64);
    put("hit_rate", &|s| per(s.work.prefix_hits, s.work.prefix_queries));
    put("scheduler_us_per_step", &|s| per(s.work.scheduler_us, s.work.steps));
    let share = |us: u64, s: &Sample| us as f64 / 1e6 / s.seconds;
    put("vision_share", &|s| share(s.work.vision_us, s));
    put("step_share", &|s| share(s.work.step_us, s));
    put("scheduler_share", &|s| share(s.work.scheduler_us, s));
    values
}

/// The numbers of asking twice: requests are first and second questions in turn.
pub(super) fn of_twice(samples: &[Sample]) -> Values {
    let mut values = Values::new();
    for name in ["", "ttft_"] {
        let time = |done: &Done| match name {
            "" => done.latency_ms,
            _ => done.metrics.ttft_ms,
        };
        let median = |sample: &Sample, first| {
            percentile(sample.requests.iter().skip(first).step_by(2).map(time), 0.5)
        };
        let mut put = |what: String, of: &dyn Fn(f64, f64) -> f64| {
            let over = samples.iter().map(|s| of(median(s, 0), median(s, 1)));
            values.insert(what, Spread::of(over));
        };
        put(format!("miss_{name}ms"), &|miss, _| miss);
        put(format!("hit_{name}ms"), &|_, hit| hit);
        put(format!("miss_over_hit_{name}ratio"), &|miss, hit| miss / hit);
    }
    values
}

/// The phases, in milliseconds; of decoding, a step.
pub(super) fn of_phases(report: &BenchReport) -> Values {
    let phases = report.phases.iter().map(|phase| {
        let name = match phase.batch {
            Some(batch) => format!("step_of_{batch}_ms"),
            None => {
                format!("{}_ms", phase.name.replace(", ", "_").replace(": ", "_").replace(' ', "_"))
            }
        };
        let ms = |seconds: f64| 1000.0 * seconds / phase.tokens.unwrap_or(1) as f64;
        let (median, min, max) = (ms(phase.median_s), ms(phase.min_s), ms(phase.max_s));
        (name, Spread { median, min, max })
    });
    phases.collect()
}

/// How many pictures have so many crops. A picture that was in the cache is not cut, so requests of the
/// same picture may say different things, and all of them nothing only if none was answered.
pub(super) fn crops<'a>(requests: impl IntoIterator<Item = &'a Done>) -> BTreeMap<usize, usize> {
    let mut pictures: BTreeMap<usize, usize> = BTreeMap::new();
    for Done { picture, metrics, .. } in requests {
        let crops = pictures.entry(*picture).or_default();
        *crops = metrics.crops.max(*crops);
    }
    let mut crops = BTreeMap::new();
    for count in pictures.into_values() {
        *crops.entry(count).or_default() += 1;
    }
    crops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_and_both_ends() {
        let check = |values: &[f64], median, min, max| {
            assert_eq!(Spread::of(values.iter().copied()), Spread { median, min, max });
        };
        check(&[3.0, 1.0, 2.0], 2.0, 1.0, 3.0);
        check(&[4.0, 1.0, 2.0, 3.0], 2.5, 1.0, 4.0);
        check(&[7.0], 7.0, 7.0, 7.0);
    }

    #[test]
    fn a_second_answer_is_set_against_the_first_round_by_round() {
        let done = |latency_ms: f64| Done {
            picture: 0,
            latency_ms,
            metrics: photon::Metrics { ttft_ms: latency_ms / 2.0, ..Default::default() },
        };
        let round = |times: [f64; 6]| Sample {
            seconds: 1.0,
            requests: times.map(done).into(),
            work: Default::default(),
        };
        let values = of_twice(&[
            round([8.0, 5.0, 12.0, 5.0, 10.0, 5.0]),
            round([30.0, 10.0, 30.0, 9.0, 30.0, 11.0]),
        ]);
        assert_eq!(values["miss_ms"], Spread { median: 20.0, min: 10.0, max: 30.0 });
        assert_eq!(values["miss_over_hit_ratio"], Spread { median: 2.5, min: 2.0, max: 3.0 });
        assert_eq!(values["hit_ttft_ms"].max, 5.0);
    }
}
