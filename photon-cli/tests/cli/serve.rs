//! Where `photon serve` takes its settings from: what is typed comes before variables, variables before
//! the file, the file before defaults; for every setting there is.
use std::collections::BTreeMap;

use super::{Folder, photon, succeeds};

/// Of a setting: its name, and what the file, the variable and the command line say.
const SETTINGS: &[[&str; 4]] = &[
    ["host", "127.0.0.2", "127.0.0.3", "::1"],
    ["port", "2021", "2022", "2023"],
    ["port-tries", "1", "2", "3"],
    ["api-key", "one", "one,two", "one,two,three"],
    ["cors", "https://a.example", "https://b.example", "*"],
    ["fetch", "a.example", "b.example", "*"],
    ["alias", "a", "b", "c"],
    ["chat-reasoning", "on", "off", "auto"],
    ["max-body", "1MiB", "2MiB", "3MiB"],
    ["max-image", "1MiB", "2MiB", "3MiB"],
    ["max-images", "1", "2", "3"],
    ["max-text", "1KiB", "2KiB", "3KiB"],
    ["max-objects", "1", "2", "3"],
    ["max-seqs", "1", "2", "3"],
    ["max-waiting", "1", "2", "3"],
    ["deadline", "1", "2", "3"],
    ["header-timeout", "1", "2", "3"],
    ["stall-timeout", "1", "2", "3"],
    ["idle-timeout", "1", "2", "3"],
    ["max-connections", "1", "2", "3"],
    ["drain", "1", "2", "3"],
    ["log-format", "json", "human", "json"],
    ["log", "error", "info", "debug"],
    ["metrics-prefix", "vllm", "photon", "vllm"],
    ["model", "a", "b", "c"],
    ["device", "auto", "cpu", "auto"],
    ["dtype", "f32", "f16", "bf16"],
    ["quant", "int8", "int4", "fp8"],
    ["kv-dtype", "int8", "fp8", "f32"],
    ["threads", "1", "2", "3"],
    ["kv-memory", "1GiB", "2GiB", "3GiB"],
    ["adapter", "a", "b", "c"],
    ["adapters", "a", "b", "c"],
    ["adapter-slots", "1", "2", "3"],
    ["adapter-rank", "1", "2", "3"],
    ["speculate", "1", "2", "3"],
    ["preprocess", "kestrel", "pil", "kestrel"],
    #[cfg(feature = "grpc")]
    ["grpc-port", "1", "2", "3"],
    #[cfg(feature = "kv-events")]
    ["kv-events", "1", "2", "3"],
];

const SWITCHES: &[&str] = &["ollama", "fetch-private"];

fn variable(name: &str) -> String {
    format!("PHOTON_{}", name.to_uppercase().replace('-', "_"))
}

/// What holds, by name; keys are only counted.
fn print_config(args: &[String], variables: &[(String, &str)]) -> BTreeMap<String, String> {
    let mut command = photon(&["serve", "--print-config"]);
    for [name, ..] in SETTINGS {
        command.env_remove(variable(name));
    }
    for name in SWITCHES.iter().chain(&["config"]) {
        command.env_remove(variable(name));
    }
    for (name, value) in variables {
        command.env(name, value);
    }
    let output = command.args(args).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let split = |line: &str| match line.strip_prefix("# ") {
        Some(rest) => rest.split_once(": ").map(|(name, count)| (name.into(), count.into())),
        None => {
            let (name, value) = line.split_once(" = ").unwrap();
            Some((name.to_owned(), value.trim_matches('"').to_owned()))
        }
    };
    text.lines().filter_map(split).collect()
}

#[test]
fn what_is_typed_comes_before_variables_and_they_before_the_file() {
    let folder = Folder::new();
    let lines = SETTINGS.iter().map(|[name, file, ..]| format!("{name} = \"{file}\"\n"));
    let switches = SWITCHES.iter().map(|name| format!("{name} = true\n"));
    let file = folder.file("photon.toml", lines.chain(switches).collect::<String>().as_bytes());
    let file = vec![format!("--config={file}")];
    let variables: Vec<_> =
        SETTINGS.iter().map(|[name, _, value, _]| (variable(name), *value)).collect();
    let typed: Vec<_> =
        SETTINGS.iter().map(|[name, .., value]| format!("--{name}={value}")).collect();

    let expected = |which: usize| -> BTreeMap<String, String> {
        let told = |setting: &[&str; 4]| match setting[0] {
            "api-key" => which.to_string(),
            _ => setting[which].to_owned(),
        };
        SETTINGS.iter().map(|setting| (setting[0].to_owned(), told(setting))).collect()
    };
    let check = |args: &[String], variables: &[(String, &str)], which: usize| {
        let mut found = print_config(args, variables);
        for switch in SWITCHES {
            assert_eq!(found.remove(*switch).as_deref(), Some("true"), "{switch}");
        }
        assert_eq!(found, expected(which));
    };
    check(&file, &[], 1);
    check(&file, &variables, 2);
    check(&[file.clone(), typed.clone()].concat(), &variables, 3);
    check(&[file, typed].concat(), &[], 3);

    // Every setting is in the table, and printed even if nothing sets it.
    let help = succeeds(&["serve", "--help"]);
    let options = help.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    let mut options: Vec<_> =
        options.filter_map(|line| line.split([' ', '[', '=']).next()).collect();
    options.retain(|name| !["config", "print-config"].contains(name));
    options.sort_unstable();
    options.dedup();
    let mut known: Vec<_> =
        SETTINGS.iter().map(|[name, ..]| *name).chain(SWITCHES.iter().copied()).collect();
    known.sort_unstable();
    assert_eq!(options, known);
}

#[test]
fn what_is_printed_can_be_read() {
    let folder = Folder::new();
    let printed = succeeds(&["serve", "--print-config", "--port=9", "--cors=a,b", "--ollama"]);
    let file = folder.file("photon.toml", printed.as_bytes());
    assert_eq!(succeeds(&["serve", "--print-config", "--config", &file]), printed);
    assert!(printed.contains("cors = [\"a\", \"b\"]"), "{printed}");
}

#[test]
fn a_file_with_mistakes_is_told_so() {
    let folder = Folder::new();
    for (line, why) in [
        ("prot = 1", "there is no option \"prot\""),
        ("config = \"x\"", "there is no option \"config\""),
        ("ollama = 1", "ollama is true or false"),
        ("port = true", "port must be a text or a number"),
        ("port = ", "photon.toml"),
    ] {
        let file = folder.file("photon.toml", line.as_bytes());
        super::fails(&["serve", "--config", &file], 2, why);
    }
}
