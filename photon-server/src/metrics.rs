//! What a monitor sees at `/metrics`.
//!
//! Requests are counted here; the engine's own numbers are read when somebody asks. Names follow vLLM's,
//! because gateways read those; the prefix is ours unless theirs is wanted, and with it come their labels.
use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use photon::{AdaptersInUse, EngineStats, Metrics as Timings, Photon};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, text},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::MetricsPrefix;

/// What a request was and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    skill: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Counters and histograms of requests.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Outcome, Counter>,
    rejected: Family<Reason, Counter>,
    ttft: Histogram,
    e2e: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    preprocess: Histogram,
    vision: Histogram,
    prompt_tokens: Counter,
}

impl Metrics {
    pub(crate) fn new(prefix: MetricsPrefix, model_name: &str, photon: Photon) -> Self {
        let mut registry = match prefix {
            MetricsPrefix::Photon => Registry::default(),
            MetricsPrefix::Vllm => {
                let labels = [("model_name", model_name.to_owned()), ("engine", "0".to_owned())];
                Registry::with_labels(
                    labels.map(|(name, value)| (name.into(), value.into())).into_iter(),
                )
            }
        };
        let requests = Family::default();
        let name = |name| prefix.name(name);
        registry.register(name("requests"), "Requests by skill and outcome", requests.clone());
        let rejected = Family::default();
        let help = "Requests that were not taken, by reason";
        registry.register(name("requests_rejected"), help, rejected.clone());
        // From half a millisecond to four minutes: a demo model on a fast machine, a large one on a slow.
        let mut histogram = |metric, help| {
            let histogram = Histogram::new(exponential_buckets(0.0005, 2.0, 20));
            registry.register(name(metric), help, histogram.clone());
            histogram
        };
        let ttft = histogram("time_to_first_token_seconds", "From arrival to the first token");
        let e2e = histogram("e2e_request_latency_seconds", "From arrival to the last token");
        let queue = histogram("request_queue_time_seconds", "Waiting for the device");
        let prefill =
            histogram("request_prefill_time_seconds", "To the first token, on the device");
        let decode = histogram("request_decode_time_seconds", "After the first token");
        let preprocess = histogram("image_preprocess_seconds", "Decoding and cutting a picture");
        let vision = histogram("image_encode_seconds", "Encoding a picture on the device");
        let prompt_tokens = Counter::default();
        registry.register(name("prompt_tokens"), "Positions of prompts", prompt_tokens.clone());
        registry.register_collector(Box::new(Engine {
            prefix,
            photon,
            adapters: Mutex::default(),
        }));
        Metrics {
            registry,
            requests,
            rejected,
            ttft,
            e2e,
            queue,
            prefill,
            decode,
            preprocess,
            vision,
            prompt_tokens,
        }
    }

    /// A request was answered.
    pub(crate) fn answered(&self, skill: &'static str, timings: &Timings, e2e_seconds: f64) {
        self.ended(skill, "ok");
        self.ttft.observe(timings.ttft_ms / 1000.0);
        self.e2e.observe(e2e_seconds);
        self.queue.observe(timings.queue_time_ms / 1000.0);
        self.prefill.observe(timings.prefill_time_ms / 1000.0);
        self.decode.observe(timings.decode_time_ms / 1000.0);
        if timings.crops > 0 {
            self.preprocess.observe(timings.preprocess_time_ms / 1000.0);
        }
        if timings.vision_time_ms > 0.0 {
            self.vision.observe(timings.vision_time_ms / 1000.0);
        }
        self.prompt_tokens.inc_by(timings.input_tokens as u64);
    }

    /// A request ended: `ok`, `error` or `cancelled`.
    pub(crate) fn ended(&self, skill: &'static str, outcome: &'static str) {
        self.requests.get_or_create(&Outcome { skill, outcome }).inc();
    }

    /// A request was refused.
    pub(crate) fn rejected(&self, reason: &'static str) {
        self.rejected.get_or_create(&Reason { reason }).inc();
    }

    /// The text of `/metrics`, in OpenMetrics' format.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

impl MetricsPrefix {
    fn name(self, metric: &str) -> String {
        match self {
            MetricsPrefix::Photon => format!("photon_{metric}"),
            MetricsPrefix::Vllm => format!("vllm:{metric}"),
        }
    }
}

/// The engine's numbers, as of its last step.
#[derive(Debug)]
struct Engine {
    prefix: MetricsPrefix,
    photon: Photon,
    /// As they were when somebody asked last, and since when: whoever reads several engines takes the
    /// newest.
    adapters: Mutex<(AdaptersInUse, f64)>,
}

impl Collector for Engine {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats: EngineStats = self.photon.stats();
        let used = stats.blocks.saturating_sub(stats.blocks_free + stats.blocks_cached);
        let seconds = |us: u64| us as f64 / 1e6;
        let gauges = [
            ("num_requests_running", "Requests being computed", stats.running as f64),
            ("num_requests_waiting", "Requests waiting", stats.waiting as f64),
            (
                "kv_cache_usage_perc",
                "Share of the key-value cache that running requests hold, 0 to 1",
                used as f64 / stats.blocks.max(1) as f64,
            ),
            ("kv_cache_blocks", "Blocks of the key-value cache", stats.blocks as f64),
            (
                "kv_cache_blocks_cached",
                "Blocks that hold what finished requests left",
                stats.blocks_cached as f64,
            ),
        ];
        let counters = [
            ("generation_tokens", "Tokens drawn", stats.tokens_out as f64),
            ("computed_tokens", "Positions computed", stats.tokens_computed as f64),
            (
                "prefix_cache_queries",
                "Positions looked for in the cache",
                stats.prefix_query_tokens as f64,
            ),
            ("prefix_cache_hits", "Positions found there", stats.prefix_hit_tokens as f64),
            ("requests_with_prefix", "Requests that found some", stats.prefix_hits as f64),
            ("num_preemptions", "Requests that gave way to others", stats.preemptions as f64),
            ("images_encoded", "Pictures encoded", stats.images_encoded as f64),
            ("engine_steps", "Steps", stats.steps as f64),
            ("engine_scheduler_seconds", "Deciding what to run", seconds(stats.scheduler_us)),
            ("engine_vision_seconds", "Encoding pictures", seconds(stats.vision_us)),
            ("engine_step_seconds", "Steps on the device", seconds(stats.device_us)),
        ];
        for (name, help, value) in gauges {
            one(&mut encoder, &self.prefix.name(name), help, &ConstGauge::new(value))?;
        }
        for (name, help, value) in counters {
            one(&mut encoder, &self.prefix.name(name), help, &ConstCounter::new(value))?;
        }
        let shape = [
            ("block_size", stats.block_size.to_string()),
            ("num_gpu_blocks", stats.blocks.to_string()),
        ];
        let help = "How the key-value cache is made";
        labelled(&mut encoder, &self.prefix.name("cache_config_info"), help, &shape, 1.0)?;
        let (adapters, since) = self.adapters();
        if adapters.slots == 0 {
            return Ok(());
        }
        let list = |names: &BTreeSet<Arc<str>>| {
            names.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(",")
        };
        let lists = [
            ("max_lora", adapters.slots.to_string()),
            ("running_lora_adapters", list(&adapters.running)),
            ("waiting_lora_adapters", list(&adapters.waiting)),
        ];
        let help = "Adapters that requests use, since this time";
        labelled(&mut encoder, &self.prefix.name("lora_requests_info"), help, &lists, since)
    }
}

impl Engine {
    /// The adapters in use, and since when.
    fn adapters(&self) -> (AdaptersInUse, f64) {
        let now = self.photon.adapters_in_use();
        let mut last = self.adapters.lock().unwrap_or_else(PoisonError::into_inner);
        if last.1 == 0.0 || last.0 != now {
            *last = (now, crate::time::unix() as f64);
        }
        last.clone()
    }
}

/// A gauge whose labels are what it says.
fn labelled<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    labels: &[(&str, String); N],
    value: f64,
) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    let mut family: MetricEncoder<'_> =
        encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(family.encode_family(labels)?)
}

fn one(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
