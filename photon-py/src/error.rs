//! What goes wrong, as exceptions of `photon.errors`.
//!
//! Messages are the engine's own; only what they call options is called as Python's arguments are.
use photon::{BuildError, OpenError, RunError, adapters::NameError, hub::HubError};
use photon_server::fields::Invalid;
use pyo3::{PyErrArguments, prelude::*, types::PyType};

/// An exception of `photon.errors`.
fn exception(py: Python<'_>, class: &str, args: impl PyErrArguments + 'static) -> PyErr {
    let found = py.import("photon.errors").and_then(|module| module.getattr(class));
    match found.and_then(|class| Ok(class.cast_into::<PyType>()?)) {
        Ok(class) => PyErr::from_type(class, args),
        Err(error) => error,
    }
}

fn say(py: Python<'_>, class: &str, message: impl ToString) -> PyErr {
    exception(py, class, (in_python(&message.to_string()),))
}

/// `--kv-memory` is `kv_memory` here, and `photon pull` a function.
fn in_python(message: &str) -> String {
    let mut words = message.split("--");
    let mut text = words.next().unwrap_or_default().to_owned();
    for word in words {
        let end = word.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(word.len());
        let (flag, rest) = word.split_at(end);
        text.extend([&flag.replace('-', "_"), rest]);
    }
    match text.split_once("photon pull ") {
        Some((before, name)) => format!("{before}photon.pull({name:?})"),
        None => text.replace("photon models", "photon.models()"),
    }
}

/// A request that makes no sense.
pub(crate) fn invalid(py: Python<'_>, message: impl ToString) -> PyErr {
    say(py, "InvalidRequestError", message)
}

/// A field that makes no sense.
pub(crate) fn field(py: Python<'_>, error: Invalid) -> PyErr {
    invalid(py, error)
}

/// Something that is no picture.
pub(crate) fn image_type(py: Python<'_>, message: impl ToString) -> PyErr {
    say(py, "ImageTypeError", message)
}

/// A picture that cannot be used.
pub(crate) fn image(py: Python<'_>, message: impl ToString) -> PyErr {
    say(py, "ImageError", message)
}

/// An engine that was closed.
pub(crate) fn closed(py: Python<'_>, message: &str) -> PyErr {
    say(py, "ClosedError", message)
}

/// A picture's file.
pub(crate) fn open(py: Python<'_>, error: OpenError) -> PyErr {
    match error {
        OpenError::Io { path, source } => {
            let class = match source.kind() {
                std::io::ErrorKind::NotFound => "ImageNotFoundError",
                _ => "ImageFileError",
            };
            // Without the number, which Python shows in front: "No such file or directory (os error 2)".
            let text = source.to_string();
            let text = text.split(" (os error").next().unwrap_or_default().to_owned();
            match source.raw_os_error() {
                Some(number) => exception(py, class, (number, text, path.into_os_string())),
                None => exception(py, class, (format!("{}: {text}", path.display()),)),
            }
        }
        OpenError::Image(error) => image(py, error),
        error => image(py, error),
    }
}

/// A request that was not answered.
pub(crate) fn run(py: Python<'_>, error: RunError) -> PyErr {
    let class = match error {
        RunError::Open(error) => return open(py, error),
        RunError::Rejected(_) | RunError::TooLarge { .. } => "InvalidRequestError",
        RunError::Grammar(_) => "GrammarError",
        RunError::Image(_) => "ImageError",
        RunError::Adapter(_) | RunError::NoAdapters => "AdapterError",
        RunError::Busy { .. } => "BusyError",
        RunError::Deadline => "DeadlineError",
        RunError::Cancelled | RunError::Stopped(_) => "ClosedError",
        RunError::Device(_) => "DeviceError",
        RunError::NotANumber => "ModelError",
        _ => "InternalError",
    };
    say(py, class, error)
}

/// A model that could not be made ready.
pub(crate) fn build(py: Python<'_>, error: BuildError) -> PyErr {
    let class = match error {
        BuildError::NoModel(_) => "ModelNotFoundError",
        BuildError::Adapter(_) | BuildError::AdapterName(_) => "AdapterError",
        BuildError::Device(_) | BuildError::NoDevice(_) | BuildError::Thread(_) => "DeviceError",
        _ => "ModelError",
    };
    say(py, class, error)
}

/// A name that stands for no adapter.
pub(crate) fn adapter(py: Python<'_>, error: NameError) -> PyErr {
    say(py, "AdapterError", error)
}

/// A model that could not be downloaded.
pub(crate) fn hub(py: Python<'_>, error: HubError) -> PyErr {
    let class = match error {
        HubError::UnknownModel { .. } => "ModelNotFoundError",
        _ => "DownloadError",
    };
    say(py, class, error)
}
