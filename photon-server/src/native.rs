//! Moondream's own dialect: `POST /v1/{skill}`, as its cloud answers and its clients ask.
use std::{sync::Arc, time::Instant};

use axum::{
    Extension,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use photon::{Event, Metrics, SkillEvent};
use serde_json::{Map, Value, json};

use crate::{
    app::{App, RequestId},
    ask::Asked,
    body::Body,
    error::Problem,
    fields::Fields,
    images::{self, Sent},
    route,
    stream::{self, Framing, Render},
    wire,
};

/// Any skill.
pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    Path(skill): Path<String>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Response {
    respond(&app, &skill, id, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn respond(
    app: &Arc<App>,
    skill: &str,
    RequestId(id): RequestId,
    request: Request,
) -> Result<Response, Problem> {
    let arrived = Instant::now();
    if !app.photon.skills().contains(&skill) {
        let known = app.photon.skills().join(", ");
        return Err(Problem::not_found(format!("no skill {skill:?}; this model has {known}")));
    }
    let body = Body::read(request, &app.config).await?;
    let fields = Fields::new(&body.map);
    let streams = fields.boolean("stream")?.unwrap_or(false);
    let request = ask(app, skill, &body).await?;
    let asked = Asked::submit(app, request, arrived)?;
    if streams {
        let ping = app.config.ping_interval;
        return stream::respond(asked, ping, Framing::Sse, Events::new(&id, skill)).await;
    }
    let answer = result(&id, &asked.response().await?);
    Ok(axum::Json(answer).into_response())
}

/// The engine's request for a body.
pub(crate) async fn ask(app: &App, skill: &str, body: &Body) -> Result<photon::Request, Problem> {
    let fields = Fields::new(&body.map);
    let mut request = wire::request(skill, &fields, &app.wire_defaults())?;
    // `variant` is what older clients call an adapter.
    let adapter = match (fields.string("model")?, fields.string("variant")?) {
        (None, variant) => variant,
        (model, _) => app.adapter_of(model)?,
    };
    request.adapter = app.adapter(adapter)?;
    let sent = pictures(app, &fields, body)?;
    route::begins_with(begins_with(&sent, &fields)?);
    request.images = images::files(sent, &app.config).await?;
    app.check(&request)?;
    Ok(request)
}

/// What a body begins with, see [`photon::route_key`]: its first picture, or the question.
pub(crate) fn begins_with<'a>(sent: &'a [Sent], fields: &Fields<'a>) -> Result<&'a [u8], Problem> {
    let question = fields.string("question")?.unwrap_or_default();
    Ok(sent.first().map_or(question.as_bytes(), Sent::bytes))
}

/// The pictures of a body, whatever the field.
pub(crate) fn pictures(app: &App, fields: &Fields<'_>, body: &Body) -> Result<Vec<Sent>, Problem> {
    let mut sent = Vec::new();
    for bytes in &body.files {
        sent.push(Sent::file(bytes, &app.config)?);
    }
    for name in ["image_url", "image", "images"] {
        let data = match fields.get(name) {
            // OpenAI's form of an address.
            Some(Value::Object(object)) => Fields::new(object).strings("url")?,
            _ => fields.strings(name)?,
        };
        for data in data.iter().filter(|data| !data.trim().is_empty()) {
            app.check_images(sent.len() + 1)?;
            sent.push(Sent::text(data, name, &app.config)?);
        }
    }
    Ok(sent)
}

/// A whole answer.
pub(crate) fn result(id: &str, response: &photon::Response) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("request_id".into(), id.into());
    map.insert("finish_reason".into(), json!(response.finish_reason));
    map.extend(wire::answer(&response.answer));
    if let Some(points) = map.get("points").and_then(Value::as_array) {
        map.insert("count".into(), points.len().into());
    }
    map.insert("metrics".into(), timings(&response.metrics));
    map
}

/// Times and sizes.
pub(crate) fn timings(metrics: &Metrics) -> Value {
    json!(metrics)
}

/// Events as Moondream streams them. Boxes and points come one by one too, which its cloud does not do.
pub(crate) struct Events {
    id: String,
    token_index: usize,
    is_path: bool,
}

impl Events {
    pub(crate) fn new(id: &str, skill: &str) -> Self {
        Events { id: id.to_owned(), token_index: 0, is_path: skill == "segment" }
    }

    /// What an event becomes.
    pub(crate) fn piece(&mut self, event: Event) -> Option<Value> {
        match event {
            Event::Skill(event) => {
                self.token_index += 1;
                self.delta(event)
            }
            Event::Done(response) => {
                let mut map = Map::new();
                if self.is_path {
                    map.insert("type".into(), "final".into());
                }
                map.insert("chunk".into(), "".into());
                map.insert("completed".into(), true.into());
                map.extend(result(&self.id, &response));
                Some(Value::Object(map))
            }
            _ => None,
        }
    }

    fn delta(&self, event: SkillEvent) -> Option<Value> {
        let n = self.token_index;
        Some(match event {
            SkillEvent::Text(text) => {
                json!({ "chunk": text, "completed": false, "token_index": n })
            }
            SkillEvent::Reasoning(text) => json!({ "reasoning_chunk": text, "completed": false }),
            SkillEvent::Object(object) => json!({ "object": object, "completed": false }),
            SkillEvent::Point(point) => json!({ "point": point, "completed": false }),
            SkillEvent::Box(bbox) => json!({ "type": "bbox", "bbox": bbox, "completed": false }),
            SkillEvent::Path(path) => json!({
                "type": "path_delta", "chunk": path, "completed": false, "token_index": n,
            }),
            _ => return None,
        })
    }
}

impl Render for Events {
    fn event(&mut self, event: Event) -> Vec<String> {
        self.piece(event).iter().map(ToString::to_string).collect()
    }

    fn problem(&mut self, problem: &Problem) -> Vec<String> {
        vec![json!({ "error": problem.message, "completed": true }).to_string()]
    }
}
