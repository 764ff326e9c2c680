//! The simulator against definitions, on kernels of its own (`photon-simt/kernels`), and what it finds.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]
#![allow(clippy::precedence, reason = "definitions of bits read better as the manuals write them")]
mod faults;
mod matrices;
mod memory;
mod numbers;
mod planted;
mod support;
mod warp;
