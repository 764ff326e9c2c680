//! photon-cli
fn main() {}
