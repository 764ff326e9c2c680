//! One test binary for the engine; each module is one part of it, tested through the public API.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]

mod demo;
mod golden;
mod requests;
