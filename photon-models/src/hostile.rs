//! What is done with files from strangers, by kind: all of it, from bytes in memory.
//!
//! Each function takes any bytes at all, reads them as the engine would, and goes on with whatever it
//! got. It returns; it never panics, hangs, or allocates more than a small multiple of the bytes. The
//! fuzzer (`fuzz/`) looks for bytes that break this, and `tests/hostile.rs` replays all that it found.
//!
//! A file whose parts must fit each other stops a fuzzer at its first check. So a pickle and a header
//! of safetensors may also come by themselves, and get the file around them here.
use std::{borrow::Cow, io::Write as _, sync::LazyLock};

use crate::{
    adapter::Adapter,
    checkpoint::{Checkpoint, shard_names},
    config::{Config, Family, MoeConfig},
    expected_tensors,
    image::{CropConfig, Limits, RgbImage, decode},
    tokenizer::{TextStream, Tokenizer},
};

/// Reads bytes of one kind.
pub type Target = fn(&[u8]);

/// Every kind by the name of its corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("torch", weights),
    ("safetensors", weights),
    ("config", config),
    ("tokenizer", tokenizer),
    ("adapter", adapter),
    ("image", image),
];

/// A file of weights: safetensors or PyTorch's.
pub fn weights(bytes: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_bytes("FILE", whole(bytes).into_owned()) else { return };
    for (name, info) in checkpoint.tensors() {
        let (dtype, floats) = checkpoint.floats(name).expect("it was just listed");
        let count = info.shape.iter().product::<usize>();
        assert_eq!(floats.len(), count * dtype.size(), "{name} is {:?}", info.shape);
        if let Some(coded) = checkpoint.coded(name) {
            assert_eq!((coded.bytes.len() + 4 * coded.scales.len()) as u64, info.bytes(), "{name}");
        }
    }
    for family in [Family::Moondream2, Family::Moondream3] {
        let _ = checkpoint.check(&expected_tensors(&Config::of(family)));
    }
}

/// A `config.json`, and the index of a checkpoint in several files.
pub fn config(bytes: &[u8]) {
    for family in [Family::Moondream2, Family::Moondream3] {
        let Ok(config) = Config::from_json(bytes, family) else { continue };
        let tensors = expected_tensors(&config);
        let bytes: u64 =
            tensors.iter().map(|(_, shape)| 4 * shape.iter().product::<usize>() as u64).sum();
        assert!(bytes > 0 && config.text.head_dim() > 0 && config.vision.patches() > 0);
        let json = serde_json::to_vec(&config).expect("its members are numbers");
        let again = Config::from_json(&json, family);
        assert_eq!(again.expect("it was accepted before"), config);
    }
    let _ = shard_names(bytes);
}

/// A `tokenizer.json`, and a text through it and back.
pub fn tokenizer(bytes: &[u8]) {
    const TEXT: &str = " What's in größer  1234 – 図形 🦀?\n\t<|endoftext|> ab aab abc";
    let Ok(tokenizer) = Tokenizer::from_json(bytes) else { return };
    for text in [TEXT, ""] {
        let Ok(ids) = tokenizer.encode(text) else { continue };
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        let mut stream = TextStream::default();
        let mut parts: String = ids.iter().map(|&id| stream.push(&tokenizer, id)).collect();
        parts.push_str(&stream.finish());
        assert_eq!(parts, tokenizer.decode(&ids));
    }
    tokenizer.decode(&[0, u32::MAX, 1]);
}

/// An adapter of either format, for a small model of either family.
pub fn adapter(bytes: &[u8]) {
    static MODELS: LazyLock<[Config; 2]> =
        LazyLock::new(|| [small(Family::Moondream2), small(Family::Moondream3)]);
    let Ok(checkpoint) = Checkpoint::from_bytes("FILE", whole(bytes).into_owned()) else { return };
    for config in MODELS.iter() {
        let Ok(adapter) = Adapter::from_checkpoint(&checkpoint, "FILE", config) else { continue };
        assert!(adapter.rank(config) > 0);
        for (layer, site, [count, n, k, _]) in adapter.sites() {
            assert_eq!(adapter.delta(layer, site).map(|d| d.len()), Some(count * n * k));
        }
    }
}

/// A picture, cut as Moondream's are.
pub fn image(bytes: &[u8]) {
    let limits =
        Limits { max_bytes: 1 << 20, max_pixels: 1 << 16, max_side: 1 << 11, max_memory: 1 << 20 };
    let Ok(image) = decode(bytes, &limits) else { return };
    let pixels = image.width() as usize * image.height() as usize;
    assert!(pixels as u64 <= limits.max_pixels);
    assert_eq!(image.pixels().len(), 3 * pixels);
    // Moondream's shape of a crop, small enough to be quick.
    let crops = CropConfig { crop_size: 54, patch_size: 2, ..CropConfig::default() };
    let cut = crops.crops(&image).expect("the numbers fit together");
    assert!(cut.num_crops() <= 1 + crops.most_tiles(limits.max_side).expect("they fit together"));
    let (width, height) = (image.width(), image.height());
    assert!(RgbImage::new(width, height, image.into_pixels()).is_ok());
}

/// A model small enough that an adapter for it is, too.
fn small(family: Family) -> Config {
    let mut config = Config::of(family);
    let text = &mut config.text;
    (text.dim, text.ff_dim, text.n_layers) = (8, 16, 3);
    (text.n_heads, text.n_kv_heads) = (2, 2);
    if let Some(moe) = &mut text.moe {
        *moe =
            MoeConfig { num_experts: 3, start_layer: 1, experts_per_token: 2, expert_inner_dim: 4 };
    }
    config
}

/// A file of weights: a pickle inside of a zip, a header of safetensors with its length in front, and
/// anything else as it is.
fn whole(bytes: &[u8]) -> Cow<'_, [u8]> {
    match bytes.first() {
        Some(0x80) => zipped(bytes).into(),
        Some(b'{') => {
            let end = bytes.iter().rposition(|&b| b == b'}').map_or(0, |at| at + 1);
            [&(end as u64).to_le_bytes(), bytes].concat().into()
        }
        _ => bytes.into(),
    }
}

/// What PyTorch writes around a pickle, with two storages.
fn zipped(pickle: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let storage: Vec<u8> = (0..=255).collect();
    let members = [("x/data.pkl", pickle), ("x/data/0", &storage), ("x/data/1", &storage[..64])];
    for (name, bytes) in members {
        zip.start_file(name, stored).expect("the names differ");
        zip.write_all(bytes).expect("memory takes everything");
    }
    zip.finish().expect("memory takes everything").into_inner()
}
