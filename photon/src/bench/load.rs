//! How long a start takes, stage by stage: what [`crate::engine`] does before its threads run.
use std::time::Instant;

use photon_core::Kernels;
use photon_models::{Moondream, checkpoint::TensorInfo};
use serde::Serialize;

use super::{Phase, cpu_seconds, peak_memory, quantized};
use crate::{
    BuildError, Model,
    engine::{EngineOptions, Sizes, model_precision, runner::Runner},
    model::Parts,
};

/// How long a model took to start.
#[derive(Clone, Debug, Serialize)]
pub struct LoadReport {
    /// Where.
    pub device: String,
    /// Type of weights, keys and values.
    pub dtype: String,
    /// Formats of the matrices that were quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quant: Option<String>,
    /// Bytes of the tensors as they are stored.
    pub stored_bytes: u64,
    /// The stages, and the whole as the last.
    pub phases: Vec<Phase>,
    /// Most memory of the process so far, in bytes, where the system tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

const STAGES: [&str; 4] = [
    "files: headers and words",
    "weights: read, quantize, pack",
    "engine: keys, values, activations",
    "all",
];

pub(crate) fn load<D: Kernels>(
    device: &D,
    model: &Model,
    options: &EngineOptions,
    repeats: usize,
) -> Result<LoadReport, BuildError> {
    let mut stages = STAGES.map(Clock::new);
    let mut report = None;
    for _ in 0..repeats.max(1) {
        let [files, weights, engine, all] = &mut stages;
        all.start();
        files.start();
        let Parts { config, checkpoint, tokenizer } = model.open()?;
        files.stop();
        weights.start();
        let precision = model_precision(device, &checkpoint, options);
        let loaded = Moondream::load(device, &checkpoint, &config, precision, &mut |_, _| {})?;
        weights.stop();
        engine.start();
        let sizes = Sizes::choose(device, &config, precision, options)?;
        let runner = Runner::new(device.clone(), loaded, sizes.runner)?;
        engine.stop();
        all.stop();
        report = Some(LoadReport {
            device: device.name(),
            dtype: precision.weights.to_string(),
            quant: quantized(precision.quant),
            stored_bytes: checkpoint.tensors().values().map(TensorInfo::bytes).sum(),
            phases: Vec::new(),
            peak_memory_bytes: None,
        });
        drop((runner, tokenizer));
    }
    let report = report.expect("one repeat at least");
    let phases = stages.into_iter().map(Clock::phase).collect();
    Ok(LoadReport { phases, peak_memory_bytes: peak_memory(), ..report })
}

/// The repeats of a stage.
struct Clock {
    name: &'static str,
    begun: (Instant, Option<f64>),
    seconds: Vec<f64>,
    cpu_s: Option<f64>,
}

impl Clock {
    fn new(name: &'static str) -> Clock {
        Clock { name, begun: (Instant::now(), None), seconds: Vec::new(), cpu_s: Some(0.0) }
    }

    fn start(&mut self) {
        self.begun = (Instant::now(), cpu_seconds());
    }

    fn stop(&mut self) {
        let (begun, cpu) = self.begun;
        self.seconds.push(begun.elapsed().as_secs_f64());
        let took = cpu_seconds().zip(cpu).map(|(after, before)| after - before);
        self.cpu_s = self.cpu_s.zip(took).map(|(sum, took)| sum + took);
    }

    fn phase(self) -> Phase {
        let cpu_s = self.cpu_s.map(|sum| sum / self.seconds.len() as f64);
        Phase::new(self.name.into(), self.seconds, cpu_s)
    }
}
