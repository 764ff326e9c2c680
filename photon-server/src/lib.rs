//! Photon over HTTP: one server, the dialects that clients already speak.
//!
//! [`Server::bind`] opens ports, [`Server::run`] answers until it is told to stop. A request passes three
//! layers: `connection` (sockets and how long they may take), `app` (routes, keys, request ids, metrics)
//! and one module per dialect (`native`, `openai`, `ollama`, `kserve`), which turns JSON into a
//! [`photon::Request`] and events into the dialect's answer. Between them stands `ask`, the only place
//! that talks to the engine.
//!
//! # Rules
//! - Whatever a client sends ends in an answer with a status and a sentence; it never ends the server,
//!   and never another request. What went wrong inside is logged, not sent.
//! - Nothing is allocated because of a length that a client claims.
//! - A client that goes away cancels its requests.
//! - No request makes this server call another, unless fetching was switched on for that host.
#![forbid(unsafe_code)]

mod app;
mod ask;
mod auth;
mod body;
mod config;
mod connection;
mod error;
mod fetch;
pub mod fields;
mod images;
mod kserve;
#[cfg(feature = "kv-events")]
mod kv_events;
mod metrics;
mod native;
mod ollama;
mod openai;
mod page;
mod route;
mod server;
mod station;
mod stream;
mod time;
pub mod turns;
pub mod wire;

pub use config::{Config, MetricsPrefix};
pub use server::{BindError, Handle, Server};
