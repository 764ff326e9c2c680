//! Photon: Moondream on the machine where the pictures are.
//!
//! [`Photon::builder`] opens a device, loads a model and gives a [`Photon`]; [`Photon::run`] answers
//! a [`Request`], telling [`SkillEvent`]s as they become certain. This is the only crate that names a
//! backend, and it does so once, in `backend`: everything above is one plain type, everything below
//! is generic and monomorphic.
//!
//! ```
//! use photon::{Image, Photon, Request, Skill};
//!
//! let mut photon = Photon::builder().build()?; // The embedded demo model, on the CPU.
//! let image = Image::open("../assets/shapes.png".as_ref())?;
//! let skill = Skill::Detect { object: "circle".into() };
//! let response = photon.run(&Request::new(skill, Some(image)), &mut |_event| {})?;
//! println!("{}", serde_json::to_string(&response.answer)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod backend;
pub mod bench;
mod engine;
mod error;
#[cfg(feature = "hub")]
pub mod hub;
mod image;
mod model;
mod request;

pub use backend::{Device, Doctor, doctor};
pub use engine::EngineOptions;
pub use error::{BuildError, OpenError, RunError};
pub use image::Image;
pub use model::Model;
pub use photon_core::DType;
pub use photon_models::{
    image::{ImageError, Limits, ResizeOrder, Tiling},
    prompt::{CaptionLength, Rejected, Sampling, Skill, SpatialRef},
    skill::{Answer, BoundingBox, Budget, FinishReason, Grounding, Point, Reasoning, SkillEvent},
};
pub use request::{Metrics, Request, Response};

/// A loaded model, ready to answer.
#[derive(Debug)]
pub struct Photon {
    engine: Box<dyn backend::AnyEngine>,
}

impl Photon {
    /// How to open one.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Answers a request. `on_event` hears text, objects and points as soon as they cannot change.
    ///
    /// # Errors
    /// [`RunError::Rejected`] and [`RunError::Image`] concern this request alone; after any other
    /// error the device is in doubt.
    pub fn run(
        &mut self,
        request: &Request,
        on_event: &mut dyn FnMut(SkillEvent),
    ) -> Result<Response, RunError> {
        self.engine.run(request, on_event)
    }

    /// What is loaded and where, for people.
    pub fn describe(&self) -> String {
        self.engine.describe()
    }
}

/// Options of a [`Photon`].
#[derive(Clone, Debug, Default)]
pub struct Builder {
    model: Model,
    device: Device,
    options: EngineOptions,
}

impl Builder {
    /// Which model; the embedded demo by default.
    pub fn model(mut self, model: Model) -> Self {
        self.model = model;
        self
    }

    /// Where to run; the best device of this build by default.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Threads of the CPU; one per core by default.
    pub fn threads(mut self, threads: usize) -> Self {
        self.options.threads = Some(threads);
        self
    }

    /// Type of weights, keys and values; by default the checkpoint's own.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.options.dtype = Some(dtype);
        self
    }

    /// Order of the passes of a resize; Pillow's by default.
    pub fn resize(mut self, resize: ResizeOrder) -> Self {
        self.options.resize = resize;
        self
    }

    /// Loads the model.
    pub fn build(self) -> Result<Photon, BuildError> {
        self.build_with_progress(&mut |_, _| {})
    }

    /// Loads the model; `progress` is told bytes taken and bytes in all.
    pub fn build_with_progress(
        self,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Photon, BuildError> {
        let engine = backend::open(self.device, &self.model, &self.options, progress)?;
        Ok(Photon { engine })
    }
}
