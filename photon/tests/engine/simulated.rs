//! The engine on the simulated GPUs, and on a Mac's own: real kernels, real graphs, the same tokens as on the
//! processor.
//!
//! Few requests, as a simulated GPU is slow; the suite of photon-conformance is what checks kernels.
use std::path::Path;

use photon::{
    Answer, Budget, CaptionLength, DType, Device, EngineOptions, EngineStats, Image, Model, Photon,
    Request, Response, RunError, Sampling, Skill,
};

use super::golden;

fn build(device: Device, model: Model, dtype: DType, options: &EngineOptions) -> Photon {
    let options = EngineOptions { dtype: Some(dtype), ..options.clone() };
    Photon::builder().model(model).device(device).options(options).build().unwrap()
}

fn question(skill: Skill, image: Option<&Image>, max_tokens: usize) -> Request {
    Request {
        sampling: Sampling::GREEDY,
        budget: Budget { max_tokens, max_objects: 2 },
        ..Request::new(skill, image.cloned())
    }
}

/// Coordinates, in bins of 1024.
fn bins(answer: &Answer) -> Vec<f32> {
    let places: Vec<f32> = match answer {
        Answer::Detect { objects } => {
            objects.iter().flat_map(|o| [o.x_min, o.y_min, o.x_max, o.y_max]).collect()
        }
        Answer::Point { points } => points.iter().flat_map(|p| [p.x, p.y]).collect(),
        _ => Vec::new(),
    };
    places.into_iter().map(|place| 1024.0 * place).collect()
}

/// All at once, so that steps have rows of several requests.
fn answers(photon: &Photon, requests: &[Request]) -> Vec<Response> {
    let tickets: Vec<_> = requests.iter().map(|r| photon.submit(r.clone()).unwrap()).collect();
    tickets.into_iter().map(|ticket| ticket.wait().unwrap()).collect()
}

#[track_caller]
fn same(gpu: Device, model: &Model, dtype: DType, requests: &[Request]) -> EngineStats {
    let options = EngineOptions { max_seqs: Some(4), ..EngineOptions::default() };
    let cpu = build(Device::Cpu, model.clone(), dtype, &options);
    let gpu = build(gpu, model.clone(), dtype, &options);
    let (want, got) = (answers(&cpu, requests), answers(&gpu, requests));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let what = format!("{model:?} {dtype}, request {i}");
        assert_eq!(got.tokens, want.tokens, "{what}");
        let (got, want) = (bins(&got.answer), bins(&want.answer));
        assert_eq!(got.len(), want.len(), "{what}");
        // In 16 bits the largest of 1024 logits is often a close thing.
        let most = if dtype == DType::F32 { 0.01 } else { 8.0 };
        let far = got.iter().zip(&want).find(|(a, b)| (*a - *b).abs() > most);
        assert_eq!(far, None, "{what}: bins {got:?}, on the processor {want:?}");
    }
    gpu.stats()
}

fn the_demo_models_answer_as_on_the_processor(gpu: Device) {
    let image = Image::open(
        concat!(env!("CARGO_MANIFEST_DIR"), "/demo/expected/1099511627779.png").as_ref(),
    )
    .unwrap();
    let requests = [
        question(Skill::Caption { length: CaptionLength::Short }, Some(&image), 8),
        question(golden::query("what color is the square?"), Some(&image), 4),
        question(Skill::Detect { object: "square".into() }, Some(&image), 8),
        question(Skill::Point { object: "circle".into(), spatial_refs: vec![] }, Some(&image), 8),
    ];
    for (_, model) in Model::BUILT_IN {
        for dtype in [DType::F32, DType::Bf16] {
            let stats = same(gpu, &model, dtype, &requests);
            assert!(stats.graph_replays > 0, "{stats:?}");
        }
    }
}

/// A question, and a picture of one crop: 27 layers of vision over 729 patches.
fn the_golden_models_answer_as_on_the_processor(gpu: Device) {
    let noise = (0..48 * 32 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let image = Image::from_rgb(48, 32, noise).unwrap();
    let requests = [
        question(golden::query("what is a photon?"), None, 6),
        question(Skill::Caption { length: CaptionLength::Short }, Some(&image), 4),
    ];
    for name in ["moondream2", "moondream3"] {
        let (_folder, model) = golden::golden_model(name);
        same(gpu, &model, DType::F32, &requests);
    }
}

/// The demo model, whose last activations are beyond 65504.
fn with_large_activations(dir: &Path) -> Model {
    const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(format!("{DEMO}/{name}"), dir.join(name)).unwrap();
    }
    let mut file = std::fs::read(format!("{DEMO}/model.safetensors")).unwrap();
    let (header_bytes, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    let (start, end) = header.info("model.text.post_ln.weight").unwrap().data_offsets;
    for weight in file[8 + header_bytes..][start..end].chunks_exact_mut(2) {
        // bf16, the upper half of a float.
        weight.copy_from_slice(&60000f32.to_le_bytes()[2..]);
    }
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
    Model::Dir(dir.to_path_buf())
}

/// f16 becomes infinite there, and bf16 does not.
fn what_outgrows_f16_is_an_error(gpu: Device) {
    let dir = tempfile::tempdir().unwrap();
    let model = with_large_activations(dir.path());
    let request = question(golden::query("how many circles?"), None, 1);
    let answer = |dtype| {
        let photon = build(gpu, model.clone(), dtype, &EngineOptions::default());
        photon.submit(request.clone()).unwrap().wait()
    };
    assert!(matches!(answer(DType::F16), Err(RunError::NotANumber)));
    assert_eq!(answer(DType::Bf16).unwrap().tokens.len(), 1);
}

#[cfg(feature = "sim")]
mod simulator {
    use super::*;

    #[test]
    fn what_outgrows_f16_is_an_error_on_cuda_and_on_metal() {
        what_outgrows_f16_is_an_error(Device::SimCuda);
        what_outgrows_f16_is_an_error(Device::SimMetal);
    }

    #[test]
    fn the_demo_models_answer_on_cuda() {
        the_demo_models_answer_as_on_the_processor(Device::SimCuda);
    }

    #[test]
    fn the_golden_models_answer_on_cuda() {
        the_golden_models_answer_as_on_the_processor(Device::SimCuda);
    }

    #[test]
    fn the_demo_models_answer_on_metal() {
        the_demo_models_answer_as_on_the_processor(Device::SimMetal);
    }

    #[test]
    fn the_golden_models_answer_on_metal() {
        the_golden_models_answer_as_on_the_processor(Device::SimMetal);
    }
}

#[cfg(all(feature = "metal", target_os = "macos"))]
#[test]
fn the_golden_and_demo_models_answer_on_this_mac() {
    the_golden_models_answer_as_on_the_processor(Device::Metal);
    the_demo_models_answer_as_on_the_processor(Device::Metal);
    what_outgrows_f16_is_an_error(Device::Metal);
}
