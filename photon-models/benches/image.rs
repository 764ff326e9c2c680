//! What a picture costs before the device sees it: decode, cut into crops, hash.
//!
//! `cargo bench -p photon-models --bench image`; one thread, an 800x557 chart with 3 x 4 tiles at most.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use photon_models::image::{CropConfig, ImageDigest, Limits, ResizeOrder, decode};

fn bench(c: &mut Criterion) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images");
    let png = std::fs::read(data.join("chart_800x557.png")).expect("the picture is in the repo");
    let limits = Limits::default();
    let image = decode(&png, &limits).expect("the picture is good");
    c.bench_function("800x557 decode png", |b| b.iter(|| decode(black_box(&png), &limits)));
    if let Ok(jpeg) = std::fs::read(data.join("chart_800x557.jpg")) {
        c.bench_function("800x557 decode jpeg", |b| b.iter(|| decode(black_box(&jpeg), &limits)));
    }
    for resize in [ResizeOrder::Pil, ResizeOrder::Kestrel] {
        let config = CropConfig { resize, ..CropConfig::default() };
        c.bench_function(&format!("800x557 crops {resize}"), |b| {
            b.iter(|| config.crops(black_box(&image)));
        });
    }
    c.bench_function("800x557 digest of pixels", |b| {
        b.iter(|| ImageDigest::of_pixels(black_box(&image)));
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
