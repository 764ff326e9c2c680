//! Tokens guessed ahead: the same tokens in fewer steps, whatever is guessed.
//!
//! The tiny models of the reference repeat themselves, so that most guesses are right; what is drawn at a
//! high temperature does not, and most are wrong. `batching` checks the demo model, with adapters,
//! preempted and in pieces.
use photon::{
    Answer, Budget, CaptionLength, Device, EngineOptions, EngineStats, FinishReason, Image, Photon,
    Request, Sampling, Shutdown, Skill, SpatialRef,
};

use crate::{
    batching::{Outcome, outcome},
    golden::tiny_moondream,
};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../photon-models/tests/data/images");

fn options(speculate: usize) -> EngineOptions {
    EngineOptions { speculate, ..EngineOptions::default() }
}

fn skills() -> Vec<Skill> {
    let query = |reasoning: bool, spatial_refs: Vec<SpatialRef>| Skill::Query {
        question: "What color is the large circle, what color?".into(),
        reasoning,
        spatial_refs,
    };
    vec![
        Skill::Caption { length: CaptionLength::Short },
        Skill::Caption { length: CaptionLength::Long },
        query(false, vec![]),
        query(true, vec![]),
        query(false, vec![SpatialRef::Point([0.25, 0.5])]),
        query(true, vec![SpatialRef::Box([0.1, 0.2, 0.5, 0.75])]),
        Skill::Detect { object: "circle".into() },
        Skill::Point { object: "circle".into(), spatial_refs: vec![] },
        Skill::Gaze { eye: [0.5, 0.25] },
    ]
}

fn request(skill: Skill, image: &Image, sampling: Sampling) -> Request {
    Request {
        sampling,
        budget: Budget { max_tokens: 30, max_objects: 4 },
        logprobs: true,
        ..Request::new(skill, Some(image.clone()))
    }
}

fn picture() -> Image {
    Image::open(format!("{DATA}/small_200x150.png").as_ref()).unwrap()
}

/// Every skill, greedy, warm and hot; texts with budgets that end within a guess, with exactly so many
/// tokens, and with a stop string that is somewhere in the answer.
fn requests(photon: &Photon) -> Vec<Request> {
    let image = picture();
    let mut requests = Vec::new();
    for (seed, skill) in (0..).zip(skills()) {
        let warm =
            |temperature: f32| Sampling { temperature, top_p: 0.95, seed, ..Sampling::GREEDY };
        for sampling in [Sampling::GREEDY, warm(0.3), warm(1.5)] {
            requests.push(request(skill.clone(), &image, sampling));
        }
        let greedy = request(skill, &image, Sampling::GREEDY);
        let answer = photon.run(&greedy, &mut |_| {}).unwrap().answer;
        let (Answer::Caption { caption: text } | Answer::Query { answer: text, .. }) = answer
        else {
            continue;
        };
        for max_tokens in [1, 2, 17] {
            let budget = Budget { max_tokens, ..greedy.budget };
            requests.push(Request { budget, ..greedy.clone() });
        }
        requests.push(Request { forced_tokens: Some(21), ..greedy.clone() });
        let chars: Vec<char> = text.chars().collect();
        for at in [chars.len() / 3, 2 * chars.len() / 3] {
            let stop = vec![chars[at..].iter().take(3).collect()];
            requests.push(Request { stop, ..greedy.clone() });
        }
    }
    requests
}

/// All requests, one after the other, then again, all at once, with what the first left in the cache.
#[track_caller]
fn check(photon: Photon, requests: &[Request], want: &[Outcome]) -> EngineStats {
    for (i, (request, want)) in requests.iter().zip(want).enumerate() {
        let response = photon.run(request, &mut |_| {}).unwrap();
        let metrics = response.metrics;
        assert!(metrics.accepted_tokens <= metrics.drafted_tokens, "{metrics:?}");
        assert_eq!(outcome(response), *want, "request {i} alone: {request:?}");
    }
    let alone = photon.stats();
    let tickets: Vec<_> = requests.iter().map(|r| photon.submit(r.clone()).unwrap()).collect();
    for (i, (ticket, want)) in tickets.into_iter().zip(want).enumerate() {
        assert_eq!(outcome(ticket.wait().unwrap()), *want, "request {i} again: {:?}", requests[i]);
    }
    let stats = photon.stats();
    let hits = stats.prefix_hits - alone.prefix_hits;
    assert_eq!(hits, requests.len() as u64, "who asks again finds the prompt: {stats:?}");
    photon.shutdown(Shutdown::Drain);
    stats
}

/// The requests, and what they give where nothing is guessed.
fn undrafted(record: &str) -> (Vec<Request>, Vec<Outcome>) {
    let photon = tiny_moondream(record, Device::Cpu, options(0));
    let requests = requests(&photon);
    let run = |request| outcome(photon.run(request, &mut |_| {}).unwrap());
    let want = requests.iter().map(run).collect();
    assert_eq!(photon.stats().drafted, 0);
    (requests, want)
}

fn same_answers(record: &str) {
    let (requests, want) = undrafted(record);
    for (speculate, device) in [(1, Device::Cpu), (4, Device::Tape), (8, Device::Cpu)] {
        let photon = tiny_moondream(record, device, options(speculate));
        let stats = check(photon, &requests, &want);
        let rejected = stats.drafted - stats.accepted;
        let enough = requests.len() as u64;
        assert!(enough < stats.accepted && enough < rejected, "{record}, {speculate}: {stats:?}");
    }
}

#[test]
fn answers_are_the_same_however_much_is_guessed() {
    same_answers("moondream2");
}

#[test]
fn answers_of_moondream_3_are_the_same_however_much_is_guessed() {
    same_answers("moondream3");
}

#[test]
fn guesses_that_are_right_save_steps_and_are_counted() {
    let image = picture();
    let caption = Skill::Caption { length: CaptionLength::Long };
    let request = Request { forced_tokens: Some(40), ..request(caption, &image, Sampling::GREEDY) };
    let steps = |speculate: usize| {
        let photon = tiny_moondream("moondream2", Device::Cpu, options(speculate));
        let response = photon.run(&request, &mut |_| {}).unwrap();
        assert_eq!((response.tokens.len(), response.finish_reason), (40, FinishReason::Length));
        let (stats, metrics) = (photon.stats(), response.metrics);
        assert_eq!(stats.drafted, metrics.drafted_tokens as u64);
        assert_eq!(stats.accepted, metrics.accepted_tokens as u64);
        // A step draws one token, and one more for each guess that was right.
        assert_eq!(stats.tokens_out, 40);
        (stats.steps, stats.accepted)
    };
    let (slow, none) = steps(0);
    let (fast, accepted) = steps(6);
    assert_eq!((none, slow), (0, fast + accepted));
    assert!(2 * fast < slow, "{fast} steps of {slow}");
}

#[test]
fn places_are_never_guessed() {
    let image = picture();
    let photon = tiny_moondream("moondream2", Device::Cpu, options(8));
    for skill in skills().into_iter().skip(6) {
        let response = photon.run(&request(skill, &image, Sampling::GREEDY), &mut |_| {}).unwrap();
        assert_eq!(response.metrics.drafted_tokens, 0);
    }
}

#[test]
fn a_dry_pool_takes_guesses_away_and_no_answers() {
    let (requests, want) = undrafted("moondream2");
    let options = EngineOptions {
        max_seqs: Some(8),
        block_size: Some(2),
        // 1,000 positions of 4 layers, 128 wide, keys and values, in 32 bits: a picture and little more.
        kv_memory: Some(1000 * 4 * 128 * 2 * 4),
        ..options(8)
    };
    let photon = tiny_moondream("moondream2", Device::Cpu, options);
    let tickets: Vec<_> = requests.iter().map(|r| photon.submit(r.clone()).unwrap()).collect();
    for (ticket, (want, request)) in tickets.into_iter().zip(want.iter().zip(&requests)) {
        assert_eq!(outcome(ticket.wait().unwrap()), *want, "{:?}", request.skill);
    }
    let stats = photon.stats();
    assert!(0 < stats.preemptions && 0 < stats.accepted, "{stats:?}");
}
