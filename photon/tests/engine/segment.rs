//! Outlines, from a small Moondream 3 of random weights that likes to write paths.
use std::path::Path;

use photon::{
    Answer, Budget, CaptionLength, Family, FinishReason, Image, Model, Photon, Request, Sampling,
    Skill, SkillEvent, SpatialRef,
};
use photon_models::{
    checkpoint::Checkpoint, config::Config, expected_tensors, tokenizer::Tokenizer,
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use crate::pictures;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");

/// Writes a model of the demo model's size and words to `dir`.
pub(crate) fn model(dir: &Path) -> Model {
    let json = std::fs::read(format!("{DEMO}/config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&json).unwrap();
    let text = &mut config["config"]["text"];
    text["tau_attn"] = true.into();
    text["moe"] = json!({"num_experts": 6, "start_layer": 2, "experts_per_token": 2,
        "expert_inner_dim": 64});
    config["config"]["tokenizer"]["templates"]["segment"] =
        json!({"prefix": [1, 18, 2], "suffix": [3]});
    let json = config.to_string();
    std::fs::write(dir.join("config.json"), &json).unwrap();
    let words = format!("{DEMO}/tokenizer.json");
    std::fs::copy(&words, dir.join("tokenizer.json")).unwrap();

    let config = Config::from_json(json.as_bytes(), Family::Moondream3).unwrap();
    let tensors = expected_tensors(&config);
    let random = Checkpoint::synthetic(5, tensors.clone());
    let mut values: Vec<Vec<u8>> =
        tensors.iter().map(|(name, _)| random.floats(name).unwrap().1.into_owned()).collect();
    let head = tensors.iter().position(|(name, _)| name == "model.text.lm_head.bias").unwrap();
    let tokenizer = Tokenizer::from_file(words.as_ref()).unwrap();
    let ids = config.tokenizer;
    let mut like = |id: u32, by: f32| {
        values[head][4 * id as usize..][..4].copy_from_slice(&by.to_le_bytes());
    };
    // What a path is made of, so that a few random paths are good for some commands.
    [("M", 9.0), ("L", 7.0), ("Z", 4.0), ("-", 6.0)].into_iter().for_each(|(word, by)| {
        like(tokenizer.encode(word).unwrap()[0], by);
    });
    (0..10).for_each(|digit| like(tokenizer.encode(&digit.to_string()).unwrap()[0], 9.0));
    like(ids.coord_id, 8.0);
    like(ids.size_id, 8.0);
    like(ids.eos_id, 2.0);

    let views = tensors.iter().zip(&values).map(|((name, shape), bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    Model::Dir(dir.to_path_buf())
}

pub(crate) fn skill(object: &str, referred: bool) -> Skill {
    let refs = [SpatialRef::Point([0.25, 0.5]), SpatialRef::Box([0.1, 0.2, 0.5, 0.75])];
    let spatial_refs = if referred { refs.to_vec() } else { vec![] };
    Skill::Segment { object: object.into(), spatial_refs }
}

fn start() -> (tempfile::TempDir, Photon) {
    let dir = tempfile::tempdir().unwrap();
    let photon = Photon::builder().model(model(dir.path())).build().unwrap();
    (dir, photon)
}

#[test]
fn what_is_streamed_is_the_answer() {
    let (_dir, photon) = start();
    let image = &pictures()[0];
    let (mut boxes, mut longest) = (0, 0);
    for seed in 0..40 {
        let request = Request {
            sampling: Sampling { temperature: 1.0, seed, ..Sampling::GREEDY },
            budget: Budget { max_tokens: 60, ..Budget::default() },
            ..Request::new(skill("circle", seed % 2 == 0), Some(image.clone()))
        };
        let (mut streamed, mut pieces, mut located) = (String::new(), 0, vec![]);
        let response = photon.run(&request, &mut |event| match event {
            SkillEvent::Path(piece) => {
                streamed.push_str(&piece);
                pieces += 1;
            }
            SkillEvent::Box(bbox) => located.push(bbox),
            other => panic!("{other:?}"),
        });
        let response = response.unwrap();
        let Answer::Segment { path, bbox, parse_error } = response.answer else { panic!() };
        assert_eq!((path, bbox.into_iter().collect()), (streamed, located), "seed {seed}");
        boxes += usize::from(bbox.is_some());
        longest = longest.max(pieces);
        let ended = response.finish_reason == FinishReason::Stop;
        assert!(ended || response.tokens.len() == 60, "seed {seed}");
        assert!(parse_error.is_none_or(|error| error.contains("SVG")), "seed {seed}");
    }
    assert!(boxes > 2 && longest > 2, "{boxes} boxes, {longest} pieces at most");
}

#[test]
fn the_prompt_is_the_models_and_other_skills_are_what_they_were() {
    let (_dir, photon) = start();
    let image = Some(pictures()[0].clone());
    let inputs = |skill: Skill| {
        let budget = Budget { max_tokens: 1, max_objects: 1 };
        let request = Request { budget, ..Request::new(skill, image.clone()) };
        photon.run(&request, &mut |_| {}).unwrap().metrics.input_tokens
    };
    let circle = photon.count_tokens("circle").unwrap();
    assert_eq!(inputs(skill(" circle ", false)), 1 + 64 + 3 + circle + 1);
    // A point is two positions and a box three.
    assert_eq!(inputs(skill("circle", true)), 1 + 64 + 3 + 5 + circle + 1);
    assert_eq!(inputs(Skill::Caption { length: CaptionLength::Short }), 1 + 64 + 5);
}

#[test]
fn a_model_without_a_prompt_for_it_says_so() {
    let photon = Photon::builder().build().unwrap();
    let error = |image: Option<Image>| {
        let request = Request::new(skill("circle", false), image);
        photon.run(&request, &mut |_| {}).unwrap_err().to_string()
    };
    assert!(error(Some(pictures()[0].clone())).starts_with("segment needs Moondream 3"));
    assert_eq!(error(None), "segment needs an image");
}
