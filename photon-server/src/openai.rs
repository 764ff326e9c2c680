//! OpenAI's dialect: `POST /v1/chat/completions`.
//!
//! Pictures come as `image_url` parts, text as text. A `skill` beside the messages asks for something
//! else than a conversation (`detect`, `point`, ...): its result comes as JSON in the content and as an object in
//! `moondream`. What this server cannot do (several choices, tools) is refused, not ignored.
use std::{sync::Arc, time::Instant};

use axum::{
    Extension,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use photon::{Answer, Event, Grammar, ImageSource, Skill, SkillEvent};
use serde_json::{Map, Value, json};

use crate::{
    app::{App, RequestId},
    ask::Asked,
    body,
    error::Problem,
    fields::Fields,
    images::{self, Sent},
    route,
    stream::{self, Framing, Render},
    time,
    turns::{self, Turns, role},
    wire,
};

/// A chat completion.
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Response {
    let answered = respond(&app, id, request).await;
    answered.unwrap_or_else(|problem| problem.respond(&problem.openai()))
}

async fn respond(
    app: &Arc<App>,
    RequestId(id): RequestId,
    request: Request,
) -> Result<Response, Problem> {
    let arrived = Instant::now();
    let map = body::json(&body::bytes(request, &app.config).await?)?;
    let fields = Fields::new(&map);
    let streams = fields.boolean("stream")?.unwrap_or(false);
    let options = fields.object("stream_options", "stream_options.")?;
    let usage = options.map(|options| options.boolean("include_usage")).transpose()?.flatten();
    let request = ask(app, &fields).await?;
    let frame = Frame {
        id: format!("chatcmpl-{id}"),
        created: time::unix(),
        model: fields.string("model")?.unwrap_or(&app.config.model_name).to_owned(),
    };
    let is_text =
        matches!(request.skill, Skill::Chat { .. } | Skill::Query { .. } | Skill::Caption { .. });
    let logprobs = request.logprobs;
    let asked = Asked::submit(app, request, arrived)?;
    if streams {
        let usage = usage.unwrap_or(false);
        let render = Chunks { frame, usage, is_text, begun: false };
        return stream::respond(asked, app.config.ping_interval, Framing::Sse, render).await;
    }
    let response = asked.response().await?;
    Ok(axum::Json(completion(app, &frame, &response, is_text, logprobs)).into_response())
}

/// The engine's request for a body.
async fn ask(app: &App, fields: &Fields<'_>) -> Result<photon::Request, Problem> {
    refuse_unknown(fields)?;
    let adapter = app.adapter_of(fields.string("model")?)?;
    let turns = messages(app, fields)?;
    route::begins_with(turns::begins_with(&turns));
    let mut request = match fields.string("skill")? {
        None | Some("chat") => {
            let reasoning = reasoning(fields)?.unwrap_or(app.config.chat_reasoning);
            let skill = Skill::Chat { messages: turns.messages, reasoning };
            photon::Request::new(skill, None::<ImageSource>)
        }
        Some(skill) => {
            // What is asked stands in its own field, or is the last thing the user said.
            let mut all = Map::new();
            let said = turns.question()?;
            for name in ["question", "object"] {
                all.insert(name.into(), fields.get(name).cloned().unwrap_or_else(|| said.into()));
            }
            for name in ["length", "spatial_refs", "eye", "reasoning", "settings"] {
                all.extend(fields.get(name).map(|value| (name.to_owned(), value.clone())));
            }
            wire::request(skill, &Fields::new(&all), &app.wire_defaults())?
        }
    };
    request.images = images::files(turns.images, &app.config).await?;
    request.adapter = app.adapter(adapter)?;
    let sampling = &mut request.sampling;
    sampling.temperature = fields.float("temperature")?.unwrap_or(sampling.temperature);
    sampling.top_p = fields.float("top_p")?.unwrap_or(sampling.top_p);
    sampling.min_p = fields.float("min_p")?.unwrap_or(sampling.min_p);
    sampling.top_k = fields.integer("top_k", 0)?.map_or(sampling.top_k, |k| k as u32);
    sampling.seed = seed(fields)?.unwrap_or(sampling.seed);
    let max_tokens = match fields.integer("max_completion_tokens", 1)? {
        None => fields.integer("max_tokens", 1)?,
        some => some,
    };
    if let Some(max_tokens) = max_tokens {
        request.budget.max_tokens = max_tokens as usize;
    }
    request.stop = fields.strings("stop")?;
    request.logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    request.grammar = grammar(fields)?;
    app.check(&request)?;
    Ok(request)
}

/// OpenAI's seeds may be negative.
fn seed(fields: &Fields<'_>) -> Result<Option<u64>, Problem> {
    match fields.get("seed") {
        None => Ok(None),
        Some(value) => match value.as_i64() {
            Some(seed) => Ok(Some(seed as u64)),
            None => Ok(fields.integer("seed", 0)?),
        },
    }
}

/// Whether to think first: ours, or OpenAI's `reasoning_effort`.
fn reasoning(fields: &Fields<'_>) -> Result<Option<bool>, Problem> {
    if let Some(own) = fields.boolean("reasoning")? {
        return Ok(Some(own));
    }
    Ok(fields.string("reasoning_effort")?.map(|effort| effort != "none"))
}

fn refuse_unknown(fields: &Fields<'_>) -> Result<(), Problem> {
    let refused = |name: &str, why: &str| {
        Err(Problem::invalid(format!("Field '{name}' is not supported: {why}")).at(name))
    };
    if fields.integer("n", 1)?.unwrap_or(1) > 1 {
        return refused("n", "ask again for another answer");
    }
    if fields.get("tools").and_then(Value::as_array).is_some_and(|tools| !tools.is_empty()) {
        return refused("tools", "Moondream calls none; response_format gives JSON");
    }
    if fields.integer("top_logprobs", 0)?.unwrap_or(0) > 0 {
        return refused("top_logprobs", "logprobs has those of the answer's own tokens");
    }
    Ok(())
}

/// `response_format`, or vLLM's `guided_regex` and `guided_json`.
fn grammar(fields: &Fields<'_>) -> Result<Option<Grammar>, Problem> {
    if let Some(pattern) = fields.string("guided_regex")? {
        return Ok(Some(Grammar::Regex(pattern.to_owned())));
    }
    if let Some(schema) = fields.get("guided_json") {
        return Ok(Some(Grammar::JsonSchema(schema.to_string())));
    }
    let Some(format) = fields.object("response_format", "response_format.")? else {
        return Ok(None);
    };
    match format.required("type")? {
        "text" => Ok(None),
        "json_object" => Ok(Some(Grammar::Json)),
        "json_schema" => {
            let schema = format.object("json_schema", "response_format.json_schema.")?;
            let schema = schema.and_then(|schema| schema.get("schema"));
            let missing = || format.wrong("json_schema.schema", "a JSON schema");
            Ok(Some(Grammar::JsonSchema(schema.ok_or_else(missing)?.to_string())))
        }
        _ => Err(format.wrong("type", "'text', 'json_object' or 'json_schema'").into()),
    }
}

pub(crate) fn messages(app: &App, fields: &Fields<'_>) -> Result<Turns<Sent>, Problem> {
    let wrong =
        |at: String, must: &str| Problem::invalid(format!("Field '{at}' must be {must}")).at(at);
    let list = fields.get("messages").and_then(Value::as_array);
    let list = list.ok_or_else(|| wrong("messages".into(), "an array of messages"))?;
    let mut turns = Turns::default();
    for (i, message) in list.iter().enumerate() {
        let at = |name: &str| format!("messages[{i}].{name}");
        let Value::Object(message) = message else {
            return Err(wrong(format!("messages[{i}]"), "an object"));
        };
        let role = role(Fields::new(message).required("role")?)?;
        let (mut text, mut sent) = (String::new(), Vec::new());
        match message.get("content") {
            Some(Value::String(content)) => text.push_str(content),
            Some(Value::Array(parts)) => {
                for (j, part) in parts.iter().enumerate() {
                    let part = part.as_object().ok_or_else(|| {
                        wrong(at(&format!("content[{j}]")), "an object with a type")
                    })?;
                    let part = Fields::new(part);
                    match part.required("type")? {
                        "text" | "input_text" => {
                            if !text.is_empty() {
                                text.push('\n');
                            }
                            text.push_str(part.string("text")?.unwrap_or_default());
                        }
                        "image_url" | "input_image" | "image" => {
                            let url = match part.get("image_url") {
                                Some(Value::Object(url)) => Fields::new(url).required("url")?,
                                Some(_) => part.required("image_url")?,
                                None => part.required("image")?,
                            };
                            app.check_images(turns.images.len() + sent.len() + 1)?;
                            sent.push(Sent::text(url, "image_url", &app.config)?);
                        }
                        other => {
                            let message = format!("content of type {other:?} is not supported");
                            return Err(Problem::invalid(message).at(at("content")));
                        }
                    }
                }
            }
            None | Some(Value::Null) => {}
            Some(_) => return Err(wrong(at("content"), "a string or an array of parts")),
        }
        turns.push(role, &text, sent);
    }
    Ok(turns)
}

/// What all pieces of an answer begin with.
struct Frame {
    id: String,
    created: u64,
    model: String,
}

impl Frame {
    fn object(&self, object: &str, choices: Value) -> Map<String, Value> {
        let all = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices,
        });
        let Value::Object(map) = all else { unreachable!("written as an object") };
        map
    }

    fn chunk(&self, delta: Value, finish: Option<&str>) -> Map<String, Value> {
        let choice = json!({
            "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish,
        });
        self.object("chat.completion.chunk", json!([choice]))
    }
}

fn usage(response: &photon::Response) -> Value {
    let metrics = &response.metrics;
    json!({
        "prompt_tokens": metrics.input_tokens,
        "completion_tokens": metrics.output_tokens,
        "total_tokens": metrics.input_tokens + metrics.output_tokens,
        "prompt_tokens_details": { "cached_tokens": metrics.cached_tokens },
    })
}

/// The text of an answer: its own, or its JSON.
fn content(answer: &Answer, is_text: bool) -> String {
    let map = wire::answer(answer);
    let own = ["answer", "caption"].iter().find_map(|name| map.get(*name)?.as_str());
    match own {
        Some(text) if is_text => text.to_owned(),
        _ => Value::Object(map).to_string(),
    }
}

fn completion(
    app: &App,
    frame: &Frame,
    response: &photon::Response,
    is_text: bool,
    logprobs: bool,
) -> Map<String, Value> {
    let answer = wire::answer(&response.answer);
    let mut message = json!({ "role": "assistant", "content": content(&response.answer, is_text) });
    if let Some(reasoning) = answer.get("reasoning") {
        message["reasoning_content"] = reasoning["text"].clone();
        message["reasoning"] = reasoning.clone();
    }
    let logprobs = match (&response.logprobs, logprobs) {
        (Some(values), true) => token_logprobs(app, &response.tokens, values),
        _ => Value::Null,
    };
    let choice = json!({
        "index": 0, "message": message, "logprobs": logprobs,
        "finish_reason": wire::finish_reason(response.finish_reason),
    });
    let mut all = frame.object("chat.completion", json!([choice]));
    all.insert("usage".into(), usage(response));
    all.insert("moondream".into(), own(response));
    all
}

/// The answer as the native dialect has it.
fn own(response: &photon::Response) -> Value {
    let mut own = wire::answer(&response.answer);
    own.insert("metrics".into(), json!(response.metrics));
    Value::Object(own)
}

/// OpenAI's form of log-probabilities.
fn token_logprobs(app: &App, tokens: &[u32], values: &[f32]) -> Value {
    let entry = |(&id, &logprob): (&u32, &f32)| {
        let bytes = app.photon.token_bytes(id);
        json!({
            "token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes,
            "top_logprobs": [],
        })
    };
    json!({ "content": tokens.iter().zip(values).map(entry).collect::<Vec<_>>() })
}

/// A stream of chunks that ends with `[DONE]`.
struct Chunks {
    frame: Frame,
    usage: bool,
    is_text: bool,
    begun: bool,
}

impl Chunks {
    fn delta(&mut self, mut delta: Value) -> Map<String, Value> {
        if !std::mem::replace(&mut self.begun, true) {
            delta["role"] = "assistant".into();
        }
        self.frame.chunk(delta, None)
    }
}

impl Render for Chunks {
    fn event(&mut self, event: Event) -> Vec<String> {
        let chunks = match event {
            Event::Skill(SkillEvent::Text(text)) => vec![self.delta(json!({ "content": text }))],
            Event::Skill(SkillEvent::Reasoning(text)) => {
                vec![self.delta(json!({ "reasoning_content": text }))]
            }
            // Places come at the end, as one JSON text.
            Event::Skill(_) => vec![],
            Event::Done(response) => {
                let mut chunks = Vec::new();
                if !self.is_text {
                    let content = content(&response.answer, false);
                    chunks.push(self.delta(json!({ "content": content })));
                } else if !self.begun {
                    chunks.push(self.delta(json!({ "content": "" })));
                }
                let mut last =
                    self.frame.chunk(json!({}), Some(wire::finish_reason(response.finish_reason)));
                last.insert("moondream".into(), own(&response));
                chunks.push(last);
                if self.usage {
                    let mut totals = self.frame.object("chat.completion.chunk", json!([]));
                    totals.insert("usage".into(), usage(&response));
                    chunks.push(totals);
                }
                let texts = chunks.into_iter().map(|chunk| Value::Object(chunk).to_string());
                return texts.chain(["[DONE]".to_owned()]).collect();
            }
            _ => vec![],
        };
        chunks.into_iter().map(|chunk| Value::Object(chunk).to_string()).collect()
    }

    fn problem(&mut self, problem: &Problem) -> Vec<String> {
        vec![problem.openai().to_string(), "[DONE]".into()]
    }
}
