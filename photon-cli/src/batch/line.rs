//! One line of a batch: from its JSON to a request, or to the reason why there is none.
//!
//! The format is that of Moondream's `/v1/batch`, with `image_path`, `image_paths`, `spatial_refs`, `eye`,
//! conversations in OpenAI's form and a few settings added. Types are strict (a boolean is a JSON boolean, an integer has no fraction),
//! strings are trimmed, `null` is the same as nothing, unknown keys are ignored. Nothing is decoded
//! here but base64: pictures are the engine's work.
use std::path::PathBuf;

use photon::{
    ImageSource, Message, Request, Role, RunError, Skill,
    adapters::{AdapterFolder, ModelName, NameError},
};
use photon_server::{
    fields::{self, Fields, Invalid},
    wire,
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{args::SamplingArgs, names};

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

impl From<Invalid> for LineError {
    fn from(error: Invalid) -> Self {
        invalid(error.message)
    }
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

impl Defaults {
    fn wire(&self) -> wire::Defaults {
        wire::Defaults {
            temperature: self.sampling.temperature,
            top_p: self.sampling.top_p,
            top_k: self.sampling.top_k,
            min_p: self.sampling.min_p,
            seed: self.sampling.seed,
            max_tokens: self.sampling.max_tokens,
            max_objects: self.max_objects,
            reasoning: self.reasoning,
        }
    }
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
    match fields::parse(line) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(invalid("a line must be a JSON object")),
        Err(error) => Err(invalid(format!("not JSON: {error}"))),
    }
}

fn id_of(map: &Map<String, Value>) -> Result<Value, LineError> {
    match map.get("id") {
        None | Some(Value::Null) => Ok(Value::Null),
        Some(id @ (Value::String(_) | Value::Number(_))) => Ok(id.clone()),
        Some(_) => Err(invalid("Field 'id' must be a string or a number")),
    }
}

fn request(map: &Map<String, Value>, defaults: &Defaults) -> Result<Request, LineError> {
    let (fields, usual) = (Fields::new(map), defaults.wire());
    let mut request = match fields.required("skill")? {
        "chat" => {
            let (skill, images) = chat(&fields, defaults)?;
            wire::with_settings(skill, &fields, &usual)?.with_images(images)
        }
        name if wire::SKILLS.contains(&name) => {
            wire::request(name, &fields, &usual)?.with_images(images(&fields, defaults)?)
        }
        other => {
            let known = wire::SKILLS.join(", ");
            let message = format!("unknown skill {other:?}; there are {known} and chat");
            return Err(LineError { code: Code::UnknownSkill, message });
        }
    };
    let count = request.images.len();
    request.skill.check_images(count).map_err(|rejected| invalid(rejected.to_string()))?;
    request.adapter = adapter(&fields, defaults)?;
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

/// A conversation and its pictures: messages as OpenAI has them, whose content is a text or a list of
/// parts.
fn chat(fields: &Fields<'_>, defaults: &Defaults) -> Result<(Skill, Vec<ImageSource>), LineError> {
    let must = || LineError::from(fields.wrong("messages", "an array of {role, content}"));
    let list = fields.get("messages").and_then(Value::as_array).ok_or_else(must)?;
    let (mut messages, mut images) = (Vec::new(), Vec::new());
    for message in list {
        let message = Fields::within(message.as_object().ok_or_else(must)?, "messages[].");
        let role = match message.required("role")? {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => return Err(message.wrong("role", "'system', 'user' or 'assistant'").into()),
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
            Some(_) => {
                return Err(message.wrong("content", "a string or an array of parts").into());
            }
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
    let part = Fields::within(part.as_object().ok_or_else(wrong)?, "messages[].content[].");
    match part.required("type")? {
        "text" => match part.get("text") {
            Some(Value::String(text)) => Ok(Part::Text(text)),
            _ => Err(part.wrong("text", "a string").into()),
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
    let names = ["image", "images", "image_path", "image_paths"];
    let given: Vec<&str> = names.into_iter().filter(|name| fields.get(name).is_some()).collect();
    let name = match given[..] {
        [] => return Ok(Vec::new()),
        [name] => name,
        _ => return Err(invalid(format!("give one of '{}'", names.join("', '")))),
    };
    let source = |text: String| match name {
        "image" | "images" => encoded(text.trim()),
        _ => Ok(defaults.folder.join(text.trim()).into()),
    };
    fields.strings(name)?.into_iter().map(source).collect()
}

/// Bare base64 or a data URI.
fn encoded(data: &str) -> Result<ImageSource, LineError> {
    if data.starts_with("http://") || data.starts_with("https://") {
        return Err(bad_image("addresses are not fetched; give base64, or a file as 'image_path'"));
    }
    wire::decode(data).map(ImageSource::Encoded).map_err(|error| bad_image(error.message))
}

#[cfg(test)]
mod tests;
