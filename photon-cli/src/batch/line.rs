//! One line of a batch: from its JSON to a request, or to the reason why there is none.
//!
//! The format is that of Moondream's `/v1/batch`, with `image_path`, `image_paths`, `spatial_refs`, `eye`,
//! conversations in OpenAI's form and a few settings added. Types are strict (a boolean is a JSON boolean, an integer has no fraction),
//! strings are trimmed, `null` is the same as nothing, unknown keys are ignored. Nothing is decoded
//! here but base64: pictures are the engine's work.
use std::path::PathBuf;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use photon::{
    Budget, CaptionLength, Grammar, ImageSource, Message, Request, Role, RunError, Sampling, Skill,
    SpatialRef,
    adapters::{AdapterFolder, ModelName, NameError},
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{args::SamplingArgs, names};

/// Deepest nesting of a line's JSON.
const MAX_DEPTH: usize = 64;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The kinds of failure of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    ImageDecodeFailed,
    InvalidRequest,
    UnknownSkill,
    /// The only one that may go away by itself.
    ProcessingError,
}

/// Why a line has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LineError {
    pub(crate) code: Code,
    pub(crate) message: String,
}

fn invalid(message: impl Into<String>) -> LineError {
    LineError { code: Code::InvalidRequest, message: message.into() }
}

fn bad_image(message: impl Into<String>) -> LineError {
    LineError { code: Code::ImageDecodeFailed, message: message.into() }
}

impl From<RunError> for LineError {
    fn from(error: RunError) -> Self {
        let code = match error {
            RunError::Rejected(_)
            | RunError::TooLarge { .. }
            | RunError::Adapter(_)
            | RunError::Grammar(_)
            | RunError::NoAdapters => Code::InvalidRequest,
            RunError::Image(_) | RunError::Open(_) => Code::ImageDecodeFailed,
            _ => Code::ProcessingError,
        };
        LineError { code, message: error.to_string() }
    }
}

/// What holds where a line says nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Defaults {
    pub(crate) sampling: SamplingArgs,
    pub(crate) max_objects: usize,
    /// Whether a question is thought about.
    pub(crate) reasoning: bool,
    /// The adapter.
    pub(crate) adapter: Option<PathBuf>,
    /// Where adapters are that lines name.
    pub(crate) adapters: Option<AdapterFolder>,
    /// What `image_path`, `image_paths` and `adapter` are relative to.
    pub(crate) folder: PathBuf,
}

/// A line, understood or not.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// As given: a string, a number or null.
    pub(crate) id: Value,
    pub(crate) request: Result<Request, LineError>,
}

/// Reads a line.
pub(crate) fn parse(line: &[u8], defaults: &Defaults) -> Parsed {
    match object(line) {
        Err(error) => Parsed { id: Value::Null, request: Err(error) },
        Ok(map) => match id_of(&map) {
            Err(error) => Parsed { id: Value::Null, request: Err(error) },
            Ok(id) => Parsed { id, request: request(&map, defaults) },
        },
    }
}

/// The id alone.
pub(crate) fn id(line: &[u8]) -> Value {
    object(line).and_then(|map| id_of(&map)).unwrap_or(Value::Null)
}

fn object(line: &[u8]) -> Result<Map<String, Value>, LineError> {
    if depth(line) > MAX_DEPTH {
        return Err(invalid(format!("nested deeper than {MAX_DEPTH} levels")));
    }
    match serde_json::from_slice(line) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(invalid("a line must be a JSON object")),
        Err(error) => Err(invalid(format!("not JSON: {error}"))),
    }
}

/// How deep brackets nest outside of strings, whether or not they match.
fn depth(line: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in line {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

fn id_of(map: &Map<String, Value>) -> Result<Value, LineError> {
    match map.get("id") {
        None | Some(Value::Null) => Ok(Value::Null),
        Some(id @ (Value::String(_) | Value::Number(_))) => Ok(id.clone()),
        Some(_) => Err(invalid("Field 'id' must be a string or a number")),
    }
}

fn request(map: &Map<String, Value>, defaults: &Defaults) -> Result<Request, LineError> {
    let fields = Fields { map, at: "" };
    let (skill, images) = match fields.required("skill")? {
        "chat" => chat(&fields, defaults)?,
        name => (skill(name, &fields, defaults)?, images(&fields, defaults)?),
    };
    let empty = Map::new();
    let settings = match map.get("settings") {
        None | Some(Value::Null) => &empty,
        Some(Value::Object(settings)) => settings,
        Some(_) => return Err(invalid("Field 'settings' must be an object")),
    };
    let settings = Fields { map: settings, at: "settings." };
    let mut drawn = defaults.sampling.clone();
    drawn.temperature = settings.float("temperature")?.or(drawn.temperature);
    drawn.top_p = settings.float("top_p")?.or(drawn.top_p);
    drawn.min_p = settings.float("min_p")?.or(drawn.min_p);
    let top_k = settings.integer("top_k", 0)?;
    drawn.top_k = top_k.map(|k| u32::try_from(k).unwrap_or(u32::MAX)).or(drawn.top_k);
    drawn.seed = settings.integer("seed", 0)?.unwrap_or(drawn.seed);
    let count = |name, default: usize| -> Result<usize, LineError> {
        // More than any context holds is as much as it holds.
        Ok(settings.integer(name, 1)?.map_or(default, |n| n.min(u64::from(u32::MAX)) as usize))
    };
    let max_tokens = count("max_tokens", drawn.max_tokens)?;
    let max_objects = count("max_objects", defaults.max_objects)?;
    let sampling = drawn.over(Sampling::default_for(&skill));
    sampling.check().map_err(|rejected| invalid(rejected.to_string()))?;

    skill.check_images(images.len()).map_err(|rejected| invalid(rejected.to_string()))?;
    let mut request = Request::new(skill, None::<ImageSource>).with_images(images);
    request.adapter = adapter(&fields, defaults)?;
    request.grammar = grammar(&fields)?;
    request.stop = settings.raw_strings("stop")?;
    request.sampling = sampling;
    request.budget = Budget { max_tokens, max_objects };
    Ok(request)
}

/// `adapter`, a file or a name, or what `model` ends in; what comes before that is not looked at, for a batch has one
/// model.
fn adapter(fields: &Fields<'_>, defaults: &Defaults) -> Result<Option<PathBuf>, LineError> {
    let wrong = |error: NameError| invalid(error.to_string());
    let folder = defaults.adapters.as_ref();
    let model = fields.string("model")?.map(str::parse::<ModelName>).transpose().map_err(wrong)?;
    let named = model.and_then(|model| model.adapter);
    match (fields.string("adapter")?, named) {
        (Some(_), Some(_)) => Err(invalid("give an adapter in one of 'adapter' and 'model'")),
        (None, Some(name)) => names::find(&name, folder).map(Some).map_err(wrong),
        (Some(file), None) => {
            names::adapter(file.as_ref(), folder, &defaults.folder).map(Some).map_err(wrong)
        }
        (None, None) => Ok(defaults.adapter.clone()),
    }
}

fn skill(name: &str, fields: &Fields<'_>, defaults: &Defaults) -> Result<Skill, LineError> {
    match name {
        "query" => Ok(Skill::Query {
            question: fields.required("question")?.to_owned(),
            reasoning: fields.boolean("reasoning")?.unwrap_or(defaults.reasoning),
            spatial_refs: fields.spatial_refs()?,
        }),
        "caption" => Ok(Skill::Caption {
            length: match fields.string("length")? {
                None | Some("normal") => CaptionLength::Normal,
                Some("short") => CaptionLength::Short,
                Some("long") => CaptionLength::Long,
                Some(_) => {
                    return Err(invalid("Field 'length' must be 'short', 'normal' or 'long'"));
                }
            },
        }),
        "detect" => Ok(Skill::Detect { object: fields.required("object")?.to_owned() }),
        "point" => Ok(Skill::Point {
            object: fields.required("object")?.to_owned(),
            spatial_refs: fields.spatial_refs()?,
        }),
        "segment" => Ok(Skill::Segment {
            object: fields.required("object")?.to_owned(),
            spatial_refs: fields.spatial_refs()?,
        }),
        "gaze" => match fields.numbers(fields.map.get("eye").unwrap_or(&Value::Null)).as_deref() {
            Some(&[x, y]) => Ok(Skill::Gaze { eye: [x, y] }),
            _ => Err(invalid("Field 'eye' must be two numbers, [x, y]")),
        },
        other => Err(LineError {
            code: Code::UnknownSkill,
            message: format!(
                "unknown skill {other:?}; there are query, chat, caption, detect, point, segment and gaze"
            ),
        }),
    }
}

fn grammar(fields: &Fields<'_>) -> Result<Option<Grammar>, LineError> {
    match (fields.get("json_schema"), fields.get("regex")) {
        (None, None) => Ok(None),
        (Some(schema @ (Value::Object(_) | Value::Bool(_))), None) => {
            Ok(Some(Grammar::JsonSchema(schema.to_string())))
        }
        (None, Some(Value::String(pattern))) => Ok(Some(Grammar::Regex(pattern.clone()))),
        (Some(_), None) => Err(fields.wrong("json_schema", "a JSON schema, as an object")),
        (None, Some(_)) => Err(fields.wrong("regex", "a string")),
        (Some(_), Some(_)) => Err(invalid("give one of 'json_schema' and 'regex'")),
    }
}

/// A conversation and its pictures: messages as OpenAI has them, whose content is a text or a list of
/// parts.
fn chat(fields: &Fields<'_>, defaults: &Defaults) -> Result<(Skill, Vec<ImageSource>), LineError> {
    let must = || fields.wrong("messages", "an array of {role, content}");
    let list = fields.get("messages").and_then(Value::as_array).ok_or_else(must)?;
    let (mut messages, mut images) = (Vec::new(), Vec::new());
    for message in list {
        let message = Fields { map: message.as_object().ok_or_else(must)?, at: "messages[]." };
        let role = match message.required("role")? {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => return Err(message.wrong("role", "'system', 'user' or 'assistant'")),
        };
        let (before, mut text) = (images.len(), String::new());
        match message.get("content") {
            None => {}
            Some(Value::String(content)) => text.push_str(content),
            Some(Value::Array(parts)) => {
                for part in parts {
                    match content_part(part, defaults)? {
                        Part::Text(part) => text.push_str(part),
                        Part::Image(image) => images.push(image),
                    }
                }
            }
            Some(_) => return Err(message.wrong("content", "a string or an array of parts")),
        }
        let text = text.trim().to_owned();
        messages.push(Message { role, text, images: images.len() - before });
    }
    let reasoning = fields.boolean("reasoning")?.unwrap_or(defaults.reasoning);
    Ok((Skill::Chat { messages, reasoning }, images))
}

enum Part<'a> {
    Text(&'a str),
    Image(ImageSource),
}

fn content_part<'a>(part: &'a Value, defaults: &Defaults) -> Result<Part<'a>, LineError> {
    let must =
        "{type: text, text}, {type: image, image or image_path} or {type: image_url, image_url}";
    let wrong = || invalid(format!("a part of a message must be {must}"));
    let part = Fields { map: part.as_object().ok_or_else(wrong)?, at: "messages[].content[]." };
    match part.required("type")? {
        "text" => match part.get("text") {
            Some(Value::String(text)) => Ok(Part::Text(text)),
            _ => Err(part.wrong("text", "a string")),
        },
        "image" => match &images(&part, defaults)?[..] {
            [image] => Ok(Part::Image(image.clone())),
            _ => Err(wrong()),
        },
        "image_url" => {
            let url = part.get("image_url");
            let url = url.and_then(|url| url.get("url").or(Some(url)));
            Ok(Part::Image(encoded(url.and_then(Value::as_str).ok_or_else(wrong)?.trim())?))
        }
        _ => Err(wrong()),
    }
}

/// The pictures, named in one of four ways.
fn images(fields: &Fields<'_>, defaults: &Defaults) -> Result<Vec<ImageSource>, LineError> {
    let one = |name| Ok::<_, LineError>(fields.string(name)?.map(|text| vec![text]));
    let data = [one("image")?, fields.strings("images")?];
    let paths = [one("image_path")?, fields.strings("image_paths")?];
    if data.iter().chain(&paths).flatten().count() > 1 {
        let names = "'image', 'images', 'image_path' and 'image_paths'";
        return Err(invalid(format!("give one of {names}")));
    }
    let files = paths.into_iter().flatten().flatten();
    let files = files.map(|path| Ok(ImageSource::File(defaults.folder.join(path))));
    data.into_iter().flatten().flatten().map(encoded).chain(files).collect()
}

/// Bare base64 or a data URI.
fn encoded(data: &str) -> Result<ImageSource, LineError> {
    if data.starts_with("http://") || data.starts_with("https://") {
        return Err(bad_image("addresses are not fetched; give base64, or a file as 'image_path'"));
    }
    let data = match data.strip_prefix("data:").map(|uri| uri.split_once(',')) {
        None => data,
        Some(Some((kind, data))) if kind.ends_with(";base64") => data,
        Some(_) => return Err(bad_image("a data URI must be data:image/...;base64,...")),
    };
    match BASE64.decode(data) {
        Ok(bytes) => Ok(ImageSource::Encoded(bytes)),
        Err(error) => Err(bad_image(format!("the picture is not base64: {error}"))),
    }
}

/// An object's fields by type; `null` is absent.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// What comes before names in messages.
    at: &'static str,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn wrong(&self, name: &str, must: &str) -> LineError {
        invalid(format!("Field '{}{name}' must be {must}", self.at))
    }

    fn string(&self, name: &str) -> Result<Option<&'a str>, LineError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.trim())),
            Some(_) => Err(self.wrong(name, "a string")),
        }
    }

    /// Of these, blanks count.
    fn raw_strings(&self, name: &str) -> Result<Vec<String>, LineError> {
        let Some(value) = self.get(name) else { return Ok(Vec::new()) };
        let one = |value: &Value| value.as_str().map(str::to_owned);
        let all = value.as_array().and_then(|list| list.iter().map(one).collect());
        all.ok_or_else(|| self.wrong(name, "an array of strings"))
    }

    fn required(&self, name: &str) -> Result<&'a str, LineError> {
        match self.string(name)? {
            None | Some("") => Err(self.wrong(name, "a non-empty string")),
            Some(text) => Ok(text),
        }
    }

    fn strings(&self, name: &str) -> Result<Option<Vec<&'a str>>, LineError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let text = |value: &'a Value| value.as_str().map(str::trim);
        let texts = value.as_array().and_then(|list| list.iter().map(text).collect());
        match texts {
            Some(texts) => Ok(Some(texts)),
            None => Err(self.wrong(name, "an array of strings")),
        }
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>, LineError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(name, "a boolean")),
        }
    }

    fn integer(&self, name: &str, least: u64) -> Result<Option<u64>, LineError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n >= least => Ok(Some(n)),
            _ if value.is_i64() || value.is_u64() => {
                Err(self.wrong(name, &format!(">= {least}, received {value}")))
            }
            _ => Err(self.wrong(name, "an integer")),
        }
    }

    fn float(&self, name: &str) -> Result<Option<f32>, LineError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(n)) => Ok(n.as_f64().map(|n| n as f32)),
            Some(_) => Err(self.wrong(name, "a number")),
        }
    }

    fn numbers(&self, value: &Value) -> Option<Vec<f32>> {
        value.as_array()?.iter().map(|n| n.as_f64().map(|n| n as f32)).collect()
    }

    fn spatial_refs(&self) -> Result<Vec<SpatialRef>, LineError> {
        let must = "an array of [x, y] or [x_min, y_min, x_max, y_max]";
        let wrong = || self.wrong("spatial_refs", must);
        let Some(value) = self.get("spatial_refs") else { return Ok(Vec::new()) };
        let refs = value.as_array().ok_or_else(wrong)?.iter().enumerate().map(|(i, one)| {
            let values = self.numbers(one).ok_or_else(wrong)?;
            SpatialRef::from_values(i, &values).map_err(|rejected| invalid(rejected.to_string()))
        });
        refs.collect()
    }
}

#[cfg(test)]
mod tests;
