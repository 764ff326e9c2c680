//! `photon convert`, `quantize` and `adapter`.
use serde_json::json;

use super::*;

impl Folder {
    fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

/// What a model says to a picture, without times.
#[track_caller]
fn answers(args: &[&str]) -> [Value; 2] {
    let image = asset("four.png");
    let ask = |skill: &[&str]| {
        let all = [skill, &["--json", "--temperature", "0"], args].concat();
        let mut json: Value = serde_json::from_str(&succeeds(&all)).unwrap();
        json.as_object_mut().unwrap().remove("metrics");
        json
    };
    [ask(&["caption", &image, "--length", "short"]), ask(&["detect", &image, "circle"])]
}

#[test]
fn a_quantized_model_answers_as_one_that_is_quantized_at_load() {
    let folder = Folder::new();
    let out = folder.name("out");
    for quant in ["int8", "text=int4,vision=fp8"] {
        let args = ["quantize", "demo", &out, "--quant", quant, "--json", "--force"];
        let written: Value = serde_json::from_str(&succeeds(&args)).unwrap();
        let bytes = |key: &str| written[key].as_u64().unwrap();
        assert!(bytes("bytes_after") * 10 < bytes("bytes_before") * 8, "{written}");
        assert_eq!(written["source"], "demo");
        assert_eq!(answers(&["--model", &out]), answers(&["--quant", quant]), "{quant}");
    }
    let found = succeeds(&["inspect", &out]);
    let origin = "written by Photon (format 1) from demo, weights text=int4,vision=fp8";
    assert!(found.contains(origin) && found.contains("nothing is missing"), "{found}");
    fails(&["quantize", &out, &folder.name("x"), "--quant", "int8"], 1, "quantized to");
    fails(&["caption", &asset("four.png"), "--model", &out, "--quant", "int8"], 1, "leave --quant");
    fails(&["quantize", "demo", &folder.name("x"), "--quant", "none"], 2, "quantizes nothing");
    fails(&["quantize", "demo", &folder.name("x")], 2, "--quant");
    assert_eq!(std::fs::read_dir(folder.path("")).unwrap().count(), 1, "nothing but the model");
}

#[test]
fn a_converted_model_is_the_model() {
    let folder = Folder::new();
    let (out, shards) = (folder.name("out"), folder.name("shards"));
    let said = succeeds(&["convert", "demo", &out]);
    assert!(said.contains("demo as text=") && said.contains("(100 %)"), "{said}");
    let want = answers(&[]);
    assert_eq!(answers(&["--model", &out]), want);
    fails(&["convert", "demo", &out], 1, "--force replaces it");
    fails(&["convert", &out, &out, "--force"], 1, "is the model that is read");
    fails(&["convert", "demo", &folder.name(""), "--force"], 1, "no folder of a model");
    fails(&["convert", "nonsense", &folder.name("x")], 1, "photon models");
    // In several files, and from a file with the others beside it.
    let weights = format!("{out}/model.safetensors");
    let args = ["convert", &weights, &shards, "--shard-size", "2MiB", "--json"];
    let written: Value = serde_json::from_str(&succeeds(&args)).unwrap();
    assert!(written["files"].as_array().unwrap().len() > 5, "{written}");
    assert_eq!(answers(&["--model", &shards]), want);
    assert_eq!(answers(&["--model", &weights]), want);
    let alone = folder.name("alone.safetensors");
    std::fs::copy(&weights, &alone).unwrap();
    fails(&["convert", &alone, &folder.name("x")], 1, "has no tokenizer.json beside it");
}

/// An adapter to the demo model, as a file of safetensors.
pub(crate) fn adapter() -> Vec<u8> {
    let (mut header, mut data) = (json!({}), Vec::<u8>::new());
    let mut state = 7u32;
    for layer in 0..4 {
        for (leaf, rows, cols) in [("A", 4, 192), ("B", 512, 4)] {
            let begin = data.len();
            for _ in 0..rows * cols {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = (state >> 8) as f32 / 8_388_608.0 - 1.0;
                data.extend(value.to_le_bytes());
            }
            header[format!("text.blocks.{layer}.fc1.{leaf}")] = json!({
                "dtype": "F32", "shape": [rows, cols], "data_offsets": [begin, data.len()],
            });
        }
    }
    let header = header.to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

#[test]
fn adapters_are_converted_listed_and_named() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("adapters")).unwrap();
    let adapters = folder.name("adapters");
    let file = folder.file("tuned.safetensors", &adapter());
    folder.file("adapters/broken@2.pt", b"nothing");
    folder.file("adapters/readme.txt", b"hello");
    let named = folder.name("adapters/tuned@100.safetensors");
    let said = succeeds(&["adapter", "convert", &file, &named, "--model", "demo"]);
    assert!(
        said.contains("rank 4 in 4 dense blocks") && said.contains("fits no published"),
        "{said}"
    );
    fails(&["adapter", "convert", &file, &named], 1, "--force");
    fails(&["adapter", "inspect", &asset("four.png")], 1, "not a complete file");
    let json: Value =
        serde_json::from_str(&succeeds(&["adapter", "inspect", &named, "--json"])).unwrap();
    assert_eq!((&json["rank"], &json["dense_blocks"]), (&4.into(), &4.into()));
    let list = ["adapter", "list", "--adapters", &adapters];
    let text = succeeds(&list);
    assert!(text.contains("tuned@100") && text.contains("broken@2"), "{text}");
    let json: Value = serde_json::from_str(&succeeds(&[&list[..], &["--json"]].concat())).unwrap();
    let rows = json["adapters"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{json}");
    assert!(rows[0]["error"].is_string() && rows[1]["rank"] == 4, "{json}");

    let want = answers(&["--adapter", &file]);
    assert_ne!(want, answers(&[]), "the adapter changes something");
    let by_name = ["--adapters", adapters.as_str()];
    assert_eq!(answers(&[&by_name[..], &["--model", "demo/tuned@100"]].concat()), want);
    assert_eq!(answers(&[&by_name[..], &["--adapter", "tuned@100"]].concat()), want);

    let image = asset("four.png");
    let line = |key: &str, value: &str| {
        json!({"skill": "caption", "length": "short", "image_path": image, key: value}).to_string()
    };
    let lines = [
        line("adapter", "tuned@100"),
        line("model", "demo/tuned@100"),
        line("adapter", &file),
        line("model", "demo"),
        line("adapter", "..@1"),
        line("model", "demo/missing@3"),
    ];
    let input = folder.file("in.jsonl", lines.join("\n").as_bytes());
    let args = ["batch", &input, "--ordered", "--temperature", "0"];
    let output = run(&[&args[..], &by_name].concat());
    assert_eq!(output.status.code(), Some(1));
    let results: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let captions: Vec<_> = results[..4].iter().map(|r| r["result"]["caption"].clone()).collect();
    let tuned = want[0]["caption"].clone();
    assert_eq!(captions[..3], [tuned.clone(), tuned.clone(), tuned.clone()]);
    assert_ne!(captions[3], tuned);
    for (i, message) in [(4, "..@1"), (5, "there is no adapter missing@3")] {
        assert_eq!(results[i]["error"]["code"], "invalid_request", "{}", results[i]);
        assert!(results[i]["error"]["message"].as_str().unwrap().contains(message));
    }

    let image = image.as_str();
    fails(&["caption", image, "--model", "demo/tuned@1"], 1, "start with --adapters");
    let hostile = [&["caption", image, "--model", "demo/..@1"][..], &by_name].concat();
    fails(&hostile, 2, "is no name of an adapter");
    let both = ["caption", image, "--model", "demo/tuned@100", "--adapter", "tuned@100"];
    fails(&[&both[..], &by_name].concat(), 2, "give one of them");
    let missing = [&["caption", image, "--adapter", "x@1"][..], &by_name].concat();
    fails(&missing, 1, "no x@1.safetensors, x@1.pt or folder");
}
