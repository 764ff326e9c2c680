//! `batch`: many requests from a file, answered together, results written as they come.
//!
//! ## How it runs
//! One thread reads lines into a short queue; `--concurrency` threads each take a line, hand its
//! request to the engine, wait and write the result. The engine joins what is in flight into
//! batches. A first Ctrl-C stops the taking; what was taken is answered and written.
//! Resuming is the business of [`journal`]; the format of a line that of [`line`].
mod journal;
mod line;
mod meter;
mod source;

use std::{
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use photon::{Grammar, Image, ImageSource, Photon, RunError, adapters::AdapterFolder};
use serde_json::{Map, Value, json};

use crate::{
    Failure,
    args::{BatchArgs, BatchSkill},
    output, run,
};
use journal::{Journal, Options, Outcome, Record, Usage};
use line::{Code, Defaults, LineError};
use meter::{Meter, Summary};
use source::{Item, MAX_LINE, Source};

/// How often waiting threads look whether they should stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Problems that `--dry-run` prints one by one.
const MAX_PROBLEMS: u64 = 20;

/// What is asked, in every form the input can have.
enum Input {
    File(PathBuf),
    Stdin,
    Images { paths: Vec<String>, template: Map<String, Value> },
}

impl Input {
    fn of(args: &BatchArgs) -> Result<Input, Failure> {
        let form = form(args)?;
        match args.input.as_deref() {
            Some("-") => Ok(Input::Stdin),
            Some(path) => Ok(Input::File(path.into())),
            None => {
                let mut template = template(args)?;
                template.extend(form);
                Ok(Input::Images { paths: source::matching(&args.images)?, template })
            }
        }
    }

    fn open(&self) -> anyhow::Result<Source> {
        match self {
            Input::Stdin => Ok(Source::stdin()),
            Input::File(path) => {
                Source::file(path).with_context(|| format!("cannot read {}", path.display()))
            }
            Input::Images { paths, template } => {
                Ok(Source::images(paths.clone(), template.clone()))
            }
        }
    }

    fn unit(&self) -> &'static str {
        match self {
            Input::Images { .. } => "images",
            Input::File(_) | Input::Stdin => "lines",
        }
    }

    /// What pictures named in lines are relative to.
    fn folder(&self) -> PathBuf {
        match self {
            Input::File(path) => path.parent().map_or(PathBuf::new(), Path::to_path_buf),
            Input::Stdin | Input::Images { .. } => PathBuf::new(),
        }
    }
}

/// The line for each picture of `--images`, but the picture.
fn template(args: &BatchArgs) -> Result<Map<String, Value>, Failure> {
    let need = |value: &Option<String>, flag: &str| match value.as_deref().map(str::trim) {
        None | Some("") => Err(Failure::Usage(format!("--images with this --skill needs {flag}"))),
        Some(text) => Ok(text.to_owned()),
    };
    let template = match args.skill.unwrap_or(BatchSkill::Caption) {
        BatchSkill::Caption => json!({"skill": "caption", "length": args.length.name()}),
        BatchSkill::Query => json!({"skill": "query",
            "question": need(&args.question, "--question")?, "reasoning": args.reasoning}),
        BatchSkill::Detect => {
            json!({"skill": "detect", "object": need(&args.object, "--object")?})
        }
        BatchSkill::Point => json!({"skill": "point", "object": need(&args.object, "--object")?}),
        BatchSkill::Segment => {
            json!({"skill": "segment", "object": need(&args.object, "--object")?})
        }
    };
    let Value::Object(template) = template else { unreachable!("all of them are objects") };
    Ok(template)
}

/// What answers must be, as a line says it.
fn form(args: &BatchArgs) -> Result<Option<(String, Value)>, Failure> {
    let grammar = run::grammar(&args.grammar)?;
    if grammar.is_some() && args.skill != Some(BatchSkill::Query) {
        let message = "--json-schema and --regex go with --images and --skill query; lines of a file \
                       say json_schema or regex themselves";
        return Err(Failure::Usage(message.into()));
    }
    match grammar {
        Some(Grammar::JsonSchema(schema)) => match serde_json::from_str(&schema) {
            Ok(schema) => Ok(Some(("json_schema".into(), schema))),
            Err(error) => Err(Failure::Usage(format!("--json-schema is not JSON: {error}"))),
        },
        Some(Grammar::Regex(pattern)) => Ok(Some(("regex".into(), pattern.into()))),
        _ => Ok(None),
    }
}

pub(crate) fn batch(args: &BatchArgs) -> Result<(), Failure> {
    let input = Input::of(args)?;
    let sampling = args.sampling.clone();
    let mut defaults = Defaults {
        adapter: None,
        adapters: args.model.adapters.clone().map(AdapterFolder::from),
        sampling,
        max_objects: args.max_objects,
        reasoning: !args.no_reasoning,
        folder: input.folder(),
    };
    if args.dry_run {
        return dry_run(input.open()?, &defaults, args.json);
    }
    let source = input.open()?;
    let salt = salt(args);
    let options = Options {
        overwrite: args.overwrite,
        retry_failed: args.retry_failed,
        ordered: args.ordered,
    };
    let (journal, total) = match args.output.as_deref() {
        None | Some("-") => {
            if args.retry_failed || args.overwrite {
                let message = "--retry-failed and --overwrite need a file of results: -o FILE";
                return Err(Failure::Usage(message.into()));
            }
            (Journal::stdout(options), count(&input, None, &salt)?)
        }
        Some(path) => {
            let journal = Journal::open(Path::new(path), options)?;
            let total = count(&input, Some(&journal), &salt)?;
            (journal, total)
        }
    };
    let stop = stop_on_signal()?;
    // Half of what is in flight is computed while the other half is read, decoded and cut.
    let max_seqs = args.concurrency.div_ceil(2);
    let (photon, adapter) =
        run::load(&args.model, |builder| builder.max_seqs(max_seqs).max_waiting(args.concurrency))?;
    defaults.adapter = adapter;
    let meter = Meter::new(input.unit(), total, journal.failed());
    let batch = Batch {
        photon,
        defaults,
        salt,
        lines: Mutex::new(read_ahead(source)),
        stop,
        state: Mutex::new(State { journal, meter, error: None }),
    };
    let summary = batch.run(args.concurrency)?;
    say(&summary, args)?;
    match (summary.interrupted, summary.failed + summary.failed_before) {
        (true, _) => Err(Failure::Interrupted),
        (false, 0) => Ok(()),
        (false, n) => {
            let requests = output::count(n, "request");
            Err(anyhow::anyhow!("{requests} failed; the results say why").into())
        }
    }
}

/// Everything outside of a line that decides its answer.
fn salt(args: &BatchArgs) -> String {
    let s = &args.sampling;
    let m = &args.model;
    json!([
        m.model,
        m.preprocess.to_string(),
        s.temperature,
        s.top_p,
        s.top_k,
        s.min_p,
        s.seed,
        s.max_tokens,
        args.max_objects,
        args.no_reasoning,
        m.adapter
    ])
    .to_string()
}

/// Counts what will be answered, and checks that results there are belong to this input. `None` for
/// standard input, which cannot be read twice: there each line is checked when its turn comes.
fn count(input: &Input, journal: Option<&Journal>, salt: &str) -> anyhow::Result<Option<u64>> {
    if matches!(input, Input::Stdin) {
        return Ok(None);
    }
    let (mut lines, mut total) = (0, 0);
    for item in input.open()? {
        let item = item.context("cannot read the input")?;
        lines = item.index + 1;
        total += u64::from(!item.is_blank());
        if let Some(journal) = journal.filter(|journal| !journal.is_fresh()) {
            journal.has(&item, salt)?;
        }
    }
    if let Some(journal) = journal {
        journal.check_len(lines)?;
    }
    Ok(Some(total))
}

/// A flag that the first Ctrl-C sets; the second ends the program.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            process::exit(130);
        }
        output::note("finishing what runs; interrupt again to stop at once");
    })
    .context("cannot listen for interrupts")?;
    Ok(stop)
}

/// Reads on a thread of its own: it may be stuck in standard input when everybody else is done.
fn read_ahead(source: Source) -> Receiver<std::io::Result<Item>> {
    let (sender, lines) = sync_channel(4);
    std::thread::spawn(move || {
        for item in source {
            if sender.send(item).is_err() {
                break;
            }
        }
    });
    lines
}

/// A batch under way, shared by its threads.
struct Batch {
    photon: Photon,
    defaults: Defaults,
    salt: String,
    lines: Mutex<Receiver<std::io::Result<Item>>>,
    stop: Arc<AtomicBool>,
    state: Mutex<State>,
}

struct State {
    journal: Journal,
    meter: Meter,
    /// The first error that ends the whole batch.
    error: Option<anyhow::Error>,
}

impl Batch {
    fn run(self, concurrency: usize) -> anyhow::Result<Summary> {
        std::thread::scope(|scope| {
            for _ in 0..concurrency {
                scope.spawn(|| self.work());
            }
        });
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let written = state.journal.finish();
        let interrupted = self.stop.load(Ordering::SeqCst) && state.error.is_none();
        let summary = state.meter.finish(interrupted);
        match state.error {
            Some(error) => Err(error),
            None => {
                written.context("cannot write the results")?;
                Ok(summary)
            }
        }
    }

    fn work(&self) {
        while let Some(item) = self.take() {
            let step = match self.is_done(&item) {
                Ok(true) => Ok(()),
                Ok(false) => self.answer(item),
                Err(error) => Err(error),
            };
            if let Err(error) = step {
                self.fail(error);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the batch; what is in flight is still written, if it can be.
    fn fail(&self, error: anyhow::Error) {
        self.state().error.get_or_insert(error);
        self.stop.store(true, Ordering::SeqCst);
    }

    /// The next line; `None` when there are no more or no more should be taken.
    fn take(&self) -> Option<Item> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            match lines.recv_timeout(LOOK_EVERY) {
                Ok(Ok(item)) => return Some(item),
                Ok(Err(error)) => {
                    let error = anyhow::Error::new(error).context("cannot read the input");
                    self.fail(error);
                    return None;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Whether a line needs no answer (any more).
    fn is_done(&self, item: &Item) -> anyhow::Result<bool> {
        let mut state = self.state();
        let blank = item.is_blank();
        if !blank && !state.journal.has(item, &self.salt)? {
            return Ok(false);
        }
        state.journal.pass(item.index).context("cannot write the results")?;
        if !blank {
            state.meter.skip();
        }
        Ok(true)
    }

    fn answer(&self, item: Item) -> anyhow::Result<()> {
        let begun = Instant::now();
        let input = item.digest(&self.salt);
        let (id, outcome) = match item.too_long {
            true => (Value::Null, Outcome::Error { error: too_long() }),
            false => {
                let parsed = line::parse(&item.line, &self.defaults);
                let request = parsed.request;
                drop(item.line);
                let outcome = match request {
                    Ok(request) => self.ask(request)?,
                    Err(error) => Outcome::Error { error },
                };
                (parsed.id, outcome)
            }
        };
        let record = Record { line_index: item.index, id, image: item.image, outcome, input };
        let mut state = self.state();
        state.journal.put(&record).context("cannot write the results")?;
        state.meter.count(&record.outcome, begun.elapsed());
        Ok(())
    }

    /// # Errors
    /// If the engine is gone: then nothing that follows could be answered.
    fn ask(&self, request: photon::Request) -> anyhow::Result<Outcome> {
        let response = match self.photon.submit(request).and_then(photon::Ticket::wait) {
            Ok(response) => response,
            Err(error @ (RunError::Stopped(_) | RunError::Device(_))) => return Err(error.into()),
            Err(error) => return Ok(Outcome::Error { error: error.into() }),
        };
        let mut result = serde_json::to_value(&response.answer)?;
        result["finish_reason"] = serde_json::to_value(response.finish_reason)?;
        let metrics = response.metrics;
        let usage =
            Usage { input_tokens: metrics.input_tokens, output_tokens: metrics.output_tokens };
        Ok(Outcome::Ok { result, usage })
    }
}

fn too_long() -> LineError {
    let message = format!("the line is longer than {} MiB", MAX_LINE >> 20);
    LineError { code: Code::InvalidRequest, message }
}

fn say(summary: &Summary, args: &BatchArgs) -> anyhow::Result<()> {
    let to_stdout = !matches!(args.output.as_deref(), None | Some("-"));
    match (args.json, to_stdout) {
        (true, true) => output::line(&serde_json::to_string(summary)?)?,
        (true, false) => output::raw_note(&serde_json::to_string(summary)?),
        (false, _) => output::note(&summary.to_string()),
    }
    Ok(())
}

/// Reads every line and picture, asks nothing.
fn dry_run(source: Source, defaults: &Defaults, json: bool) -> Result<(), Failure> {
    let (mut good, mut bad) = (0_u64, 0_u64);
    for item in source {
        let item = item.context("cannot read the input")?;
        if item.is_blank() {
            continue;
        }
        let Err(error) = check(&item, defaults) else {
            good += 1;
            continue;
        };
        bad += 1;
        if bad <= MAX_PROBLEMS {
            let code = serde_json::to_value(error.code)?;
            let code = code.as_str().unwrap_or_default();
            let name = item.image.unwrap_or(format!("line_index {}", item.index));
            output::error(&format!("{name}: {code}: {}", error.message));
        }
    }
    match json {
        true => output::line(&json!({"ok": good, "failed": bad}).to_string())?,
        false => output::note(&format!("{good} lines can be asked, {bad} cannot")),
    }
    match bad {
        0 => Ok(()),
        n => Err(anyhow::anyhow!("{n} lines cannot be asked").into()),
    }
}

fn check(item: &Item, defaults: &Defaults) -> Result<(), LineError> {
    if item.too_long {
        return Err(too_long());
    }
    for image in line::parse(&item.line, defaults).request?.images {
        match image {
            ImageSource::Encoded(bytes) => drop(Image::from_bytes(&bytes).map_err(RunError::from)?),
            ImageSource::File(path) => drop(Image::open(&path).map_err(RunError::from)?),
            ImageSource::Decoded(_) => {}
        }
    }
    Ok(())
}
