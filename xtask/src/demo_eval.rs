//! `cargo xtask demo-eval`: how well the engine answers on pictures the demo models have never seen.
//!
//! Pictures are drawn from evaluation seeds, the `photon` binary is run on each as a user would run it, one
//! process per task, and its JSON is scored against the truth that the generator knows.
//! A process that fails ends the run: a score over the tasks that happened to work would mislead.
//! Nothing of the engine is linked in here.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use demo_model::score::{Answer, Scores, Tally};
use demo_model::{EVALUATION_SEEDS, Length, Scene, SceneRecord, Task};
use serde_json::{Value, json};

/// Least rates that `--check` accepts.
const MIN_QUESTIONS: f64 = 0.95;
const MIN_CAPTIONS: f64 = 0.85;
const MIN_DETECT_F1: f64 = 0.90;
const MIN_POINTS: f64 = 0.95;
const MIN_SEGMENT_IOU: f64 = 0.80;

/// The models of `--matrix`.
const MODELS: [&str; 2] = ["demo", "demo3"];
/// Its formats: what a row is called, and photon's arguments for it.
const FORMATS: [(&str, &[&str]); 6] = [
    ("as trained", &[]),
    ("int8 weights", &["--quant", "int8"]),
    ("fp8 weights", &["--quant", "fp8"]),
    ("int4 weights", &["--quant", "int4"]),
    ("fp8 keys and values", &["--kv-dtype", "fp8"]),
    ("int8 keys and values", &["--kv-dtype", "int8"]),
];

/// Score the engine with a demo model on pictures it has never seen
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The photon binary [default: built by `cargo build --release -p photon-cli`]
    #[arg(long, value_name = "PATH")]
    photon: Option<PathBuf>,
    /// The model, as `photon --model` takes it [default: photon's own]
    #[arg(long)]
    model: Option<OsString>,
    /// Seed of the first picture; 2^40 or above
    #[arg(long, default_value_t = EVALUATION_SEEDS,
          value_parser = clap::value_parser!(u64).range(EVALUATION_SEEDS..))]
    seed: u64,
    /// Number of pictures; each costs up to nine runs of photon
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    count: u64,
    /// How many photon processes run at once
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    parallel: u64,
    /// Quantize the model's weights, as `photon --quant` takes it
    #[arg(long, value_name = "FORMAT")]
    quant: Option<OsString>,
    /// Score both demo models in every format of weights, keys and values, in one table
    #[arg(long, conflicts_with_all = ["model", "quant", "json", "check", "show_misses"])]
    matrix: bool,
    /// Print one JSON object rather than a table
    #[arg(long)]
    json: bool,
    /// Fail when a score is below its threshold
    #[arg(long)]
    check: bool,
    /// Tell every wrong answer on stderr
    #[arg(long)]
    show_misses: bool,
    /// Further arguments for every photon run, such as `-- --kv-dtype int8`
    #[arg(last = true, value_name = "PHOTON_ARGS")]
    extra: Vec<OsString>,
}

/// Runs the evaluation and prints the scores on stdout.
pub(crate) fn run(args: &Args) -> Result<()> {
    let program = match &args.photon {
        Some(path) => path.clone(),
        None => build_photon()?,
    };
    if args.matrix {
        return matrix(&program, args);
    }
    let quant = args.quant.iter().flat_map(|quant| ["--quant".into(), quant.clone()]);
    let extra = quant.chain(args.extra.clone()).collect();
    let engine = Engine::new(program, args.model.as_deref(), extra);
    let started = Instant::now();
    let (scores, misses) = evaluate(&engine, args)?;
    let verdicts = verdicts(&scores);
    let passed = verdicts.iter().all(Verdict::passed);

    if args.show_misses {
        let mut err = io::stderr().lock();
        misses.iter().try_for_each(|miss| writeln!(err, "{miss}"))?;
    }
    let mut out = io::stdout().lock();
    if args.json {
        let rates: serde_json::Map<String, Value> = verdicts.iter().map(Verdict::json).collect();
        let report = json!({
            "seed": args.seed, "pictures": args.count, "seconds": started.elapsed().as_secs_f64(),
            "rates": rates, "counts": scores, "passed": passed,
        });
        writeln!(out, "{report:#}")?;
    } else {
        let seconds = started.elapsed().as_secs_f64();
        let head = format!("{} pictures from seed {}, {seconds:.0} s", args.count, args.seed);
        writeln!(out, "{head}\n\n{}", table(&scores, &verdicts))?;
        if !engine.outlines {
            writeln!(out, "\nsegment is not asked: the model has no prompt for it")?;
        }
    }
    if args.check && !passed {
        let low: Vec<&str> = verdicts.iter().filter(|v| !v.passed()).map(|v| v.name).collect();
        bail!("below the threshold: {}", low.join(", "));
    }
    Ok(())
}

/// Scores every model in every format and prints one table, in Markdown.
fn matrix(program: &Path, args: &Args) -> Result<()> {
    let mut rows = Vec::new();
    for model in MODELS {
        for (format, flags) in FORMATS {
            writeln!(io::stderr(), "{model}, {format}")?;
            let extra = flags.iter().map(OsString::from).chain(args.extra.clone()).collect();
            let engine = Engine::new(program.to_owned(), Some(model.as_ref()), extra);
            let (scores, _) = evaluate(&engine, args)?;
            rows.push(matrix_row(model, format, &verdicts(&scores)));
        }
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{} pictures from seed {}\n", args.count, args.seed)?;
    writeln!(out, "| model | format | questions | captions | detect, F1 | point | segment, IoU |")?;
    writeln!(out, "|---|---|---|---|---|---|---|\n{}", rows.join("\n"))?;
    Ok(())
}

fn matrix_row(model: &str, format: &str, verdicts: &[Verdict]) -> String {
    let cells: Vec<String> = verdicts.iter().map(|verdict| percent(verdict.rate)).collect();
    format!("| `{model}` | {format} | {} |", cells.join(" | "))
}

/// Builds the command-line tool and returns where cargo put it.
fn build_photon() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "-p", "photon-cli"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo to build photon-cli")?;
    ensure!(output.status.success(), "photon-cli does not build; or give --photon PATH");
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut built = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let named = message["target"]["name"] == "photon";
        named.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    });
    built
        .next_back()
        .context("cargo names no binary called photon in photon-cli; give --photon PATH")
}

/// How to start photon.
struct Engine {
    /// The program, and arguments that come before all others.
    program: Vec<OsString>,
    /// Arguments that come after all others.
    extra: Vec<OsString>,
    /// Whether the model can segment.
    outlines: bool,
}

impl Engine {
    fn new(program: PathBuf, model: Option<&OsStr>, extra: Vec<OsString>) -> Self {
        let chosen = model.iter().flat_map(|model| [OsStr::new("--model"), model]);
        let extra = chosen.map(OsStr::to_owned).chain(extra).collect();
        Self { program: vec![program.into()], extra, outlines: outlines(model) }
    }

    fn answer(&self, picture: &Path, task: &Task) -> Result<Answer> {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]);
        match task {
            Task::Caption { length, .. } => {
                let length = match length {
                    Length::Short => "short",
                    Length::Normal => "normal",
                    Length::Long => "long",
                };
                command.arg("caption").arg(picture).args(["--length", length]);
                command.args(["--temperature", "0"]);
            }
            Task::Query { question, .. } => {
                command.arg("query").arg(picture).arg(question).args(["--temperature", "0"]);
            }
            Task::Detect { object, .. } => {
                command.arg("detect").arg(picture).arg(object);
            }
            Task::Point { object, .. } => {
                command.arg("point").arg(picture).arg(object);
            }
            Task::Segment { object, .. } => {
                command.arg("segment").arg(picture).arg(object);
            }
        }
        let command = command.arg("--json").args(&self.extra).stdin(Stdio::null());
        let output = command
            .output()
            .with_context(|| format!("cannot run {}", self.program[0].display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{command:?} failed ({}): {}", output.status, said.trim());
        }
        parse(&output.stdout, task).with_context(|| {
            let said = String::from_utf8_lossy(&output.stdout);
            format!("{command:?} printed {:?}", said.chars().take(200).collect::<String>())
        })
    }
}

/// Whether the `config.json` of a demo model, or of a folder, has a prompt for segment.
fn outlines(model: Option<&OsStr>) -> bool {
    let model = model.unwrap_or(OsStr::new("demo"));
    let ours = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../photon")).join(model);
    let folder = if MODELS.iter().any(|name| *name == model) { ours } else { model.into() };
    // What has no such file is a model of another world, whose scores mean nothing anyway.
    let json = fs::read(folder.join("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_slice(&json).unwrap_or_default();
    let inner = config.get("config").unwrap_or(&config);
    inner.pointer("/tokenizer/templates/segment").is_some_and(|segment| !segment.is_null())
}

/// Reads what photon prints with `--json` for a task of this sort.
fn parse(stdout: &[u8], task: &Task) -> Result<Answer> {
    let value: Value = serde_json::from_slice(stdout).context("not one JSON object")?;
    let text = |key: &str| -> Result<Answer> {
        let text = value[key].as_str().with_context(|| format!("no text under {key:?}"))?;
        Ok(Answer::Text(text.to_owned()))
    };
    Ok(match task {
        Task::Caption { .. } => text("caption")?,
        Task::Query { .. } => text("answer")?,
        Task::Detect { .. } => Answer::Boxes(numbers(&value, "objects", BOX_FIELDS)?),
        Task::Point { .. } => Answer::Points(numbers(&value, "points", ["x", "y"])?),
        Task::Segment { .. } => {
            let path = value["path"].as_str().context("no text under \"path\"")?.to_owned();
            // Without a box nothing is outlined.
            let bounds = match &value["bbox"] {
                Value::Null => [0.0; 4],
                bounds => fields(bounds, "bbox", BOX_FIELDS)?,
            };
            Answer::Path { path, bounds }
        }
    })
}

const BOX_FIELDS: [&str; 4] = ["x_min", "y_min", "x_max", "y_max"];

/// The fields `names` of every item of the list under `key`.
fn numbers<const N: usize>(value: &Value, key: &str, names: [&str; N]) -> Result<Vec<[f64; N]>> {
    let items = value[key].as_array().with_context(|| format!("no list under {key:?}"))?;
    items.iter().map(|item| fields(item, key, names)).collect()
}

/// The fields `names` of `item`, which is under `key`.
fn fields<const N: usize>(item: &Value, key: &str, names: [&str; N]) -> Result<[f64; N]> {
    let mut numbers = [0.0; N];
    for (number, name) in numbers.iter_mut().zip(names) {
        *number = item[name]
            .as_f64()
            .with_context(|| format!("what is under {key:?} has no number {name:?}"))?;
    }
    Ok(numbers)
}

/// A folder of our own that goes away with its owner.
struct TempFolder(PathBuf);

impl TempFolder {
    fn create() -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let at = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("photon-demo-eval-{}-{at}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // Best effort: what is left behind is in the system's folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The tasks asked of one picture: the short caption, and the first of every other kind.
fn chosen(record: &SceneRecord, outlines: bool) -> Vec<&Task> {
    let mut kinds = Vec::new();
    let is_new = |task: &&Task| {
        let kind = match task {
            Task::Caption { length, .. } => return *length == Length::Short,
            Task::Query { kind, .. } => (std::mem::discriminant(*task), Some(*kind)),
            Task::Segment { .. } if !outlines => return false,
            Task::Detect { .. } | Task::Point { .. } | Task::Segment { .. } => {
                (std::mem::discriminant(*task), None)
            }
        };
        let new = !kinds.contains(&kind);
        kinds.push(kind);
        new
    };
    record.tasks.iter().filter(is_new).collect()
}

/// Asks everything about all pictures; returns the scores and a line for each wrong answer.
fn evaluate(engine: &Engine, args: &Args) -> Result<(Scores, Vec<String>)> {
    let folder = TempFolder::create()?;
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let progress = Mutex::new(Progress { done: 0, total: args.count, shown: 0 });
    let work = || -> Result<(Scores, Vec<(usize, String)>)> {
        let (mut scores, mut misses) = (Scores::default(), Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at as u64 >= args.count {
                break;
            }
            let scene = Scene::from_seed(args.seed.wrapping_add(at as u64));
            let judged = judge(engine, &folder.0, &scene, &mut scores);
            if judged.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            misses.extend(judged?.into_iter().map(|miss| (at, miss)));
            progress.lock().map_err(|_| anyhow!("a worker panicked"))?.advance();
        }
        Ok((scores, misses))
    };
    let (mut scores, mut misses) = (Scores::default(), Vec::new());
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..args.parallel).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (part, missed) = worker.join().map_err(|_| anyhow!("a worker panicked"))??;
            scores.merge(&part);
            misses.extend(missed);
        }
        Ok(())
    })?;
    misses.sort();
    Ok((scores, misses.into_iter().map(|(_, miss)| miss).collect()))
}

/// Draws one picture, asks its tasks and counts the answers; returns a line for each wrong one.
fn judge(
    engine: &Engine,
    folder: &Path,
    scene: &Scene,
    scores: &mut Scores,
) -> Result<Vec<String>> {
    let picture = folder.join(format!("{}.png", scene.seed));
    let pixels = scene.render(scene.width, scene.height);
    let color = image::ExtendedColorType::Rgb8;
    image::save_buffer(&picture, &pixels, scene.width, scene.height, color)
        .with_context(|| format!("cannot write {}", picture.display()))?;
    let record = scene.record();
    let mut misses = Vec::new();
    for task in chosen(&record, engine.outlines) {
        let answer = engine.answer(&picture, task)?;
        if !scores.add(&record, task, &answer) {
            misses.push(format!("seed {}: {task:?} but got {answer:?}", scene.seed));
        }
    }
    fs::remove_file(&picture).with_context(|| format!("cannot remove {}", picture.display()))?;
    Ok(misses)
}

/// Says on stderr how far the run is: in place on a terminal, else every tenth.
struct Progress {
    done: u64,
    total: u64,
    shown: u64,
}

impl Progress {
    fn advance(&mut self) {
        self.done += 1;
        let mut err = io::stderr().lock();
        let line = format!("{} of {} pictures", self.done, self.total);
        // A closed stderr is no reason to stop.
        let _ = if err.is_terminal() {
            let end = if self.done == self.total { "\n" } else { "" };
            write!(err, "\r{line}{end}").and_then(|()| err.flush())
        } else if self.done * 10 / self.total > self.shown {
            self.shown = self.done * 10 / self.total;
            writeln!(err, "{line}")
        } else {
            Ok(())
        };
    }
}

/// A score against its threshold.
struct Verdict {
    name: &'static str,
    /// `None` when nothing was asked.
    rate: Option<f64>,
    least: f64,
}

impl Verdict {
    fn passed(&self) -> bool {
        self.rate.is_none_or(|rate| rate >= self.least)
    }

    fn json(&self) -> (String, Value) {
        let report = json!({ "rate": self.rate, "at_least": self.least, "passed": self.passed() });
        (self.name.to_owned(), report)
    }
}

fn verdicts(scores: &Scores) -> [Verdict; 5] {
    let detect = (scores.detect.tasks != 0).then(|| scores.detect.f1());
    let point = (scores.point.tasks != 0).then(|| scores.point.count_matched_rate());
    [
        Verdict { name: "questions", rate: scores.all_questions().rate(), least: MIN_QUESTIONS },
        Verdict { name: "captions", rate: scores.captions.rate(), least: MIN_CAPTIONS },
        Verdict { name: "detect", rate: detect, least: MIN_DETECT_F1 },
        Verdict { name: "point", rate: point, least: MIN_POINTS },
        Verdict { name: "segment", rate: scores.segment.mean_iou(), least: MIN_SEGMENT_IOU },
    ]
}

fn percent(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{:.1} %", 100.0 * rate))
}

fn table(scores: &Scores, verdicts: &[Verdict; 5]) -> String {
    let row = |name: &str, right: String, total: String, rate: Option<f64>, end: &str| {
        let line = format!("{name:<18}{right:>7}{total:>7}{:>10}{end}", percent(rate));
        line.trim_end().to_owned()
    };
    let counted = |name: &str, tally: Tally, end: &str| {
        row(name, tally.right.to_string(), tally.total.to_string(), tally.rate(), end)
    };
    let [questions, captions, detect, point, segment] = verdicts.each_ref().map(|verdict| {
        let mark = if verdict.passed() { "" } else { "  BELOW" };
        format!("{:>10}{mark}", percent(Some(verdict.least)))
    });
    let head = ["task", "right", "total", "rate", "at least"];
    let mut lines =
        vec![format!("{:<18}{:>7}{:>7}{:>10}{:>10}", head[0], head[1], head[2], head[3], head[4])];
    for (kind, tally) in &scores.questions {
        let kind = format!("{kind:?}").to_lowercase();
        lines.push(counted(&format!("  question {kind}"), *tally, ""));
    }
    lines.push(counted("questions", scores.all_questions(), &questions));
    lines.push(counted("captions, short", scores.captions, &captions));
    for (name, found, [main, main_end], rate) in [
        ("detect", scores.detect, ["detect, F1", &detect], verdicts[2].rate),
        ("point", scores.point, ["point, inside", &point], verdicts[3].rate),
    ] {
        let asked = rate.is_some();
        let part = |what: &str, of: usize, rate: f64| {
            let name = format!("  {name} {what}");
            row(&name, found.matched.to_string(), of.to_string(), asked.then_some(rate), "")
        };
        lines.push(part("precision", found.given, found.precision()));
        lines.push(part("recall", found.actual, found.recall()));
        lines.push(row(main, String::new(), String::new(), rate, main_end));
    }
    if let Some(iou) = scores.segment.mean_iou() {
        let asked = scores.segment.tasks.to_string();
        lines.push(row("segment, IoU", String::new(), asked, Some(iou), &segment));
    }
    lines.join("\n")
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use demo_model::QueryKind;

    /// Looks its answer up in a file named by skill, picture and what is asked. Text beyond letters and
    /// digits, such as a question's spaces, is `_` in the name.
    const FAKE_PHOTON: &str = r#"
picture=$(basename "$2" .png)
case "$1" in
  caption) asked= ;;
  *) asked=$(printf %s "$3" | tr -c 'A-Za-z0-9' _) ;;
esac
echo "$@" >> "$(dirname "$0")/log"
cat "$(dirname "$0")/$1.$picture.$asked"
"#;

    const NUM_PICTURES: u64 = 6;

    fn args() -> Args {
        Args {
            photon: None,
            model: None,
            quant: None,
            matrix: false,
            seed: EVALUATION_SEEDS,
            count: NUM_PICTURES,
            parallel: 2,
            json: false,
            check: false,
            show_misses: false,
            extra: Vec::new(),
        }
    }

    fn boxes_json(boxes: &[[f64; 4]]) -> Value {
        let object =
            |b: &[f64; 4]| json!({"x_min": b[0], "y_min": b[1], "x_max": b[2], "y_max": b[3]});
        boxes.iter().map(object).collect()
    }

    /// A fake photon that knows the truth, but says `edit(task, truth)`.
    fn fake(folder: &Path, edit: impl Fn(&Task, Value) -> Value) -> Engine {
        let script = folder.join("photon.sh");
        fs::write(&script, FAKE_PHOTON).unwrap();
        for seed in EVALUATION_SEEDS..EVALUATION_SEEDS + NUM_PICTURES {
            for task in Scene::from_seed(seed).tasks() {
                let (skill, asked, truth) = match &task {
                    Task::Caption { length: Length::Short, answer } => {
                        ("caption", "", json!({ "caption": answer }))
                    }
                    Task::Caption { .. } => continue,
                    Task::Query { question, answer, .. } => {
                        ("query", question.as_str(), json!({ "answer": answer }))
                    }
                    Task::Detect { object, boxes } => {
                        ("detect", object.as_str(), json!({ "objects": boxes_json(boxes) }))
                    }
                    Task::Point { object, points, .. } => {
                        let points = points.iter().map(|p| json!({ "x": p[0], "y": p[1] }));
                        ("point", object.as_str(), json!({ "points": points.collect::<Value>() }))
                    }
                    Task::Segment { object, path, bounds } => {
                        let bounds = boxes_json(&[*bounds])[0].take();
                        ("segment", object.as_str(), json!({ "path": path, "bbox": bounds }))
                    }
                };
                let asked = asked.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
                let path = folder.join(format!("{skill}.{seed}.{asked}"));
                fs::write(path, edit(&task, truth).to_string()).unwrap();
            }
        }
        let program = vec!["/bin/sh".into(), script.into()];
        Engine { program, extra: vec!["--quant".into()], outlines: true }
    }

    #[test]
    fn the_truth_scores_full_marks_and_is_asked_as_documented() {
        let folder = TempFolder::create().unwrap();
        let engine = fake(&folder.0, |_, truth| truth);
        let (scores, misses) = evaluate(&engine, &args()).unwrap();
        assert_eq!(misses, Vec::<String>::new());
        assert_eq!(scores.captions, Tally { right: 6, total: 6 });
        assert_eq!(scores.questions[&QueryKind::Count], Tally { right: 6, total: 6 });
        assert_eq!((scores.detect.tasks, scores.point.tasks), (6, 6));
        assert_eq!(scores.segment.tasks, 6);
        assert!(verdicts(&scores).iter().all(|v| v.passed() && v.rate == Some(1.0)));

        let log = fs::read_to_string(folder.0.join("log")).unwrap();
        assert!(log.lines().all(|line| line.ends_with("--json --quant")), "{log}");
        let captions = log.lines().filter(|line| line.starts_with("caption "));
        assert_eq!(
            captions.filter(|line| line.contains(".png --length short --temperature 0")).count(),
            6
        );
    }

    #[test]
    fn wrong_answers_lower_their_own_scores_only() {
        let folder = TempFolder::create().unwrap();
        let engine = fake(&folder.0, |task, truth| match task {
            Task::Query { kind: QueryKind::Text, .. } => json!({ "answer": "GIBBERISH" }),
            Task::Detect { .. } => json!({ "objects": [] }),
            Task::Segment { .. } => json!({ "path": "", "bbox": null, "parse_error": "..." }),
            _ => truth,
        });
        let (scores, misses) = evaluate(&engine, &args()).unwrap();
        assert_eq!(scores.questions[&QueryKind::Text], Tally { right: 0, total: 6 });
        assert_eq!(scores.questions[&QueryKind::Count], Tally { right: 6, total: 6 });
        let verdicts = verdicts(&scores);
        assert_eq!(verdicts.each_ref().map(Verdict::passed), [false, true, false, true, false]);
        assert!(6 <= misses.len() && misses.iter().any(|miss| miss.contains("GIBBERISH")));
        let table = table(&scores, &verdicts);
        assert_eq!(table.matches("BELOW").count(), 3, "{table}");
        assert!(table.contains("  question text         0      6     0.0 %"), "{table}");
    }

    #[test]
    fn only_a_model_that_can_is_asked_for_outlines() {
        let folder = TempFolder::create().unwrap();
        let outlines = |model: &OsStr| outlines(Some(model));
        assert!(!super::outlines(None) && !outlines("demo".as_ref()) && outlines("demo3".as_ref()));
        assert!(!outlines(folder.0.as_ref()), "it has no config.json");
        let config = folder.0.join("config.json");
        fs::write(&config, r#"{"tokenizer": {"templates": {"segment": {"prefix": []}}}}"#).unwrap();
        assert!(outlines(folder.0.as_ref()));
        let engine = Engine { outlines: false, ..fake(&folder.0, |_, truth| truth) };
        let (scores, misses) = evaluate(&engine, &args()).unwrap();
        assert_eq!((scores.segment.tasks, misses.len()), (0, 0));
        let verdicts = verdicts(&scores);
        assert!(verdicts.iter().all(Verdict::passed));
        assert!(!table(&scores, &verdicts).contains("segment"));
        let row = matrix_row("demo", "int8 weights", &verdicts);
        let whole = "100.0 % | 100.0 % | 100.0 % | 100.0 %";
        assert_eq!(row, format!("| `demo` | int8 weights | {whole} | - |"));
    }

    #[test]
    fn a_failing_or_unreadable_photon_ends_the_run() {
        let folder = TempFolder::create().unwrap();
        let script = folder.0.join("photon.sh");
        let program = vec!["/bin/sh".into(), script.clone().into()];
        let engine = Engine { program, extra: vec![], outlines: false };
        for (code, expected) in [
            ("echo no such model >&2; exit 3", "no such model"),
            ("echo {}", "no text under \"caption\""),
            ("echo oops", "not one JSON object"),
        ] {
            fs::write(&script, code).unwrap();
            let error = format!("{:#}", evaluate(&engine, &args()).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        let missing = Engine::new(folder.0.join("absent"), None, vec![]);
        let error = format!("{:#}", evaluate(&missing, &args()).unwrap_err());
        assert!(error.contains("cannot run"), "{error}");
    }
}
