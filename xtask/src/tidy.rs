//! What compilers do not check.
//!
//! Fails on: a crate edge that ARCHITECTURE.md does not have, unsafe code outside its homes, an
//! operation without a conformance case, a source file no module names, a bare TODO, a crate that could not be published: its
//! manifest says too little, or its sources include what lies outside of its folder. Lists, without failing, long files and long functions.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// Which of our crates each crate may use, outside of its tests.
const EDGES: &[(&str, &[&str])] = &[
    ("photon-core", &[]),
    ("photon-kv", &[]),
    ("photon-sched", &["photon-kv"]),
    ("photon-models", &["photon-core"]),
    ("photon-cpu", &["photon-core"]),
    ("photon-cuda", &["photon-core", "photon-simt"]),
    ("photon-metal", &["photon-core", "photon-simt"]),
    ("photon-simt", &[]),
    ("photon-conformance", &["photon-core"]),
    (
        "photon",
        &[
            "photon-core",
            "photon-kv",
            "photon-sched",
            "photon-models",
            "photon-cpu",
            "photon-cuda",
            "photon-metal",
            "photon-demo",
            "photon-demo3",
        ],
    ),
    ("photon-demo", &[]),
    ("photon-demo3", &[]),
    ("photon-server", &["photon"]),
    ("photon-cli", &["photon", "photon-server"]),
    ("photon-py", &["photon", "photon-server"]),
    ("demo-model", &[]),
    ("photon-fuzz", &["photon-models", "photon"]),
    ("xtask", &["demo-model"]),
];

/// Where unsafe code may be: the backends, what simulates them, and the one line that maps a file.
const UNSAFE_HOMES: &[&str] = &[
    "photon-cpu/",
    "photon-cuda/",
    "photon-metal/",
    "photon-simt/",
    "photon-models/src/checkpoint/mapped.rs",
];

const LONG_FILE: usize = 500;
const LONG_FUNCTION: usize = 70;

struct Source {
    /// From the workspace's folder, with `/`.
    name: String,
    text: String,
}

pub(crate) fn run(root: &Path) -> Result<()> {
    let sources = sources(root)?;
    let mut problems = edges(root)?;
    problems.extend(check_manifests(&packages(root)?));
    problems.extend(check_unsafe(&sources));
    problems.extend(check_cases(&sources));
    problems.extend(check_dead_files(&sources));
    problems.extend(check_todo(&sources));
    problems.extend(check_includes(&sources));
    for line in long(&sources) {
        println!("long: {line}");
    }
    for problem in &problems {
        println!("problem: {problem}");
    }
    if problems.is_empty() {
        println!("tidy: {} files, no problems", sources.len());
        return Ok(());
    }
    bail!("{} problems", problems.len());
}

fn sources(root: &Path) -> Result<Vec<Source>> {
    let git = ["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"];
    let output = Command::new("git").current_dir(root).args(git).output();
    let output = output.context("cannot run git")?;
    let names = String::from_utf8(output.stdout)?;
    let read = |name: &str| {
        let text = std::fs::read_to_string(root.join(name)).with_context(|| name.to_owned())?;
        Ok(Source { name: name.to_owned(), text })
    };
    names.lines().filter(|name| root.join(name).is_file()).map(read).collect()
}

/// The packages of the workspace in a folder.
fn packages(folder: &Path) -> Result<Vec<serde_json::Value>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(folder)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot run cargo metadata")?;
    let mut metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array_mut().context("cargo metadata: no packages")?;
    Ok(std::mem::take(packages))
}

fn edges(root: &Path) -> Result<Vec<String>> {
    let mut packages = packages(root)?;
    packages.extend(self::packages(&root.join("fuzz"))?);
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let mut problems = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().context("cargo metadata: a package without name")?;
        let Some(allowed) = allowed.get(name) else {
            problems.push(format!("crate {name} is not in tidy's table of edges"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"].as_str() == Some("dev");
            if ours.contains(to) && !for_tests && !allowed.contains(&to) {
                problems.push(format!("{name} may not depend on {to}"));
            }
        }
    }
    Ok(problems)
}

/// What a registry and its readers want of every crate that may be published one day: all but tools.
fn check_manifests(packages: &[serde_json::Value]) -> Vec<String> {
    let mut problems = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        if ["xtask", "demo-model"].contains(&name) {
            continue;
        }
        for key in ["description", "license", "readme", "rust_version"] {
            if package[key].as_str().is_none_or(str::is_empty) {
                problems.push(format!("crate {name}: no {key} in its Cargo.toml"));
            }
        }
        for key in ["keywords", "categories"] {
            // A registry takes five.
            if !(1..=5).contains(&package[key].as_array().map_or(0, Vec::len)) {
                problems.push(format!("crate {name}: 1 to 5 {key} in its Cargo.toml"));
            }
        }
        let folder = package["manifest_path"].as_str().map(PathBuf::from).unwrap_or_default();
        if !folder.with_file_name("README.md").is_file() {
            problems.push(format!("crate {name}: no README.md"));
        }
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let is_ours = dependency["path"].is_string() && dependency["kind"] != "dev";
            if is_ours && dependency["req"] == "*" {
                let to = dependency["name"].as_str().unwrap_or_default();
                problems.push(format!("crate {name}: no version for {to}"));
            }
        }
    }
    problems
}

/// Lines without their comments, numbered from 1.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines().map(|line| line.split("//").next().unwrap_or_default()))
}

fn check_unsafe(sources: &[Source]) -> Vec<String> {
    // Spelled so that this line is not one of them.
    let word = concat!("uns", "afe");
    let marks = [format!("{word} {{"), format!("{word} fn"), format!("{word} impl")];
    let at_home = |s: &Source| UNSAFE_HOMES.iter().any(|home| s.name.starts_with(home));
    let strangers = sources.iter().filter(|s| !at_home(s));
    let lines = strangers.flat_map(|s| code(&s.text).map(move |(n, line)| (s, n, line)));
    lines
        .filter(|(_, _, line)| marks.iter().any(|mark| line.contains(mark.as_str())))
        .map(|(s, n, _)| format!("{}:{n}: {word} code outside of the backends", s.name))
        .collect()
}

fn check_cases(sources: &[Source]) -> Vec<String> {
    let Some(kernels) = sources.iter().find(|s| s.name == "photon-core/src/kernels.rs") else {
        return vec!["photon-core/src/kernels.rs is gone; tidy reads the operations there".into()];
    };
    let operations: Vec<&str> = kernels
        .text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("fn ")?.split_once("(cx:"))
        .map(|(name, _)| name)
        .collect();
    let suite: String = sources
        .iter()
        .filter(|s| s.name.starts_with("photon-conformance/src"))
        .map(|s| s.text.as_str())
        .collect();
    // A case is listed once, as `op_what => function`.
    let has_case = |op: &str| {
        let names = |line: &str| line.trim().starts_with(&format!("{op}_")) && line.contains("=>");
        suite.lines().any(names)
    };
    let mut problems: Vec<String> = operations
        .iter()
        .filter(|op| !has_case(op))
        .map(|op| format!("operation {op} has no conformance case `{op}_…`"))
        .collect();
    if operations.len() < 10 {
        problems.push(format!("only {} operations found in kernels.rs", operations.len()));
    }
    problems
}

fn check_dead_files(sources: &[Source]) -> Vec<String> {
    let texts: BTreeMap<&str, &str> =
        sources.iter().map(|s| (s.name.as_str(), s.text.as_str())).collect();
    let dead = |s: &&Source| {
        let path = PathBuf::from(&s.name);
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let Some(parent) = path.parent() else { return false };
        let folder = parent.to_string_lossy().into_owned();
        let is_root = matches!(stem, "lib" | "main" | "build");
        let stands_alone = ["examples", "benches", "bin"].iter().any(|end| folder.ends_with(end));
        if is_root || stands_alone || folder.ends_with("fuzz_targets") {
            return false;
        }
        let parents = [
            format!("{folder}.rs"),
            format!("{folder}/lib.rs"),
            format!("{folder}/main.rs"),
            format!("{folder}/mod.rs"),
        ];
        let declared = format!("mod {stem};");
        !parents.iter().any(|p| texts.get(p.as_str()).is_some_and(|text| text.contains(&declared)))
    };
    let dead = sources.iter().filter(dead);
    dead.map(|s| format!("{}: no module names this file", s.name)).collect()
}

fn check_todo(sources: &[Source]) -> Vec<String> {
    let (word, numbered) = (concat!("TO", "DO"), concat!("TO", "DO(#"));
    let lines = sources.iter().flat_map(|s| (1..).zip(s.text.lines()).map(move |l| (s, l)));
    lines
        .filter(|(_, (_, line))| line.contains(word) && !line.contains(numbered))
        .filter(|(s, _)| s.name != "xtask/src/tidy.rs")
        .map(|(s, (n, _))| format!("{}:{n}: {word} without an issue: {numbered}123)", s.name))
        .collect()
}

/// Files that sources include and a published crate would not have. Documentation tests run in the repository only.
fn check_includes(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources {
        let Some((_, inside)) = source.name.split_once("/src/") else { continue };
        let way_out = "../".repeat(inside.split('/').count() + 1);
        let includes =
            ["include_str!(\"", "include_bytes!(\""].map(|name| format!("{name}{way_out}"));
        let mut before = "";
        for (n, line) in code(&source.text) {
            if includes.iter().any(|start| line.contains(start)) && before != "#[cfg(doctest)]" {
                problems.push(format!("{}:{n}: includes a file outside of its crate", source.name));
            }
            before = line.trim();
        }
    }
    problems
}

fn long(sources: &[Source]) -> Vec<String> {
    let mut list = Vec::new();
    for source in sources {
        let lines = source.text.lines().count();
        if lines > LONG_FILE {
            list.push(format!("{}: {lines} lines", source.name));
        }
        let mut begun: Option<(usize, &str, &str)> = None;
        for (n, line) in code(&source.text) {
            let indent = &line[..line.len() - line.trim_start().len()];
            let is_fn = line.contains("fn ") && line.contains('(');
            if begun.is_none() && is_fn && !line.trim_end().ends_with([';', '}']) {
                begun = Some((n, indent, line.trim()));
            }
            if let Some((start, fn_indent, head)) = begun
                && line.trim_end() == format!("{fn_indent}}}")
            {
                if n - start > LONG_FUNCTION {
                    list.push(format!("{}:{start}: {} lines: {head}", source.name, n - start));
                }
                begun = None;
            }
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, text: &str) -> Source {
        Source { name: name.into(), text: text.into() }
    }

    #[test]
    fn the_workspace_is_tidy() {
        run(crate::root()).unwrap();
    }

    #[test]
    fn strange_unsafe_code_is_found_and_comments_are_not() {
        let text = format!("// {0} {{\n{0} {{ x() }}\n", concat!("uns", "afe"));
        let problems = check_unsafe(&[source("photon/src/lib.rs", &text)]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("photon/src/lib.rs:2"), "{problems:?}");
        assert!(check_unsafe(&[source("photon-cpu/src/lib.rs", &text)]).is_empty());
    }

    #[test]
    fn a_file_that_no_module_names_is_dead() {
        let files = [
            source("a/src/lib.rs", "mod x;"),
            source("a/src/x.rs", "mod y;"),
            source("a/src/x/y.rs", ""),
            source("a/src/z.rs", ""),
        ];
        assert_eq!(check_dead_files(&files), ["a/src/z.rs: no module names this file"]);
    }

    #[test]
    fn an_operation_without_a_case_is_found() {
        let kernels: String = (0..10).map(|i| format!("    fn op{i}(cx: &mut Cx);\n")).collect();
        let cases: String = (1..10).map(|i| format!("    op{i}_works => op::works,\n")).collect();
        let files = [
            source("photon-core/src/kernels.rs", &kernels),
            source("photon-conformance/src/cases.rs", &cases),
        ];
        assert_eq!(check_cases(&files), ["operation op0 has no conformance case `op0_…`"]);
    }

    #[test]
    fn a_crate_that_could_not_be_published_is_found() {
        let package = serde_json::json!({
            "name": "x", "description": "", "license": "MIT", "readme": "README.md", "rust_version": "1.89",
            "keywords": ["a"], "categories": [], "manifest_path": "no/such/Cargo.toml",
            "dependencies": [{"name": "y", "path": "y", "req": "*", "kind": null}],
        });
        let expected = [
            "crate x: no description in its Cargo.toml",
            "crate x: 1 to 5 categories in its Cargo.toml",
            "crate x: no README.md",
            "crate x: no version for y",
        ];
        assert_eq!(check_manifests(&[package]), expected);
    }

    #[test]
    fn an_included_file_outside_of_the_crate_is_found() {
        let inside = "const A: &str = include_str!(\"../a.txt\");\n";
        let outside = "const B: &[u8] = include_bytes!(\"../../b.png\");\n";
        let guide = "#[cfg(doctest)]\n#[doc = include_str!(\"../../guide.md\")]\nstruct Guide;\n";
        let files = [
            source("x/src/lib.rs", &[inside, outside, guide].concat()),
            source("x/src/deep/y.rs", outside),
            source("x/benches/z.rs", outside),
        ];
        assert_eq!(
            check_includes(&files),
            ["x/src/lib.rs:2: includes a file outside of its crate"]
        );
    }

    #[test]
    fn long_functions_are_listed() {
        let body = "    x();\n".repeat(71);
        let list = long(&[source("a.rs", &format!("fn f() {{\n{body}}}\n"))]);
        assert_eq!(list, ["a.rs:1: 72 lines: fn f() {"]);
    }
}
