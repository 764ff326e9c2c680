//! `demo-pictures`: streams, draws and tells the demo model's pictures.
//!
//! `stream` is what training reads from a pipe: for each picture a little-endian `u32`, that many
//! bytes of JSON (a [`SceneRecord`]), and `size * size * 3` bytes of RGB.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use demo_model::{Scene, SceneRecord, Task};

const USAGE: &str = "\
usage: demo-pictures stream [--seed S] [--count N] [--size PIXELS]   pictures and truth to a pipe; N = 0 is endless
       demo-pictures text   [--seed S] [--count N]                   all questions, answers and objects, one a line
       demo-pictures draw   [--seed S] [--count N] OUTDIR            PNG and JSON files, in native size";
const MAX_SIZE: u64 = 4096;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Options {
    seed: u64,
    count: u64,
    size: u32,
    folder: Option<String>,
}

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "demo-pictures: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The reader has had enough: no fault of ours.
fn is_closed_pipe(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn run(args: Vec<String>) -> Result<()> {
    let (command, rest) = args.split_first().ok_or(USAGE)?;
    let options = parse(rest)?;
    match (command.as_str(), &options.folder) {
        ("stream", None) => stream(&options),
        ("text", None) => text(&options),
        ("draw", Some(folder)) => draw(&options, Path::new(folder)),
        _ => Err(USAGE.into()),
    }
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options { seed: 0, count: 1, size: 112, folder: None };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if !arg.starts_with("--") {
            if options.folder.replace(arg.clone()).is_some() {
                return Err(USAGE.into());
            }
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{arg} needs a number"))?;
        let number: u64 = value.parse().map_err(|_| format!("{arg} {value}: not a number"))?;
        match arg.as_str() {
            "--seed" => options.seed = number,
            "--count" => options.count = number,
            "--size" if (1..=MAX_SIZE).contains(&number) => options.size = number as u32,
            "--size" => return Err(format!("--size must be 1 to {MAX_SIZE}").into()),
            _ => return Err(format!("unknown option {arg}\n{USAGE}").into()),
        }
    }
    Ok(options)
}

fn scenes(options: &Options) -> impl Iterator<Item = Scene> {
    let end = if options.count == 0 { u64::MAX } else { options.count };
    let seed = options.seed;
    (0..end).map(move |at| Scene::from_seed(seed.wrapping_add(at)))
}

fn stream(options: &Options) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 18, io::stdout().lock());
    for scene in scenes(options) {
        let json = serde_json::to_vec(&scene.record())?;
        out.write_all(&u32::try_from(json.len())?.to_le_bytes())?;
        out.write_all(&json)?;
        out.write_all(&scene.render(options.size, options.size))?;
    }
    out.flush()?;
    Ok(())
}

fn text(options: &Options) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for scene in scenes(options) {
        for task in scene.tasks() {
            match task {
                Task::Caption { answer, .. } => writeln!(out, "{answer}")?,
                Task::Query { question, answer, .. } => writeln!(out, "{question}\n{answer}")?,
                Task::Detect { object, .. } | Task::Point { object, .. } => {
                    writeln!(out, "{object}")?;
                }
                // Its objects are named as the others', and its path is not text.
                Task::Segment { .. } => {}
            }
        }
    }
    out.flush()?;
    Ok(())
}

fn draw(options: &Options, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for scene in scenes(options) {
        let record: SceneRecord = scene.record();
        let pixels = scene.render(scene.width, scene.height);
        let path = folder.join(format!("{}.png", scene.seed));
        image::save_buffer(&path, &pixels, scene.width, scene.height, image::ColorType::Rgb8)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let path = folder.join(format!("{}.json", scene.seed));
        fs::write(&path, serde_json::to_string_pretty(&record)? + "\n")
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
