//! The one place that names backends.
//!
//! A backend is chosen at compile time by a feature and at run time by [`Device`]; [`AnyEngine`] is
//! where its type is erased.
use std::{fmt::Debug, str::FromStr};

use photon_models::skill::SkillEvent;

use crate::{
    BuildError, Model, Request, Response, RunError,
    bench::{BenchOptions, BenchReport},
    engine::{Engine, EngineOptions},
};

/// Where to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best device this build and machine have.
    #[default]
    Auto,
    /// The processor.
    Cpu,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            _ => Err(format!("no device {name:?} in this build: auto or cpu")),
        }
    }
}

/// An engine whose device is not in its type.
pub(crate) trait AnyEngine: Debug + Send {
    fn run(
        &mut self,
        request: &Request,
        on_event: &mut dyn FnMut(SkillEvent),
    ) -> Result<Response, RunError>;

    fn describe(&self) -> String;
}

#[cfg(feature = "cpu")]
fn cpu(options: &EngineOptions) -> photon_core::Result<photon_cpu::Cpu> {
    photon_cpu::Cpu::open(photon_cpu::CpuOptions { threads: options.threads, isa: None })
}

/// Opens the device and loads the model.
pub(crate) fn open(
    device: Device,
    model: &Model,
    options: &EngineOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Box<dyn AnyEngine>, BuildError> {
    match device {
        #[cfg(feature = "cpu")]
        Device::Auto | Device::Cpu => {
            Ok(Box::new(Engine::open(cpu(options)?, model, options, progress)?))
        }
        #[cfg(not(feature = "cpu"))]
        Device::Auto | Device::Cpu => {
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
        #[cfg(not(feature = "cpu"))]
        Device::Auto | Device::Cpu => {
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
