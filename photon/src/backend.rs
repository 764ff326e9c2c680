//! The one place that names backends.
//!
//! A backend is chosen at compile time by a feature and at run time by [`Device`]; its type is erased
//! by [`start`], which leaves a thread behind that knows it.
use std::str::FromStr;

use crate::{
    BuildError, Model,
    bench::{BenchOptions, BenchReport},
    engine::{self, EngineOptions, Started},
};

/// Where to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best device this build and machine have.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The processor, recording and replaying its work as a GPU would: for tests.
    Tape,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "tape" => Ok(Device::Tape),
            _ => Err(format!("no device {name:?} in this build: auto or cpu")),
        }
    }
}

#[cfg(feature = "cpu")]
fn cpu(options: &EngineOptions) -> photon_core::Result<photon_cpu::Cpu> {
    photon_cpu::Cpu::open(photon_cpu::CpuOptions { threads: options.threads, isa: None })
}

/// Opens the device, loads the model, starts the engine.
pub(crate) fn start(
    device: Device,
    model: &Model,
    options: &EngineOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Started, BuildError> {
    match device {
        #[cfg(feature = "cpu")]
        Device::Auto | Device::Cpu => engine::start(cpu(options)?, model, options, progress),
        #[cfg(feature = "cpu")]
        Device::Tape => {
            let tape = photon_cpu::Tape::new(cpu(options)?);
            engine::start(tape, model, options, progress)
        }
        #[cfg(not(feature = "cpu"))]
        Device::Auto | Device::Cpu | Device::Tape => {
            let _ = (model, options, progress);
            Err(BuildError::NoDevice("this build has no backend; enable the feature cpu".into()))
        }
    }
}

/// Measures a model of real size on a device; see [`crate::bench`].
pub(crate) fn bench(
    device: Device,
    bench: &BenchOptions,
    options: &EngineOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<BenchReport, BuildError> {
    match device {
        #[cfg(feature = "cpu")]
        Device::Auto | Device::Cpu => {
            crate::bench::measure(cpu(options)?, bench, options, progress)
        }
        #[cfg(feature = "cpu")]
        Device::Tape => {
            let tape = photon_cpu::Tape::new(cpu(options)?);
            crate::bench::measure(tape, bench, options, progress)
        }
        #[cfg(not(feature = "cpu"))]
        Device::Auto | Device::Cpu | Device::Tape => {
            let _ = (bench, options, progress);
            Err(BuildError::NoDevice("this build has no backend; enable the feature cpu".into()))
        }
    }
}

/// What a machine offers one backend.
#[derive(Clone, Debug)]
pub struct Doctor {
    /// The backend's name, as `--device` takes it.
    pub device: &'static str,
    /// What it found, or why it cannot be used.
    pub found: Result<String, String>,
}

/// Asks every backend of this build what it finds.
pub fn doctor() -> Vec<Doctor> {
    vec![
        #[cfg(feature = "cpu")]
        Doctor {
            device: "cpu",
            found: cpu(&EngineOptions::default())
                .map(|cpu| photon_cpu::describe(&cpu).to_string())
                .map_err(|error| error.to_string()),
        },
    ]
}
