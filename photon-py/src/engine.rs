//! An engine in this process, shared by all clients that asked for the same.
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use photon::{
    BuildError, DType, Device, EngineOptions, Family, Image, ImageSource, Model, Photon, Request,
    Skill,
    adapters::{AdapterName, ModelName},
};
use pyo3::{prelude::*, types::PyDict};
use serde_json::json;

use crate::{
    aside, error, json,
    picture::{self, EncodedImage},
    request::{self, Terms},
    ticket::Ticket,
};

/// Requests that may wait. They are this process's own, so the limit of a server would only be in the way.
const MAX_WAITING: usize = 1 << 16;

/// What engines are told apart by.
#[derive(Clone, Debug, PartialEq)]
struct Setup {
    model: Model,
    device: Device,
    options: EngineOptions,
    /// A fork knows of its parent's engines, and has none of their threads.
    process: u32,
}

/// Engines that some client holds.
static RUNNING: Mutex<Vec<(Setup, Weak<Photon>)>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<(Setup, Weak<Photon>)>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The engine for this setup: one that runs, or a new one. Whoever asks meanwhile waits, so that no model is loaded twice.
fn open(setup: &Setup, progress: &mut dyn FnMut(u64, u64)) -> Result<Arc<Photon>, BuildError> {
    let mut running = running();
    running.retain(|(_, photon)| photon.strong_count() > 0);
    let found = running.iter().find(|(known, _)| known == setup);
    if let Some(photon) = found.and_then(|(_, photon)| photon.upgrade()) {
        return Ok(photon);
    }
    let builder = Photon::builder().model(setup.model.clone()).device(setup.device);
    let builder = builder.options(setup.options.clone());
    let photon = Arc::new(builder.build_with_progress(progress)?);
    running.push((setup.clone(), Arc::downgrade(&photon)));
    Ok(photon)
}

/// A client of an engine in this process.
#[pyclass(frozen, module = "photon._photon")]
#[derive(Debug)]
pub(crate) struct Engine {
    photon: Mutex<Option<Arc<Photon>>>,
    terms: Terms,
    max_seqs: usize,
    process: u32,
}

impl Engine {
    fn photon(&self, py: Python<'_>) -> PyResult<Arc<Photon>> {
        if self.process != std::process::id() {
            let message = "this process was forked from the one that made the model, whose threads it does not have: \
                           make the model here, or use multiprocessing's start method \"spawn\"";
            return Err(error::closed(py, message));
        }
        let photon = self.photon.lock().unwrap_or_else(PoisonError::into_inner);
        photon.clone().ok_or_else(|| error::closed(py, "the model was closed"))
    }
}

#[pymethods]
impl Engine {
    /// Loads a model, unless it is loaded; `progress(done, total)` is told bytes.
    #[new]
    #[pyo3(signature = (model, device, options, progress))]
    fn new(
        py: Python<'_>,
        model: PathBuf,
        device: &str,
        options: &Bound<'_, PyDict>,
        progress: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        // A folder may be called like anything.
        let named = match model.to_str() {
            Some(name) if !model.exists() => name.parse().map_err(|why| error::adapter(py, why))?,
            _ => ModelName { base: model.to_string_lossy().into_owned(), adapter: None },
        };
        let device = if device == "mps" { "metal" } else { device };
        let device = device.parse().map_err(|why| error::build(py, BuildError::NoDevice(why)))?;
        let adapter = option::<PathBuf>(options, "adapter")?;
        let setup = Setup {
            model: Model::named(&named.base).map_err(|why| error::build(py, why))?,
            device,
            options: engine_options(options, adapter.as_deref())?,
            process: std::process::id(),
        };
        let photon = load(py, &setup, progress)?;
        let adapter = match (&named.adapter, adapter) {
            (Some(_), Some(_)) => {
                let message =
                    "the model's name says which adapter, and so does adapter=: give one of them";
                return Err(error::invalid(py, message));
            }
            (Some(name), None) => {
                Some(photon.find_adapter(name).map_err(|why| error::adapter(py, why))?)
            }
            (None, Some(given)) => Some(request::find_adapter(py, &photon, given)?),
            (None, None) => None,
        };
        // As Moondream's own: models that reason by themselves do unless they are told not to.
        let reasons = photon.family() == Family::Moondream3 && setup.model != Model::Demo3;
        Ok(Engine {
            photon: Mutex::new(Some(photon)),
            terms: Terms { adapter, chat_reasoning: reasons },
            max_seqs: setup.options.max_seqs.unwrap_or(64),
            process: setup.process,
        })
    }

    /// Hands a request to the engine.
    fn submit(&self, py: Python<'_>, fields: &Bound<'_, PyDict>) -> PyResult<Ticket> {
        let photon = self.photon(py)?;
        let request = request::read(&photon, &self.terms, fields)?;
        let is_chat = matches!(request.skill, Skill::Chat { .. });
        // Waits for a lock that nobody holds long.
        let ticket = py.detach(|| photon.submit(request));
        Ok(Ticket::new(ticket.map_err(|why| error::run(py, why))?, is_chat))
    }

    /// Decodes a picture, and begins to compute its positions: the ticket is answered when they are in the cache.
    fn encode(&self, py: Python<'_>, image: &Bound<'_, PyAny>) -> PyResult<(EncodedImage, Ticket)> {
        let photon = self.photon(py)?;
        let image = decode(py, picture::source(image)?)?;
        // What a caption's first token needs is what every question begins with.
        let caption = Skill::Caption { length: photon::CaptionLength::Short };
        let mut request = Request::new(caption, Some(image.clone()));
        request.budget.max_tokens = 1;
        request.adapter = self.terms.adapter.clone();
        let ticket = py.detach(|| photon.submit(request)).map_err(|why| error::run(py, why))?;
        Ok((EncodedImage::new(image), Ticket::new(ticket, false)))
    }

    /// Answers requests in this thread, or in so many that are not Python's; the seconds it took. What a benchmark
    /// compares with.
    fn measure(
        &self,
        py: Python<'_>,
        requests: Vec<Bound<'_, PyDict>>,
        threads: usize,
    ) -> PyResult<f64> {
        let photon = self.photon(py)?;
        let read = |fields: &Bound<'_, PyDict>| request::read(&photon, &self.terms, fields);
        let requests = requests.iter().map(read).collect::<PyResult<Vec<_>>>()?;
        let next = AtomicUsize::new(0);
        let begun = Instant::now();
        let answered = py.detach(|| {
            let work = || {
                while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    photon.submit(request.clone())?.wait()?;
                }
                Ok(())
            };
            if threads <= 1 {
                return work();
            }
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                threads.into_iter().try_for_each(|thread| match thread.join() {
                    Ok(done) => done,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
            })
        });
        answered.map_err(|why| error::run(py, why))?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Lets go of the engine, which ends with its last client.
    fn close(&self, py: Python<'_>) {
        let photon = self.photon.lock().unwrap_or_else(PoisonError::into_inner).take();
        // In a fork there is no thread to wait for.
        match self.process == std::process::id() {
            true => py.detach(|| drop(photon)),
            false => std::mem::forget(photon),
        }
    }

    /// Most requests worth having under way: as many again wait as are computed.
    #[getter]
    fn window(&self) -> usize {
        2 * self.max_seqs
    }

    /// The skills of the model.
    fn skills(&self, py: Python<'_>) -> PyResult<Vec<&'static str>> {
        Ok(self.photon(py)?.skills())
    }

    /// The names of the adapters that can be named.
    fn adapters(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let names = self.photon(py)?.adapters().map_err(|why| error::adapter(py, why))?;
        Ok(names.iter().map(AdapterName::to_string).collect())
    }

    /// Where the model runs, for people.
    fn device_name(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.photon(py)?.device_name())
    }

    /// The type of the model's weights.
    fn dtype(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(self.photon(py)?.dtype().name())
    }

    /// How many tokens the model makes of a text.
    fn count_tokens(&self, py: Python<'_>, text: &str) -> PyResult<usize> {
        self.photon(py)?.count_tokens(text).map_err(|why| error::run(py, why))
    }

    /// What the engine has done.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        json::to_python(py, &json!(self.photon(py)?.stats()))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            let photon = self.photon.lock().unwrap_or_else(PoisonError::into_inner).take();
            std::mem::forget(photon);
        }
    }
}

/// Loads a model; what it would have been is dropped if Ctrl-C comes first.
fn load(
    py: Python<'_>,
    setup: &Setup,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<Arc<Photon>> {
    let owned = setup.clone();
    let work =
        move |say: &mut dyn FnMut((u64, u64))| open(&owned, &mut |done, total| say((done, total)));
    let photon = aside::run(py, "photon-load", work, |told| match &progress {
        Some(progress) => progress.call1(told).map(drop),
        None => Ok(()),
    });
    photon?.map_err(|why| error::build(py, why))
}

/// The pixels of a picture.
fn decode(py: Python<'_>, source: ImageSource) -> PyResult<Image> {
    match source {
        ImageSource::Decoded(image) => Ok(image),
        ImageSource::Encoded(bytes) => {
            py.detach(|| Image::from_bytes(&bytes)).map_err(|why| error::image(py, why))
        }
        ImageSource::File(path) => {
            py.detach(|| Image::open(&path)).map_err(|why| error::open(py, why))
        }
    }
}

/// An option that is given.
fn option<'py, T: FromPyObjectOwned<'py>>(
    options: &Bound<'py, PyDict>,
    name: &str,
) -> PyResult<Option<T>> {
    let given = options.get_item(name)?.filter(|value| !value.is_none());
    given.map(|value| value.extract().map_err(Into::into)).transpose()
}

fn engine_options(options: &Bound<'_, PyDict>, adapter: Option<&Path>) -> PyResult<EngineOptions> {
    let py = options.py();
    let wrong = |name: &str, why: String| error::invalid(py, format!("{name}: {why}"));
    let dtype = |name: &str, allowed: &[DType]| {
        let Some(given) = option::<String>(options, name)? else { return Ok(None) };
        let found = allowed.iter().copied().find(|dtype| dtype.name() == given);
        let names: Vec<_> = allowed.iter().map(|dtype| dtype.name()).collect();
        let why = format!("{given:?} is not one of {}", names.join(", "));
        found.map(Some).ok_or_else(|| wrong(name, why))
    };
    let floats = [DType::F32, DType::F16, DType::Bf16];
    let quant = option::<String>(options, "quant")?.map(|quant| quant.parse());
    let resize = match option::<String>(options, "preprocess")? {
        Some(order) => order.parse().map_err(|why| wrong("preprocess", format!("{why}")))?,
        None => Default::default(),
    };
    // One that is named by its name is in the folder.
    let file = adapter.filter(|path| path.exists()).map(Path::to_path_buf);
    let adapters = file.into_iter().collect();
    Ok(EngineOptions {
        threads: option(options, "threads")?,
        dtype: dtype("dtype", &floats)?,
        quant: quant.transpose().map_err(|why| wrong("quant", why))?.unwrap_or_default(),
        kv_dtype: dtype("kv_dtype", &[&floats[..], &[DType::Int8, DType::Fp8]].concat())?,
        kv_memory: option(options, "kv_memory")?,
        resize,
        max_seqs: option(options, "max_seqs")?,
        max_waiting: option(options, "max_waiting")?.or(Some(MAX_WAITING)),
        adapters,
        adapter_dir: option(options, "adapters")?,
        adapter_slots: option(options, "adapter_slots")?,
        adapter_rank: option(options, "adapter_rank")?,
        speculate: option(options, "speculate")?.unwrap_or(0),
        ..EngineOptions::default()
    })
}

/// What every backend of this build finds on this machine, by the backend's name: what there is, or why not.
#[pyfunction]
pub(crate) fn doctor(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    for found in py.detach(photon::doctor) {
        let (usable, what) = match found.found {
            Ok(what) => (true, what),
            Err(why) => (false, why),
        };
        dict.set_item(found.device, (usable, what))?;
    }
    Ok(dict)
}
