//! Models written anew, and adapters by name, through the engine.
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use photon::{
    Budget, CaptionLength, DType, Model, Photon, Quant, Request, Sampling, Skill,
    adapters::{self, AdapterName, NameError},
    convert::{ConvertError, ConvertOptions, convert},
};

use crate::{batching::adapter, golden::golden_model, pictures};

fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn open(model: Model, dtype: Option<DType>, quant: Quant) -> Photon {
    let mut builder = Photon::builder().model(model).quant(quant).max_seqs(1);
    if let Some(dtype) = dtype {
        builder = builder.dtype(dtype);
    }
    builder.build().unwrap()
}

/// Tokens, and the bits of their probabilities.
fn answers(photon: &Photon, adapter: Option<PathBuf>) -> Vec<(Vec<u32>, Vec<u32>)> {
    let object = "circle".to_owned();
    let skills = [Skill::Caption { length: CaptionLength::Short }, Skill::Detect { object }];
    let answer = |skill: Skill| {
        let request = Request {
            sampling: Sampling::GREEDY,
            budget: Budget { max_tokens: 12, max_objects: 3 },
            logprobs: true,
            adapter: adapter.clone(),
            ..Request::new(skill, Some(pictures()[0].clone()))
        };
        let response = photon.run(&request, &mut |_| {}).unwrap();
        (response.tokens, response.logprobs.unwrap().into_iter().map(f32::to_bits).collect())
    };
    skills.map(answer).into()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_was_converted_answers_as_the_source_does() {
    let dir = tempfile::tempdir().unwrap();
    let (_dirs, golden): (Vec<_>, Vec<_>) =
        ["moondream2", "moondream3"].map(golden_model).into_iter().unzip();
    for (name, model, quant, dtype) in [
        ("demo", &Model::Demo, "int8", None),
        ("demo", &Model::Demo, "text=int4,vision=fp8", None),
        ("demo", &Model::Demo, "none", Some(DType::F16)),
        ("moondream2", &golden[0], "text=int4-32,vision=int8,head=int8", None),
        ("moondream3", &golden[1], "fp8", None),
        ("moondream3", &golden[1], "text=int4,vision=none", Some(DType::Bf16)),
    ] {
        let quant: Quant = quant.parse().unwrap();
        let out = dir.path().join("out");
        let options = ConvertOptions { quant, dtype, force: true, ..Default::default() };
        let written = convert(model, &out, &options, &mut go_on).unwrap();
        assert_eq!(written.files, ["config.json", "model.safetensors", "tokenizer.json"]);
        assert!(written.bytes_after < written.bytes_before || quant == Quant::NONE, "{written:?}");
        let (photon, source) =
            (open(Model::Dir(out), dtype, Quant::NONE), open(model.clone(), dtype, quant));
        assert_eq!(photon.dtype(), source.dtype());
        assert_eq!(answers(&photon, None), answers(&source, None), "{name}, {quant}");
    }
    assert_eq!(names(dir.path()), ["out"]);
}

#[test]
fn the_type_of_a_quantized_model_is_that_of_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let options = ConvertOptions { quant: "int8".parse().unwrap(), ..Default::default() };
    let (_golden, model) = golden_model("moondream3");
    convert(&model, &out, &options, &mut go_on).unwrap();
    assert_eq!(open(Model::Dir(out), None, Quant::NONE).dtype(), DType::F32);
}

#[test]
fn a_conversion_that_fails_leaves_everything_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deep/out");
    let options = ConvertOptions::default();
    let mut calls = 0;
    let broken = convert(&Model::Demo, &out, &options, &mut |_, _| {
        calls += 1;
        if calls < 20 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert!(matches!(broken, Err(ConvertError::Cancelled)), "{broken:?}");
    assert!(names(&dir.path().join("deep")).is_empty());

    convert(&Model::Demo, &out, &options, &mut go_on).unwrap();
    let there = std::fs::read(out.join("model.safetensors")).unwrap();
    let refused = convert(&Model::Demo, &out, &options, &mut go_on).unwrap_err();
    assert!(refused.to_string().contains("--force replaces it"), "{refused}");
    let forced = ConvertOptions { force: true, ..options.clone() };
    let itself = convert(&Model::Dir(out.clone()), &out, &forced, &mut go_on).unwrap_err();
    assert!(matches!(itself, ConvertError::Itself(_)), "{itself}");
    // A second quantization, and one that is broken off, over a model that is there.
    let int8 = ConvertOptions { quant: "int8".parse().unwrap(), ..forced.clone() };
    let small = dir.path().join("small");
    convert(&Model::Demo, &small, &int8, &mut go_on).unwrap();
    let int4 = ConvertOptions { quant: "int4".parse().unwrap(), ..forced.clone() };
    let again = convert(&Model::Dir(small.clone()), &out, &int4, &mut go_on).unwrap_err();
    assert!(again.to_string().contains("quantized to int8 already"), "{again}");
    let loaded = Photon::builder().model(Model::Dir(small)).quant("fp8".parse().unwrap()).build();
    let error = loaded.unwrap_err().to_string();
    assert!(error.contains("cannot be made fp8 (e4m3): leave --quant out"), "{error}");
    let broken = convert(&Model::Demo, &out, &int8, &mut |_, _| ControlFlow::Break(()));
    assert!(broken.is_err());
    assert_eq!(std::fs::read(out.join("model.safetensors")).unwrap(), there);
    assert_eq!(names(&dir.path().join("deep")), ["out"]);

    // What is no model is not replaced, whatever is asked for.
    let other = dir.path().join("documents");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("letter.txt"), "dear").unwrap();
    let refused = convert(&Model::Demo, &other, &forced, &mut go_on).unwrap_err();
    assert!(matches!(refused, ConvertError::NoModel(_)), "{refused}");
    assert_eq!(names(&other), ["letter.txt"]);
}

/// A folder with two adapters that have names.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    adapter(&dir.path().join("tuned@100.safetensors"), 5, 4);
    std::fs::create_dir(dir.path().join("other@7")).unwrap();
    adapter(&dir.path().join("other@7/model.safetensors"), 6, 20);
    dir
}

#[test]
fn adapters_have_names() {
    let dir = folder();
    let photon = Photon::builder().adapter_dir(dir.path().into()).max_seqs(1).build().unwrap();
    let plain = answers(&photon, None);
    for (name, file) in
        [("tuned@100", "tuned@100.safetensors"), ("other@7", "other@7/model.safetensors")]
    {
        let (base, path) = photon.resolve(&format!("demo/{name}")).unwrap();
        assert_eq!(base, "demo");
        let named = answers(&photon, path);
        assert_ne!(named, plain, "{name}");
        let direct = dir.path().join(file);
        let engine = Photon::builder().adapters([direct.clone()]).adapter_rank(20).max_seqs(1);
        let engine = engine.build().unwrap();
        assert_eq!(answers(&engine, Some(direct)), named, "{name}");
    }
    assert_eq!(photon.resolve("demo").unwrap(), ("demo".into(), None));
    for hostile in ["demo/..@1", "demo/.x@1", "demo/a b@1", "demo/tuned@", "demo/tuned@1@2"] {
        assert!(matches!(photon.resolve(hostile), Err(NameError::Name(_))), "{hostile}");
    }
    assert!(matches!(photon.resolve("demo/tuned@101"), Err(NameError::Missing { .. })));
    let without = Photon::builder().build().unwrap();
    assert!(matches!(without.resolve("demo/tuned@100"), Err(NameError::NoFolder(_))));
}

#[test]
fn a_converted_adapter_answers_the_same() {
    let dir = folder();
    let (from, to) =
        (dir.path().join("tuned@100.safetensors"), dir.path().join("deep/same@100.safetensors"));
    let summary = adapters::convert(&from, &to, None, Some(&Model::Demo), false).unwrap();
    assert_eq!(summary.rank, 4);
    let photon = Photon::builder().adapters([from.clone(), to.clone()]).build().unwrap();
    assert_eq!(answers(&photon, Some(from.clone())), answers(&photon, Some(to.clone())));
    let again = adapters::convert(&from, &to, None, None, false).unwrap_err();
    assert!(again.to_string().contains("--force"), "{again}");
    adapters::convert(&from, &to, Some(DType::Bf16), None, true).unwrap();
    let (_golden, wrong) = golden_model("moondream3");
    let error = adapters::convert(&from, &dir.path().join("x"), None, Some(&wrong), false);
    assert!(error.unwrap_err().to_string().contains("no adapter for this model"));
    assert_eq!(names(&dir.path().join("deep")), ["same@100.safetensors"]);
    assert_eq!(names(dir.path()), ["deep", "other@7", "tuned@100.safetensors"]);
    let name: AdapterName = "same@100".parse().unwrap();
    let found = adapters::AdapterFolder::from(dir.path().join("deep")).find(&name).unwrap();
    assert_eq!(found, to);
}

#[test]
fn an_adapter_written_again_is_read_again() {
    let dir = folder();
    let photon = Photon::builder().adapter_dir(dir.path().into()).build().unwrap();
    let path = photon.find_adapter(&"other@7".parse().unwrap()).unwrap();
    let before = answers(&photon, Some(path.clone()));
    // The folder itself stays as it is; the file in it changes.
    adapter(&path.join("model.safetensors"), 8, 3);
    assert_ne!(answers(&photon, Some(path)), before);
}
