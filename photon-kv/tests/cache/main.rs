//! The prefix cache through its public face; each module is one way to doubt it.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]

mod features;
mod model;
mod random;
mod world;
