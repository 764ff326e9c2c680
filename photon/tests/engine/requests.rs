//! Requests that are refused, cut short or repeated, and that nothing of it lasts.
use photon::{
    Answer, Budget, BuildError, CaptionLength, DType, FinishReason, Image, Model, Photon, Request,
    RunError, Sampling, Skill, SkillEvent,
};

use crate::golden::tiny;

fn caption() -> Skill {
    Skill::Caption { length: CaptionLength::Short }
}

fn shapes() -> Image {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/shapes.png");
    Image::open(path.as_ref()).unwrap()
}

fn demo() -> Photon {
    Photon::builder().build().unwrap()
}

#[test]
fn streamed_text_is_the_answer() {
    let mut text = String::new();
    let response = demo()
        .run(&Request::new(caption(), Some(shapes())), &mut |event| {
            if let SkillEvent::Text(part) = event {
                text.push_str(&part);
            }
        })
        .unwrap();
    assert_eq!(response.answer, Answer::Caption { caption: text });
    assert_eq!(response.metrics.crops, 1);
    assert_eq!(response.metrics.input_tokens, 1 + 64 + 5);
}

#[test]
fn the_same_seed_gives_the_same_answer_and_nothing_lasts_between_requests() {
    let photon = demo();
    let sampling = Sampling { temperature: 2.0, seed: 7, ..Sampling::GREEDY };
    let request = Request {
        sampling,
        budget: Budget { max_tokens: 20, ..Budget::default() },
        ..Request::new(caption(), Some(shapes()))
    };
    let first = photon.run(&request, &mut |_| {}).unwrap();
    let white = Image::from_rgb(50, 50, vec![255; 7500]).unwrap();
    photon.run(&Request::new(caption(), Some(white)), &mut |_| {}).unwrap();
    assert_eq!(photon.run(&request, &mut |_| {}).unwrap().tokens, first.tokens);
    let other = Request { sampling: Sampling { seed: 8, ..sampling }, ..request };
    assert_ne!(photon.run(&other, &mut |_| {}).unwrap().tokens, first.tokens);
}

#[test]
fn hardly_any_temperature_is_none() {
    let photon = demo();
    let tokens = |temperature| {
        let sampling = Sampling { temperature, ..Sampling::GREEDY };
        let request = Request { sampling, ..Request::new(caption(), Some(shapes())) };
        photon.run(&request, &mut |_| {}).unwrap().tokens
    };
    assert_eq!(tokens(1e-39), tokens(0.0));
}

#[test]
fn a_refused_request_costs_nothing() {
    let photon = demo();
    let image = Some(shapes());
    let question = |question: &str| Skill::Query {
        question: question.into(),
        reasoning: false,
        spatial_refs: vec![],
    };
    let message = |photon: &Photon, request: &Request| {
        photon.run(request, &mut |_| {}).unwrap_err().to_string()
    };
    let empty = Request::new(question("  "), image.clone());
    assert_eq!(message(&photon, &empty), "the question is empty");
    assert_eq!(message(&photon, &Request::new(caption(), None::<Image>)), "caption needs an image");
    let long = Request::new(question(&"a z ".repeat(2000)), image.clone());
    assert!(message(&photon, &long).contains("the model has 512"));
    let cold = Request {
        sampling: Sampling { temperature: -1.0, ..Sampling::GREEDY },
        ..Request::new(caption(), image.clone())
    };
    assert!(message(&photon, &cold).contains("temperature is -1"));
    photon.run(&Request::new(caption(), image), &mut |_| {}).unwrap();
}

#[test]
fn budgets_end_answers() {
    let photon = demo();
    let request = Request {
        budget: Budget { max_tokens: 3, ..Budget::default() },
        ..Request::new(caption(), Some(shapes()))
    };
    let response = photon.run(&request, &mut |_| {}).unwrap();
    assert_eq!((response.tokens.len(), response.finish_reason), (3, FinishReason::Length));
}

#[test]
fn a_full_context_ends_the_answer() {
    // The tiny model of random weights never ends by itself.
    let photon = tiny(DType::F32);
    let question = "what is a chart? ".repeat(400);
    let skill = Skill::Query { question, reasoning: false, spatial_refs: vec![] };
    let request = Request {
        budget: Budget { max_tokens: 5000, ..Budget::default() },
        sampling: Sampling::GREEDY,
        ..Request::new(skill, None::<Image>)
    };
    match photon.run(&request, &mut |_| {}) {
        Ok(response) => {
            assert_eq!(response.finish_reason, FinishReason::Length);
            // The last id drawn is never fed, so it needs no position.
            let positions = response.metrics.input_tokens + response.tokens.len() - 1;
            assert_eq!(positions, 2048);
        }
        Err(RunError::Rejected(rejected)) => panic!("the prompt was to fit: {rejected}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn extreme_pictures_are_answered() {
    let photon = demo();
    for (width, height) in [(1, 1), (30000, 1), (1, 30000), (2, 5000)] {
        let pixels = vec![90; width as usize * height as usize * 3];
        let image = Image::from_rgb(width, height, pixels).unwrap();
        photon.run(&Request::new(caption(), Some(image)), &mut |_| {}).unwrap();
    }
}

/// Why a copy of the demo model with one file changed cannot be loaded.
fn broken(file: &str, change: impl Fn(&mut Vec<u8>)) -> String {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let from = format!("{}/demo/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut bytes = std::fs::read(from).unwrap();
        if name == file {
            change(&mut bytes);
        }
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let built = Photon::builder().model(Model::Dir(dir.path().into())).build();
    let error: BuildError = built.unwrap_err();
    error.to_string()
}

#[test]
fn damaged_model_files_are_refused_with_the_reason() {
    let cut = broken("model.safetensors", |bytes| bytes.truncate(bytes.len() / 2));
    assert!(cut.contains("not a complete file of weights"), "{cut}");
    let cut = broken("model.safetensors", |bytes| bytes.truncate(20));
    assert!(cut.contains("not a complete file of weights"), "{cut}");
    let number = |name: &'static str, value: u64| {
        broken("config.json", move |bytes| {
            let mut json: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            json["config"]["text"][name] = value.into();
            *bytes = json.to_string().into_bytes();
        })
    };
    let shape = number("ff_dim", 500);
    assert!(shape.contains("in the checkpoint, but config.json makes it"), "{shape}");
    let layers = number("n_layers", 99);
    assert!(layers.contains("missing model.text.blocks."), "{layers}");
    let heads = number("n_heads", 7);
    assert!(heads.contains("text.n_heads (7) does not divide text.dim"), "{heads}");
    let json = broken("config.json", |bytes| bytes.truncate(30));
    assert!(json.contains("config.json is not valid"), "{json}");
    let tokenizer = broken("tokenizer.json", |bytes| bytes.truncate(30));
    assert!(tokenizer.contains("tokenizer.json is not usable"), "{tokenizer}");
}
