//! What requests are routed by where several servers share the work: the key of what a request begins with
//! ([`photon::route_key`]), in a header of every answer and at `POST /v1/route_key`, which answers nothing
//! else. A request that went to the server where its key leads finds its picture in the cache there.
//!
//! Whoever has read what a request begins with says so to [`begins_with`]; [`around`] puts it into the
//! answer. It goes past the dialects, because what they answer with has no place for it.
use std::{cell::OnceCell, sync::Arc};

use axum::{
    extract::{Request, State},
    http::HeaderValue,
    response::{IntoResponse as _, Response},
};
use photon::route_key;
use serde_json::json;
use tokio::task_local;

use crate::{
    app::App,
    body::Body,
    error::Problem,
    fields::Fields,
    images::Sent,
    native, ollama, openai,
    turns::{self, Turns},
};

/// The header: of answers, and of requests for routers to read.
pub(crate) const HEADER: &str = "x-photon-route-key";

task_local! {
    /// Of the request that this task answers.
    static KEY: OnceCell<String>;
}

/// Says what the request under way begins with. Of several on one connection the first counts.
pub(crate) fn begins_with(bytes: &[u8]) {
    // A request of a stream over gRPC may be read by another task than answers it, and has no header.
    let _ = KEY.try_with(|key| key.get_or_init(|| route_key(bytes)).len());
}

/// An answer with its request's key, if it came so far that it has one.
pub(crate) async fn around(answer: impl Future<Output = Response>) -> Response {
    let keyed = async {
        let mut response = answer.await;
        let key = KEY.with(|key| key.get().and_then(|key| HeaderValue::from_str(key).ok()));
        if let Some(key) = key {
            response.headers_mut().insert(HEADER, key);
        }
        response
    };
    KEY.scope(OnceCell::new(), keyed).await
}

/// `POST /v1/route_key`: the key of a request that is not answered, and whose picture is not fetched.
pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Problem> {
    let body = Body::read(request, &app.config).await?;
    let fields = Fields::new(&body.map);
    match conversation(&app, &fields)? {
        Some(turns) => begins_with(turns::begins_with(&turns)),
        None => {
            begins_with(native::begins_with(&native::pictures(&app, &fields, &body)?, &fields)?);
        }
    }
    let key = KEY.with(|key| key.get().cloned());
    Ok(axum::Json(json!({ "route_key": key })).into_response())
}

/// The turns of a body that has some, as OpenAI's or as Ollama's clients write them.
fn conversation(app: &App, fields: &Fields<'_>) -> Result<Option<Turns<Sent>>, Problem> {
    if fields.get("prompt").is_some() {
        return ollama::prompt(app, fields).map(Some);
    }
    let Some(messages) = fields.get("messages") else { return Ok(None) };
    let ollama = messages.as_array().into_iter().flatten().any(|one| one.get("images").is_some());
    match ollama {
        true => ollama::messages(app, fields).map(Some),
        false => openai::messages(app, fields).map(Some),
    }
}
