//! The program as a user meets it: what it prints, where, and with which exit code.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]
mod batch;
mod bench;
mod convert;
mod deploy;
#[cfg(unix)]
mod guide;
#[cfg(feature = "sim")]
mod kernels;
mod scale;
mod serve;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

fn asset(name: &str) -> String {
    format!("{}/../assets/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn photon(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_photon"));
    // What the user of this machine has set must not decide a test.
    for name in [
        "PHOTON_MODEL",
        "PHOTON_DEVICE",
        "PHOTON_ADAPTERS",
        "PHOTON_QUANT",
        "PHOTON_SPECULATE",
        "HF_ENDPOINT",
        "HF_TOKEN",
    ] {
        command.env_remove(name);
    }
    command.env("HF_HOME", "no-such-folder").env("HF_HUB_OFFLINE", "1").args(args);
    command
}

fn run(args: &[&str]) -> Output {
    photon(args).output().unwrap()
}

#[track_caller]
fn succeeds(args: &[&str]) -> String {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// One line on standard error that contains `message`; nothing on standard output.
#[track_caller]
fn fails(args: &[&str], code: i32, message: &str) {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.contains(message), "{args:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    if stderr.starts_with("photon: ") {
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn a_caption_streams_to_standard_output_and_statistics_do_not() {
    let output = run(&["caption", &asset("shapes.png"), "--temperature", "0", "--stats"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with('\n') && text.trim().len() > 10, "{text:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("tokens/s"));
}

#[test]
fn guessing_ahead_changes_no_token_and_says_how_often_it_was_right() {
    let image = asset("four.png");
    let json = |args: &[&str]| -> Value {
        let asked = ["caption", &image, "--length", "long", "--json"];
        serde_json::from_str(&succeeds(&[&asked[..], args].concat())).unwrap()
    };
    let (plain, ahead) = (json(&[]), json(&["--speculate", "4"]));
    assert_eq!(plain["tokens"], ahead["tokens"]);
    let count = |json: &Value, key: &str| json["metrics"][key].as_u64().unwrap();
    assert_eq!(count(&plain, "drafted_tokens"), 0);
    let drafted = count(&ahead, "drafted_tokens");
    assert!(0 < drafted && count(&ahead, "accepted_tokens") <= drafted);
    let mut told = photon(&["caption", &image, "--length", "long", "--stats"]);
    let output = told.env("PHOTON_SPECULATE", "4").output().unwrap();
    let stats = String::from_utf8(output.stderr).unwrap();
    assert!(stats.contains(&format!("of {drafted} guessed tokens right")), "{stats}");
    fails(&["caption", &image, "--speculate", "65"], 2, "65 is not in 0..=64");
}

#[test]
fn json_holds_the_answer_and_how_it_came_about() {
    let keys = |args: &[&str]| -> Vec<String> {
        let json: Value = serde_json::from_str(&succeeds(args)).unwrap();
        assert!(json["metrics"]["input_tokens"].as_u64().unwrap() > 5);
        assert!(json["tokens"].is_array());
        json.as_object().unwrap().keys().cloned().collect()
    };
    let image = asset("four.png");
    let expect = |first: &'static str| [first, "finish_reason", "tokens", "metrics"];
    assert_eq!(keys(&["caption", &image, "--json"]), expect("caption"));
    assert_eq!(keys(&["query", &image, "how many shapes?", "--json"]), expect("answer"));
    assert_eq!(keys(&["detect", &image, "circle", "--json"]), expect("objects"));
    assert_eq!(keys(&["point", &image, "circle", "--json"]), expect("points"));
    assert_eq!(keys(&["gaze", &image, "--eye", "0.5,0.5", "--json"]), expect("gaze"));
    // Without a picture.
    assert_eq!(keys(&["query", "how many?", "--json"]), expect("answer"));
}

#[test]
fn several_pictures_give_a_line_each_and_a_bad_one_does_not_cost_the_others() {
    let folder = Folder::new();
    let bad = folder.file("bad.png", b"hello");
    let (a, b) = (asset("shapes.png"), asset("number.png"));
    let output = run(&["query", &a, &bad, &b, "what is written?", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let lines = String::from_utf8(output.stdout).unwrap();
    let images: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["image"].clone())
        .collect();
    assert_eq!(images, [a, b]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("1 of 3 pictures failed"), "{stderr}");
}

fn lines_of_json(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn one_question_is_asked_about_several_pictures_together() {
    let (a, b) = (asset("shapes.png"), asset("number.png"));
    let one = lines_of_json(&succeeds(&["query", &a, "what is written?", "--json"]));
    let both = succeeds(&["query", &a, &b, "--together", "what is written?", "--json"]);
    let both = lines_of_json(&both);
    assert_eq!((one.len(), both.len()), (1, 1));
    assert_eq!(both[0]["image"], Value::Null);
    let input = |lines: &[Value]| lines[0]["metrics"]["input_tokens"].as_u64().unwrap();
    assert_eq!(input(&both), input(&one) + 64);
    let out = ["query", &a, &b, "x", "--together", "--draw", "out.png"];
    fails(&out, 2, "cannot be used with");
    let many = [vec!["query", "--together"], vec![&a; 17], vec!["x"]].concat();
    fails(&many, 2, "16 images at most, and 17 were given");
}

/// The program's output when these lines are on its standard input.
fn piped(args: &[&str], lines: &str) -> Output {
    let mut child = photon(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_conversation_goes_on_and_computes_only_what_is_new() {
    let (a, b) = (asset("shapes.png"), asset("number.png"));
    let chat = ["chat", &a, "--temperature", "0", "--json"];
    let messages = ["--message", "how many shapes are there?", "--message", "and which color?"];
    let answers = lines_of_json(&succeeds(&[&chat[..], &messages].concat()));
    assert_eq!(answers.len(), 2);
    let number = |answer: &Value, name: &str| answer["metrics"][name].as_u64().unwrap();
    assert!(number(&answers[1], "cached_tokens") >= number(&answers[0], "input_tokens"));
    assert!(answers.iter().all(|answer| answer["answer"].is_string()), "{answers:?}");

    // The same from standard input, and then another picture.
    let script = format!("how many shapes are there?\n\nand which color?\n/image {b}\nand here?\n");
    let output = piped(&chat, &script);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let more = lines_of_json(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(more.len(), 3, "{stderr}");
    for (more, answer) in more.iter().zip(&answers) {
        assert_eq!(more["tokens"], answer["tokens"]);
    }
    assert_eq!(number(&more[2], "crops"), 1, "only the new picture is cut");
    assert!(number(&more[2], "cached_tokens") >= number(&more[1], "input_tokens"));

    // After a reset it is a new one; a system text is part of the first question.
    let new = piped(&chat, "x\n/reset\n/system one word\nand which color?\n/quit\nnot asked\n");
    let new = lines_of_json(&String::from_utf8(new.stdout).unwrap());
    assert_eq!((new.len(), number(&new[1], "crops")), (2, 0));
    let said = ["--system", "one word", "--message", "and which color?"];
    let said = succeeds(&[&["chat", "--temperature", "0", "--json"], &said[..]].concat());
    assert_eq!(lines_of_json(&said)[0]["tokens"], new[1]["tokens"]);
}

#[test]
fn a_conversation_prints_answers_with_their_reasoning() {
    let message = ["--message", "what is written?", "--max-tokens", "20"];
    let text = succeeds(&[&["chat", &asset("number.png")], &message[..]].concat());
    assert_eq!(text.lines().count(), 1, "{text:?}");
    let thought = succeeds(&[&["chat", "--reasoning", "--json"], &message[..]].concat());
    assert!(lines_of_json(&thought)[0]["reasoning"]["text"].is_string(), "{thought}");
}

#[test]
fn what_goes_wrong_ends_a_conversation_that_is_not_typed() {
    let fails = |args: &[&str], lines: &str, code: i32, message: &str| {
        let output = piped(args, lines);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?} {lines:?}: {stderr}");
        assert!(stderr.contains(message), "{args:?} {lines:?}: {stderr}");
    };
    fails(&["chat"], "/imagine a cat\n", 2, "no command /imagine");
    fails(&["chat"], "/image no-such.png\n", 1, "no-such.png");
    fails(&["chat", "no-such.png"], "x\n", 1, "no-such.png");
    fails(&["chat", "-"], "x\n", 2, "standard input is the conversation");
    fails(&["chat", "--temperature", "-1"], "x\n", 2, "temperature is -1");
    let long = format!("{}\n", "a z ".repeat(2000));
    fails(&["chat"], &long, 2, "the model has 512");
}

#[test]
fn a_picture_comes_from_standard_input() {
    let mut child = photon(&["caption", "-", "--temperature", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes = std::fs::read(asset("shapes.png")).unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let piped = child.wait_with_output().unwrap();
    assert!(piped.status.success());
    let named = succeeds(&["caption", &asset("shapes.png"), "--temperature", "0"]);
    assert_eq!(String::from_utf8(piped.stdout).unwrap(), named);
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let mut child = photon(&["caption", &asset("shapes.png"), "--length", "long"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn drawings_have_the_size_of_their_picture() {
    let folder = Folder::new();
    let (image, out) = (asset("four.png"), folder.path("out.png"));
    succeeds(&["point", &image, "shape", "--draw", out.to_str().unwrap()]);
    let size = |path: &Path| image::image_dimensions(path).unwrap();
    assert_eq!(size(&out), size(Path::new(&image)));
    let (a, b) = (asset("four.png"), asset("shapes.png"));
    succeeds(&["point", &a, &b, "shape", "--draw", out.to_str().unwrap()]);
    assert_eq!(size(&folder.path("out-2.png")), size(Path::new(&b)));
    let bmp = folder.path("out.bmp");
    fails(&["point", &a, "shape", "--draw", bmp.to_str().unwrap()], 2, "end its name in .png");
}

#[test]
fn an_outline_is_a_path_with_its_box() {
    let folder = Folder::new();
    let image = asset("shapes.png");
    let segment = |more: &[&str]| {
        let args = ["segment", &image, "star", "--model", "demo3"];
        succeeds(&[&args[..], more].concat())
    };
    let answer: Value = serde_json::from_str(&segment(&["--json"])).unwrap();
    let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
    assert_eq!(keys[..3], ["path", "bbox", "finish_reason"], "{answer}");
    let path = answer["path"].as_str().unwrap();
    assert!(path.starts_with("M ") && path.ends_with(" Z"), "{answer}");
    let out = folder.path("out.png").to_str().unwrap().to_owned();
    let text = segment(&["--draw", &out]);
    let (first, second) = text.trim_end().split_once('\n').unwrap();
    let left = answer["bbox"]["x_min"].as_f64().unwrap();
    assert_eq!(first, path);
    assert!(second.starts_with(&format!("{left:.3} ")) && second.ends_with(" px)"), "{text}");
    let open = |path: &str| image::open(path).unwrap().to_rgb8();
    assert_ne!(open(&out), open(&image), "something is drawn");

    let line = json!({"skill": "segment", "object": "star", "image_path": image});
    let input = folder.file("in.jsonl", line.to_string().as_bytes());
    let batch = |model: &str| -> Value {
        let output = run(&["batch", &input, "--model", model]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(batch("demo3")["result"]["path"], path);
    assert_eq!(batch("demo")["error"]["code"], "invalid_request");
    fails(&["segment", &image, "star"], 2, "segment needs Moondream 3");
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_to_do() {
    let image = asset("shapes.png");
    let image = image.as_str();
    fails(&["query", image, ""], 2, "the question is empty");
    fails(&["detect", image, " "], 2, "the object to look for is empty");
    fails(&["detect", "circle"], 2, "give a picture before it");
    fails(&["segment", "circle"], 2, "give a picture before it");
    fails(&["segment", image, "x", "--spatial-ref", "2,0"], 2, "between 0 and 1");
    fails(&["query", image, "x", "--temperature", "-1"], 2, "temperature is -1");
    fails(&["query", image, "x", "--top-p", "0"], 2, "top_p is 0");
    fails(&["query", image, "x", "--spatial-ref", "0.5"], 2, "2 (point) or 4 (bbox)");
    fails(&["query", image, "x", "--spatial-ref", "a,b"], 2, "is not a number");
    fails(&["gaze", image, "--eye", "0.5"], 2, "two numbers");
    fails(&["gaze", image, "--eye", "0.5,7"], 2, "between 0 and 1");
    fails(&["caption", image, "--max-tokens", "0"], 2, "1 or more");
    fails(&["caption", image, "--device", "abacus"], 2, "no device");
    fails(&["pull", "nothing"], 2, "unknown model");
}

#[test]
fn an_answer_has_the_form_that_was_asked_for() {
    let (image, folder) = (asset("shapes.png"), Folder::new());
    let schema = r#"{"type": "object", "required": ["shape", "count"], "additionalProperties": false,
        "properties": {"shape": {"enum": ["circle", "star"]}, "count": {"type": "integer",
        "minimum": 0, "maximum": 20}}}"#;
    let file = folder.file("schema.json", schema.as_bytes());
    let answers = [schema, &file]
        .map(|schema| succeeds(&["query", &image, "what is there?", "--json-schema", schema]));
    assert_eq!(answers[0], answers[1]);
    let value: Value = serde_json::from_str(&answers[0]).unwrap();
    assert!(["circle", "star"].contains(&value["shape"].as_str().unwrap()), "{value}");
    assert!((0..=20).contains(&value["count"].as_i64().unwrap()), "{value}");
    let word = succeeds(&["query", &image, "is there a circle?", "--regex", "(yes|no)"]);
    assert!(["yes\n", "no\n"].contains(&word.as_str()), "{word:?}");
    let ask = ["query", &image, "what?"];
    let with = |args: [&str; 2], message| fails(&[&ask[..], &args[..]].concat(), 2, message);
    with(["--regex", "(a"], "unclosed group, at character 1");
    with(["--json-schema", r#"{"items": {"not": {}}}"#], "at /items");
    with(["--json-schema", r#"{"type": "#], "not JSON");
    with(["--json-schema", "no-such-file"], "give a file, or the schema itself");
}

#[test]
fn a_text_ends_before_a_stop_string() {
    let image = asset("shapes.png");
    let args = ["caption", &image, "--temperature", "0"];
    let whole = succeeds(&args);
    let word = whole.split_whitespace().nth(2).unwrap();
    let cut = succeeds(&[&args[..], &["--stop", "never", "--stop", word]].concat());
    assert_eq!(cut.trim_end_matches('\n'), &whole[..whole.find(word).unwrap()]);
}

#[test]
fn what_cannot_be_read_exits_with_1_and_one_line() {
    let folder = Folder::new();
    let jpeg = std::fs::read(asset("../photon-models/tests/data/images/baseline_420.jpg")).unwrap();
    let cut = folder.file("cut.jpg", &jpeg[..jpeg.len() / 2]);
    fails(&["caption", &cut], 1, "truncated JPEG");
    fails(&["caption", &folder.file("text.png", b"plain text")], 1, "it starts like text");
    fails(&["caption", &folder.file("empty.png", b"")], 1, "empty file");
    fails(&["caption", "no-such-picture.png"], 1, "cannot read no-such-picture.png");
    let image = asset("shapes.png");
    fails(&["caption", &image, "--model", "nonsense"], 1, "photon models");
    fails(&["caption", &image, "--model", "moondream2"], 1, "photon pull moondream2");
    let empty = folder.path("");
    fails(&["caption", &image, "--model", empty.to_str().unwrap()], 1, "no weights in");
    fails(&["inspect", "no-such-file.pt"], 1, "no-such-file.pt");
    fails(&["inspect", &folder.file("text.safetensors", b"plain text")], 1, "not a complete file");
    fails(&["caption", &image, "--adapter", "no-such-adapter"], 1, "no-such-adapter");
    fails(&["caption", &image, "--quant", "int5"], 2, "there are int8, int4");
}

#[test]
fn weights_are_described() {
    let data = |name: &str| {
        format!("{}/../photon-models/tests/data/formats/{name}", env!("CARGO_MANIFEST_DIR"))
    };
    let demo = format!("{}/../photon/demo", env!("CARGO_MANIFEST_DIR"));
    let text = succeeds(&["inspect", &demo]);
    assert!(text.contains("Moondream 2") && text.contains("nothing is missing"), "{text}");
    let adapter = succeeds(&["inspect", &data("adapter.pt")]);
    assert!(adapter.contains("rank 2 in 1 dense blocks"), "{adapter}");
    assert!(adapter.contains("rank 2 in each of 4 experts of 1 blocks"), "{adapter}");
    let kestrel = run(&["inspect", &data("kestrel.pt")]);
    let kestrel = String::from_utf8(kestrel.stdout).unwrap();
    assert!(kestrel.contains("not used: 2 static scales of keys and values"), "{kestrel}");
    // A tiny model without its config.json is measured by the published one.
    let output = run(&["inspect", &data("kestrel.pt"), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["family"], &found["layout"]), (&"Moondream 3".into(), &"Kestrel".into()));
    let tensors = found["tensors"].as_array().unwrap();
    assert!(tensors.iter().any(|t| t["format"] == "fp8 (e4m3)"), "{tensors:?}");
    assert!(!found["missing"].as_array().unwrap().is_empty());
}

#[test]
fn quantized_weights_and_adapters_answer() {
    let image = asset("shapes.png");
    let plain = succeeds(&["caption", &image, "--length", "short"]);
    let quant = succeeds(&["caption", &image, "--length", "short", "--quant", "int8"]);
    assert_eq!(plain, quant, "int8 does not change this caption");
    assert!(!succeeds(&["caption", &image, "--quant", "text=int4,vision=fp8"]).is_empty());
}

#[test]
fn the_machine_and_the_models_are_described() {
    let doctor: Value = serde_json::from_str(&succeeds(&["doctor", "--json"])).unwrap();
    assert_eq!(doctor["devices"][0]["device"], "cpu");
    assert_eq!(doctor["devices"][0]["ok"], true);
    // Whether there is a GPU is up to the machine; if there is none, it says why.
    let problems = doctor["problems"].as_array().unwrap();
    let of_gpu = |why: &str| why.starts_with("cuda: ") || why.starts_with("metal: ");
    assert!(problems.iter().all(|why| of_gpu(why.as_str().unwrap())), "{problems:?}");
    let said = if problems.is_empty() { "no problems found" } else { "problem: " };
    assert!(succeeds(&["doctor"]).contains(said));
    let models: Value = serde_json::from_str(&succeeds(&["models", "--json"])).unwrap();
    let names: Vec<&str> =
        models["models"].as_array().unwrap().iter().filter_map(|m| m["name"].as_str()).collect();
    assert_eq!(&names[..3], ["demo", "demo3", "moondream2"]);
}

#[test]
fn a_benchmark_of_a_small_model_reports_every_phase() {
    let demo = format!("{}/../photon/demo", env!("CARGO_MANIFEST_DIR"));
    let args = ["bench", "model", "--synthetic", &demo, "--repeats", "1", "--json"];
    let report: Value = serde_json::from_str(&succeeds(&args)).unwrap();
    let phases: Vec<&str> =
        report["phases"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
    assert!(phases.iter().any(|name| name.starts_with("prefill")), "{phases:?}");
    assert!(phases.iter().any(|name| name.starts_with("decode")), "{phases:?}");
}

#[test]
fn a_benchmark_of_a_start_reports_every_stage() {
    let args = ["bench", "load", "--quant", "text=int8", "--repeats", "2", "--json"];
    let report: Value = serde_json::from_str(&succeeds(&args)).unwrap();
    assert_eq!(report["quant"], "text int8");
    let seconds: Vec<f64> = report["phases"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|p| p["median_s"].as_f64())
        .collect();
    let [stages @ .., all] = &seconds[..] else { panic!("{report}") };
    assert!(stages.len() > 1 && stages.iter().all(|stage| stage <= all), "{report}");
    fails(&["bench", "load", "--model", "nowhere"], 1, "neither a folder, a file nor a model");
}
