//! The same tokens for every request, whoever else is there: alone, in batches, with cache hits and
//! misses, in chunks, preempted, recorded or replayed, guessed ahead or not.
use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use photon::{
    Budget, CaptionLength, DType, Device, EngineOptions, EngineStats, Grammar, Image, Message,
    Model, Photon, Request, Role, Sampling, Shutdown, Skill, SpatialRef,
};

use safetensors::{Dtype, tensor::TensorView};

use crate::{Rng, pictures, segment};

/// What a request gave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    tokens: Vec<u32>,
    logprobs: Vec<u32>,
    answer: String,
}

pub(crate) fn outcome(response: photon::Response) -> Outcome {
    Outcome {
        tokens: response.tokens,
        logprobs: response.logprobs.unwrap().into_iter().map(f32::to_bits).collect(),
        answer: format!("{:?} {:?}", response.answer, response.finish_reason),
    }
}

fn skill(rng: &mut Rng) -> Skill {
    let object = ["circle", "red square", "star", "text"][rng.below(4)].to_string();
    let question = ["How many objects are there?", "What color is the circle?", "What is written?"];
    let question = question[rng.below(3)].repeat(1 + rng.below(6));
    let spatial_refs = match rng.below(2) {
        0 => vec![],
        _ => vec![SpatialRef::Point([0.25, 0.5]), SpatialRef::Box([0.1, 0.2, 0.5, 0.75])],
    };
    match rng.below(7) {
        0 => Skill::Query { question, reasoning: false, spatial_refs },
        1 => Skill::Query { question, reasoning: true, spatial_refs },
        2 => Skill::Caption { length: CaptionLength::Short },
        3 => Skill::Caption { length: CaptionLength::Long },
        4 => Skill::Detect { object },
        5 => Skill::Point { object, spatial_refs },
        _ => Skill::Gaze { eye: [0.5, 0.25] },
    }
}

/// A conversation of one to three questions, with up to three pictures at any of them.
fn chat(rng: &mut Rng) -> Skill {
    let mut messages = Vec::new();
    if rng.below(3) == 0 {
        messages.push(Message::new(Role::System, "one word"));
    }
    let mut images = 3;
    for turn in 0..1 + rng.below(3) {
        if turn > 0 {
            messages.push(Message::new(Role::Assistant, "a red star"));
        }
        let shown = rng.below(images + 1);
        images -= shown;
        let question = ["how many?", "which color is it?"][rng.below(2)];
        messages.push(Message::with_images(question, shown));
    }
    Skill::Chat { messages, reasoning: rng.below(3) == 0 }
}

fn request(rng: &mut Rng, pictures: &[Image]) -> Request {
    let skill = if rng.below(4) == 0 { chat(rng) } else { skill(rng) };
    let num_images = match &skill {
        Skill::Chat { messages, .. } => messages.iter().map(|message| message.images).sum(),
        Skill::Query { spatial_refs, .. } if spatial_refs.is_empty() => rng.below(3),
        _ => 1,
    };
    // Few pictures stand first, so that conversations have beginnings in common.
    let images: Vec<Image> = (0..num_images)
        .map(|i| pictures[rng.below(if i == 0 { pictures.len() } else { 2 })].clone())
        .collect();
    let greedy = rng.below(2) == 0;
    let sampling = match greedy {
        true => Sampling::GREEDY,
        false => Sampling { temperature: 0.9, seed: rng.next(), ..Sampling::default_for(&skill) },
    };
    let adapter = rng.below(6);
    let stop = if rng.below(4) == 0 { vec!["are".to_owned(), " ed".to_owned()] } else { vec![] };
    let grammar = match (&skill, rng.below(6)) {
        (Skill::Query { .. }, 0 | 1) => Some(Grammar::Regex("[a-zäöü ]{1,9}[.?]|[0-9]+".into())),
        (Skill::Query { .. }, 2) => Some(Grammar::Json),
        _ => None,
    };
    Request {
        grammar,
        sampling,
        stop,
        // Half of the requests have none.
        adapter: adapters().get(adapter).cloned(),
        budget: Budget { max_tokens: 1 + rng.below(40), max_objects: 1 + rng.below(8) },
        logprobs: true,
        priority: rng.below(3) as i8,
        ..Request::new(skill, None::<Image>).with_images(images)
    }
}

fn requests(seed: u64, count: usize) -> Vec<Request> {
    let (mut rng, pictures) = (Rng(seed), pictures());
    (0..count).map(|_| request(&mut rng, &pictures)).collect()
}

/// Three adapters to the demo model, in either format and of different ranks.
fn adapters() -> &'static [PathBuf] {
    static FILES: OnceLock<(tempfile::TempDir, Vec<PathBuf>)> = OnceLock::new();
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        let files = [(1, 2), (2, 8), (3, 3)].map(|(seed, rank)| {
            let path = dir.path().join(format!("{seed}.safetensors"));
            adapter(&path, seed, rank);
            path
        });
        (dir, files.to_vec())
    };
    &FILES.get_or_init(make).1
}

/// Writes an adapter: small numbers that differ from seed to seed.
pub(crate) fn adapter(path: &Path, seed: u64, rank: usize) {
    let (dim, ff) = (192, 512);
    let mut tensors = Vec::new();
    for layer in 0..4 {
        let variant = seed == 2;
        let parts: &[(&str, usize, usize)] = match variant {
            true => &[("qkv", 3 * dim, dim), ("proj", dim, dim), ("fc2", dim, ff)],
            false => &[("up", ff, dim), ("down", dim, ff)],
        };
        for &(part, n, k) in parts {
            for (side, rows, cols) in [("A", rank, k), ("B", n, rank)] {
                let name = match variant {
                    true => format!("text.blocks.{layer}.{part}.{side}"),
                    false => format!("text_lora.dense.{layer}.{part}_{}", side.to_lowercase()),
                };
                tensors.push((name, vec![rows, cols]));
            }
        }
    }
    write_noise(path, &tensors, &mut Rng(seed));
}

/// Writes tensors of these names and shapes, of numbers up to a tenth.
pub(crate) fn write_noise(path: &Path, tensors: &[(String, Vec<usize>)], rng: &mut Rng) {
    let mut noise = |shape: &[usize]| -> Vec<u8> {
        let value = |_| (rng.below(2001) as f32 / 1000.0 - 1.0) * 0.1;
        (0..shape.iter().product()).map(value).flat_map(f32::to_le_bytes).collect()
    };
    let tensors: Vec<_> = tensors.iter().map(|(name, shape)| (name, shape, noise(shape))).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A model, and what it answers to each request by itself, nothing kept from one to the next.
struct Alone {
    model: Model,
    answers: Vec<(Request, Outcome)>,
}

impl Alone {
    fn new(model: Model, requests: Vec<Request>, options: EngineOptions) -> Self {
        let options = EngineOptions { max_seqs: Some(1), ..options };
        let photon = Photon::builder().model(model.clone()).options(options).build().unwrap();
        let answer = |request: Request| {
            let cold = Request { cache: false, ..request.clone() };
            (request, outcome(photon.run(&cold, &mut |_| {}).unwrap()))
        };
        Alone { model, answers: requests.into_iter().map(answer).collect() }
    }

    /// The demo model's.
    fn demo(kv_dtype: Option<DType>) -> Self {
        let adapters = adapters().to_vec();
        let options = EngineOptions { kv_dtype, adapters, ..Default::default() };
        Alone::new(Model::Demo, requests(7, 96), options)
    }
}

/// Runs all at once and compares.
#[track_caller]
fn check(device: Device, options: EngineOptions) -> EngineStats {
    static ALONE: OnceLock<Alone> = OnceLock::new();
    check_against(ALONE.get_or_init(|| Alone::demo(None)), device, options)
}

#[track_caller]
fn check_against(alone: &Alone, device: Device, options: EngineOptions) -> EngineStats {
    // Fewer slots than adapters, so that they have to make room for each other.
    let options = EngineOptions { adapter_slots: Some(2), adapter_rank: Some(8), ..options };
    let builder = Photon::builder().model(alone.model.clone()).device(device).options(options);
    let photon = builder.build().unwrap();
    let submit = |(request, _): &(Request, Outcome)| photon.submit(request.clone()).unwrap();
    let tickets: Vec<_> = alone.answers.iter().map(submit).collect();
    for (i, (ticket, (request, want))) in tickets.into_iter().zip(&alone.answers).enumerate() {
        let got = outcome(ticket.wait().unwrap());
        assert_eq!(got, *want, "request {i}: {:?}", request.skill);
    }
    let stats = photon.stats();
    photon.shutdown(Shutdown::Drain);
    stats
}

#[test]
fn in_a_batch_as_alone() {
    let stats = check(Device::Cpu, EngineOptions::default());
    assert!(stats.prefix_hits > 20, "the test needs hits: {stats:?}");
    // Adapters do not reach the encoder.
    assert!(stats.images_encoded as usize <= pictures().len(), "{stats:?}");
    assert!(stats.adapters_loaded > 3, "the test needs adapters to give way: {stats:?}");
    assert!(stats.grammar_tokens > 30, "the test needs grammars: {stats:?}");
}

#[test]
fn in_pieces_as_whole() {
    let options = EngineOptions {
        max_seqs: Some(5),
        token_budget: Some(9),
        block_size: Some(8),
        ..Default::default()
    };
    check(Device::Cpu, options);
}

#[test]
fn preempted_as_undisturbed() {
    let options = EngineOptions {
        max_seqs: Some(12),
        block_size: Some(2),
        // 340 positions of 4 layers, 192 wide, keys and values, in 16 bits.
        kv_memory: Some(340 * 4 * 192 * 2 * 2),
        ..Default::default()
    };
    let stats = check(Device::Cpu, options);
    assert!(stats.preemptions > 0, "the test needs preemptions: {stats:?}");
}

#[test]
fn recorded_and_replayed_as_run_at_once() {
    let stats = check(Device::Tape, EngineOptions { max_seqs: Some(7), ..Default::default() });
    assert!(stats.graph_replays > 0, "the test needs replays: {stats:?}");
    let options = EngineOptions {
        max_seqs: Some(4),
        no_capture: true,
        token_budget: Some(80),
        ..Default::default()
    };
    assert_eq!(check(Device::Tape, options).graph_replays, 0);
}

#[test]
fn guessed_ahead_as_drawn_one_by_one() {
    let options = |speculate| EngineOptions { speculate, ..Default::default() };
    let setups = [
        (Device::Cpu, options(1)),
        (Device::Cpu, EngineOptions { token_budget: Some(24), block_size: Some(3), ..options(4) }),
        (Device::Tape, EngineOptions { max_seqs: Some(3), ..options(8) }),
        (
            Device::Cpu,
            EngineOptions {
                max_seqs: Some(12),
                block_size: Some(2),
                // As above: few, so that sequences are preempted.
                kv_memory: Some(340 * 4 * 192 * 2 * 2),
                ..options(8)
            },
        ),
    ];
    for (device, options) in setups {
        let stats = check(device, options);
        let rejected = stats.drafted - stats.accepted;
        assert!(0 < stats.accepted && 0 < rejected, "the test needs guesses: {stats:?}");
    }
}

#[test]
fn blocks_of_any_size() {
    for block_size in [1, 3, 32, 4096] {
        let options = EngineOptions {
            block_size: Some(block_size),
            kv_memory: Some(64 << 20),
            ..Default::default()
        };
        check(Device::Cpu, options);
    }
}

#[test]
fn with_keys_and_values_in_eight_bits() {
    for dtype in [DType::Int8, DType::Fp8] {
        let alone = Alone::demo(Some(dtype));
        let options = EngineOptions { kv_dtype: Some(dtype), ..Default::default() };
        check_against(&alone, Device::Cpu, options.clone());
        let options = EngineOptions { max_seqs: Some(7), block_size: Some(3), ..options };
        check_against(&alone, Device::Tape, options);
    }
}

#[test]
fn outlines_among_everything_else_of_moondream_3() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng(3);
    let mut requests = requests(11, 40);
    for (i, request) in requests.iter_mut().enumerate() {
        request.adapter = None;
        if i % 2 == 0 {
            let skill = segment::skill(["circle", "star"][rng.below(2)], rng.below(2) == 0);
            request.images.truncate(1);
            if request.images.is_empty() {
                request.images.push(pictures()[0].clone().into());
            }
            request.sampling = Sampling { temperature: 1.0, seed: rng.next(), ..Sampling::GREEDY };
            request.budget.max_tokens = 60;
            request.skill = skill;
        }
    }
    let alone = Alone::new(segment::model(dir.path()), requests, EngineOptions::default());
    let outlines = alone.answers.iter().filter(|(r, _)| matches!(r.skill, Skill::Segment { .. }));
    let with = |part: &str| outlines.clone().filter(|(_, o)| o.answer.contains(part)).count();
    let (boxes, paths, errors) = (with("bbox: Some"), with("path: \"M"), with("parse_error: Some"));
    assert!(boxes > 1 && paths > 1 && errors > 1, "{boxes} boxes, {paths} paths, {errors} errors");

    let stats = check_against(&alone, Device::Cpu, EngineOptions::default());
    assert!(stats.prefix_hits > 5, "the test needs hits: {stats:?}");
    let (max_seqs, block_size) = (Some(5), Some(8));
    let pieces =
        EngineOptions { max_seqs, block_size, token_budget: Some(9), ..Default::default() };
    check_against(&alone, Device::Cpu, pieces);
    let stats =
        check_against(&alone, Device::Tape, EngineOptions { max_seqs, ..Default::default() });
    assert!(stats.graph_replays > 0, "the test needs replays: {stats:?}");
    let ahead = EngineOptions { max_seqs, speculate: 4, ..Default::default() };
    let stats = check_against(&alone, Device::Cpu, ahead);
    assert!(0 < stats.accepted, "the test needs guesses: {stats:?}");
}
