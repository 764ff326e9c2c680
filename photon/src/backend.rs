//! The one place that names backends.
//!
//! A backend is chosen at compile time by a feature and at run time by [`Device`]; its type is erased
//! by [`start`], which leaves a thread behind that knows it.
use std::str::FromStr;

use photon_core::Kernels;

use crate::{
    BuildError, Model,
    bench::{BenchOptions, BenchReport, LoadReport, Phases},
    engine::{self, EngineOptions, Started},
};

/// Where to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best device this build and machine have: a GPU that can be used, or else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The processor, recording and replaying its work as a GPU would: for tests.
    Tape,
    /// An NVIDIA GPU, by its ordinal.
    Cuda(u16),
    /// The Mac's GPU.
    Metal,
    /// The kernels for NVIDIA GPUs on the processor, slowly: for tests.
    SimCuda,
    /// The kernels for Apple's GPUs on the processor, slowly: for tests.
    SimMetal,
}

/// The names of the devices of this build, for messages.
const NAMES: &str = match (cfg!(feature = "cuda"), cfg!(feature = "metal")) {
    (true, true) => "auto, cpu, cuda, cuda:N or metal",
    (true, false) => "auto, cpu, cuda or cuda:N",
    (false, true) => "auto, cpu or metal",
    (false, false) => "auto or cpu",
};

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let ordinal = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        match (name, ordinal) {
            ("auto", _) => Ok(Device::Auto),
            ("cpu", _) => Ok(Device::Cpu),
            ("tape", _) => Ok(Device::Tape),
            ("cuda", _) if cfg!(feature = "cuda") => Ok(Device::Cuda(0)),
            (_, Some(ordinal)) if cfg!(feature = "cuda") => Ok(Device::Cuda(ordinal)),
            ("metal", _) if cfg!(feature = "metal") => Ok(Device::Metal),
            ("sim-cuda", _) if cfg!(feature = "sim") => Ok(Device::SimCuda),
            ("sim-metal", _) if cfg!(feature = "sim") => Ok(Device::SimMetal),
            ("cuda", _) | (_, Some(_)) => {
                Err("this build has no CUDA; build it with --features cuda".into())
            }
            ("metal", _) => Err("this build has no Metal; build it with --features metal".into()),
            _ => Err(format!("no device {name:?} in this build: {NAMES}")),
        }
    }
}

/// Something to do on a device whatever its type.
trait Task {
    type Output;
    fn on<D: Kernels>(self, device: D) -> Result<Self::Output, BuildError>;
}

#[cfg(feature = "cpu")]
fn cpu(options: &EngineOptions) -> photon_core::Result<photon_cpu::Cpu> {
    photon_cpu::Cpu::open(photon_cpu::CpuOptions { threads: options.threads, isa: None })
}

/// Opens the device and does the task there.
fn run<T: Task>(device: Device, options: &EngineOptions, task: T) -> Result<T::Output, BuildError> {
    match device {
        Device::Auto => {
            #[cfg(feature = "cuda")]
            if let Ok(gpu) = photon_cuda::Cuda::open(0) {
                return task.on(gpu);
            }
            #[cfg(all(feature = "metal", target_os = "macos"))]
            if let Ok(gpu) = photon_metal::Metal::open() {
                return task.on(gpu);
            }
            run(Device::Cpu, options, task)
        }
        #[cfg(feature = "cpu")]
        Device::Cpu => task.on(cpu(options)?),
        #[cfg(feature = "cpu")]
        Device::Tape => task.on(photon_cpu::Tape::new(cpu(options)?)),
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => task.on(photon_cuda::Cuda::open(ordinal.into())?),
        #[cfg(all(feature = "metal", target_os = "macos"))]
        Device::Metal => task.on(photon_metal::Metal::open()?),
        #[cfg(feature = "sim")]
        Device::SimCuda => task.on(photon_cuda::SimCuda::open()?),
        #[cfg(feature = "sim")]
        Device::SimMetal => task.on(photon_metal::SimMetal::open()?),
        #[cfg(not(all(
            feature = "cpu",
            feature = "cuda",
            feature = "metal",
            feature = "sim",
            target_os = "macos"
        )))]
        _ => {
            let _ = (options, task);
            let why = match device {
                Device::Metal if cfg!(feature = "metal") => "Metal is part of macOS".into(),
                _ => format!("this build has no backend for {device:?}; enable its feature"),
            };
            Err(BuildError::NoDevice(why))
        }
    }
}

/// Opens the device, loads the model, starts the engine.
pub(crate) fn start(
    device: Device,
    model: &Model,
    options: &EngineOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Started, BuildError> {
    struct Start<'a>(&'a Model, &'a EngineOptions, &'a mut dyn FnMut(u64, u64));

    impl Task for Start<'_> {
        type Output = Started;

        fn on<D: Kernels>(self, device: D) -> Result<Started, BuildError> {
            engine::start(device, self.0, self.1, self.2)
        }
    }
    run(device, options, Start(model, options, progress))
}

/// Measures a model of real size on a device; see [`crate::bench`].
pub(crate) fn bench(
    device: Device,
    bench: &BenchOptions,
    options: &EngineOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<BenchReport, BuildError> {
    struct Bench<'a>(&'a BenchOptions, &'a EngineOptions, &'a mut dyn FnMut(&str));

    impl Task for Bench<'_> {
        type Output = BenchReport;

        fn on<D: Kernels>(self, device: D) -> Result<BenchReport, BuildError> {
            crate::bench::measure(device, self.0, self.1, self.2)
        }
    }
    run(device, options, Bench(bench, options, progress))
}

/// Loads a model whose phases are run by name on a device; see [`crate::bench`].
pub(crate) fn open_bench(
    device: Device,
    bench: &BenchOptions,
    options: &EngineOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Box<dyn Phases>, BuildError> {
    struct Open<'a>(&'a BenchOptions, &'a EngineOptions, &'a mut dyn FnMut(&str));

    impl Task for Open<'_> {
        type Output = Box<dyn Phases>;

        fn on<D: Kernels>(self, device: D) -> Result<Box<dyn Phases>, BuildError> {
            crate::bench::open_on(device, self.0, self.1, self.2)
        }
    }
    run(device, options, Open(bench, options, progress))
}

/// Measures a start on a device; see [`crate::bench`].
pub(crate) fn bench_load(
    device: Device,
    model: &Model,
    options: &EngineOptions,
    repeats: usize,
) -> Result<LoadReport, BuildError> {
    struct Load<'a>(&'a Model, &'a EngineOptions, usize);

    impl Task for Load<'_> {
        type Output = LoadReport;

        fn on<D: Kernels>(self, device: D) -> Result<LoadReport, BuildError> {
            crate::bench::load_on(&device, self.0, self.1, self.2)
        }
    }
    run(device, options, Load(model, options, repeats))
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
        #[cfg(feature = "cuda")]
        Doctor { device: "cuda", found: photon_cuda::describe() },
        #[cfg(feature = "metal")]
        Doctor { device: "metal", found: photon_metal::describe() },
    ]
}
