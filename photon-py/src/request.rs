//! A request from a dictionary, in the words of Moondream's API: `{"skill": "query", "image": ..., "question": ...}`.
//!
//! Fields and their errors are those of a request over HTTP or of a batch's line, and read by the same code; a
//! picture may be whatever Python has, and a name that no request has is refused.
use std::{path::PathBuf, time::Duration};

use photon::{Photon, Request, Skill, adapters::AdapterName};
use photon_server::{
    fields::Fields,
    turns::{Turns, role},
    wire::{self, Defaults, SKILLS},
};
use pyo3::{
    prelude::*,
    types::{PyDict, PyList, PyString, PyTuple},
};
use serde_json::{Map, Value};

use crate::{error, json, picture};

/// Names that are read here.
const OWN: [&str; 9] =
    ["skill", "id", "image", "images", "image_url", "messages", "adapter", "timeout", "priority"];

/// Names that [`wire`] reads.
const WIRE: [&str; 9] = [
    "question",
    "object",
    "length",
    "eye",
    "reasoning",
    "spatial_refs",
    "settings",
    "json_schema",
    "regex",
];

/// What holds where a request says nothing else: what is usual for the skill.
const DEFAULTS: Defaults = Defaults {
    temperature: None,
    top_p: None,
    top_k: None,
    min_p: None,
    seed: 0,
    max_tokens: 768,
    max_objects: 150,
    reasoning: false,
};

/// What a client's engine is like.
#[derive(Debug)]
pub(crate) struct Terms {
    /// Answers what names no other.
    pub(crate) adapter: Option<PathBuf>,
    /// Whether a chat is thought about unless it says otherwise.
    pub(crate) chat_reasoning: bool,
}

/// Reads a request.
pub(crate) fn read(photon: &Photon, terms: &Terms, dict: &Bound<'_, PyDict>) -> PyResult<Request> {
    let py = dict.py();
    let mut map = Map::new();
    for (name, value) in dict {
        let name = name.cast::<PyString>()?.to_str()?.to_owned();
        if WIRE.contains(&name.as_str()) {
            let value = json::from_python(&value, &name)?;
            map.insert(name, value);
        } else if !OWN.contains(&name.as_str()) {
            let known = [&OWN[..], &WIRE].concat().join(", ");
            return Err(error::invalid(py, format!("a request has no {name:?}; it has {known}")));
        }
    }
    let given = |name: &str| {
        Ok::<_, PyErr>(dict.get_item(name)?.filter(|value: &Bound<'_, PyAny>| !value.is_none()))
    };
    let skill = given("skill")?.ok_or_else(|| error::invalid(py, "a request needs a \"skill\""))?;
    let skill: String = skill.extract()?;
    let fields = Fields::new(&map);
    let mut request = match skill.as_str() {
        "chat" => {
            let messages = given("messages")?;
            let messages = messages.ok_or_else(|| error::invalid(py, "chat needs \"messages\""))?;
            let turns = turns(&messages)?;
            let reasoning = fields.boolean("reasoning").map_err(|why| error::field(py, why))?;
            let reasoning = reasoning.unwrap_or(terms.chat_reasoning);
            let skill = Skill::Chat { messages: turns.messages, reasoning };
            let request = wire::with_settings(skill, &fields, &DEFAULTS);
            let request = request.map_err(|why| error::field(py, why))?;
            Request { images: turns.images, ..request }
        }
        skill if SKILLS.contains(&skill) => {
            wire::request(skill, &fields, &DEFAULTS).map_err(|why| error::field(py, why))?
        }
        other => {
            let known = photon.skills().join(", ");
            return Err(error::invalid(py, format!("no skill {other:?}; there are {known}")));
        }
    };
    for name in ["image", "images", "image_url"] {
        if let Some(value) = given(name)? {
            request.images.extend(picture::sources(&value)?);
        }
    }
    let named = map.get("settings").and_then(|settings| settings.get("adapter")?.as_str());
    request.adapter = match (given("adapter")?, named) {
        (Some(own), _) => Some(find_adapter(py, photon, own.extract()?)?),
        (None, Some(named)) => Some(find_adapter(py, photon, named.into())?),
        (None, None) => terms.adapter.clone(),
    };
    if let Some(seconds) = given("timeout")? {
        let seconds = Duration::try_from_secs_f64(seconds.extract()?);
        let wrong = |_| error::invalid(py, "timeout must be seconds, 0 or more");
        request.deadline = Some(seconds.map_err(wrong)?);
    }
    if let Some(priority) = given("priority")? {
        let wrong = |_| error::invalid(py, "priority must be a whole number, -128 to 127");
        request.priority = priority.extract().map_err(wrong)?;
    }
    request.skill.check_images(request.images.len()).map_err(|why| error::invalid(py, why))?;
    Ok(request)
}

/// The file of an adapter, given by its name in the folder of adapters or by its path.
pub(crate) fn find_adapter(py: Python<'_>, photon: &Photon, given: PathBuf) -> PyResult<PathBuf> {
    match given.to_str().map(str::parse::<AdapterName>) {
        Some(Ok(name)) if !given.exists() => {
            photon.find_adapter(&name).map_err(|why| error::adapter(py, why))
        }
        _ => Ok(given),
    }
}

/// A conversation as OpenAI's clients write it; a part may also be `{"type": "image", "image": ...}`.
fn turns(messages: &Bound<'_, PyAny>) -> PyResult<Turns<photon::ImageSource>> {
    let py = messages.py();
    let mut turns = Turns::default();
    for (i, message) in messages.try_iter()?.enumerate() {
        let message = message?;
        let wrong = |must: &str| error::invalid(py, format!("messages[{i}] must {must}"));
        let message =
            message.cast_into::<PyDict>().map_err(|_| wrong("be a dictionary with a role"))?;
        let speaker = message.get_item("role")?.ok_or_else(|| wrong("have a \"role\""))?;
        let speaker = speaker.cast::<PyString>().map_err(|_| wrong("have a \"role\""))?.to_str()?;
        let speaker = role(speaker).map_err(|why| error::field(py, why))?;
        let (mut text, mut images) = (String::new(), Vec::new());
        match message.get_item("content")? {
            Some(content) if content.is_instance_of::<PyString>() => text = content.extract()?,
            Some(content)
                if content.is_instance_of::<PyList>() || content.is_instance_of::<PyTuple>() =>
            {
                for part in content.try_iter()? {
                    part_of(&part?, &mut text, &mut images)?;
                }
            }
            Some(content) if !content.is_none() => {
                return Err(wrong("have a text or a list of parts as its \"content\""));
            }
            _ => {}
        }
        turns.push(speaker, &text, images);
    }
    Ok(turns)
}

/// A part of a message: words or a picture.
fn part_of(
    part: &Bound<'_, PyAny>,
    text: &mut String,
    images: &mut Vec<photon::ImageSource>,
) -> PyResult<()> {
    let py = part.py();
    let wrong = |why: String| error::invalid(py, format!("a part of a message {why}"));
    let part = part.cast::<PyDict>().map_err(|_| wrong("must be a dictionary".into()))?;
    let kind = part.get_item("type")?.map(|kind| kind.extract::<String>()).transpose()?;
    match kind.as_deref() {
        Some("text" | "input_text") => {
            let words = part.get_item("text")?.ok_or_else(|| wrong("has no \"text\"".into()))?;
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(words.cast::<PyString>()?.to_str()?);
        }
        Some("image_url" | "input_image" | "image") => {
            let url = match part.get_item("image_url")? {
                Some(url) => Some(url),
                None => part.get_item("image")?,
            };
            let url = url.ok_or_else(|| wrong("has no \"image_url\" and no \"image\"".into()))?;
            let url = match url.cast::<PyDict>() {
                Ok(url) => url.get_item("url")?.ok_or_else(|| wrong("has no \"url\"".into()))?,
                Err(_) => url,
            };
            images.push(picture::source(&url)?);
        }
        other => return Err(wrong(format!("cannot be of type {:?}", other.unwrap_or_default()))),
    }
    Ok(())
}

/// An answer's fields, as clients of Moondream know them.
pub(crate) fn answer(response: &photon::Response, is_chat: bool) -> Map<String, Value> {
    let mut answer = wire::answer(&response.answer);
    if !is_chat {
        return answer;
    }
    let mut message = Map::new();
    message.insert("role".into(), "assistant".into());
    message.insert("content".into(), answer.remove("answer").unwrap_or_default());
    if let Some(Value::Object(mut reasoning)) = answer.remove("reasoning") {
        message.insert("reasoning".into(), reasoning.remove("text").unwrap_or_default());
        message.insert("reasoning_details".into(), Value::Object(reasoning));
    }
    answer.insert("message".into(), Value::Object(message));
    let reason = wire::finish_reason(response.finish_reason);
    answer.insert("finish_reason".into(), reason.into());
    answer
}
