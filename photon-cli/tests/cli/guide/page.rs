//! A page: its blocks, and running them.
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{picture, root, text};
use crate::{asset, convert::adapter, photon};

pub(super) struct Page {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) text: String,
    pub(super) blocks: Vec<Block>,
}

#[derive(Debug)]
pub(super) struct Block {
    /// Of its fence, from 1.
    pub(super) line: usize,
    pub(super) kind: Kind,
    pub(super) text: String,
}

#[derive(Debug)]
pub(super) enum Kind {
    Run,
    Fails,
    Serve,
    /// And why.
    NotRun(String),
    /// What the block before it prints.
    Text,
    /// Its name.
    File(String),
    /// Not for this test.
    Other,
}

impl Block {
    pub(super) fn is_command(&self) -> bool {
        matches!(self.kind, Kind::Run | Kind::Fails | Kind::Serve | Kind::NotRun(_))
    }
}

impl Page {
    pub(super) fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let blocks = blocks(&text).unwrap_or_else(|why| panic!("{name}: {why}"));
        Page { name, path: path.to_owned(), text, blocks }
    }
}

/// The blocks of code of a page.
pub(super) fn blocks(text: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((line, fence)) = lines.next() {
        let Some(info) = fence.strip_prefix("```") else { continue };
        let mut text = String::new();
        loop {
            match lines.next() {
                Some((_, "```")) => break,
                Some((_, inside)) => text.extend([inside, "\n"]),
                None => return Err(format!("the block in line {line} has no end")),
            }
        }
        let kind = kind(info).ok_or_else(|| format!("line {line}: what is {info:?}?"))?;
        blocks.push(Block { line, kind, text });
    }
    Ok(blocks)
}

fn kind(info: &str) -> Option<Kind> {
    let (language, mark) = info.split_once(',').unwrap_or((info, ""));
    let (mark, value) = mark.split_once(':').unwrap_or((mark, ""));
    let value = value.trim();
    match (language, mark, value) {
        ("sh", "", "") => Some(Kind::Run),
        ("sh", "fails", "") => Some(Kind::Fails),
        ("sh", "server", "") => Some(Kind::Serve),
        ("sh", "no-run", why) if !why.is_empty() => Some(Kind::NotRun(why.to_owned())),
        (_, "file", name) if !name.is_empty() => Some(Kind::File(name.to_owned())),
        ("sh", ..) => None,
        ("text", "", "") => Some(Kind::Text),
        _ => Some(Kind::Other),
    }
}

/// Programs in the place of which pages' blocks find these; `NO_RUN` is set where they are only read.
const PRELUDE: &str = r#"
set -e -o pipefail
photon() {
  if [ -n "$NO_RUN" ]; then command photon "$@" --help >/dev/null; else command photon "$@"; fi
}
known() { case " $3 " in *" $2 "*) ;; *) echo "there is no $1 $2" >&2; return 1 ;; esac }
cargo() {
  case "$1" in
    xtask) known task "$2" "$TASKS" ;;
    run | install | build)
      while [ $# -gt 0 ]; do
        case "$1" in
          --features) for f in ${2//,/ }; do known feature "$f" "$FEATURES"; done ;;
          --example) known example "$2" "$EXAMPLES"; return ;;
          --) shift; photon "$@"; return ;;
        esac
        shift
      done ;;
    test | bench) ;;
    *) echo "a page's test knows nothing of cargo $1" >&2; return 1 ;;
  esac
}
if [ -n "$NO_RUN" ]; then command_not_found_handle() { :; }; fi
"#;

/// The features of the program and of the library.
fn features() -> String {
    let mut all = String::new();
    for name in ["photon-cli", "photon"] {
        let manifest = std::fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        all.extend(manifest["features"].as_table().unwrap().keys().flat_map(|key| [key, " "]));
    }
    all
}

/// The programs that show how to use the library.
fn examples() -> String {
    let folders = ["photon", "photon-server"].map(|name| root().join(name).join("examples"));
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let name = |file: std::io::Result<std::fs::DirEntry>| file.unwrap().path();
    files.map(name).map(|path| format!("{} ", path.file_stem().unwrap().display())).collect()
}

/// The tasks of xtask, whose names are those of an enum's variants.
fn tasks() -> String {
    let source = std::fs::read_to_string(root().join("xtask/src/main.rs")).unwrap();
    let (_, variants) = source.split_once("enum Task {").expect("xtask's tasks are an enum");
    let mut tasks = String::new();
    for line in variants.lines().take_while(|line| *line != "}") {
        let name: String = line.trim_start().chars().take_while(|c| c.is_alphanumeric()).collect();
        if line.starts_with("    ") && name.starts_with(|c: char| c.is_uppercase()) {
            let kebab = name.chars().flat_map(|c| [c.is_uppercase().then_some('-'), Some(c)]);
            let kebab: String = kebab.flatten().collect();
            tasks += &format!("{} ", kebab[1..].to_lowercase());
        }
    }
    tasks
}

/// The folder in which a page's blocks run.
struct Stage {
    folder: tempfile::TempDir,
    server: Option<Server>,
}

struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["assets", "photos/2026", "adapters", ".bin"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        for entry in std::fs::read_dir(asset("")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), path("assets").join(entry.file_name())).unwrap();
        }
        let picture = image::open(asset("four.png")).unwrap().to_rgb8();
        for name in ["photo.jpg", "before.jpg", "after.jpg", "photos/a.jpg", "photos/2026/b.jpg"] {
            picture.save(path(name)).unwrap();
        }
        std::fs::write(path("adapters/cats@100.safetensors"), adapter()).unwrap();
        let program = env!("CARGO_BIN_EXE_photon");
        std::os::unix::fs::symlink(program, path(".bin/photon")).unwrap();
        Stage { folder, server: None }
    }

    fn bash(&self, script: &str, run: bool) -> Command {
        let bin = self.folder.path().join(".bin");
        let path = match run {
            true => format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()),
            false => bin.display().to_string(),
        };
        let mut command = Command::new("/bin/bash");
        // A variable that the user of this machine has set must not decide; `photon` knows which there are.
        for (name, change) in photon(&[]).get_envs() {
            match change {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
            .args(["-c", &format!("{PRELUDE}\n{script}")])
            .current_dir(self.folder.path())
            .env("PATH", path)
            .env("HOME", self.folder.path())
            .env("NO_RUN", if run { "" } else { "1" })
            .env("KEY", "secret")
            .env("FEATURES", features())
            .env("TASKS", tasks())
            .env("EXAMPLES", examples())
            .env("PHOTON_PORT", self.server.as_ref().map_or(0, |server| server.port).to_string())
            .env("NO_PROXY", "localhost,127.0.0.1")
            .stdin(Stdio::null());
        command
    }

    /// Runs a script to its end; says whether it succeeded and what it printed.
    fn script(&self, script: &str, run: bool) -> Result<(bool, String), String> {
        let printed = self.folder.path().join(".printed");
        let out = File::create(&printed).unwrap();
        let mut command = self.bash(script, run);
        let mut child =
            command.stdout(out.try_clone().unwrap()).stderr(out).spawn().expect("bash is there");
        let status = wait(&mut child)?;
        let printed = String::from_utf8_lossy(&std::fs::read(&printed).unwrap()).into_owned();
        Ok((status, printed))
    }

    /// Starts a server and waits until it says where it listens.
    fn serve(&mut self, script: &str) -> Result<(), String> {
        self.stop()?;
        let log = self.folder.path().join(".server");
        let mut command = self.bash(&format!("exec {script}"), true);
        let mut child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        let begun = Instant::now();
        loop {
            let said = std::fs::read_to_string(&log).unwrap();
            let address = said.split_once("http://").and_then(|(_, rest)| rest.split_once(' '));
            if let Some((address, _)) = address {
                let port = address.rsplit(':').next().unwrap().parse().unwrap();
                self.server = Some(Server { child, port });
                return Ok(());
            }
            if child.try_wait().unwrap().is_some() || begun.elapsed() > LIMIT {
                let _ = child.kill();
                return Err(format!("does not serve: {said}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops the server as people do, by a signal.
    fn stop(&mut self) -> Result<(), String> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        let signal = Command::new("kill").args(["-TERM", &server.child.id().to_string()]).status();
        assert!(signal.unwrap().success());
        match wait(&mut server.child)? {
            true => Ok(()),
            false => Err("the server did not end well".into()),
        }
    }

    /// What a page says of the server's port, made true.
    fn with_port(&self, text: &str) -> String {
        match &self.server {
            Some(server) => text.replace("localhost:2020", &format!("localhost:{}", server.port)),
            None => text.to_owned(),
        }
    }

    fn without_port(&self, text: &str) -> String {
        match &self.server {
            Some(server) => text.replace(&format!(":{}", server.port), ":2020"),
            None => text.to_owned(),
        }
    }

    /// Does what a block says; `shown` is what the page says it prints.
    fn block(&mut self, block: &Block, shown: Option<&str>) -> Result<(), String> {
        match &block.kind {
            Kind::Text | Kind::Other => Ok(()),
            Kind::File(name) => {
                std::fs::write(self.folder.path().join(name), &block.text).unwrap();
                Ok(())
            }
            Kind::Serve => self.serve(&block.text),
            Kind::NotRun(_) => match self.script(&block.text, false)? {
                (true, _) => Ok(()),
                (false, printed) => Err(printed),
            },
            Kind::Run | Kind::Fails => {
                let (succeeded, printed) = self.script(&self.with_port(&block.text), true)?;
                match (succeeded, matches!(block.kind, Kind::Fails)) {
                    (true, true) => return Err(format!("does not fail, and prints\n{printed}")),
                    (false, false) => return Err(printed),
                    _ => {}
                }
                let printed = self.without_port(&printed);
                match shown {
                    Some(shown) if !text::same(shown, &printed) => {
                        Err(format!("prints\n{printed}and not\n{shown}"))
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

/// What no block of a page takes.
const LIMIT: Duration = Duration::from_secs(90);

fn wait(child: &mut Child) -> Result<bool, String> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        if let Some(status) = child.try_wait().unwrap() {
            return Ok(status.success());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("does not end within {LIMIT:?}"))
}

/// Runs a page's blocks; an error names the first that is wrong.
pub(super) fn run(page: &Page) -> Result<(), String> {
    let mut stage = Stage::new();
    for (at, block) in page.blocks.iter().enumerate() {
        let shown = page.blocks.get(at + 1).filter(|next| matches!(next.kind, Kind::Text));
        let shown = shown.map(|next| next.text.as_str());
        stage
            .block(block, shown)
            .map_err(|why| format!("{}:{}: {}{why}", page.name, block.line, block.text))?;
    }
    stage.stop().map_err(|why| format!("{}: {why}", page.name))?;
    picture::compare(page, stage.folder.path())
}
