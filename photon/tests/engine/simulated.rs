//! The engine on the simulated GPU: real kernels, real graphs, the same tokens as on the processor.
//!
//! Few requests, as a simulated GPU is slow; the suite of photon-conformance is what checks kernels.
use photon::{
    Budget, CaptionLength, DType, Device, EngineOptions, EngineStats, Image, Model, Photon, Request,
    Response, Sampling, Skill,
};

use super::golden::{self, DATA};

fn build(device: Device, model: Model, dtype: DType, options: &EngineOptions) -> Photon {
    let options = EngineOptions { dtype: Some(dtype), ..options.clone() };
    Photon::builder().model(model).device(device).options(options).build().unwrap()
}

fn question(skill: Skill, image: &Image, max_tokens: usize) -> Request {
    Request {
        sampling: Sampling::GREEDY,
        budget: Budget { max_tokens, max_objects: 2 },
        ..Request::new(skill, Some(image.clone()))
    }
}

/// All at once, so that steps have rows of several requests.
fn answers(photon: &Photon, requests: &[Request]) -> Vec<Response> {
    let tickets: Vec<_> = requests.iter().map(|r| photon.submit(r.clone()).unwrap()).collect();
    tickets.into_iter().map(|ticket| ticket.wait().unwrap()).collect()
}

#[track_caller]
fn same(model: &Model, dtype: DType, requests: &[Request]) -> EngineStats {
    let options = EngineOptions { max_seqs: Some(4), ..EngineOptions::default() };
    let cpu = build(Device::Cpu, model.clone(), dtype, &options);
    let gpu = build(Device::SimCuda, model.clone(), dtype, &options);
    let (want, got) = (answers(&cpu, requests), answers(&gpu, requests));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let what = format!("{model:?} {dtype}, request {i}");
        assert_eq!(got.tokens, want.tokens, "{what}");
        assert_eq!(format!("{:?}", got.answer), format!("{:?}", want.answer), "{what}");
    }
    gpu.stats()
}

#[test]
fn the_demo_models_answer_as_on_the_processor() {
    let image = Image::open(
        concat!(env!("CARGO_MANIFEST_DIR"), "/demo/expected/1099511627779.png").as_ref(),
    )
    .unwrap();
    let requests = [
        question(Skill::Caption { length: CaptionLength::Short }, &image, 8),
        question(golden::query("what color is the square?"), &image, 4),
        question(Skill::Detect { object: "square".into() }, &image, 8),
        question(Skill::Point { object: "circle".into(), spatial_refs: vec![] }, &image, 8),
    ];
    for (_, model) in Model::BUILT_IN {
        for dtype in [DType::F32, DType::Bf16] {
            let stats = same(&model, dtype, &requests);
            assert!(stats.graph_replays > 0, "{stats:?}");
        }
    }
}

#[test]
fn the_golden_models_answer_as_on_the_processor() {
    let path = format!("{DATA}/images/small_200x150.png");
    let image = Image::open(path.as_ref()).unwrap();
    for name in ["moondream2", "moondream3"] {
        let (_folder, model) = golden::golden_model(name);
        same(&model, DType::F32, &[question(golden::query("what is this?"), &image, 3)]);
    }
}
