//! The recipes for several machines (`scale/`), as far as Python alone can try them: their own tests, and a job that runs
//! here, with this program. With the routers and data frames they are for, `cargo xtask scale-check` tries them.
use std::{path::Path, process::Command};

use serde_json::Value;

use super::{Folder, asset, photon};

/// Python with a program of `scale/`; `None` where there is no Python, which the gate has.
#[allow(clippy::print_stdout, reason = "what was skipped is what a test shows")]
fn python(args: &[&str]) -> Option<Command> {
    if Command::new("python3").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "the gate has Python");
        println!("SKIPPED: there is no python3");
        return None;
    }
    let mut command = Command::new("python3");
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scale");
    command.current_dir(recipes).args(args).env("PYTHONDONTWRITEBYTECODE", "1");
    // What must not decide a test does not decide here either.
    for (name, change) in photon(&[]).get_envs() {
        match change {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Some(command)
}

#[track_caller]
fn succeeds(mut command: Command) -> String {
    let output = command.output().unwrap();
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success(), "{out}\n{err}");
    out.into_owned()
}

#[test]
fn recipes_pass_their_tests() {
    python(&["-W", "ignore", "-m", "unittest", "discover", "tests"]).map(succeeds);
}

#[test]
fn a_job_answers_every_picture_once_and_goes_on_with_those_that_came_since() {
    let folder = Folder::new();
    let (source, out) = (folder.path("photos"), folder.path("results"));
    std::fs::create_dir(&source).unwrap();
    let put = |name: &str| std::fs::copy(asset(name), source.join(name)).unwrap();
    let job = || {
        let mut job = python(&["offline/alone.py"])?;
        job.arg(&source).arg(&out).args(["--together", "1", "--engine"]);
        job.args([env!("CARGO_BIN_EXE_photon"), "--option=--threads=1"]);
        job.args(["--ask", "caption:short", "--ask", "detect:star"]);
        Some(job)
    };
    put("shapes.png");
    std::fs::write(source.join("none.jpg"), "no picture").unwrap();
    if job().map(succeeds).is_none() {
        return;
    }
    put("number.png");
    let said = succeeds(job().unwrap());
    assert_eq!(said.lines().count(), 1, "only what came since: {said}");
    assert_eq!(succeeds(job().unwrap()), "");

    let files = std::fs::read_dir(&out).unwrap().map(|file| file.unwrap().path());
    let text: String = files.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let mut lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.sort_by_key(|line| format!("{}{}", line["id"], line["ask"]));
    let ids: Vec<&str> = lines.iter().map(|line| line["id"].as_str().unwrap()).collect();
    let pictures = ["none.jpg", "number.png", "shapes.png"];
    assert_eq!(ids, pictures.map(|name| [name, name]).concat());
    assert!(lines[..2].iter().all(|line| line["error"].is_string() && line["result"].is_null()));
    assert!(lines[4]["result"]["caption"].as_str().unwrap().contains("star"), "{text}");
    assert_eq!(lines[5]["result"]["objects"].as_array().unwrap().len(), 1, "{text}");
}
