//! Ollama's dialect: `/api/chat`, `/api/generate` and the lists its clients look at first.
//!
//! Answers are lines of JSON unless `"stream": false`. Times are nanoseconds.
use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use photon::{Event, Grammar, ImageSource, Role, Skill, SkillEvent};
use serde_json::{Map, Value, json};

use crate::{
    app::App,
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

/// What Ollama's clients are told of its version: that of the interface, which some of them check.
const VERSION: &str = "0.12.0";

/// The routes that need a key.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/chat", post(chat))
        .route("/api/generate", post(generate))
        .route("/api/tags", get(tags))
        .route("/api/ps", get(running))
        .route("/api/show", post(show))
        .route("/api/pull", post(pull))
}

/// `GET /api/version`.
pub(crate) async fn version() -> Response {
    axum::Json(json!({ "version": VERSION })).into_response()
}

async fn tags(State(app): State<Arc<App>>) -> Response {
    let models: Vec<_> = app.model_names().iter().map(|name| model(&app, name)).collect();
    axum::Json(json!({ "models": models })).into_response()
}

async fn running(State(app): State<Arc<App>>) -> Response {
    let mut entry = model(&app, &app.config.model_name);
    // The model stays; a far date says so.
    entry["expires_at"] = "2999-01-01T00:00:00Z".into();
    entry["size_vram"] = 0.into();
    axum::Json(json!({ "models": [entry] })).into_response()
}

fn model(app: &App, name: &str) -> Value {
    json!({
        "name": name, "model": name, "modified_at": time::rfc3339(), "size": 0,
        "digest": "", "details": details(app),
    })
}

fn details(app: &App) -> Value {
    json!({
        "parent_model": "", "format": "safetensors", "family": "moondream",
        "families": ["moondream"], "parameter_size": "",
        "quantization_level": app.photon.dtype().to_string(),
    })
}

async fn show(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let map = body::json(&body::bytes(request, &app.config).await?)?;
    let fields = Fields::new(&map);
    check_model(&app, &fields)?;
    let body = json!({
        "modelfile": "", "parameters": "", "template": "", "details": details(&app),
        "model_info": { "general.architecture": "moondream" },
        "capabilities": ["completion", "vision"],
    });
    Ok(axum::Json(body).into_response())
}

/// The model is here already, or it is none of ours: nothing is downloaded by a request.
async fn pull(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let map = body::json(&body::bytes(request, &app.config).await?)?;
    check_model(&app, &Fields::new(&map))?;
    Ok(axum::Json(json!({ "status": "success" })).into_response())
}

/// Ollama's names may carry a tag: `moondream:latest`.
fn check_model(app: &App, fields: &Fields<'_>) -> Result<Option<String>, Problem> {
    let name = match fields.string("model")? {
        None => fields.string("name")?,
        some => some,
    };
    let name = name.unwrap_or_default();
    let (base, tag) = name.split_once(':').unwrap_or((name, ""));
    // An adapter may stand behind either.
    let adapter = tag.split_once('/').map(|(_, adapter)| adapter);
    Ok(app.adapter_of(Some(base))?.or(adapter).map(str::to_owned))
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Response {
    respond(&app, request, true).await.unwrap_or_else(IntoResponse::into_response)
}

async fn generate(State(app): State<Arc<App>>, request: Request) -> Response {
    respond(&app, request, false).await.unwrap_or_else(IntoResponse::into_response)
}

async fn respond(app: &Arc<App>, request: Request, is_chat: bool) -> Result<Response, Problem> {
    let arrived = Instant::now();
    let map = body::json(&body::bytes(request, &app.config).await?)?;
    let fields = Fields::new(&map);
    let adapter = check_model(app, &fields)?;
    let streams = fields.boolean("stream")?.unwrap_or(true);
    let turns = match is_chat {
        true => messages(app, &fields)?,
        false => prompt(app, &fields)?,
    };
    route::begins_with(turns::begins_with(&turns));
    let name = fields.string("model")?.unwrap_or(&app.config.model_name).to_owned();
    let shape = Shape { name, is_chat, arrived };
    if turns.messages.is_empty() {
        // An empty request asks for the model to be loaded, which it is.
        return Ok(axum::Json(shape.last("load", None)).into_response());
    }
    let request = ask(app, &fields, turns, adapter.as_deref()).await?;
    let asked = Asked::submit(app, request, arrived)?;
    if streams {
        let ping = app.config.ping_interval;
        return stream::respond(asked, ping, Framing::Lines, Lines(shape)).await;
    }
    let response = asked.response().await?;
    let mut all = shape.last(wire::finish_reason(response.finish_reason), Some(&response));
    let answer = wire::answer(&response.answer);
    let text = answer.get("answer").and_then(Value::as_str).unwrap_or_default();
    let thinking = answer.get("reasoning").and_then(|reasoning| reasoning["text"].as_str());
    shape.say(&mut all, text, thinking);
    Ok(axum::Json(all).into_response())
}

async fn ask(
    app: &App,
    fields: &Fields<'_>,
    turns: Turns<Sent>,
    adapter: Option<&str>,
) -> Result<photon::Request, Problem> {
    // `think` may name an effort.
    let reasoning = match fields.get("think") {
        None => false,
        Some(Value::String(effort)) => effort != "none",
        Some(_) => fields.boolean("think")?.unwrap_or(false),
    };
    let skill = Skill::Chat { messages: turns.messages, reasoning };
    let mut request = photon::Request::new(skill, None::<ImageSource>);
    request.images = images::files(turns.images, &app.config).await?;
    request.adapter = app.adapter(adapter)?;
    request.grammar = match fields.get("format") {
        None => None,
        Some(Value::String(format)) if format.is_empty() => None,
        Some(Value::String(format)) if format == "json" => Some(Grammar::Json),
        Some(schema @ Value::Object(_)) => Some(Grammar::JsonSchema(schema.to_string())),
        Some(_) => return Err(fields.wrong("format", "'json' or a JSON schema").into()),
    };
    let Some(options) = fields.object("options", "options.")? else {
        app.check(&request)?;
        return Ok(request);
    };
    let sampling = &mut request.sampling;
    sampling.temperature = options.float("temperature")?.unwrap_or(sampling.temperature);
    sampling.top_p = options.float("top_p")?.unwrap_or(sampling.top_p);
    sampling.min_p = options.float("min_p")?.unwrap_or(sampling.min_p);
    sampling.top_k = options.integer("top_k", 0)?.map_or(sampling.top_k, |k| k as u32);
    if let Some(seed) = options.get("seed").and_then(Value::as_i64) {
        sampling.seed = seed as u64;
    }
    // Negative means without limit.
    if let Some(most) = options.get("num_predict").and_then(Value::as_i64).filter(|n| *n > 0) {
        request.budget.max_tokens = most as usize;
    }
    request.stop = options.strings("stop")?;
    app.check(&request)?;
    Ok(request)
}

pub(crate) fn messages(app: &App, fields: &Fields<'_>) -> Result<Turns<Sent>, Problem> {
    let mut turns = Turns::default();
    let list = match fields.get("messages") {
        None => return Ok(turns),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(fields.wrong("messages", "an array of messages").into()),
    };
    for message in list {
        let Value::Object(message) = message else {
            return Err(fields.wrong("messages", "an array of objects").into());
        };
        let message = Fields::new(message);
        let sent = pictures(app, &message, turns.images.len())?;
        let text = message.string("content")?.unwrap_or_default();
        turns.push(role(message.required("role")?)?, text, sent);
    }
    Ok(turns)
}

pub(crate) fn prompt(app: &App, fields: &Fields<'_>) -> Result<Turns<Sent>, Problem> {
    let mut turns = Turns::default();
    let sent = pictures(app, fields, 0)?;
    let text = fields.string("prompt")?.unwrap_or_default();
    if text.is_empty() && sent.is_empty() {
        return Ok(turns);
    }
    if let Some(system) = fields.string("system")?.filter(|system| !system.is_empty()) {
        turns.push(Role::System, system, Vec::new());
    }
    turns.push(Role::User, text, sent);
    Ok(turns)
}

fn pictures(app: &App, fields: &Fields<'_>, before: usize) -> Result<Vec<Sent>, Problem> {
    let data = fields.strings("images")?;
    app.check_images(before + data.len())?;
    data.iter().map(|data| Sent::text(data, "images", &app.config)).collect()
}

/// What is the same in every line of an answer.
struct Shape {
    name: String,
    is_chat: bool,
    arrived: Instant,
}

impl Shape {
    fn line(&self, done: bool) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("model".into(), self.name.as_str().into());
        map.insert("created_at".into(), time::rfc3339().into());
        self.say(&mut map, "", None);
        map.insert("done".into(), done.into());
        map
    }

    /// Puts text where the route has it.
    fn say(&self, map: &mut Map<String, Value>, text: &str, thinking: Option<&str>) {
        if self.is_chat {
            let mut message = json!({ "role": "assistant", "content": text });
            if let Some(thinking) = thinking {
                message["thinking"] = thinking.into();
            }
            map.insert("message".into(), message);
        } else {
            map.insert("response".into(), text.into());
            if let Some(thinking) = thinking {
                map.insert("thinking".into(), thinking.into());
            }
        }
    }

    fn last(&self, reason: &str, response: Option<&photon::Response>) -> Map<String, Value> {
        let mut map = self.line(true);
        map.insert("done_reason".into(), reason.into());
        let Some(response) = response else { return map };
        let m = &response.metrics;
        let ns = |ms: f64| (ms * 1e6) as u64;
        let before = m.prefill_time_ms + m.vision_time_ms;
        map.insert("total_duration".into(), (self.arrived.elapsed().as_nanos() as u64).into());
        map.insert("load_duration".into(), 0.into());
        map.insert("prompt_eval_count".into(), m.input_tokens.into());
        map.insert("prompt_eval_duration".into(), ns(before).into());
        map.insert("eval_count".into(), m.output_tokens.into());
        map.insert("eval_duration".into(), ns(m.decode_time_ms).into());
        map
    }
}

/// A line per event.
struct Lines(Shape);

impl Render for Lines {
    fn event(&mut self, event: Event) -> Vec<String> {
        let mut line = self.0.line(false);
        match event {
            Event::Skill(SkillEvent::Text(text)) => self.0.say(&mut line, &text, None),
            Event::Skill(SkillEvent::Reasoning(text)) => self.0.say(&mut line, "", Some(&text)),
            Event::Done(response) => {
                line = self.0.last(wire::finish_reason(response.finish_reason), Some(&response));
            }
            _ => return Vec::new(),
        }
        vec![Value::Object(line).to_string()]
    }

    fn problem(&mut self, problem: &Problem) -> Vec<String> {
        vec![problem.native().to_string()]
    }
}
