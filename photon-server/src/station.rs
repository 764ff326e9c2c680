//! What surrounds the skills: health, lists, numbers; what the old local server of Moondream had, and how
//! llama.cpp's server shows tokens.
use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use crate::{app::App, body::Body, error::Problem, fields::Fields};

/// Routes that need no key.
pub(crate) fn open_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/health", get(health))
        .route("/healthz", get(ready))
        .route("/readiness", get(ready))
        .route("/v1/status", get(status))
}

/// Routes that need one.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/stats", get(stats))
        .route("/v1/count_tokens", post(count_tokens))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
}

/// The process lives.
async fn health() -> Response {
    axum::Json(json!({ "status": "ok", "server": "photon" })).into_response()
}

/// The server takes requests.
async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.is_stopping() {
        true => {
            let body = axum::Json(json!({ "status": "stopping", "error": "Engine is not ready" }));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
        false => axum::Json(json!({ "status": "ok" })).into_response(),
    }
}

/// For the page.
async fn status(State(app): State<Arc<App>>) -> Response {
    let (photon, config) = (&app.photon, &app.config);
    let body = json!({
        "model": config.model_name,
        "skills": photon.skills(),
        "device": photon.device_name(),
        "dtype": photon.dtype().to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": app.started.elapsed().as_secs_f64(),
        "ready": !app.is_stopping(),
        "keys": app.needs_key(),
        "limits": {
            "max_body_bytes": config.max_body_bytes,
            "max_image_bytes": config.max_image_bytes,
            "max_pixels": photon::Limits::default().max_pixels,
            "max_images": config.max_images,
            "max_objects": config.max_objects,
            "max_waiting": photon.max_waiting(),
        },
        "engine": photon.stats(),
    });
    axum::Json(body).into_response()
}

/// In OpenAI's form and in the old server's, which have different keys.
async fn models(State(app): State<Arc<App>>) -> Response {
    let created = crate::time::unix().saturating_sub(app.started.elapsed().as_secs());
    let names = app.model_names();
    let openai = |name: &String| json!({ "id": name, "object": "model", "created": created, "owned_by": "photon" });
    let station = |name: &String| {
        json!({
            "id": name, "name": name, "description": app.photon.device_name(),
            "version": env!("CARGO_PKG_VERSION"),
        })
    };
    let body = json!({
        "object": "list",
        "data": names.iter().map(openai).collect::<Vec<Value>>(),
        "models": names.iter().map(station).collect::<Vec<Value>>(),
    });
    axum::Json(body).into_response()
}

async fn stats(State(app): State<Arc<App>>) -> Response {
    let stats = app.photon.stats();
    let body = json!({
        "workers": 1,
        "queue_size": stats.waiting,
        "processing": stats.running,
        "requests_processed": stats.finished,
        "default_timeout": app.config.deadline.as_secs_f64(),
        "model": app.config.model_name,
        "status": if app.is_stopping() { "stopping" } else { "running" },
        "engine": stats,
    });
    axum::Json(body).into_response()
}

async fn count_tokens(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let body = Body::read(request, &app.config).await?;
    let fields = Fields::new(&body.map);
    let text = match fields.string("text")? {
        Some(text) => text,
        None => fields.required("question")?,
    };
    app.check_text(text, "text")?;
    let count = app.photon.count_tokens(text)?;
    Ok(axum::Json(json!({ "count": count, "tokens": count })).into_response())
}

/// Most tokens that are made a text at once.
const MAX_TOKENS: usize = 1 << 16;

async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let body = Body::read(request, &app.config).await?;
    let fields = Fields::new(&body.map);
    // Spaces around a text are tokens too.
    let Some(Value::String(text)) = fields.get("content") else {
        return Err(fields.wrong("content", "a string").into());
    };
    app.check_text(text, "content")?;
    let tokens = app.photon.tokenize(text)?;
    if !fields.boolean("with_pieces")?.unwrap_or(false) {
        return Ok(axum::Json(json!({ "tokens": tokens })).into_response());
    }
    let piece = |&id: &u32| match std::str::from_utf8(app.photon.token_bytes(id)) {
        Ok(text) => json!({ "id": id, "piece": text }),
        Err(_) => json!({ "id": id, "piece": app.photon.token_bytes(id) }),
    };
    let tokens: Vec<Value> = tokens.iter().map(piece).collect();
    Ok(axum::Json(json!({ "tokens": tokens })).into_response())
}

async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let body = Body::read(request, &app.config).await?;
    let fields = Fields::new(&body.map);
    let wrong = || Problem::from(fields.wrong("tokens", "an array of ids"));
    let tokens = fields.get("tokens").and_then(Value::as_array).ok_or_else(wrong)?;
    if tokens.len() > MAX_TOKENS {
        let message = format!("there are {} tokens, the most is {MAX_TOKENS}", tokens.len());
        return Err(Problem::invalid(message).at("tokens"));
    }
    let mut bytes = Vec::new();
    for token in tokens {
        let id = token.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)?;
        bytes.extend_from_slice(app.photon.token_bytes(id));
    }
    Ok(axum::Json(json!({ "content": String::from_utf8_lossy(&bytes) })).into_response())
}
