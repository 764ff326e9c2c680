//! The contract: client packages that people have, unchanged, against a real server.
//!
//! Each test makes an environment of its own under `target/contract` and installs the packages there, once. Where
//! Python, Node.js or Chromium is missing, or nothing can be installed, it says SKIPPED; with `CI` set, it fails.
//! What the page looked like is kept in `target/contract/page/screenshots`.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]
#![allow(clippy::print_stdout, reason = "what clients said is what a test shows")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use photon::{Model, Photon};
use photon_server::{Config, Server};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/contract");
const PICTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/shapes.png");

/// A server that runs as long as the tests do.
struct Running {
    url: String,
    grpc: String,
    kv_events: String,
    skills: String,
}

fn serve(model: Model, config: Config) -> Running {
    let events = cfg!(feature = "kv-events");
    let photon = Photon::builder().model(model).cache_events(events).build().unwrap();
    let skills = photon.skills().join(",");
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let config = Config {
                listen: any,
                #[cfg(feature = "grpc")]
                grpc: Some(any),
                #[cfg(feature = "kv-events")]
                kv_events: Some(any),
                ..config
            };
            let server = Server::bind(photon, config).await.unwrap();
            #[cfg(feature = "grpc")]
            let grpc = server.grpc_address();
            #[cfg(not(feature = "grpc"))]
            let grpc = None::<SocketAddr>;
            #[cfg(feature = "kv-events")]
            let kv_events = server.kv_events_addresses();
            #[cfg(not(feature = "kv-events"))]
            let kv_events = None::<[SocketAddr; 2]>;
            send.send((server.addresses()[0], grpc, kv_events)).unwrap();
            server.run().await;
        });
    });
    let (http, grpc, kv_events) = receive.recv().unwrap();
    let list = |addresses: &[SocketAddr]| {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    Running {
        url: format!("http://{http}"),
        grpc: list(grpc.as_slice()),
        kv_events: list(kv_events.as_ref().map_or(&[], |both| both)),
        skills,
    }
}

/// The server that clients share.
fn server() -> &'static Running {
    static SERVER: OnceLock<Running> = OnceLock::new();
    SERVER.get_or_init(|| serve(Model::Demo, Config::default()))
}

/// Where environments are made: beside the test's own binary, which is under `target`.
fn environments() -> PathBuf {
    let binary = std::env::current_exe().unwrap();
    let target = binary.ancestors().find(|path| path.ends_with("target"));
    target.unwrap_or(Path::new(env!("CARGO_TARGET_TMPDIR"))).join("contract")
}

/// Without Python, Node.js, a browser or a package registry nothing can be said of clients; the gate has them all.
fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "the gate checks every client: {why}");
    println!("SKIPPED: {why}");
}

fn run(command: &mut Command) -> Result<Output, String> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|error| format!("cannot run {shown}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    Err(format!("{shown}: {}\n{out}\n{err}", output.status))
}

/// An environment, made by `make` unless it was made before.
fn environment(
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let folder = environments().join(name);
    let made = folder.join("made");
    if !made.exists() {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        make(&folder)?;
        std::fs::write(made, "").map_err(|error| error.to_string())?;
    }
    Ok(folder)
}

/// Runs a script's checks and shows them.
fn script(command: &mut Command) {
    let Running { url, grpc, kv_events, skills } = server();
    let command = command
        .env("PHOTON_URL", url)
        .env("PHOTON_GRPC", grpc)
        .env("PHOTON_KV_EVENTS", kv_events)
        .env("PHOTON_SKILLS", skills)
        .env("PHOTON_MODEL", "demo")
        .env("PHOTON_PICTURE", PICTURE)
        .env("NO_PROXY", "127.0.0.1");
    match run(command) {
        Ok(output) => print!("{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => panic!("{error}"),
    }
}

/// Runs a Python script with packages of these versions; returns the Python that has them.
fn python(name: &str, packages: &[&str], file: &str) -> Option<PathBuf> {
    let made = environment(name, |folder| {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        if packages.is_empty() {
            return Ok(());
        }
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        run(Command::new(folder.join("bin/python")).args(pip).args(packages)).map(|_| ())
    });
    match made {
        Ok(folder) => {
            let python = folder.join("bin/python");
            script(
                Command::new(&python)
                    .arg(Path::new(FOLDER).join(file))
                    .env("PYTHONDONTWRITEBYTECODE", "1"),
            );
            Some(python)
        }
        Err(error) => {
            skip(&error);
            None
        }
    }
}

/// An environment with the packages of a `package.json`, and these scripts in it: Node.js looks for packages from
/// where a script lies.
fn packages(name: &str, packages: &str, from: &Path, scripts: &[&str]) -> Result<PathBuf, String> {
    let folder = environment(name, |folder| {
        std::fs::write(folder.join("package.json"), packages).map_err(|error| error.to_string())?;
        let install = ["install", "--silent", "--no-audit", "--no-fund", "--prefix"];
        run(Command::new("npm").args(install).arg(folder)).map(|_| ())
    })?;
    for script in scripts {
        std::fs::copy(from.join(script), folder.join(script)).map_err(|error| error.to_string())?;
    }
    Ok(folder)
}

/// Runs a Node.js script with the packages of a `package.json`.
fn node(name: &str, json: &str, file: &str) {
    match packages(name, json, Path::new(FOLDER), &[file]) {
        Ok(folder) => script(Command::new("node").arg(folder.join(file))),
        Err(error) => skip(&error),
    }
}

/// Runs the page's tests in Chromium, each model's screenshots in a folder of its own.
fn page(model: &str, url: &str, keyed: &str, file: &str) {
    let json = r#"{"dependencies": {"playwright-core": "1.65.1"}}"#;
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page");
    let folder = match packages("page", json, &from, &["harness.mjs", "page.mjs", "failures.mjs"]) {
        Ok(folder) => folder,
        Err(error) => return skip(&error),
    };
    if let Err(error) = run(Command::new("chromium").arg("--version")) {
        return skip(&error);
    }
    let mut node = Command::new("node");
    node.arg(folder.join(file))
        .env("PHOTON_URL", url)
        .env("PHOTON_KEYED", keyed)
        .env("PHOTON_SHOTS", folder.join("screenshots").join(model))
        .env("NO_PROXY", "127.0.0.1");
    match run(&mut node) {
        Ok(output) => print!("{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => panic!("{error}"),
    }
}

// What Moondream's client needs to run models itself, PyTorch among it (5 GiB), is left out: a server does that.

#[test]
fn moondream_1_2_2_python() {
    let packages = ["--no-deps", "moondream==1.2.2", "pillow"];
    python("moondream-1.2.2", &packages, "moondream_client.py");
}

#[test]
fn moondream_2_6_1_python() {
    let packages = ["--no-deps", "moondream==2.6.1", "pillow"];
    let python = python("moondream-2.6.1", &packages, "moondream_client.py");
    python.into_iter().for_each(|python| guide_runs(&python, "moondream"));
}

#[test]
fn moondream_node() {
    // The sharp that it asks for fetches a library from elsewhere while it is installed; newer ones bring it.
    let packages = r#"{"dependencies": {"moondream": "0.2.0"}, "overrides": {"sharp": "0.34.5"}}"#;
    node("moondream-node", packages, "moondream_client.mjs");
}

#[test]
fn openai_python() {
    let python = python("openai", &["openai==3.57.0"], "openai_client.py");
    python.into_iter().for_each(|python| guide_runs(&python, "openai"));
}

#[test]
fn ollama_python() {
    let python = python("ollama", &["ollama==0.6.3"], "ollama_client.py");
    python.into_iter().for_each(|python| guide_runs(&python, "ollama"));
}

#[test]
fn triton_python() {
    let python = python("triton", &["tritonclient[http]==2.73.0"], "triton_client.py");
    python.into_iter().for_each(|python| guide_runs(&python, "triton"));
}

#[cfg(feature = "grpc")]
#[test]
fn triton_grpc_python() {
    python("triton-grpc", &["tritonclient[grpc,http]==2.73.0"], "triton_grpc_client.py");
}

#[cfg(feature = "kv-events")]
#[test]
fn kv_events_python() {
    python("kv-events", &["pyzmq==27.1.0", "msgpack==1.1.2"], "kv_events.py");
}

/// The guide's programs for a client, as they stand there but for the server's address.
fn guide(client: &str) -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/src/clients.md");
    let page = std::fs::read_to_string(page).unwrap();
    let fence = format!("```python,client: {client}\n");
    let blocks = page.split(&fence).skip(1).filter_map(|rest| rest.split("```").next());
    let address = server().url.trim_start_matches("http://");
    blocks.collect::<String>().replace("localhost:2020", address)
}

/// Runs the guide's programs for a client whose package this Python has.
fn guide_runs(python: &Path, client: &str) {
    let program = guide(client);
    assert!(program.contains("import"), "the guide has a program for {client}");
    // Where `assets` is.
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut command = Command::new(python);
    command.args(["-c", &program]).current_dir(folder).env("NO_PROXY", "127.0.0.1");
    let printed = run(&mut command).unwrap_or_else(|error| panic!("{error}")).stdout;
    let printed = String::from_utf8_lossy(&printed).into_owned();
    assert!(printed.contains("Blue") || printed.contains("x_min"), "{client}: {printed}");
}

#[test]
fn errors_and_promises() {
    // One after the other: they share an environment.
    python("plain", &[], "errors.py");
    python("plain", &[], "routing.py");
}

#[test]
fn page_in_chromium() {
    // In one test, because two Chromiums at once and a model do not answer in time on two processors.
    let url = &server().url;
    let keys = Config { api_keys: vec!["secret".into()], ..Config::default() };
    let keyed = serve(Model::Demo, keys).url;
    page("demo", url, &keyed, "page.mjs");
    page("demo", url, &keyed, "failures.mjs");
    let experts = serve(Model::Demo3, Config::default()).url;
    page("demo3", &experts, &keyed, "page.mjs");
}
