//! Which kernels a model's steps launch on GPUs: the fast ones, which types and sizes alone decide.
//!
//! The simulators count launches here and run none. Sizes of heads are those of the real models, widths smaller.
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Folder, asset, photon};

const GOLDEN: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../photon-models/tests/data/golden/moondream3.json");

/// The names of what is launched by one layer of vision, one of text and two with experts: for crops, for a prompt,
/// for a token of one sequence and of four. `variables` are the simulator's.
fn launched(device: &str, options: &[&str], variables: &[(&str, &str)]) -> BTreeSet<String> {
    let folder = Folder::new();
    let golden: Value = serde_json::from_slice(&std::fs::read(GOLDEN).unwrap()).unwrap();
    let mut config = golden["config"].clone();
    config["vision"]["enc_n_layers"] = 1.into();
    config["text"]["n_layers"] = 3.into();
    folder.file("config.json", json!({ "config": config }).to_string().as_bytes());
    let (dir, counts) = (folder.path(""), folder.path("counts.jsonl"));
    let output = photon(&["bench", "model", "--json", "--repeats", "1", "--decode-tokens", "1"])
        .args(["--concurrency", "1,4", "--kv-memory", "16MiB", "--device", device])
        .args(options)
        .arg("--synthetic")
        .arg(dir)
        .env_remove("PHOTON_DTYPE")
        .env("PHOTON_SIM_COUNT", &counts)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = |line: &str| -> Vec<String> {
        let submit: Value = serde_json::from_str(line).unwrap();
        submit["kernels"].as_object().unwrap().keys().cloned().collect()
    };
    std::fs::read_to_string(counts).unwrap().lines().flat_map(names).collect()
}

/// `expected` are among what is launched, with the type in the place of `T`, and no kernel for any type is.
#[track_caller]
fn check(launched: &BTreeSet<String>, dtype: &str, expected: &str) {
    let slow = |kernel: &&String| kernel.ends_with("_any") || *kernel == "layer_norm";
    let slow: Vec<&String> = launched.iter().filter(slow).collect();
    assert!(slow.is_empty(), "{dtype}: {slow:?}, which are slow");
    for kernel in expected.replace('T', dtype).split_whitespace() {
        assert!(launched.contains(kernel), "{dtype}: no {kernel} in {launched:?}");
    }
}

const ON_METAL: &str = "attention_T_72 paged_attention_T paged_attention_split_T layer_norm_T_1280 \
    linear_8x8_T_float linear_1_T_float linear_4_T_float grouped_8x8_T_float grouped_4_T_float";
const ON_CUDA: &str = "attention_T_72 paged_attention_T paged_attention_split_T layer_norm_T_1280 \
    linear_8x16_T_float linear_1x1_T_float grouped_8x8_T_float grouped_1x1_T_float grouped_1x2_T_float";

#[test]
fn models_of_sixteen_bits_launch_fast_kernels() {
    for dtype in ["bf16", "f16"] {
        for (device, expected) in [("sim-metal", ON_METAL), ("sim-cuda", ON_CUDA)] {
            check(&launched(device, &["--dtype", dtype], &[]), dtype, expected);
        }
    }
}

#[test]
fn quantized_models_launch_fast_kernels() {
    let options = ["--quant", "int4-32", "--kv-dtype", "int8"];
    let on_metal = "paged_attention_T_int8 paged_attention_split_T_int8 linear_8x8_T_int4 \
        linear_1_T_int4 grouped_8x8_T_int4 grouped_4_T_int4";
    let on_cuda = "paged_attention_T_int8 paged_attention_split_T_int8 linear_8x16_T_int4 \
        linear_1x1_T_int4 grouped_8x8_T_int4 grouped_1x1_T_int4";
    check(&launched("sim-metal", &options, &[]), "bf16", on_metal);
    check(&launched("sim-cuda", &options, &[]), "bf16", on_cuda);
}

/// GPUs before Apple9 have kernels of f16 alone, and models of bf16 are kept in it.
#[test]
fn without_bfloat_models_of_bf16_launch_fast_kernels_of_f16() {
    let m1 = [("PHOTON_SIM_FAMILY", "7")];
    check(&launched("sim-metal", &[], &m1), "f16", ON_METAL);
    // Asked for, bf16 is what is computed in, by kernels that take its bits apart.
    let kept = launched("sim-metal", &["--dtype", "bf16"], &m1);
    for kernel in ["attention_any", "paged_attention_any", "layer_norm", "linear_8x8_bf16_float"] {
        assert!(kept.contains(kernel), "no {kernel} in {kept:?}");
    }
}

/// The demo models are of bf16.
#[test]
fn without_bfloat_answers_are_the_processors() {
    for model in ["demo", "demo3"] {
        let tokens = |device: &str| {
            let picture = asset("shapes.png");
            let args = ["caption", &picture, "--length", "short", "--model", model, "--json"];
            let mut command = photon(&args);
            command.env("PHOTON_SIM_FAMILY", "7").args(["--max-tokens", "8", "--device", device]);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            answer["tokens"].as_array().unwrap().clone()
        };
        let on_the_processor = tokens("cpu");
        assert!(!on_the_processor.is_empty());
        assert_eq!(tokens("sim-metal"), on_the_processor, "{model}");
    }
}
