//! Conversations: what a turn costs, and that their pictures, wherever they stand, are answered alike
//! however the work is cut.
use photon::{
    Answer, Budget, Device, EngineOptions, EngineStats, Image, Message, Photon, Request, Response,
    Role, Sampling, Shutdown, Skill,
};

use crate::{
    golden::{in_folder, recorded},
    pictures,
};

fn chat(messages: Vec<Message>, reasoning: bool, images: &[Image]) -> Request {
    let skill = Skill::Chat { messages, reasoning };
    Request {
        sampling: Sampling::GREEDY,
        budget: Budget { max_tokens: 12, ..Budget::default() },
        logprobs: true,
        ..Request::new(skill, None::<Image>).with_images(images.iter().cloned())
    }
}

fn answer_of(response: &Response) -> String {
    match &response.answer {
        Answer::Query { answer, .. } => answer.clone(),
        other => panic!("{other:?}"),
    }
}

fn run(photon: &Photon, request: &Request) -> Response {
    photon.run(request, &mut |_| {}).unwrap()
}

#[test]
fn a_turn_computes_only_what_is_new_and_encodes_only_new_pictures() {
    let photon = Photon::builder().build().unwrap();
    let pictures = pictures();
    let mut messages = vec![Message::with_images("what color is the circle?", 1)];
    let mut before = 0;
    // Pictures that come with the question after each turn.
    for (turn, next) in [0, 2, 0].into_iter().enumerate() {
        let images = &pictures[..messages.iter().map(|message| message.images).sum()];
        let request = chat(messages.clone(), false, images);
        let response = run(&photon, &request);
        // All of the turn before, its question included.
        assert!(response.metrics.cached_tokens >= before, "turn {turn}: {:?}", response.metrics);
        assert_eq!(photon.stats().images_encoded, images.len() as u64, "turn {turn}");
        let cold = run(&photon, &Request { cache: false, ..request });
        assert_eq!(cold.metrics.cached_tokens, 0);
        assert_eq!((&cold.tokens, &cold.logprobs), (&response.tokens, &response.logprobs));
        before = response.metrics.input_tokens;
        messages.push(Message::new(Role::Assistant, answer_of(&response)));
        messages.push(Message::with_images("and this?", next));
    }
}

#[test]
fn a_chat_of_one_question_is_that_question() {
    let photon = Photon::builder().build().unwrap();
    let images = &pictures()[..2];
    let question = "how many shapes are there?";
    for reasoning in [false, true] {
        let asked = chat(vec![Message::with_images(question, 2)], reasoning, images);
        let question = question.to_owned();
        let skill = Skill::Query { question, reasoning, spatial_refs: vec![] };
        let query = Request { skill, ..asked.clone() };
        let (chat, query) = (run(&photon, &asked), run(&photon, &query));
        assert_eq!((chat.answer, chat.tokens), (query.answer, query.tokens));
        assert_eq!(chat.metrics.input_tokens, query.metrics.input_tokens);
    }
}

#[test]
fn a_conversation_too_long_is_refused_before_its_pictures_are_read() {
    let photon = Photon::builder().build().unwrap();
    let nowhere = || std::path::PathBuf::from("no-such-folder/no-such.png");
    let images = |n| std::iter::repeat_with(nowhere).take(n);
    let request = |n| {
        let skill = Skill::Chat { messages: vec![Message::with_images("x", n)], reasoning: false };
        Request::new(skill, None::<Image>).with_images(images(n))
    };
    let message = |n| photon.run(&request(n), &mut |_| {}).unwrap_err().to_string();
    assert!(message(9).contains("the model has 512"), "{}", message(9));
    assert!(message(17).contains("16 images at most, and 17 were given"), "{}", message(17));
    assert!(message(2).contains("no-such.png"), "{}", message(2));
}

/// Conversations that have much in common, with up to three pictures at different turns.
fn conversations() -> Vec<Request> {
    let [a, b, c] = &pictures()[..3] else { panic!("three pictures") };
    let [a, b, c] = [a, b, c].map(Clone::clone);
    let model = |text: &str| Message::new(Role::Assistant, text);
    let ask = Message::with_images;
    let system = Message::new(Role::System, "one word");
    let talk = |images: [usize; 3]| {
        vec![
            ask("what is this?", images[0]),
            model("a red star"),
            ask("and which color is here?", images[1]),
            model("blue"),
            ask("how many are there?", images[2]),
        ]
    };
    let with_system = [&[system][..], &talk([1, 0, 1])].concat();
    let long = "what is written here? ".repeat(4);
    vec![
        chat(talk([0, 0, 0]), false, &[]),
        chat(talk([1, 0, 0]), false, std::slice::from_ref(&a)),
        chat(talk([0, 1, 0]), false, std::slice::from_ref(&a)),
        chat(talk([1, 1, 0]), false, &[a.clone(), b.clone()]),
        chat(talk([1, 1, 1]), false, &[a.clone(), b.clone(), c.clone()]),
        chat(talk([1, 0, 2]), true, &[a.clone(), b.clone(), c.clone()]),
        chat(talk([0, 2, 1]), false, &[a.clone(), a.clone(), b.clone()]),
        chat(talk([3, 0, 0]), false, &[a.clone(), b.clone(), c.clone()]),
        chat(talk([3, 0, 0]), true, &[b.clone(), a.clone(), c]),
        chat(with_system, true, &[a.clone(), b.clone()]),
        chat(vec![ask(&long, 0), model(&long), ask(&long, 2)], false, &[b, a]),
    ]
}

/// Runs everything twice at once, and compares with each alone. Both families, tiny, with pictures of 64
/// patches, and answers of so many tokens at most.
#[track_caller]
fn check(
    device: Device,
    options: &EngineOptions,
    max_tokens: usize,
    expect: impl Fn(&EngineStats),
) {
    for name in ["moondream2", "moondream3"] {
        let mut config = recorded(name)["config"].clone();
        config["vision"]["crop_size"] = 112.into();
        config["vision"]["overlap_margin"] = 1.into();
        config["text"]["prefix_attn"] = 65.into();
        config["text"]["max_context"] = 512.into();
        let dir = tempfile::tempdir().unwrap();
        let build = |device, options: EngineOptions| {
            let model = in_folder(&config, dir.path());
            Photon::builder().model(model).device(device).options(options).build().unwrap()
        };
        let outcome = |response: Response| {
            let logprobs = response.logprobs.unwrap().into_iter().map(f32::to_bits);
            (response.tokens, logprobs.collect::<Vec<_>>(), response.answer)
        };
        let single = build(Device::Cpu, EngineOptions { max_seqs: Some(1), ..Default::default() });
        let mut requests = conversations();
        requests.iter_mut().for_each(|request| request.budget.max_tokens = max_tokens);
        let alone: Vec<_> = requests
            .iter()
            .map(|request| outcome(run(&single, &Request { cache: false, ..request.clone() })))
            .collect();
        // The pictures are seen.
        for i in 1..alone.len() {
            assert_ne!(alone[i].1, alone[i - 1].1, "{name}: {i}");
        }
        let photon = build(device, options.clone());
        let twice = || requests.iter().chain(requests.iter().rev());
        let tickets: Vec<_> = twice().map(|r| photon.submit(r.clone()).unwrap()).collect();
        let wanted = alone.iter().chain(alone.iter().rev());
        for (i, (ticket, want)) in tickets.into_iter().zip(wanted).enumerate() {
            assert_eq!(outcome(ticket.wait().unwrap()), *want, "{name}: request {i}");
        }
        let stats = photon.stats();
        photon.shutdown(Shutdown::Drain);
        expect(&stats);
    }
}

#[test]
fn at_once_as_alone() {
    check(Device::Cpu, &EngineOptions::default(), 12, |stats| {
        assert!(stats.prefix_hits > 10, "the test needs hits: {stats:?}");
        assert_eq!(stats.images_encoded, 3, "{stats:?}");
    });
}

#[test]
fn in_pieces_as_whole() {
    let options = EngineOptions {
        max_seqs: Some(5),
        token_budget: Some(9),
        block_size: Some(8),
        ..Default::default()
    };
    check(Device::Cpu, &options, 12, |_| ());
    let options = EngineOptions { token_budget: Some(150), block_size: Some(3), ..options };
    check(Device::Cpu, &options, 12, |_| ());
}

#[test]
fn preempted_and_replayed_as_undisturbed() {
    let options = EngineOptions {
        max_seqs: Some(12),
        block_size: Some(2),
        // 340 positions of 4 layers, 128 wide, keys and values, in 32 bits.
        kv_memory: Some(340 * 4 * 128 * 2 * 4),
        ..Default::default()
    };
    // Answers so long that those who run together outgrow the cache.
    check(Device::Tape, &options, 44, |stats| {
        assert!(stats.preemptions > 0, "the test needs preemptions: {stats:?}");
        assert!(stats.graph_replays > 0, "the test needs replays: {stats:?}");
    });
}
