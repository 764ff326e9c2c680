//! Photon: Moondream on the machine where the pictures are.
//!
//! [`Photon::builder`] opens a device, loads a model and starts an engine; the [`Photon`] it gives is a
//! handle that any number of threads may share. [`Photon::run`] answers one [`Request`] and waits;
//! [`Photon::submit`] gives a [`Ticket`], from which events come as they become certain, to a thread or
//! to an asynchronous task. Requests under way share the device, and what they have in common is
//! computed once.
//!
//! This is the only crate that names a backend, and it does so once, in `backend`: everything above is
//! one plain type, everything below is generic and monomorphic.
//!
//! ```
//! use photon::{Image, Photon, Request, Skill};
//!
//! let photon = Photon::builder().build()?; // The embedded demo model, on the CPU.
//! let image = Image::open("../assets/shapes.png".as_ref())?;
//! let find = |object: &str| {
//!     let skill = Skill::Detect { object: object.into() };
//!     photon.submit(Request::new(skill, Some(image.clone())))
//! };
//! // Both run at once, and the picture is encoded once.
//! let (circles, stars) = (find("circle")?, find("star")?);
//! println!("{:?} {:?}", circles.wait()?.answer, stars.wait()?.answer);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Streaming, in a task of any runtime:
//!
//! ```
//! use photon::{Event, Image, Photon, Request, Skill, SkillEvent};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let photon = Photon::builder().build()?;
//! let image = Image::open("../assets/shapes.png".as_ref())?;
//! let caption = Skill::Caption { length: photon::CaptionLength::Short };
//! let mut ticket = photon.submit(Request::new(caption, Some(image)))?;
//! let task = async move {
//!     while let Some(event) = ticket.next_event().await {
//!         match event? {
//!             Event::Skill(SkillEvent::Text(text)) => print!("{text}"),
//!             Event::Done(response) => println!(" ({:?})", response.finish_reason),
//!             _ => {}
//!         }
//!     }
//!     Ok::<(), photon::RunError>(())
//! };
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(task)?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples` has programs that caption a folder, stream an answer, and run on whatever a build has.
//!
//! # Features
//!
//! | feature | what | in addition it brings |
//! |---|---|---|
//! | `cpu` (default) | the processor as a device | |
//! | `demo` (default) | the demo models, [`Model::Demo`] and [`Model::Demo3`] | 18 MB in the program |
//! | `cuda` | NVIDIA GPUs; builds without CUDA, which is looked for when a device is opened | compiled kernels, in `photon-cuda` |
//! | `metal` | Apple's GPUs; builds everywhere, runs on macOS | Apple's frameworks, on macOS |
//! | `hub` | [`hub`]: downloading models by name | TLS and an HTTP client |
//! | `sim` | the kernels for GPUs on the processor, for tests | a C++ compiler is needed |
//!
//! Without `cpu`, `cuda` or `metal` everything builds and no device can be opened; without `demo` name a [`Model`]. Features only add: a program
//! that works with some of them works with more.
#![forbid(unsafe_code)]

pub mod adapters;
mod backend;
pub mod bench;
pub mod convert;
mod engine;
mod error;
mod grammar;
#[cfg(feature = "hub")]
pub mod hub;
mod image;
pub mod inspect;
mod model;
mod request;
mod route;
mod stats;
mod ticket;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use adapters::{AdapterFolder, AdapterName, ModelName, NameError};
use engine::{Started, prepare::Open};
use tokio::sync::mpsc::UnboundedReceiver;

pub use backend::{Device, Doctor, doctor};
pub use engine::{CacheEvent, EngineOptions, StoredBlocks};
pub use error::{BuildError, OpenError, RunError};
pub use grammar::{Grammar, GrammarError};
pub use image::Image;
pub use model::Model;
pub use photon_core::{DType, WeightFormat};
pub use photon_models::{
    Quant,
    config::Family,
    image::{ImageError, Limits, ResizeOrder, Tiling},
    prompt::{CaptionLength, MAX_IMAGES, Message, Rejected, Role, Sampling, Skill, SpatialRef},
    skill::{Answer, BoundingBox, Budget, FinishReason, Grounding, Point, Reasoning, SkillEvent},
};
pub use request::{Event, ImageSource, Metrics, Request, Response};
pub use route::route_key;
pub use stats::{AdaptersInUse, EngineStats};
pub use ticket::Ticket;

/// A handle to a running engine. Clones share it; when the last is gone the engine stops.
#[derive(Clone, Debug)]
pub struct Photon {
    engine: Arc<Engine>,
}

#[derive(Debug)]
struct Engine {
    started: Mutex<Started>,
    queue: Arc<engine::prepare::Queue>,
    adapters: Option<AdapterFolder>,
}

/// How to end an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Requests taken are answered first.
    Drain,
    /// Requests taken end with [`RunError::Cancelled`], at the end of the step under way.
    Cancel,
}

impl Engine {
    fn started(&self) -> std::sync::MutexGuard<'_, Started> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, how: Shutdown) {
        self.queue.close(match how {
            Shutdown::Drain => Open::Draining,
            Shutdown::Cancel => Open::Stopped("it was shut down".into()),
        });
        let threads = std::mem::take(&mut self.started().threads);
        for thread in threads {
            // A thread that panicked has said so; there is nothing to add at the end.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop(Shutdown::Cancel);
    }
}

impl Photon {
    /// How to open one.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Hands a request to the engine. Everything else that happens to it comes out of the ticket.
    ///
    /// # Errors
    /// [`RunError::Busy`] if too many requests wait, [`RunError::Stopped`] after the end.
    pub fn submit(&self, request: Request) -> Result<Ticket, RunError> {
        let (events, ticket) = Ticket::new();
        self.engine.queue.submit(request, events)?;
        Ok(ticket)
    }

    /// Answers a request and waits for it. `on_event` hears text, places and paths as soon as they
    /// cannot change.
    ///
    /// # Errors
    /// [`RunError::Device`] and [`RunError::Stopped`] mean that the engine is gone; all other errors
    /// concern this request alone.
    ///
    /// # Panics
    /// Inside an asynchronous task; use [`Photon::submit`] there.
    pub fn run(
        &self,
        request: &Request,
        on_event: &mut dyn FnMut(SkillEvent),
    ) -> Result<Response, RunError> {
        for event in self.submit(request.clone())? {
            match event? {
                Event::Skill(event) => on_event(event),
                Event::Done(response) => return Ok(response),
            }
        }
        unreachable!("a ticket's events end with an answer or an error")
    }

    /// The file of an adapter in the folder of adapters, for [`Request::adapter`].
    ///
    /// # Errors
    /// If there is no such folder, or no such adapter in it.
    pub fn find_adapter(&self, name: &AdapterName) -> Result<PathBuf, NameError> {
        match &self.engine.adapters {
            Some(folder) => folder.find(name),
            None => Err(NameError::NoFolder(name.clone())),
        }
    }

    /// What a client means by the name of a model, `MODEL` or `MODEL/ID@STEP`: the base, which the caller
    /// compares with what it serves, and the file of the adapter.
    ///
    /// # Errors
    /// If what follows the base is no adapter in the folder of adapters.
    pub fn resolve(&self, model: &str) -> Result<(String, Option<PathBuf>), NameError> {
        let ModelName { base, adapter } = model.parse()?;
        let adapter = adapter.map(|name| self.find_adapter(&name)).transpose()?;
        Ok((base, adapter))
    }

    /// What the engine has done, as of its last step.
    pub fn stats(&self) -> EngineStats {
        let stats = Arc::clone(&self.engine.started().stats);
        let stats = stats.lock().unwrap_or_else(PoisonError::into_inner);
        *stats
    }

    /// The adapters that requests use now.
    pub fn adapters_in_use(&self) -> AdaptersInUse {
        let in_use = Arc::clone(&self.engine.started().in_use);
        let mut in_use = in_use.lock().unwrap_or_else(PoisonError::into_inner).clone();
        in_use.waiting.append(&mut self.engine.queue.waiting_adapters());
        in_use
    }

    /// What enters and leaves the cache, step by step, of an engine built with [`Builder::cache_events`].
    /// Only the first caller gets it, and should read it: what is not read stays in memory.
    pub fn cache_events(&self) -> Option<UnboundedReceiver<Vec<CacheEvent>>> {
        self.engine.started().cache_events.take()
    }

    /// Ends the engine, whoever else has a handle, and waits until it has ended.
    pub fn shutdown(self, how: Shutdown) {
        self.engine.stop(how);
    }

    /// The tokens the model makes of a text.
    ///
    /// # Errors
    /// If its tokenizer fails.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>, RunError> {
        Ok(self.engine.queue.setup().tokenizer.encode(text).map_err(Rejected::from)?)
    }

    /// How many tokens the model makes of a text.
    ///
    /// # Errors
    /// If its tokenizer fails.
    pub fn count_tokens(&self, text: &str) -> Result<usize, RunError> {
        Ok(self.tokenize(text)?.len())
    }

    /// The exact bytes a token stands for; none if it has no text.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.engine.queue.setup().tokenizer.token_bytes(id)
    }

    /// The generation of the model.
    pub fn family(&self) -> Family {
        self.engine.queue.setup().config.family()
    }

    /// The names of the skills the model has prompts for.
    pub fn skills(&self) -> Vec<&'static str> {
        let segments = self.engine.queue.setup().config.tokenizer.templates.segment.is_some();
        let all = ["query", "caption", "detect", "point", "segment", "gaze", "chat"];
        all.into_iter().filter(|skill| segments || *skill != "segment").collect()
    }

    /// The names of the adapters that requests can ask for, as they are in the folder now.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn adapters(&self) -> Result<Vec<AdapterName>, NameError> {
        let Some(folder) = &self.engine.adapters else { return Ok(Vec::new()) };
        Ok(folder.list()?.into_iter().map(|(name, _)| name).collect())
    }

    /// Whether a request would be refused now because too many wait: worth asking before one is read.
    pub fn is_full(&self) -> bool {
        self.engine.queue.waiting() >= self.max_waiting()
    }

    /// Most requests that wait.
    pub fn max_waiting(&self) -> usize {
        self.engine.queue.setup().max_waiting
    }

    /// Where the model runs, for people.
    pub fn device_name(&self) -> String {
        self.engine.started().device.clone()
    }

    /// The type of its weights.
    pub fn dtype(&self) -> DType {
        self.engine.started().dtype
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

    /// Type of weights; by default the checkpoint's own, or f16 for bf16 on a GPU that has no arithmetic on bf16.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.options.dtype = Some(dtype);
        self
    }

    /// Matrices to quantize; none by default.
    pub fn quant(mut self, quant: Quant) -> Self {
        self.options.quant = quant;
        self
    }

    /// Type of keys and values; by default that of the weights. [`DType::Int8`] and [`DType::Fp8`] take
    /// half the memory of 16 bits and change answers a little.
    pub fn kv_dtype(mut self, dtype: DType) -> Self {
        self.options.kv_dtype = Some(dtype);
        self
    }

    /// Order of the passes of a resize; Pillow's by default.
    pub fn resize(mut self, resize: ResizeOrder) -> Self {
        self.options.resize = resize;
        self
    }

    /// Most requests computed at once; 16 by default.
    pub fn max_seqs(mut self, max_seqs: usize) -> Self {
        self.options.max_seqs = Some(max_seqs);
        self
    }

    /// Bytes of the key-value cache; chosen by the machine's memory by default.
    pub fn kv_memory(mut self, bytes: u64) -> Self {
        self.options.kv_memory = Some(bytes);
        self
    }

    /// Files with adapters that requests will name; there is room for all of them.
    pub fn adapters(mut self, files: impl IntoIterator<Item = PathBuf>) -> Self {
        self.options.adapters = files.into_iter().collect();
        self
    }

    /// Adapters there is room for at the same time; as many as were named by default.
    pub fn adapter_slots(mut self, slots: usize) -> Self {
        self.options.adapter_slots = Some(slots);
        self
    }

    /// The folder of adapters that requests may name; it sets defaults for slots and rank.
    pub fn adapter_dir(mut self, folder: PathBuf) -> Self {
        self.options.adapter_dir = Some(folder);
        self
    }

    /// The largest rank of an adapter; that of those named by default, or 16.
    pub fn adapter_rank(mut self, rank: usize) -> Self {
        self.options.adapter_rank = Some(rank);
        self
    }

    /// Most tokens guessed ahead for a request and step; none by default. Answers are the same, see
    /// [`EngineOptions::speculate`].
    pub fn speculate(mut self, tokens: usize) -> Self {
        self.options.speculate = tokens;
        self
    }

    /// Whether to keep account of what is cached, for [`Photon::cache_events`].
    pub fn cache_events(mut self, on: bool) -> Self {
        self.options.cache_events = on;
        self
    }

    /// Most requests waiting; 512 by default.
    pub fn max_waiting(mut self, max_waiting: usize) -> Self {
        self.options.max_waiting = Some(max_waiting);
        self
    }

    /// Everything else about the engine, and all of the above.
    pub fn options(mut self, options: EngineOptions) -> Self {
        self.options = options;
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
        let started = backend::start(self.device, &self.model, &self.options, progress)?;
        let queue = Arc::clone(&started.queue);
        let adapters = self.options.adapter_dir.map(AdapterFolder::from);
        let started = Mutex::new(started);
        Ok(Photon { engine: Arc::new(Engine { started, queue, adapters }) })
    }
}

/// The guide's programs.
#[cfg(doctest)]
#[doc = include_str!("../../docs/src/library.md")]
struct Guide;
