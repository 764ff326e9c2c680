//! `photon bench workload`: what it writes adds up, and can be compared.
use serde_json::Value;

use super::{Folder, fails, succeeds};

const TINY: [&str; 12] = [
    "bench",
    "workload",
    "--images",
    "3",
    "--concurrency",
    "1,2",
    "--repeats",
    "3",
    "--answers",
    "direct",
    "--seed",
    "7",
];

fn cells(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn number(cell: &Value, name: &str, which: &str) -> f64 {
    let number = cell["values"][name][which].as_f64();
    number.unwrap_or_else(|| panic!("{name}: {which} of {cell}"))
}

#[test]
fn the_numbers_of_a_workload_add_up() {
    let folder = Folder::new();
    let out = folder.path("out.jsonl");
    let out = out.to_str().unwrap();
    let printed = succeeds(&[&TINY[..], &["--json", "--out", out]].concat());
    assert_eq!(printed, std::fs::read_to_string(out).unwrap());
    let cells = cells(&printed);
    let names: Vec<&str> = cells.iter().map(|cell| cell["cell"].as_str().unwrap()).collect();
    let expected = [
        "parity direct 1",
        "parity direct 2",
        "engine direct 1",
        "engine direct 2",
        "closed direct 1",
        "closed direct 2",
        "again pixels",
        "again file",
        "phases",
    ];
    assert_eq!(names, expected);
    for cell in &cells {
        assert_eq!(cell["rounds"], 3);
        assert_eq!(cell["model"], "demo");
        for key in ["version", "device", "precision"] {
            assert!(cell[key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {cell}");
        }
        for (name, spread) in cell["values"].as_object().unwrap() {
            let [median, min, max] = ["median", "min", "max"].map(|k| spread[k].as_f64().unwrap());
            assert!(0.0 <= min && min <= median && median <= max, "{name} of {cell}");
        }
    }
    for cell in &cells[..6] {
        // Two of the three pictures are asked about twice. The demo model cuts none.
        assert_eq!((&cell["images"], &cell["requests"]), (&3.into(), &5.into()));
        assert_eq!(cell["crops"], serde_json::json!({"1": 3}));
        assert_eq!(cell["tokens_out"], 15);
        // BOS, 64 patches, 39 tokens of prompt.
        assert_eq!(cell["input_tokens"], 104);
        // Of an odd number of rounds the median is a round, so the medians belong together.
        let requests = number(cell, "requests_per_s", "median") * number(cell, "seconds", "median");
        assert!((requests - 5.0).abs() < 1e-6, "{requests}");
        for which in ["median", "min", "max"] {
            let at = |p: u32| number(cell, &format!("latency_p{p}_ms"), which);
            assert!(at(50) <= at(90) && at(90) <= at(99), "{cell}");
            assert!(number(cell, "ttft_p50_ms", which) <= at(50), "{cell}");
            assert!(number(cell, "hit_rate", which) <= 0.4, "{cell}");
        }
        let shares = ["vision_share", "step_share", "scheduler_share"];
        let shares: f64 = shares.iter().map(|share| number(cell, share, "min")).sum();
        assert!(shares <= 1.0, "{cell}");
    }
    for cell in &cells[6..8] {
        assert_eq!((&cell["images"], &cell["requests"]), (&3.into(), &6.into()));
        assert_eq!(cell["tokens_out"], 18);
    }
    for name in ["vision_crops_1_ms", "prefill_85_tokens_ms", "step_of_1_ms", "step_of_2_ms"] {
        assert!(number(&cells[8], name, "min") > 0.0, "{name}");
    }
}

#[test]
fn one_at_a_time_every_second_question_is_a_hit() {
    let printed = succeeds(&[&TINY[..], &["--modes", "closed", "--json"]].concat());
    let one = &cells(&printed)[0];
    assert_eq!(one["cell"], "closed direct 1");
    assert_eq!(number(one, "hit_rate", "median"), 0.4);
}

#[test]
fn two_workloads_are_compared_cell_by_cell() {
    let folder = Folder::new();
    let line = |cell: &str, median: f64| {
        let spread =
            serde_json::json!({"median": median, "min": median - 1.0, "max": median + 1.0});
        let mut cell = serde_json::json!({"cell": cell, "version": "0.1", "device": "cpu",
            "model": "demo", "precision": "f32", "seed": 0, "images": 3, "requests": 5});
        cell["values"] = serde_json::json!({"requests_per_s": spread, "seconds": spread});
        cell.to_string()
    };
    let a = [line("both", 10.0), line("near", 10.0), line("only a", 10.0)].join("\n");
    let b = [line("only b", 10.0), line("both", 20.0), line("near", 11.0)].join("\n");
    let [a, b] =
        [("a.jsonl", a), ("b.jsonl", b)].map(|(name, text)| folder.file(name, text.as_bytes()));
    let printed = succeeds(&["bench", "--compare", &a, &b]);
    let words: Vec<Vec<&str>> =
        printed.lines().map(|line| line.split_whitespace().collect()).collect();
    let has = |line: &str| {
        let line: Vec<&str> = line.split_whitespace().collect();
        assert!(words.contains(&line), "{line:?} in\n{printed}");
    };
    has("both requests_per_s 10.0 20.0 2.000");
    has("near requests_per_s 10.0 11.0 1.100 within the spread");
    has("B has no cell \"only a\"");
    has("A has no cell \"only b\"");
    assert!(!printed.contains("seconds"), "{printed}");

    let compare = |a: &str, b: &str, message| fails(&["bench", "--compare", a, b], 1, message);
    compare("no-such-file", &b, "cannot read no-such-file");
    compare(&a, &folder.file("empty.jsonl", b"\n"), "empty.jsonl has no cells");
    let bad = folder.file("bad.jsonl", format!("{}\n{{}}\n", line("x", 1.0)).as_bytes());
    compare(&a, &bad, "bad.jsonl, line 2 is not of `photon bench workload --out`");
    let twice = folder.file("twice.jsonl", [line("x", 1.0), line("x", 1.0)].join("\n").as_bytes());
    compare(&a, &twice, "line 2: there is a cell \"x\" above");
}

#[test]
fn what_cannot_be_measured_is_said_before_the_work() {
    let check = |more: &[&str], code, message| {
        fails(&[&["bench", "workload"], more].concat(), code, message);
    };
    check(&["--images", "3", "--questions", "7"], 2, "each picture has one or two");
    check(&["--images", "3", "--questions", "2"], 2, "each picture has one or two");
    check(&["--synthetic", "no-such-folder"], 2, "neither moondream2 nor moondream3 nor a folder");
    check(&["--model", "no-such-model"], 1, "no-such-model");
    check(&["--out", "no-such-folder/a.jsonl"], 1, "cannot write no-such-folder/a.jsonl");
    check(&["--quick", "--images", "5"], 2, "cannot be used with");
    fails(&["bench", "--compare", "a.jsonl"], 2, "2 values required");
}

#[test]
fn random_weights_need_only_dimensions() {
    let folder = Folder::new();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../photon/demo/config.json");
    folder.file("config.json", &std::fs::read(config).unwrap());
    let dir = folder.path("");
    let more = ["--modes", "engine,phases", "--json", "--synthetic", dir.to_str().unwrap()];
    let cells = cells(&succeeds(&[&TINY[..], &more].concat()));
    assert_eq!(cells.len(), 3);
    for cell in &cells {
        assert!(cell["model"].as_str().unwrap().starts_with("random weights, "), "{cell}");
        assert_eq!(cell["precision"], "bf16");
    }
    assert_eq!((&cells[0]["input_tokens"], &cells[0]["tokens_out"]), (&104.into(), &15.into()));
}

#[test]
fn the_workload_can_be_saved_for_others_to_run() {
    let folder = Folder::new();
    let dir = folder.path("workload");
    succeeds(&["bench", "workload", "--images", "2", "--save", dir.to_str().unwrap()]);
    let requests = dir.join("requests.jsonl");
    let out = folder.path("out.jsonl");
    let (requests, out) = (requests.to_str().unwrap(), out.to_str().unwrap());
    succeeds(&["batch", requests, "-o", out, "--max-tokens", "2"]);
    let lines = std::fs::read_to_string(out).unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains("\"ok\"")).count(), 3);
}
