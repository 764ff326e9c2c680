//! One tiny model in every layout, written by PyTorch (`tests/data/formats/make.py`), is always the same.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]
use std::path::PathBuf;

use photon_core::{DType, WeightFormat, convert, quant};
use photon_models::{
    adapter::{Adapter, Site},
    checkpoint::{Checkpoint, Layout},
    config::{Config, Family},
    expected_tensors,
};

fn path(name: &str) -> PathBuf {
    format!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/formats/{}"), name).into()
}

pub(crate) fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&path(name)).unwrap()
}

pub(crate) fn config(name: &str, family: Family) -> Config {
    Config::from_json(&std::fs::read(path(name)).unwrap(), family).unwrap()
}

fn floats(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let (from, bytes) = checkpoint.floats(name).unwrap_or_else(|| panic!("no {name}"));
    let wide = convert(&bytes, from, DType::F32);
    wide.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Every tensor of the model is in `got`, and is that of `want`, or of `codes` if it is there.
#[track_caller]
fn same(config: &Config, got: &Checkpoint, want: &Checkpoint, codes: Option<&Checkpoint>) {
    let tensors = expected_tensors(config);
    got.check(&tensors).unwrap();
    want.check(&tensors).unwrap();
    for (name, _) in &tensors {
        let truth = codes.filter(|codes| codes.info(name).is_some());
        let want = floats(truth.unwrap_or(want), name);
        assert_eq!(floats(got, name), want, "{name}");
        // Codes that are loaded as they are stand for the same numbers.
        if let Some(coded) = got.coded(name) {
            let info = got.info(name).unwrap();
            let k = *info.shape.last().unwrap();
            let back = quant::dequantize(info.format, k, &coded.bytes, &coded.scales);
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
            assert!(back.iter().zip(&want).all(near), "{name}: {}", info.format);
        }
    }
}

#[test]
fn moondream_3_has_one_meaning_in_every_layout() {
    let config = config("md3.json", Family::Moondream3);
    let want = open("md3.safetensors");
    assert_eq!(want.layout(), Some(Layout::HuggingFace));
    let kestrel = open("kestrel.safetensors");
    assert_eq!(kestrel.layout(), Some(Layout::Kestrel));
    assert_eq!(Family::of(kestrel.tensors().into_keys()), Family::Moondream3);
    same(&config, &kestrel, &want, None);
    let torch = open("kestrel.pt");
    same(&config, &torch, &want, Some(&open("kestrel_truth.safetensors")));
    let experts = torch.info("model.text.blocks.1.mlp.fc1.weight").unwrap();
    assert_eq!(experts.format, WeightFormat::Fp8);
}

#[test]
fn moondream_2_in_four_bits_is_what_was_packed() {
    let config = config("md2.json", Family::Moondream2);
    let int4 = open("int4.safetensors");
    same(&config, &int4, &open("md2.safetensors"), Some(&open("int4_truth.safetensors")));
    // Whole groups to a row stay codes; groups that reach over rows cannot.
    let format = |leaf: &str| int4.info(&format!("model.text.blocks.0.mlp.{leaf}")).unwrap().format;
    assert_eq!(format("fc2.weight"), WeightFormat::Int4 { group: 128 });
    assert_eq!(format("fc1.weight"), WeightFormat::Float(DType::F32));
}

#[test]
fn adapters_are_read_from_pytorchs_files() {
    let config = config("md3.json", Family::Moondream3);
    let adapter = Adapter::open(&path("adapter.pt"), &config).unwrap();
    let sites: Vec<_> = adapter.sites().collect();
    assert_eq!(sites, [(0, Site::Up, [1, 48, 32, 2]), (1, Site::Down, [4, 32, 8, 2])]);
    // Twice the rank of an expert, of which a token has two.
    assert_eq!(adapter.rank(&config), 4);
}

/// A file with some bytes changed, cut or repeated, is refused or read, and nothing else.
#[test]
fn damaged_files_do_no_harm() {
    let config = config("md3.json", Family::Moondream3);
    let mut state = 7u64;
    let mut random = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let dir = tempfile::tempdir().unwrap();
    for name in ["kestrel.pt", "adapter.pt", "md3.safetensors", "int4.safetensors"] {
        let whole = std::fs::read(path(name)).unwrap();
        for round in 0..120 {
            let mut bytes = whole.clone();
            match round % 3 {
                0 => bytes.truncate(random(whole.len())),
                // Where the zip's directory and the pickle are.
                1 => {
                    for _ in 0..1 + random(4) {
                        let near_end = whole.len() - 1 - random(whole.len().min(3000));
                        let near_start = random(3000.min(whole.len()));
                        let at = if random(2) == 0 { near_end } else { near_start };
                        bytes[at] = random(256) as u8;
                    }
                }
                _ => {
                    let at = random(whole.len());
                    let again = bytes[at..whole.len().min(at + 64)].to_vec();
                    bytes.splice(at..at, again);
                }
            }
            let file = dir.path().join(format!("damaged-{name}"));
            std::fs::write(&file, &bytes).unwrap();
            if let Ok(checkpoint) = Checkpoint::open(&file) {
                for (name, _) in checkpoint.tensors() {
                    checkpoint.floats(name);
                    checkpoint.coded(name);
                }
                let _ = Adapter::from_checkpoint(&checkpoint, "damaged", &config);
            }
        }
    }
}
