//! Adapters against models whose weights they were merged with.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]
use std::collections::BTreeMap;

use photon_core::{Arena, Cx, DType, Device, SampleParams, convert};
use photon_cpu::{Cpu, CpuOptions};
use photon_models::{
    KvCache, Moondream, Precision,
    adapter::{
        Adapter, AdapterShape, AdapterSlots, AdapterSummary, MAX_FILE_BYTES, Site, convert_adapter,
    },
    batch::{BatchBuilder, Row},
    checkpoint::Checkpoint,
    config::{Config, Family},
    expected_tensors,
    prompt::Input,
};
use safetensors::{Dtype, tensor::TensorView};

use crate::golden::download;

const BLOCK_SIZE: usize = 16;
/// Where a GELU does nothing: units with this bias pass on what they are given.
const FAR: f32 = 16.0;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn config(family: Family) -> Config {
    let name = if family == Family::Moondream2 { "moondream2" } else { "moondream3" };
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/golden");
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(format!("{dir}/{name}.json")).unwrap()).unwrap();
    let json = serde_json::json!({ "config": json["config"] });
    Config::from_json(json.to_string().as_bytes(), family).unwrap()
}

/// Tensors as a checkpoint.
fn checkpoint(tensors: &Tensors) -> Checkpoint {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, v))| (name, shape, v.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, b)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), b).unwrap()));
    let file = safetensors::serialize(views, None).unwrap();
    Checkpoint::from_bytes("a test", file).unwrap()
}

fn base(config: &Config) -> Tensors {
    let expected = expected_tensors(config);
    let source = Checkpoint::synthetic(0, expected.clone());
    let floats = |name: &str| {
        let (from, bytes) = source.floats(name).unwrap();
        let bytes = convert(&bytes, from, DType::F32).into_owned();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    expected.into_iter().map(|(name, shape)| (name.clone(), (shape, floats(&name)))).collect()
}

/// Small numbers that differ from seed to seed.
fn noise(seed: u64, shape: &[usize]) -> (Vec<usize>, Vec<f32>) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / 8_388_608.0 - 1.0) * 0.2
    };
    (shape.to_vec(), (0..shape.iter().product()).map(|_| next()).collect())
}

/// An adapter in the format of the family: its file, and itself.
fn adapter(config: &Config, seed: u64, rank: usize) -> Adapter {
    let c = &config.text;
    let mut tensors = Tensors::new();
    let mut put = |name: String, shape: &[usize]| {
        let seed = seed * 1000 + tensors.len() as u64;
        tensors.insert(name, noise(seed, shape));
    };
    for layer in 0..c.n_layers {
        if config.family() == Family::Moondream2 {
            for (part, n, k) in [
                ("qkv", c.qkv_dim(), c.dim),
                ("proj", c.dim, c.dim),
                ("fc1", c.ff_dim, c.dim),
                ("fc2", c.dim, c.ff_dim),
            ] {
                put(format!("text.blocks.{layer}.{part}.A"), &[rank, k]);
                put(format!("text.blocks.{layer}.{part}.B"), &[n, rank]);
            }
            continue;
        }
        let (name, counts, up, inner) = match c.experts(layer) {
            None => (format!("text_lora.dense.{layer}"), vec![], c.ff_dim, c.ff_dim),
            Some(moe) => {
                let name = format!("text_lora.moe.{}", layer - moe.start_layer);
                let inner = moe.expert_inner_dim;
                (name, vec![moe.num_experts], 2 * inner, inner)
            }
        };
        let shape = |dims: [usize; 2]| [&counts[..], &dims].concat();
        put(format!("{name}.up_a"), &shape([rank, c.dim]));
        put(format!("{name}.up_b"), &shape([up, rank]));
        put(format!("{name}.down_a"), &shape([rank, inner]));
        put(format!("{name}.down_b"), &shape([c.dim, rank]));
    }
    Adapter::from_checkpoint(&checkpoint(&tensors), "a test", config).unwrap()
}

/// The model that has the adapter in its weights. `proj` reads the normed input, which no matrix of
/// attention does; so it becomes further units of the MLP, which pass their input on.
fn merged(config: &Config, adapter: &Adapter) -> (Config, Tensors) {
    let (mut config, mut tensors) = (config.clone(), base(config));
    let c = config.text.clone();
    let mut extra = 0;
    for (layer, site, _) in adapter.sites() {
        let delta = adapter.delta(layer, site).unwrap();
        let name = |leaf: &str| format!("model.text.blocks.{layer}.{leaf}");
        let target = match site {
            Site::Qkv => "attn.qkv.weight",
            Site::Up => "mlp.fc1.weight",
            Site::Down => "mlp.fc2.weight",
            Site::Proj => {
                extra = c.dim;
                continue;
            }
        };
        let values = &mut tensors.get_mut(&name(target)).unwrap().1;
        assert_eq!(values.len(), delta.len());
        values.iter_mut().zip(delta).for_each(|(w, d)| *w += d);
    }
    if extra == 0 {
        return (config, tensors);
    }
    config.text.ff_dim += extra;
    for layer in 0..c.n_layers {
        let delta = adapter.delta(layer, Site::Proj).unwrap();
        let name = |leaf: &str| format!("model.text.blocks.{layer}.mlp.{leaf}");
        let mut edit = |leaf: &str, edit: &dyn Fn(&mut Vec<usize>, &mut Vec<f32>)| {
            let (shape, values) = tensors.get_mut(&name(leaf)).unwrap();
            edit(shape, values);
        };
        // Unit i passes on `sum_k delta[i, k] h[k]` plus FAR, which the last bias takes away again.
        edit("fc1.weight", &|shape, values| {
            shape[0] += extra;
            values.extend(&delta);
        });
        edit("fc1.bias", &|shape, values| {
            shape[0] += extra;
            values.extend(vec![FAR; extra]);
        });
        edit("fc2.weight", &|shape, values| {
            let old = shape[1];
            shape[1] += extra;
            let rows = values.chunks_exact(old).enumerate();
            let unit = |row: usize| (0..extra).map(move |i| f32::from(u8::from(i == row)));
            *values = rows.flat_map(|(i, row)| row.iter().copied().chain(unit(i))).collect();
        });
        edit("fc2.bias", &|_, values| values.iter_mut().for_each(|b| *b -= FAR));
    }
    (config, tensors)
}

/// Logits of the token after each prompt, computed in one step.
fn logits(
    config: &Config,
    weights: &Checkpoint,
    rows: &[(&[u32], Option<usize>)],
    adapters: &[&Adapter],
) -> Vec<Vec<f32>> {
    let device = Cpu::open(CpuOptions::default()).unwrap();
    let mut stream = device.stream().unwrap();
    let model = Moondream::load(&device, weights, config, Precision::F32, &mut |_, _| {}).unwrap();
    let mut kv = KvCache::new(&device, &config.text, 16, BLOCK_SIZE, DType::F32).unwrap();
    let shape = AdapterShape::new(config, 3, 8, DType::F32);
    let mut slots = AdapterSlots::new(&device, &shape).unwrap();
    let mut arena = Arena::new(&device, 0).unwrap();
    for (slot, adapter) in adapters.iter().enumerate() {
        let packed = shape.pack(&device, adapter).unwrap();
        // What a slot held before must leave no trace.
        let other = shape.pack(&device, adapters[0]).unwrap();
        let cx = &mut Cx::new(&device, &mut stream, &mut arena);
        slots.load(cx, slot, &other);
        slots.load(cx, slot, &packed);
    }
    let mut pass = |cx: &mut Cx<'_, Cpu>| {
        let mut batch = BatchBuilder::new(BLOCK_SIZE, 1, [0; 4]);
        for (i, (ids, adapter)) in rows.iter().enumerate() {
            let inputs: Vec<Input> = ids.iter().map(|&id| Input::Token(id)).collect();
            batch.push(&Row {
                inputs: &inputs,
                draft: &[],
                start: 0,
                block_table: &[1 + i as u32],
                images: &[],
                adapter: *adapter,
                sample: Some(SampleParams::GREEDY),
                mask: None,
            });
        }
        let batch = batch.upload(cx);
        let hidden = model.forward(cx, &batch, None, Some(&slots), &mut kv);
        model.logits(cx, &hidden)
    };
    let bytes = Arena::measure(&device, &mut stream, |cx| {
        pass(cx);
    });
    let mut arena = Arena::new(&device, bytes.unwrap()).unwrap();
    let logits = pass(&mut Cx::new(&device, &mut stream, &mut arena));
    let logits = download(&device, &mut stream, &logits);
    logits.chunks_exact(config.text.vocab_size).map(<[f32]>::to_vec).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Rows with two adapters of different rank and without, in one step: each is as in the merged model,
/// and to the bit as it is alone.
fn adapters_equal_merged_weights(family: Family, ranks: [usize; 2]) {
    let config = config(family);
    let weights = checkpoint(&base(&config));
    let adapters = [adapter(&config, 1, ranks[0]), adapter(&config, 2, ranks[1])];
    let prompts: [&[u32]; 4] =
        [&[0, 40, 41, 42, 43], &[0, 50, 51], &[0, 60, 61, 62], &[0, 40, 41, 42, 43]];
    let which = [None, Some(0), Some(1), Some(1)];
    let rows: Vec<_> = prompts.into_iter().zip(which).collect();
    let refs = [&adapters[0], &adapters[1]];
    let together = logits(&config, &weights, &rows, &refs);
    for (row, together) in rows.iter().zip(&together) {
        let alone = logits(&config, &weights, &[*row], &refs);
        assert!(alone[0] == *together, "{row:?} depends on its batch");
        let plain = logits(&config, &weights, &[(row.0, None)], &refs).remove(0);
        let Some(adapter) = row.1 else {
            assert!(plain == *together);
            continue;
        };
        let (config, tensors) = merged(&config, &adapters[adapter]);
        let want = logits(&config, &checkpoint(&tensors), &[(row.0, None)], &[]).remove(0);
        let error = largest_difference(together, &want);
        let effect = largest_difference(&plain, &want);
        assert!(error < 2e-3, "{row:?}: {error} from the merged model");
        assert!(effect > 100.0 * error, "{row:?}: an effect of {effect}, an error of {error}");
    }
}

#[test]
fn adapters_of_moondream_2_equal_merged_weights() {
    adapters_equal_merged_weights(Family::Moondream2, [3, 8]);
}

#[test]
fn adapters_of_moondream_3_equal_merged_weights() {
    adapters_equal_merged_weights(Family::Moondream3, [1, 2]);
}

#[track_caller]
fn refuses(config: &Config, tensors: &[(&str, &[usize])], message: &str) {
    let tensors = tensors.iter().map(|(name, shape)| (name.to_string(), noise(1, shape))).collect();
    let error = Adapter::from_checkpoint(&checkpoint(&tensors), "FILE", config).unwrap_err();
    assert!(error.to_string().contains(message), "{error}");
}

#[test]
fn what_is_no_adapter_is_refused_with_a_reason() {
    let (two, three) = (config(Family::Moondream2), config(Family::Moondream3));
    let c = &two.text;
    let (a, b): (&[usize], &[usize]) = (&[4, c.dim], &[c.ff_dim, 4]);
    refuses(&two, &[("model.text.wte", &[4, 4])], "holds model.text.wte");
    refuses(&two, &[("text.blocks.99.fc1.A", a)], "holds text.blocks.99.fc1.A");
    refuses(&two, &[("text.blocks.0.fc1.A", a)], "one half of Up only");
    refuses(&two, &[("text.blocks.0.fc1.A", &[4, 7])], "and the model has");
    refuses(&two, &[("text.blocks.0.fc1.A", &[0, c.dim])], "has rank 0");
    let other: &[usize] = &[c.ff_dim, 5];
    let pair = [("text.blocks.0.fc1.A", a), ("text.blocks.0.fc1.B", other)];
    refuses(&two, &pair, "ranks 4 and 5 differ");
    let twice =
        [("text.blocks.0.fc1.A", a), ("text.blocks.0.fc1.B", b), ("text_lora.dense.0.up_a", a)];
    refuses(&two, &twice, "mean the same");
    refuses(&three, &[("text.blocks.0.qkv.A", a)], "adapters do not reach there");
    refuses(&three, &[("text_lora.dense.2.up_a", a)], "holds text_lora.dense.2.up_a");
    refuses(&two, &[], "no tensors");
    let large = adapter(&two, 1, 9);
    let device = Cpu::open(CpuOptions::default()).unwrap();
    let error = AdapterShape::new(&two, 1, 8, DType::F32).pack(&device, &large).unwrap_err();
    assert!(error.to_string().contains("--adapter-rank 9"), "{error}");
}

/// Everything an adapter adds.
fn deltas(adapter: &Adapter) -> Vec<(usize, Site, [usize; 4], Vec<f32>)> {
    let delta = |(layer, site, dims)| (layer, site, dims, adapter.delta(layer, site).unwrap());
    adapter.sites().map(delta).collect()
}

#[test]
fn a_converted_adapter_adds_the_same() {
    let formats = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/formats");
    let from = std::path::PathBuf::from(format!("{formats}/adapter.pt"));
    let json = std::fs::read(format!("{formats}/md3.json")).unwrap();
    let tiny = Config::from_json(&json, Family::Moondream3).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("a@1.safetensors");
    let summary = convert_adapter(&from, &to, None, Some(&tiny)).unwrap();
    assert_eq!(summary, AdapterSummary::open(&to).unwrap());
    assert_eq!((summary.rank, summary.expert_rank, summary.experts), (2, 2, 4));
    assert_eq!((summary.dense_blocks, summary.expert_blocks, summary.attention), (1, 1, false));
    assert_eq!((summary.fits.len(), summary.rank_in(&tiny)), (0, 4));
    let [a, b] = [&from, &to].map(|path| Adapter::open(path, &tiny).unwrap());
    assert_eq!(deltas(&a), deltas(&b));
    assert_eq!(Checkpoint::open(&to).unwrap().origin().unwrap().source, "adapter.pt");
    // To a file that is there, for a model that it does not fit, and from what is no adapter.
    assert!(convert_adapter(&from, &to, None, None).is_err());
    let other = dir.path().join("b@1.safetensors");
    let golden = config(Family::Moondream3);
    let error = convert_adapter(&from, &other, None, Some(&golden)).unwrap_err().to_string();
    assert!(error.contains("no adapter for this model"), "{error}");
    let model = std::path::PathBuf::from(format!("{formats}/md2.safetensors"));
    let error = convert_adapter(&model, &other, None, None).unwrap_err().to_string();
    assert!(error.contains("is no adapter: it holds model."), "{error}");
    assert!(!other.exists());
}

/// The state of Kestrel's module has each matrix under two names, and an optimizer's state beside it.
#[test]
fn what_fine_tuning_gives_is_an_adapter() {
    let config = config(Family::Moondream2);
    let c = &config.text;
    let (a, b) = (noise(1, &[4, c.dim]), noise(2, &[c.ff_dim, 4]));
    let mut tensors = Tensors::new();
    for inner in ["text_lora", "_text"] {
        tensors.insert(format!("lora_state_dict.{inner}.dense.1.up_a"), a.clone());
        tensors.insert(format!("lora_state_dict.{inner}.dense.1.up_b"), b.clone());
    }
    tensors.insert("optimizer.state.0.exp_avg".into(), noise(3, &[7]));
    let adapter = Adapter::from_checkpoint(&checkpoint(&tensors), "FILE", &config).unwrap();
    let sites: Vec<_> = adapter.sites().collect();
    assert_eq!(sites, [(1, Site::Up, [1, c.ff_dim, c.dim, 4])]);
    // Under one of the two names it is the same.
    tensors.retain(|name, _| !name.contains("text_lora"));
    let short = Adapter::from_checkpoint(&checkpoint(&tensors), "FILE", &config).unwrap();
    assert_eq!(deltas(&short), deltas(&adapter));
    tensors.insert("lora_state_dict.vision_lora.fc1.a".into(), noise(4, &[7]));
    let error = Adapter::from_checkpoint(&checkpoint(&tensors), "FILE", &config).unwrap_err();
    assert!(error.to_string().contains("it holds vision_lora.fc1.a"), "{error}");
}

#[test]
fn a_file_too_large_for_an_adapter_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.safetensors");
    // A hole: it takes no room on the disk.
    std::fs::File::create(&path).unwrap().set_len(MAX_FILE_BYTES + (1 << 20)).unwrap();
    let error = Adapter::open(&path, &config(Family::Moondream2)).unwrap_err().to_string();
    assert!(error.contains("has 1025 MiB, and an adapter 1024 at most"), "{error}");
}
