//! KServe's dialect, version 2, over HTTP: tensors in, tensors out.
//!
//! The model has the tensors that Moondream's Triton server has: `SKILL`, `QUESTION`, `OBJECT`, `IMAGE`,
//! `LENGTH`, `TEMPERATURE`, `TOP_P`, `MAX_TOKENS`, `MAX_OBJECTS`, `REASONING`, `SPATIAL_REFS`; the answer is
//! the JSON of the native dialect in `TEXT_OUTPUT`. Tensors come as JSON or behind it in binary, as
//! Triton's clients send them.
use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::{
    app::{App, RequestId},
    ask::Asked,
    body::{self, Body},
    error::Problem,
    fields::Fields,
    native,
};

const HEADER_LENGTH: &str = "inference-header-content-length";

/// Routes that need no key.
pub(crate) fn open_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/health/live", get(|| async { "" }))
        .route("/v2/health/ready", get(ready))
}

/// Routes that need one.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v2/models/{model}", get(metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(versioned_metadata))
        .route("/v2/models/{model}/versions/{version}/ready", get(versioned_ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(versioned_infer))
}

async fn server() -> Response {
    let body = json!({
        "name": "photon", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"],
    });
    axum::Json(body).into_response()
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.is_stopping() {
        true => Problem::stopping().into_response(),
        false => "".into_response(),
    }
}

async fn model_ready(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> Result<&'static str, Problem> {
    app.adapter_of(Some(&model)).map(|_| "")
}

async fn versioned_ready(
    state: State<Arc<App>>,
    Path((model, _)): Path<(String, String)>,
) -> Result<&'static str, Problem> {
    model_ready(state, Path(model)).await
}

/// Name, type, where it goes.
const INPUTS: [(&str, &str, &str); 12] = [
    ("SKILL", "BYTES", "skill"),
    ("QUESTION", "BYTES", "question"),
    ("OBJECT", "BYTES", "object"),
    ("IMAGE", "BYTES", "image"),
    ("LENGTH", "BYTES", "length"),
    ("TEMPERATURE", "FP32", "settings.temperature"),
    ("TOP_P", "FP32", "settings.top_p"),
    ("MAX_TOKENS", "INT32", "settings.max_tokens"),
    ("MAX_OBJECTS", "INT32", "settings.max_objects"),
    ("REASONING", "BOOL", "reasoning"),
    ("STREAM", "BOOL", "stream"),
    ("SPATIAL_REFS", "FP32", "spatial_refs"),
];

async fn metadata(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> Result<Response, Problem> {
    app.adapter_of(Some(&model))?;
    let inputs = INPUTS.map(|(name, datatype, _)| {
        let shape = if name == "SPATIAL_REFS" { json!([-1, -1]) } else { json!([1]) };
        json!({ "name": name, "datatype": datatype, "shape": shape })
    });
    let body = json!({
        "name": model, "versions": ["1"], "platform": "photon", "inputs": inputs,
        "outputs": [{ "name": "TEXT_OUTPUT", "datatype": "BYTES", "shape": [1] }],
    });
    Ok(axum::Json(body).into_response())
}

async fn versioned_metadata(
    state: State<Arc<App>>,
    Path((model, _)): Path<(String, String)>,
) -> Result<Response, Problem> {
    metadata(state, Path(model)).await
}

async fn versioned_infer(
    state: State<Arc<App>>,
    Path((model, _)): Path<(String, String)>,
    id: Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    infer(state, Path(model), id, request).await
}

async fn infer(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let arrived = std::time::Instant::now();
    let head = request.headers().get(HEADER_LENGTH).and_then(|value| value.to_str().ok());
    let head = head.map(str::parse::<usize>).transpose();
    let head = head.map_err(|_| Problem::invalid(format!("{HEADER_LENGTH} must be a number")))?;
    let bytes = body::bytes(request, &app.config).await?;
    let short = || Problem::invalid(format!("{HEADER_LENGTH} is more than the body has"));
    let (head, binary) = bytes.split_at_checked(head.unwrap_or(bytes.len())).ok_or_else(short)?;
    let map = body::json(head)?;
    let fields = Fields::new(&map);
    let mut body = tensors(&fields, binary)?;
    let skill = body.map.remove("skill");
    let skill = skill.as_ref().and_then(Value::as_str).unwrap_or("query").to_owned();
    body.map.insert("model".into(), model.as_str().into());
    let request = native::ask(&app, &skill, &body).await?;
    let response = Asked::submit(&app, request, arrived)?.response().await?;
    let id = fields.string("id")?.filter(|id| !id.is_empty()).unwrap_or(&request_id);
    let text = Value::Object(native::result(id, &response)).to_string();
    let body = json!({
        "model_name": model, "model_version": "1", "id": id,
        "outputs": [{ "name": "TEXT_OUTPUT", "datatype": "BYTES", "shape": [1], "data": [text] }],
    });
    Ok(axum::Json(body).into_response())
}

/// The inputs as fields of the native dialect.
fn tensors(fields: &Fields<'_>, mut binary: &[u8]) -> Result<Body, Problem> {
    let list = fields.get("inputs").and_then(Value::as_array);
    let list = list.ok_or_else(|| fields.wrong("inputs", "an array of tensors"))?;
    let (mut body, mut settings) = (Body::default(), Map::new());
    for tensor in list {
        let wrong = || Problem::from(fields.wrong("inputs", "an array of objects"));
        let tensor = Fields::new(tensor.as_object().ok_or_else(wrong)?);
        let name = tensor.required("name")?;
        let known = INPUTS.iter().find(|(known, ..)| *known == name);
        let Some((_, _, field)) = known else {
            let known = INPUTS.map(|(name, ..)| name).join(", ");
            return Err(Problem::invalid(format!("no input {name:?}; there are {known}")).at(name));
        };
        let parameters = tensor.object("parameters", "parameters.")?;
        let size = parameters.map(|own| own.integer("binary_data_size", 0)).transpose()?.flatten();
        let values = match size {
            None => flat(tensor.get("data").unwrap_or(&Value::Null)),
            Some(size) => {
                let short = || Problem::invalid(format!("input {name} is cut off")).at(name);
                let size = usize::try_from(size).map_err(|_| short())?;
                let (own, rest) = binary.split_at_checked(size).ok_or_else(short)?;
                binary = rest;
                if name == "IMAGE" {
                    body.files.extend(strings(own, name)?.into_iter().map(Bytes::copy_from_slice));
                    continue;
                }
                elements(tensor.required("datatype")?, own, name)?
            }
        };
        let Some(first) = values.first().cloned() else { continue };
        match field.split_once('.') {
            Some((_, setting)) => _ = settings.insert(setting.into(), first),
            None if name == "SPATIAL_REFS" => {
                let width =
                    tensor.get("shape").and_then(|shape| shape.as_array()?.last()?.as_u64());
                let width = width.unwrap_or(2).max(1) as usize;
                let refs: Vec<Value> = values.chunks(width).map(Value::from).collect();
                body.map.insert((*field).into(), refs.into());
            }
            None if first != "" => _ = body.map.insert((*field).into(), first),
            None => {}
        }
    }
    if !settings.is_empty() {
        body.map.insert("settings".into(), Value::Object(settings));
    }
    // It decides only how a stream would come, and over HTTP there is none.
    body.map.remove("stream");
    Ok(body)
}

/// Nested arrays as one.
fn flat(data: &Value) -> Vec<Value> {
    match data {
        Value::Array(values) => values.iter().flat_map(flat).collect(),
        Value::Null => Vec::new(),
        value => vec![value.clone()],
    }
}

/// Texts of a binary tensor: each with its length before it, in four bytes.
fn strings<'a>(mut bytes: &'a [u8], name: &str) -> Result<Vec<&'a [u8]>, Problem> {
    let short = || Problem::invalid(format!("input {name} is cut off")).at(name);
    let mut all = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (own, after) = rest.split_at_checked(length).ok_or_else(short)?;
        all.push(own);
        bytes = after;
    }
    if bytes.is_empty() { Ok(all) } else { Err(short()) }
}

/// Elements of a binary tensor.
fn elements(datatype: &str, bytes: &[u8], name: &str) -> Result<Vec<Value>, Problem> {
    fn numbers<const N: usize>(bytes: &[u8], one: impl Fn([u8; N]) -> Value) -> Vec<Value> {
        let (whole, _) = bytes.as_chunks::<N>();
        whole.iter().map(|bytes| one(*bytes)).collect()
    }
    Ok(match datatype {
        "BYTES" => strings(bytes, name)?
            .into_iter()
            .map(|own| match std::str::from_utf8(own) {
                Ok(text) => text.into(),
                Err(_) => STANDARD.encode(own).into(),
            })
            .collect(),
        "BOOL" => bytes.iter().map(|byte| (*byte != 0).into()).collect(),
        "INT32" => numbers(bytes, |b| i32::from_le_bytes(b).into()),
        "INT64" => numbers(bytes, |b| i64::from_le_bytes(b).into()),
        "UINT32" => numbers(bytes, |b| u32::from_le_bytes(b).into()),
        "FP32" => numbers(bytes, |b| f32::from_le_bytes(b).into()),
        "FP64" => numbers(bytes, |b| f64::from_le_bytes(b).into()),
        other => {
            let message = format!("input {name} has datatype {other:?}, which is not read");
            return Err(Problem::invalid(message).at(name));
        }
    })
}
