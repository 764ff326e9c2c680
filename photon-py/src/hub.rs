//! Downloading models, as `photon pull` does.
use photon::{
    Model,
    hub::{Hub, known_model, known_models},
};
use pyo3::{prelude::*, types::PyDict};

use crate::{aside, error};

/// The models Photon knows, by name, and whether they are on this machine.
#[pyfunction]
pub(crate) fn models(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    for (name, _) in Model::BUILT_IN {
        dict.set_item(name, true)?;
    }
    let hub = Hub::from_env();
    for model in known_models() {
        dict.set_item(model.name, hub.find(model).is_some())?;
    }
    Ok(dict)
}

/// Downloads a model unless it is here; `progress(file, done, total)` is told bytes.
#[pyfunction]
#[pyo3(signature = (name, progress))]
pub(crate) fn pull(py: Python<'_>, name: &str, progress: Option<Bound<'_, PyAny>>) -> PyResult<()> {
    if Model::BUILT_IN.iter().any(|(known, _)| *known == name) {
        return Ok(());
    }
    let model = known_model(name).map_err(|why| error::hub(py, why))?;
    // What has come is taken up by the next pull.
    let work = move |say: &mut dyn FnMut((String, u64, u64))| {
        Hub::from_env().pull(model, &mut |told| say((told.file.to_owned(), told.done, told.total)))
    };
    let pulled = aside::run(py, "photon-pull", work, |told| match &progress {
        Some(progress) => progress.call1(told).map(drop),
        None => Ok(()),
    });
    pulled?.map(drop).map_err(|why| error::hub(py, why))
}
