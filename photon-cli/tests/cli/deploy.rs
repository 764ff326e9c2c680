//! What packages and containers carry: pages and completions, and that commands, variables, ports and routes in `deploy/`
//! are those of this program.
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Stdio},
};

use super::{Folder, fails, photon, run, succeeds};

fn deployed(name: &str) -> String {
    let path = format!("{}/../deploy/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

const FILES: &[&str] = &[
    "Dockerfile",
    "photon.service",
    "kubernetes/base/deployment.yaml",
    "kubernetes/base/service.yaml",
    "kubernetes/podmonitor.yaml",
    "kubernetes/cuda/kustomization.yaml",
    "kubernetes/affinity/route.yaml",
];

/// The words of `[a, "b"]`.
fn list(text: &str) -> Vec<String> {
    let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
    inner.split(',').map(|word| word.trim().trim_matches('"').to_owned()).collect()
}

/// Commands without the program's name.
fn commands() -> Vec<Vec<String>> {
    let dockerfile = deployed("Dockerfile");
    let docker = dockerfile.lines().filter_map(|line| match line.split_once("CMD ") {
        Some(("", words)) => Some(list(words)),
        Some((head, words)) if head.starts_with("HEALTHCHECK") => Some(list(words)[1..].to_vec()),
        _ => None,
    });
    let unit = deployed("photon.service");
    let started =
        unit.lines().filter_map(|line| line.strip_prefix("ExecStart=/opt/photon/photon "));
    let started = started.map(|words| words.split(' ').map(str::to_owned).collect());
    let deployment = deployed("kubernetes/base/deployment.yaml");
    let args = deployment.lines().filter_map(|line| line.trim().strip_prefix("args: ")).map(list);
    let mut commands: Vec<Vec<String>> = docker.chain(started).chain(args).collect();
    // The patch adds to the command of the container.
    let patch = deployed("kubernetes/cuda/kustomization.yaml");
    let mut serve = commands.last().expect("a command").clone();
    serve.extend(patch.lines().filter_map(|line| {
        line.trim().strip_prefix("value: ").filter(|word| word.starts_with("--")).map(str::to_owned)
    }));
    if cfg!(feature = "cuda") {
        commands.push(serve);
    }
    commands
}

#[test]
fn commands_and_variables_of_deployments_are_known() {
    let commands = commands();
    let firsts: Vec<&str> = commands.iter().map(|command| command[0].as_str()).collect();
    let expected = ["health", "serve", "serve", "pull", "serve", "serve"];
    assert_eq!(firsts, expected[..commands.len().max(5)], "{commands:?}");
    for command in &commands {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        match words[0] {
            "serve" => drop(succeeds(&[&words[..], &["--print-config"]].concat())),
            "pull" => assert!(succeeds(&["models"]).contains(words[1]), "{words:?}"),
            _ => assert_eq!(words, ["health"]),
        }
    }
    let help = succeeds(&["serve", "--help"]);
    for file in FILES {
        let text = deployed(file);
        let names = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in names.filter(|name| name.starts_with("PHOTON_") && !name.ends_with('_')) {
            assert!(help.contains(&format!("[env: {name}")), "{file}: no option has {name}");
        }
    }
}

#[test]
fn ports_of_deployments_are_that_of_the_server() {
    let config = succeeds(&["serve", "--print-config"]);
    let port = config.lines().find_map(|line| line.strip_prefix("port = ")).unwrap();
    let port = port.trim_matches('"');
    let mut found = 0;
    for file in FILES {
        for line in deployed(file).lines() {
            let line = line.trim();
            let keys = ["EXPOSE ", "containerPort: ", "port: ", "prometheus.io/port: "];
            let value = keys.iter().find_map(|key| line.strip_prefix(key));
            let value = value.map(|value| value.trim_matches('"'));
            // Others are names: `port: http`.
            if let Some(value) = value.filter(|v| v.starts_with(|c: char| c.is_ascii_digit())) {
                assert_eq!(value, port, "{file}: {line}");
                found += 1;
            }
        }
    }
    assert_eq!(found, 5);
    let pool = deployed("kubernetes/inference/pool.yaml");
    assert!(pool.contains(&format!("- number: {port}\n")), "{pool}");
}

/// The folders of `deploy/kubernetes` that can be applied, and what they say they consist of.
#[test]
fn what_kubernetes_applies_is_there_and_stands_on_no_folder_around_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes");
    let root = root.canonicalize().unwrap();
    for folder in ["", "base", "cuda", "affinity", "inference"] {
        let folder = root.join(folder);
        let text = std::fs::read_to_string(folder.join("kustomization.yaml")).unwrap();
        let (_, listed) = text.split_once("\nresources:\n").unwrap();
        let listed: Vec<&str> =
            listed.lines().map_while(|line| line.strip_prefix("  - ")).collect();
        assert!(!listed.is_empty(), "{}", folder.display());
        for name in listed {
            let path = folder.join(name).canonicalize();
            let path = path.unwrap_or_else(|error| panic!("{}: {name}: {error}", folder.display()));
            // Kustomize calls it a cycle.
            assert!(!folder.starts_with(&path), "{} stands on {name}", folder.display());
            assert!(path.is_file() || path.join("kustomization.yaml").is_file(), "{name}");
        }
    }
}

struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(more: &[&str]) -> Self {
        let mut command = photon(&[&["serve", "--port", "0"], more].concat());
        command.env_remove("PHOTON_HOST").stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.unwrap();
            line.split_once("http://127.0.0.1:")?.1.split(' ').next()?.parse().ok()
        });
        Server { child, port: port.expect("the server says where it is") }
    }

    fn get(&self, path: &str) -> String {
        self.ask("GET", path, "")
    }

    fn post(&self, path: &str, body: &str) -> String {
        self.ask("POST", path, body)
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: photon\r\nConnection: close\r\n");
        write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn routes_of_deployments_answer_and_health_says_whether_they_do() {
    let server = Server::start(&[]);
    let port = server.port.to_string();
    let texts = FILES.iter().map(|file| deployed(file)).collect::<String>();
    let mut routes: Vec<&str> = texts
        .lines()
        .filter_map(|line| line.trim().split_once("path: "))
        .filter(|(key, path)| ["", "prometheus.io/"].contains(key) && !path.starts_with("/spec"))
        .map(|(_, path)| path)
        .collect();
    routes.sort_unstable();
    routes.dedup();
    assert_eq!(routes, ["/health", "/metrics", "/readiness"]);
    for route in routes {
        let answer = server.get(route);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{route}: {answer}");
    }
    let said = succeeds(&["health", "--port", &port]);
    assert_eq!(said, format!("the server at 127.0.0.1:{port} takes requests\n"));
    // A server for all addresses is asked on this machine's own.
    succeeds(&["health", "--host", "0.0.0.0", "--port", &port]);
    drop(server);
    fails(&["health", "--port", &port], 1, &format!("no server answers at 127.0.0.1:{port}"));
}

#[test]
fn routers_of_deployments_read_what_the_server_says() {
    let pool = deployed("kubernetes/inference/kustomization.yaml");
    let option = pool.lines().find_map(|line| line.trim().strip_prefix("value: --"));
    let option = format!("--{}", option.expect("an option for metrics"));
    let server = Server::start(&[&option, "--adapter-slots", "2"]);
    let metrics = server.get("/metrics");
    let picker = deployed("kubernetes/inference/picker.yaml");
    let named = picker.lines().filter_map(|line| Some(line.split_once("-metric=")?.1));
    let named: Vec<&str> = named.collect();
    assert_eq!(named.len(), 4, "{named:?}");
    for name in named {
        assert!(metrics.contains(&format!("\n{name}{{")), "no {name} in {metrics}");
    }
    // Every answer has the header that requests are routed by.
    let answer = server.post("/v1/route_key", r#"{"question": "why?"}"#).to_lowercase();
    for file in ["envoy.yaml", "istio.yaml"] {
        let text = deployed(&format!("kubernetes/affinity/{file}"));
        let name = text.lines().find_map(|line| {
            let line = line.trim();
            line.strip_prefix("httpHeaderName: ").or(line.strip_prefix("name: x-"))
        });
        let name = name.expect("a header");
        assert!(answer.contains(&format!("{name}: ")), "{file}: {name} is not in {answer}");
    }
}

#[test]
fn every_shell_completes_every_command_and_every_command_has_a_page() {
    let help = succeeds(&["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<&str> =
        commands.map_while(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    let commands: Vec<&str> =
        commands.into_iter().filter(|name| !["", "help"].contains(name)).collect();
    assert!(commands.len() > 15 && commands.contains(&"caption"), "{commands:?}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let text = succeeds(&["completions", shell]);
        for command in &commands {
            assert!(text.contains(command), "{shell} does not complete {command}");
        }
    }
    assert_eq!(run(&["completions", "none"]).status.code(), Some(2));

    let folder = Folder::new();
    let pages = folder.path("man");
    succeeds(&["man", pages.to_str().unwrap()]);
    for command in &commands {
        let page = std::fs::read_to_string(pages.join(format!("photon-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{command}: {page}");
    }
    let page = std::fs::read_to_string(pages.join("photon.1")).unwrap();
    let examples = ".SH EXAMPLES\n.nf\n  photon caption photo.jpg\n";
    assert!(page.contains(examples) && page.contains(".fi\n.SH VERSION\n"), "{page}");
}
