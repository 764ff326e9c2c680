//! Everything in one batch: each skill, with and without reasoning, each with and without one of three
//! adapters of different ranks and formats, in both families; the same tokens as each request alone.
use std::path::{Path, PathBuf};

use photon::{
    Budget, CaptionLength, Device, EngineOptions, Image, Message, Photon, Quant, Request, Role,
    Sampling, Shutdown, Skill, SpatialRef, WeightFormat,
};
use serde_json::Value;

use crate::{
    Rng,
    batching::{Outcome, outcome, write_noise},
    golden::{DATA, in_folder, recorded},
};

/// Room for the widest adapter to experts: its rank for each expert of a token.
const RANK: usize = 9;

/// Every skill; outlines where the model has them.
fn skills(segments: bool) -> Vec<Skill> {
    let point = SpatialRef::Point([0.25, 0.5]);
    let frame = SpatialRef::Box([0.1, 0.2, 0.5, 0.75]);
    let query = |reasoning, spatial_refs| {
        let question = "what colour is it?".into();
        Skill::Query { question, reasoning, spatial_refs }
    };
    let chat = |reasoning| {
        let first = Message::with_images("how many?", 1);
        let answer = Message::new(Role::Assistant, "two");
        let last = Message::new(Role::User, "which color is it?");
        Skill::Chat { messages: vec![first, answer, last], reasoning }
    };
    let mut skills = vec![
        query(false, vec![]),
        query(true, vec![]),
        query(false, vec![point]),
        query(true, vec![frame]),
        Skill::Caption { length: CaptionLength::Short },
        Skill::Caption { length: CaptionLength::Normal },
        Skill::Caption { length: CaptionLength::Long },
        Skill::Detect { object: "red square".into() },
        Skill::Point { object: "star".into(), spatial_refs: vec![] },
        Skill::Point { object: "star".into(), spatial_refs: vec![frame] },
        Skill::Gaze { eye: [0.5, 0.25] },
        chat(false),
        chat(true),
    ];
    if segments {
        skills.push(Skill::Segment { object: "star".into(), spatial_refs: vec![] });
        skills.push(Skill::Segment { object: "star".into(), spatial_refs: vec![point] });
    }
    skills
}

/// Writes three adapters for a recorded model: two of the engine's format, of which one leaves blocks
/// alone, and one of the variants' format.
fn adapters(folder: &Path, text: &Value) -> Vec<PathBuf> {
    let number = |v: &Value| v.as_u64().unwrap() as usize;
    let (dim, ff) = (number(&text["dim"]), number(&text["ff_dim"]));
    let layers = number(&text["n_layers"]);
    let moe = text.get("moe").filter(|moe| !moe.is_null());
    let dense = moe.map_or(layers, |moe| number(&moe["start_layer"]));
    let pair = |[a, b]: [String; 2], [n, k]: [usize; 2], rank: usize, count: &[usize]| {
        let shape = |rows, cols| [count, &[rows, cols]].concat();
        [(a, shape(rank, k)), (b, shape(n, rank))]
    };
    let lora = |first: usize, rank: usize| {
        let mut tensors = Vec::new();
        for layer in first..layers {
            let (name, up, inner, count) = match moe.filter(|_| layer >= dense) {
                None => (format!("text_lora.dense.{layer}"), ff, ff, vec![]),
                Some(moe) => {
                    let inner = number(&moe["expert_inner_dim"]);
                    let name = format!("text_lora.moe.{}", layer - dense);
                    (name, 2 * inner, inner, vec![number(&moe["num_experts"])])
                }
            };
            for (part, n, k) in [("up", up, dim), ("down", dim, inner)] {
                let names = ["a", "b"].map(|side| format!("{name}.{part}_{side}"));
                tensors.extend(pair(names, [n, k], rank, &count));
            }
        }
        tensors
    };
    // Adapters reach attention in Moondream 2 only.
    let attention = [("qkv", 3 * dim, dim), ("proj", dim, dim)];
    let mlp = [("fc1", ff, dim), ("fc2", dim, ff)];
    let parts = attention.iter().filter(|_| moe.is_none()).chain(&mlp);
    let variant = (0..dense).flat_map(|layer| {
        parts.clone().flat_map(move |&(part, n, k)| {
            let names = ["A", "B"].map(|side| format!("text.blocks.{layer}.{part}.{side}"));
            pair(names, [n, k], 8, &[])
        })
    });
    let files = [lora(0, 1), lora(1, 3), variant.collect()];
    let write = |(i, tensors): (usize, &Vec<_>)| {
        let path = folder.join(format!("{i}.safetensors"));
        write_noise(&path, tensors, &mut Rng(i as u64));
        path
    };
    files.iter().enumerate().map(write).collect()
}

fn requests(adapters: &[PathBuf], segments: bool) -> Vec<Request> {
    // Of one crop each: how pictures are cut is not what this is about.
    let stripes = (0..120 * 90 * 3).map(|i| (i * 7 % 256) as u8).collect();
    let images = [
        Image::open(format!("{DATA}/images/small_200x150.png").as_ref()).unwrap(),
        Image::from_rgb(120, 90, stripes).unwrap(),
    ];
    let choices: Vec<Option<&PathBuf>> =
        [None].into_iter().chain(adapters.iter().map(Some)).collect();
    let mut requests = Vec::new();
    for (i, skill) in skills(segments).into_iter().enumerate() {
        // Neighbors in the batch have different adapters.
        for (j, adapter) in choices.iter().enumerate() {
            let sampling = match (i + j) % 2 {
                0 => Sampling::GREEDY,
                _ => Sampling { seed: i as u64, ..Sampling::default_for(&skill) },
            };
            requests.push(Request {
                sampling,
                adapter: adapter.cloned(),
                budget: Budget { max_tokens: 12, max_objects: 3 },
                logprobs: true,
                ..Request::new(skill.clone(), Some(images[i % 2].clone()))
            });
        }
    }
    let question = "how many?".to_string();
    let plain = Skill::Query { question, reasoning: false, spatial_refs: vec![] };
    requests.extend(choices.iter().map(|adapter| Request {
        adapter: adapter.cloned(),
        budget: Budget { max_tokens: 12, max_objects: 3 },
        logprobs: true,
        ..Request::new(plain.clone(), None::<Image>)
    }));
    requests
}

fn check(name: &str, format: Option<WeightFormat>) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = recorded(name)["config"].clone();
    let segments = name == "moondream3";
    if segments {
        config["tokenizer"]["templates"]["segment"] =
            serde_json::json!({ "prefix": [1, 40, 2], "suffix": [3] });
    }
    let adapters = adapters(dir.path(), &config["text"]);
    let model = in_folder(&config, dir.path());
    let build = |device: Device, max_seqs: usize| {
        let options = EngineOptions {
            max_seqs: Some(max_seqs),
            quant: Quant { text: format, vision: format, head: None },
            adapter_slots: Some(3),
            adapter_rank: Some(RANK),
            kv_memory: Some(256 << 20),
            ..Default::default()
        };
        Photon::builder().model(model.clone()).device(device).options(options).build().unwrap()
    };

    let requests = requests(&adapters, segments);
    let alone = build(Device::Cpu, 1);
    let run = |request: &Request| {
        outcome(alone.run(&Request { cache: false, ..request.clone() }, &mut |_| {}).unwrap())
    };
    let want: Vec<Outcome> = requests.iter().map(run).collect();
    // Of a request that ends at once, with certainty, nothing can differ.
    let differ = |group: &&[Outcome]| (1..4).all(|i| group[..i].iter().all(|a| *a != group[i]));
    let different = want.chunks_exact(4).filter(differ).count();
    assert!(different > want.len() / 8, "{name}: adapters without effect but in {different}");
    for device in [Device::Cpu, Device::Tape] {
        let photon = build(device, requests.len());
        let tickets: Vec<_> = requests.iter().map(|r| photon.submit(r.clone()).unwrap()).collect();
        for ((ticket, request), want) in tickets.into_iter().zip(&requests).zip(&want) {
            let got = outcome(ticket.wait().unwrap());
            let Request { skill, adapter, .. } = request;
            assert_eq!(got, *want, "{name}, {format:?}, {device:?}, {skill:?} with {adapter:?}");
        }
        let stats = photon.stats();
        // Had each been computed by itself, there would be as many steps as tokens.
        assert!(stats.tokens_out > 4 * stats.steps, "the test needs batches: {stats:?}");
        assert!(stats.graph_replays > 0 || device == Device::Cpu, "{stats:?}");
        photon.shutdown(Shutdown::Drain);
    }
}

#[test]
fn everything_at_once_as_alone_in_moondream_2() {
    check("moondream2", None);
}

#[test]
fn everything_at_once_as_alone_in_moondream_3() {
    check("moondream3", None);
}

#[test]
fn everything_at_once_as_alone_with_weights_in_eight_bits() {
    check("moondream2", Some(WeightFormat::Int8));
    check("moondream3", Some(WeightFormat::Fp8));
}

#[test]
fn everything_at_once_as_alone_with_weights_in_four_bits() {
    check("moondream2", Some(WeightFormat::Int4 { group: 32 }));
    check("moondream3", Some(WeightFormat::Int4 { group: 128 }));
}
