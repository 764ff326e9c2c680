//! Photon for Python: the module `photon._photon`, below the package `python/photon`.
//!
//! Python decides how things are called and what they look like; what is done is done here, by the engine in this
//! process. A request is a dictionary in the words of Moondream's API (`request`), its answers come from a ticket
//! (`ticket`), pictures come as whatever Python has (`picture`).
//!
//! # Rules
//! - Nothing that takes long holds the interpreter: loading, waiting and decoding let other threads run.
//! - Whoever waits looks for signals ten times a second, so Ctrl-C ends any call.
//! - What is dropped is cancelled: a ticket its request, the last engine's handle the engine.
#![forbid(unsafe_code)]

mod aside;
mod engine;
mod error;
mod hub;
mod json;
mod picture;
mod request;
mod ticket;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _photon {
    use super::*;

    #[pymodule_export]
    use crate::{
        engine::{Engine, doctor},
        hub::{models, pull},
        picture::{EncodedImage, route_key},
        ticket::Ticket,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
