//! photon-cli
#![forbid(unsafe_code)]

#[allow(dead_code, reason = "no command paints results yet")]
mod draw;

fn main() {}
