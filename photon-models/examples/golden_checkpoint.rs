//! Writes a model directory whose weights follow the synthetic rule: `golden_checkpoint OUT FAMILY`.
//!
//! The tiny Moondream 2 or 3 (`moondream2`, `moondream3`) that the golden outputs were recorded with:
//! `config.json`, `tokenizer.json` and `model.safetensors` in f32.
use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use photon_models::{
    checkpoint::Checkpoint,
    config::{Config, Family},
    expected_tensors,
};
use safetensors::{Dtype, tensor::TensorView};

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(out), Some(family)) = (arguments.next(), arguments.next()) else {
        return fail("usage: golden_checkpoint OUT moondream2|moondream3");
    };
    match write(&PathBuf::from(out), &family.to_string_lossy()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

#[expect(clippy::print_stderr, reason = "an example talks to its user")]
fn fail(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::FAILURE
}

fn write(out: &std::path::Path, family: &str) -> Result<(), Error> {
    let (family, golden) = match family {
        "moondream2" => (Family::Moondream2, include_str!("../tests/data/golden/moondream2.json")),
        "moondream3" => (Family::Moondream3, include_str!("../tests/data/golden/moondream3.json")),
        other => return Err(format!("{other:?} is neither moondream2 nor moondream3").into()),
    };
    let golden: serde_json::Value = serde_json::from_str(golden)?;
    let config = serde_json::json!({ "config": golden["config"] });
    let parsed = Config::from_json(config.to_string().as_bytes(), family)?;
    let tensors = expected_tensors(&parsed);
    let checkpoint = Checkpoint::synthetic(0, tensors.clone());
    let made: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| (name, shape, checkpoint.floats(name).expect("made").1))
        .collect();
    let views: BTreeMap<&str, TensorView<'_>> = made
        .iter()
        .map(|(name, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes)?))
        })
        .collect::<Result<_, Error>>()?;
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
    std::fs::write(out.join("tokenizer.json"), include_bytes!("../tests/data/tokenizer.json"))?;
    safetensors::serialize_to_file(views, None, &out.join("model.safetensors"))?;
    Ok(())
}
