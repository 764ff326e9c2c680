//! One test binary for the engine; each module is one part of it, tested through the public API.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]

use photon::Image;

mod batching;
mod chat;
mod convert;
mod demo;
mod drafts;
mod golden;
mod grammar;
mod mixture;
mod requests;
mod segment;
mod serving;
#[cfg(any(feature = "sim", all(feature = "metal", target_os = "macos")))]
mod simulated;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// The pictures whose answers are recorded, and the bundled one.
fn pictures() -> Vec<Image> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let mut paths: Vec<_> = std::fs::read_dir(format!("{root}demo/expected"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.push(format!("{root}../assets/shapes.png").into());
    paths.iter().map(|path| Image::open(path).unwrap()).collect()
}
