//! The simulator against definitions, on kernels of its own (`photon-simt/kernels`), and what it finds.
mod faults;
mod matrices;
mod memory;
mod numbers;
mod planted;
mod support;
mod warp;
