//! `photon batch`: what is written, what survives, with which exit code.
use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::*;

const QUESTIONS: usize = 3;

/// A small picture unlike all others: a rectangle on a ground.
fn picture(seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut draw = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    let mut color = || image::Rgb([draw(256) as u8, draw(256) as u8, draw(256) as u8]);
    let (ground, ink) = (color(), color());
    let (x, y, w, h) = (draw(60), draw(60), 8 + draw(44), 8 + draw(44));
    let picture = image::RgbImage::from_fn(112, 112, |px, py| {
        let inside = (x..x + w).contains(&px) && (y..y + h).contains(&py);
        if inside { ink } else { ground }
    });
    let mut png = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

/// Three requests for each of `pictures` pictures.
fn requests(pictures: usize) -> String {
    let mut lines = String::new();
    for i in 0..pictures {
        let image = STANDARD.encode(picture(i as u32));
        for j in 0..QUESTIONS {
            let mut line = match j {
                0 => json!({"skill": "query", "question": "what color is the shape?",
                    "reasoning": false}),
                1 => json!({"skill": "caption", "length": "short"}),
                _ => json!({"skill": "detect", "object": "square", "settings": {"max_objects": 5}}),
            };
            line["id"] = json!(format!("{i}-{j}"));
            line["image"] = json!(image);
            lines.push_str(&line.to_string());
            lines.push('\n');
        }
    }
    lines
}

/// Results by line_index; fails on a line that is none and on one answered twice.
#[track_caller]
fn results(text: &str) -> BTreeMap<u64, Value> {
    let mut results = BTreeMap::new();
    for line in text.lines() {
        let result: Value = serde_json::from_str(line).unwrap();
        let index = result["line_index"].as_u64().unwrap();
        assert!(results.insert(index, result).is_none(), "line {index} is answered twice");
    }
    results
}

fn lines_of(path: &str) -> usize {
    std::fs::read(path).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count())
}

/// Starts a batch, kills it when about half is written, and starts it again.
fn survives_a_kill(pictures: usize) {
    let folder = Folder::new();
    let input = folder.file("in.jsonl", requests(pictures).as_bytes());
    let out = folder.path("out.jsonl").to_str().unwrap().to_owned();
    let args = ["batch", &input, "-o", &out, "--concurrency", "6", "--temperature", "0"];
    let mut child = photon(&args).stderr(Stdio::null()).spawn().unwrap();
    let total = pictures * QUESTIONS;
    while lines_of(&out) < total / 2 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = std::fs::read_to_string(&out).unwrap();
    let written = before.lines().count();
    assert!((total / 2..total).contains(&written), "killed after {written} of {total}");
    // The kill comes between writes more often than not: cut a line by hand, too.
    std::fs::write(&out, format!("{before}{{\"line_index\":0,\"id\":\"0")).unwrap();

    let summary: Value =
        serde_json::from_str(&succeeds(&[&args[..], &["--json"]].concat())).unwrap();
    let after = std::fs::read_to_string(&out).unwrap();
    assert!(after.starts_with(&before), "what was written stays");
    let results = results(&after);
    assert_eq!(results.len(), total);
    for (index, result) in &results {
        let (i, j) = (*index as usize / QUESTIONS, *index as usize % QUESTIONS);
        assert_eq!(result["id"], json!(format!("{i}-{j}")));
        assert_eq!(result["status"], "ok", "{result}");
        let key = ["answer", "caption", "objects"][j];
        assert!(!result["result"][key].is_null(), "{result}");
    }
    assert_eq!(summary["skipped"], json!(written));
    assert_eq!(summary["ok"], json!(total - written));

    // Alone, or in an undisturbed batch, the answers are the same.
    let undisturbed = succeeds(&["batch", &input, "--ordered", "--temperature", "0"]);
    let undisturbed = self::results(&undisturbed);
    for (index, result) in &results {
        assert_eq!(result["result"], undisturbed[index]["result"], "line {index}");
    }
}

#[test]
fn a_killed_batch_goes_on_and_answers_every_line_once() {
    survives_a_kill(40);
}

#[test]
#[ignore = "the same with 200 pictures"]
fn a_killed_batch_of_600_goes_on_and_answers_every_line_once() {
    survives_a_kill(200);
}

const BAD: &str = r#"{"id": "no skill"}
{"id": "unknown", "skill": "sketch"}

{"id": "no image", "skill": "caption", "image": "QUJD"}
{"id": "types", "skill": "query", "question": "x", "reasoning": 1}
not json
{"id": "missing", "skill": "caption", "image_path": "nothing.png"}
{"id": "fine", "skill": "query", "question": "how many?", "reasoning": false}
"#;

#[test]
fn each_failure_has_its_code_and_costs_nobody_else_anything() {
    let folder = Folder::new();
    let input = folder.file("in.jsonl", BAD.as_bytes());
    let output = run(&["batch", &input, "--ordered"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |line: &Value| {
        let code = line["error"]["code"].as_str().unwrap_or("ok");
        format!("{} {} {code}", line["line_index"], line["id"].as_str().unwrap_or("null"))
    };
    let expected = [
        "0 no skill invalid_request",
        "1 unknown unknown_skill",
        "3 no image image_decode_failed",
        "4 types invalid_request",
        "5 null invalid_request",
        "6 missing image_decode_failed",
        "7 fine ok",
    ];
    assert_eq!(lines.iter().map(of).collect::<Vec<_>>(), expected);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("1 ok, 6 failed"), "{stderr}");
    let dry = run(&["batch", &input, "--dry-run"]);
    assert_eq!(dry.status.code(), Some(1));
    let stderr = String::from_utf8(dry.stderr).unwrap();
    assert!(stderr.contains("1 lines can be asked, 6 cannot"), "{stderr}");
}

#[test]
fn a_line_too_long_fails_alone() {
    let folder = Folder::new();
    let fine = r#"{"skill": "query", "question": "how many?", "reasoning": false}"#;
    let long = "x".repeat(11 << 20);
    let input = folder.file("in.jsonl", format!("{fine}\n{long}\n{fine}").as_bytes());
    let output = run(&["batch", &input, "--ordered"]);
    let results = results(&String::from_utf8(output.stdout).unwrap());
    let status = |i| results[&i]["status"].as_str().unwrap().to_owned();
    assert_eq!([status(0), status(1), status(2)], ["ok", "error", "ok"]);
    assert!(results[&1]["error"]["message"].as_str().unwrap().contains("longer than 10 MiB"));
}

#[test]
fn pictures_that_match_a_pattern_are_asked_in_order() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.path("b/deep")).unwrap();
    for (i, name) in ["b/deep/2.png", "a.png", "b/1.png"].into_iter().enumerate() {
        folder.file(name, &picture(i as u32));
    }
    folder.file("b/notes.txt", b"not a picture");
    let pattern = folder.path("**/*.png").to_str().unwrap().to_owned();
    let args = ["batch", "--images", &pattern, "--skill", "detect", "--object", "square"];
    let text = succeeds(&[&args[..], &["--ordered"]].concat());
    let names: Vec<String> = results(&text)
        .values()
        .map(|result| {
            assert!(result["result"]["objects"].is_array());
            let path = PathBuf::from(result["image"].as_str().unwrap());
            path.strip_prefix(folder.path("")).unwrap().to_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(names, ["a.png", "b/1.png", "b/deep/2.png"]);
    fails(&["batch", "--images", &pattern, "--skill", "query"], 2, "needs --question");
    let none = folder.path("*.gif").to_str().unwrap().to_owned();
    fails(&["batch", "--images", &none, "--skill", "caption"], 2, "matches no file");
    let dir = folder.path("b").to_str().unwrap().to_owned();
    fails(&["batch", "--images", &dir, "--skill", "caption"], 2, "is a folder");
}

#[test]
fn lines_come_from_standard_input_and_results_of_others_are_left_alone() {
    let folder = Folder::new();
    let out = folder.path("out.jsonl").to_str().unwrap().to_owned();
    let pipe = |lines: &str| {
        let mut child = photon(&["batch", "-", "-o", &out, "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let line = |id| {
        format!("{{\"id\":{id},\"skill\":\"query\",\"question\":\"?\",\"reasoning\":false}}\n")
    };
    assert!(pipe(&line(1)).status.success());
    let again: Value = serde_json::from_slice(&pipe(&(line(1) + &line(2))).stdout).unwrap();
    assert_eq!((&again["ok"], &again["skipped"]), (&json!(1), &json!(1)));
    let before = std::fs::read(&out).unwrap();
    let other = pipe(&line(7));
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stderr).contains("belongs to another batch"));
    assert_eq!(std::fs::read(&out).unwrap(), before);
    // From a file, a mismatch anywhere is found before anything is asked.
    let input = folder.file("in.jsonl", (line(1) + &line(7)).as_bytes());
    fails(&["batch", &input, "-o", &out], 1, "has the id 2, the input 7");
    fails(&["batch", "no-such-file", "-o", &out], 1, "cannot read no-such-file");
    assert_eq!(std::fs::read(&out).unwrap(), before);
}

#[cfg(unix)]
#[test]
fn an_interrupt_finishes_what_runs_and_exits_with_130() {
    let folder = Folder::new();
    let input = folder.file("in.jsonl", requests(40).as_bytes());
    let out = folder.path("out.jsonl").to_str().unwrap().to_owned();
    let args = ["batch", &input, "-o", &out, "--concurrency", "4"];
    let child = photon(&args).stderr(Stdio::piped()).spawn().unwrap();
    while lines_of(&out) < 10 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("finishing what runs"), "{stderr}");
    let text = std::fs::read_to_string(&out).unwrap();
    assert!(text.ends_with('\n') && results(&text).len() < 120);
}

#[test]
fn lines_say_what_form_their_answers_have() {
    let folder = Folder::new();
    let line = |key: &str, value: Value| {
        let mut line = json!({"skill": "query", "question": "how many?", "reasoning": false});
        line[key] = value;
        format!("{line}\n")
    };
    let lines = [
        line("regex", json!("[0-9]")),
        line("json_schema", json!({"enum": [{"many": true}]})),
        line("json_schema", json!({"items": {"type": "thing"}})),
        line("settings", json!({"stop": [""], "max_tokens": 1})),
    ];
    let input = folder.file("in.jsonl", lines.concat().as_bytes());
    let output = run(&["batch", &input, "--ordered"]);
    assert_eq!(output.status.code(), Some(1), "one line fails");
    let results = results(&String::from_utf8(output.stdout).unwrap());
    let digit = results[&0]["result"]["answer"].as_str().unwrap();
    assert!(digit.len() == 1 && digit.parse::<u8>().is_ok(), "{digit:?}");
    assert_eq!(results[&1]["result"]["answer"], r#"{"many": true}"#);
    let error = &results[&2]["error"];
    assert_eq!(error["code"], "invalid_request");
    assert!(error["message"].as_str().unwrap().ends_with("at /items"), "{error}");
    assert_eq!(results[&3]["status"], "ok");
    let image = asset("shapes.png");
    let all = ["batch", "--images", &image, "--skill"];
    let args = ["query", "--question", "what?", "--regex", "red|blue"];
    let text = succeeds(&[&all[..], &args[..]].concat());
    let answer = &self::results(&text)[&0]["result"]["answer"];
    assert!(answer == "red" || answer == "blue", "{answer}");
    let args = ["detect", "--object", "star", "--regex", "red"];
    fails(&[&all[..], &args[..]].concat(), 2, "go with --images and --skill query");
    fails(&["batch", &input, "--regex", "a"], 2, "lines of a file say");
}
