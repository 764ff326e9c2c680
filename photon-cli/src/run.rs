//! The commands that look at pictures.
use std::{
    ffi::OsString,
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use photon::{
    Answer, BoundingBox, Budget, Builder, Grammar, Image, Limits, Model, OpenError, Photon,
    Request, Response, RunError, Sampling, Skill, SpatialRef,
};
use serde_json::json;

use crate::{
    Failure,
    args::{
        CaptionArgs, DetectArgs, GazeArgs, GrammarArgs, ModelArgs, Numbers, OutputArgs, PointArgs,
        QueryArgs, SamplingArgs, SegmentArgs,
    },
    draw::{Canvas, Format, Mark, Overlay, Shape, draw, rings, save},
    names,
    output::{self, Printer},
};

/// One command, whatever its skill.
struct Job {
    images: Vec<String>,
    /// All pictures are asked about at once.
    together: bool,
    skill: Skill,
    grammar: Option<Grammar>,
    stop: Vec<String>,
    /// What a mark on the picture is called.
    label: String,
    model: ModelArgs,
    sampling: SamplingArgs,
    max_objects: usize,
    output: OutputArgs,
    draw: Option<PathBuf>,
}

pub(crate) fn query(a: QueryArgs) -> Result<(), Failure> {
    let (images, question) = split(a.words);
    let skill = Skill::Query {
        question,
        reasoning: a.reasoning,
        spatial_refs: spatial_refs(&a.spatial_refs)?,
    };
    run(Job {
        images,
        together: a.together,
        skill,
        grammar: grammar(&a.grammar)?,
        stop: a.stop,
        label: String::new(),
        model: a.model,
        sampling: a.sampling,
        max_objects: 1,
        output: a.output,
        draw: a.draw.draw,
    })
}

pub(crate) fn caption(a: CaptionArgs) -> Result<(), Failure> {
    run(Job {
        images: a.images,
        together: false,
        skill: Skill::Caption { length: a.length.into() },
        grammar: None,
        stop: a.stop,
        label: String::new(),
        model: a.model,
        sampling: a.sampling,
        max_objects: 1,
        output: a.output,
        draw: None,
    })
}

pub(crate) fn detect(a: DetectArgs) -> Result<(), Failure> {
    find(a, |object| Skill::Detect { object })
}

pub(crate) fn point(a: PointArgs) -> Result<(), Failure> {
    let spatial_refs = spatial_refs(&a.spatial_refs)?;
    find(a.find, |object| Skill::Point { object, spatial_refs })
}

fn find(a: DetectArgs, skill: impl FnOnce(String) -> Skill) -> Result<(), Failure> {
    let (images, object) = split_object(a.words)?;
    run(Job {
        images,
        together: false,
        label: object.clone(),
        skill: skill(object),
        grammar: None,
        stop: Vec::new(),
        model: a.model,
        sampling: a.sampling,
        max_objects: a.max_objects,
        output: a.output,
        draw: a.draw.draw,
    })
}

pub(crate) fn segment(a: SegmentArgs) -> Result<(), Failure> {
    let spatial_refs = spatial_refs(&a.spatial_refs)?;
    let (images, object) = split_object(a.words)?;
    run(Job {
        images,
        together: false,
        label: object.clone(),
        skill: Skill::Segment { object, spatial_refs },
        grammar: None,
        stop: Vec::new(),
        model: a.model,
        sampling: a.sampling,
        max_objects: 1,
        output: a.output,
        draw: a.draw.draw,
    })
}

pub(crate) fn gaze(a: GazeArgs) -> Result<(), Failure> {
    let [x, y] = a.eye.0[..] else {
        return Err(Failure::Usage("--eye takes two numbers: x,y".into()));
    };
    run(Job {
        images: a.images,
        together: false,
        skill: Skill::Gaze { eye: [x, y] },
        grammar: None,
        stop: Vec::new(),
        label: "gaze".into(),
        model: a.model,
        sampling: a.sampling,
        max_objects: 1,
        output: a.output,
        draw: a.draw.draw,
    })
}

/// The last word is the question or object, those before it are pictures.
fn split(mut words: Vec<String>) -> (Vec<String>, String) {
    let last = words.pop().unwrap_or_default();
    (words, last)
}

/// The last word is the object, and there is a picture before it.
fn split_object(words: Vec<String>) -> Result<(Vec<String>, String), Failure> {
    let (images, object) = split(words);
    if images.is_empty() {
        return Err(Failure::Usage(format!(
            "{object:?} is taken for what to find; give a picture before it: IMAGE {object:?}"
        )));
    }
    Ok((images, object))
}

fn spatial_refs(refs: &[Numbers]) -> Result<Vec<SpatialRef>, Failure> {
    let one = |(i, Numbers(values)): (usize, &Numbers)| SpatialRef::from_values(i, values);
    let refs: Result<_, _> = refs.iter().enumerate().map(one).collect();
    refs.map_err(|rejected| Failure::Usage(rejected.to_string()))
}

/// What an answer must be.
pub(crate) fn grammar(args: &GrammarArgs) -> Result<Option<Grammar>, Failure> {
    let Some(schema) = &args.json_schema else {
        return Ok(args.regex.clone().map(Grammar::Regex));
    };
    // No file's name begins like JSON's objects do.
    if schema.trim_start().starts_with('{') {
        return Ok(Some(Grammar::JsonSchema(schema.clone())));
    }
    match std::fs::read_to_string(schema) {
        Ok(text) => Ok(Some(Grammar::JsonSchema(text))),
        Err(error) => Err(Failure::Usage(format!(
            "--json-schema {schema}: {error}; give a file, or the schema itself: '{{...}}'"
        ))),
    }
}

/// An engine of this model, set up as the user said.
pub(crate) fn builder(args: &ModelArgs, model: Model, adapter: Option<&Path>) -> Builder {
    let mut builder =
        Photon::builder().model(model).device(args.device.device).resize(args.preprocess);
    if let Some(threads) = args.device.threads {
        builder = builder.threads(threads.into());
    }
    if let Some(dtype) = args.device.dtype {
        builder = builder.dtype(dtype.into());
    }
    builder = builder.quant(args.device.quant);
    if let Some(dtype) = args.device.kv_dtype {
        builder = builder.kv_dtype(dtype.into());
    }
    builder = builder.adapters(adapter.map(Path::to_path_buf));
    if let Some(folder) = &args.adapters {
        builder = builder.adapter_dir(folder.clone());
    }
    if let Some(slots) = args.adapter_slots {
        builder = builder.adapter_slots(slots.into());
    }
    if let Some(rank) = args.adapter_rank {
        builder = builder.adapter_rank(rank.into());
    }
    builder = builder.speculate(args.speculate.into());
    if let Some(bytes) = args.device.kv_memory {
        builder = builder.kv_memory(bytes);
    }
    builder
}

/// Loads a model with a bar on the terminal; `more` sets what a command has to say about the engine. Gives
/// the adapter that was asked for with it.
pub(crate) fn load(
    args: &ModelArgs,
    more: impl FnOnce(Builder) -> Builder,
) -> Result<(Photon, Option<PathBuf>), Failure> {
    let (model, adapter) = names::chosen(args)?;
    let builder = builder(args, model, adapter.as_deref());
    let bar = progress_bar("loading");
    let photon = more(builder).build_with_progress(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok((photon?, adapter))
}

/// A bar of bytes that shows itself only if the work takes a moment and somebody watches.
pub(crate) fn progress_bar(what: &str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(what.to_owned());
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

pub(crate) fn read_image(name: &str) -> anyhow::Result<Image> {
    if name != "-" {
        return Image::open(Path::new(name)).map_err(|error| match error {
            // What is wrong with a picture does not say which; a file that cannot be read does.
            OpenError::Image(error) => anyhow::Error::new(error).context(name.to_owned()),
            error => error.into(),
        });
    }
    if std::io::stdin().is_terminal() {
        anyhow::bail!("`-` reads a picture from standard input, but that is the terminal");
    }
    let max = Limits::default().max_bytes;
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(max + 1).read_to_end(&mut bytes).context("standard input")?;
    Image::from_bytes(&bytes).context("standard input")
}

fn run(job: Job) -> Result<(), Failure> {
    let s = &job.sampling;
    let sampling = s.over(Sampling::default_for(&job.skill));
    sampling.check().map_err(|rejected| Failure::Usage(rejected.to_string()))?;
    if job.together {
        let checked = job.skill.check_images(job.images.len());
        checked.map_err(|rejected| Failure::Usage(rejected.to_string()))?;
    }
    if job.images.iter().filter(|name| *name == "-").count() > 1 {
        return Err(Failure::Usage("`-` can be given once: standard input is one picture".into()));
    }
    if let (Some(out), true) = (&job.draw, job.images.is_empty()) {
        return Err(Failure::Usage(format!("--draw {} needs a picture", out.display())));
    }
    if let Some(out) = &job.draw {
        Format::of(out).map_err(|error| Failure::Usage(error.to_string()))?;
    }
    // Pictures are answered one after the other, in the order they were named.
    let (photon, adapter) = load(&job.model, |builder| builder.max_seqs(1))?;
    let budget = Budget { max_tokens: s.max_tokens, max_objects: job.max_objects };
    let request = |images: Vec<Image>| Request {
        sampling,
        budget,
        adapter: adapter.clone(),
        grammar: job.grammar.clone(),
        stop: job.stop.clone(),
        ..Request::new(job.skill.clone(), None::<Image>).with_images(images)
    };
    if job.images.is_empty() || job.together {
        let images = job.images.iter().map(|name| read_image(name)).collect::<Result<_, _>>()?;
        return answer(&photon, &request(images), None, &job, None);
    }
    let ask = |image: Image, index| {
        answer(&photon, &request(vec![image.clone()]), Some(&image), &job, Some(index))
    };
    // A picture that cannot be read must not cost the answers of the others.
    let mut failed = 0;
    for (i, name) in job.images.iter().enumerate() {
        let done = read_image(name).map_err(Failure::from).and_then(|image| ask(image, i));
        match done {
            Ok(()) => {}
            Err(Failure::Failed(error)) if job.images.len() > 1 => {
                if output::is_closed_pipe(&error) {
                    return Err(Failure::Failed(error));
                }
                output::error(&output::describe(&error));
                failed += 1;
            }
            Err(failure) => return Err(failure),
        }
    }
    match failed {
        0 => Ok(()),
        n => Err(anyhow::anyhow!("{n} of {} pictures failed", job.images.len()).into()),
    }
}

/// Runs one request and prints what came of it; `index` is the picture's.
fn answer(
    photon: &Photon,
    request: &Request,
    image: Option<&Image>,
    job: &Job,
    index: Option<usize>,
) -> Result<(), Failure> {
    let several = job.images.len() > 1 && !job.together;
    let name = index.map(|i| job.images[i].as_str());
    if let (true, false, Some(name)) = (several, job.output.json, name) {
        output::line(&format!("{name}:"))?;
    }
    let mut printer = Printer::new(job.output.json, image.map(Image::size));
    let response = match photon.run(request, &mut |event| printer.event(&event)) {
        Ok(response) => response,
        Err(error @ (RunError::Rejected(_) | RunError::Grammar(_))) => {
            return Err(Failure::Usage(error.to_string()));
        }
        Err(error) => return Err(error.into()),
    };
    printer.finish(&response)?;
    if job.output.json {
        output::line(&json_of(&response, name.filter(|_| several))?.to_string())?;
    }
    if job.output.stats {
        output::stats(&response);
    }
    if let (Some(out), Some(image)) = (&job.draw, image) {
        let out = if several { numbered(out, index.unwrap_or(0) + 1) } else { out.clone() };
        let (width, height) = image.size();
        let mut pixels = image.pixels().to_vec();
        let overlay = overlay(&response.answer, &job.label);
        draw(&mut Canvas::new(width, height, &mut pixels), &overlay);
        save(&out, width, height, &pixels)?;
    }
    Ok(())
}

pub(crate) fn json_of(
    response: &Response,
    image: Option<&str>,
) -> anyhow::Result<serde_json::Value> {
    let mut object = json!({});
    if let Some(image) = image {
        object["image"] = json!(image);
    }
    let answer = serde_json::to_value(&response.answer)?;
    for (key, value) in answer.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    object["finish_reason"] = serde_json::to_value(response.finish_reason)?;
    object["tokens"] = json!(response.tokens);
    object["metrics"] = serde_json::to_value(response.metrics)?;
    Ok(object)
}

fn overlay(answer: &Answer, label: &str) -> Overlay {
    let mark = |color, shape| Mark { shape, label: label.to_owned(), color };
    let marks = match answer {
        Answer::Detect { objects } => {
            (0..).zip(objects).map(|(i, object)| mark(i, boxed(object))).collect()
        }
        Answer::Point { points } => {
            (0..).zip(points).map(|(i, p)| mark(i, Shape::Point { x: p.x, y: p.y })).collect()
        }
        Answer::Segment { path, bbox: Some(b), .. } => {
            let rings = rings(path, [b.x_min, b.y_min, b.x_max, b.y_max]);
            vec![mark(0, if rings.is_empty() { boxed(b) } else { Shape::Outline(rings) })]
        }
        Answer::Gaze { gaze } => {
            gaze.iter().map(|p| mark(0, Shape::Point { x: p.x, y: p.y })).collect()
        }
        Answer::Query { reasoning: Some(reasoning), .. } => (0..)
            .zip(&reasoning.grounding)
            .flat_map(|(i, grounding)| {
                let words: String = reasoning.text.chars().collect::<Vec<_>>()
                    [grounding.start_idx..grounding.end_idx]
                    .iter()
                    .collect();
                let point = move |&[x, y]: &[f32; 2]| Mark {
                    shape: Shape::Point { x, y },
                    label: words.trim().to_owned(),
                    color: i,
                };
                grounding.points.iter().map(point).collect::<Vec<_>>()
            })
            .collect(),
        Answer::Query { .. } | Answer::Caption { .. } | Answer::Segment { .. } => Vec::new(),
    };
    Overlay { marks }
}

fn boxed(b: &BoundingBox) -> Shape {
    Shape::Box { x_min: b.x_min, y_min: b.y_min, x_max: b.x_max, y_max: b.y_max }
}

/// `out.png` as `out-2.png`.
fn numbered(path: &Path, n: usize) -> PathBuf {
    let mut name = path.file_stem().map(OsString::from).unwrap_or_default();
    name.push(format!("-{n}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_drawings_are_numbered() {
        assert_eq!(numbered(Path::new("a/out.png"), 2), Path::new("a/out-2.png"));
        assert_eq!(numbered(Path::new("out"), 1), Path::new("out-1"));
    }

    #[test]
    fn the_last_word_is_the_question() {
        let words = ["a.png", "b.png", "what?"].map(String::from).to_vec();
        assert_eq!(split(words), (vec!["a.png".into(), "b.png".into()], "what?".into()));
        assert_eq!(split(vec!["what?".into()]), (vec![], "what?".into()));
    }
}
