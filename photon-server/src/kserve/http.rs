//! KServe's dialect over HTTP. Tensors come as JSON or behind it in binary, as Triton's clients send them.
use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use super::{
    EXTENSIONS, Elements, INPUTS, Input, Inputs, OUTPUT, SERVER, VERSION, cut_off, elements,
};
use crate::{
    app::{App, RequestId},
    ask::Asked,
    body,
    error::Problem,
    fields::Fields,
    native,
};

/// Where the JSON of a request ends.
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
        "name": SERVER, "version": env!("CARGO_PKG_VERSION"), "extensions": EXTENSIONS,
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

async fn metadata(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> Result<Response, Problem> {
    app.adapter_of(Some(&model))?;
    let tensor =
        |own: &Input| json!({ "name": own.name, "datatype": own.datatype, "shape": own.shape });
    let body = json!({
        "name": model, "versions": [VERSION], "platform": SERVER,
        "inputs": INPUTS.iter().map(tensor).collect::<Vec<_>>(), "outputs": [tensor(&OUTPUT)],
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
    let asking = inputs(&fields, binary)?.ask(&app, &model).await?;
    let response = Asked::submit(&app, asking.request, arrived)?.response().await?;
    let id = fields.string("id")?.filter(|id| !id.is_empty()).unwrap_or(&request_id);
    let text = Value::Object(native::result(id, &response)).to_string();
    let output = json!({
        "name": OUTPUT.name, "datatype": OUTPUT.datatype, "shape": OUTPUT.shape, "data": [text],
    });
    let body = json!({
        "model_name": model, "model_version": VERSION, "id": id, "outputs": [output],
    });
    Ok(axum::Json(body).into_response())
}

/// The tensors of a request, with what stands behind its JSON.
fn inputs(fields: &Fields<'_>, mut binary: &[u8]) -> Result<Inputs, Problem> {
    let list = fields.get("inputs").and_then(Value::as_array);
    let list = list.ok_or_else(|| fields.wrong("inputs", "an array of tensors"))?;
    let mut inputs = Inputs::default();
    for tensor in list {
        let wrong = || Problem::from(fields.wrong("inputs", "an array of objects"));
        let tensor = Fields::new(tensor.as_object().ok_or_else(wrong)?);
        let name = tensor.required("name")?;
        let parameters = tensor.object("parameters", "parameters.")?;
        let size = parameters.map(|own| own.integer("binary_data_size", 0)).transpose()?.flatten();
        let elements = match size {
            None => Elements::Values(flat(tensor.get("data").unwrap_or(&Value::Null))),
            Some(size) => {
                let size = usize::try_from(size).map_err(|_| cut_off(name))?;
                let (own, rest) = binary.split_at_checked(size).ok_or_else(|| cut_off(name))?;
                binary = rest;
                elements(tensor.required("datatype")?, own, name)?
            }
        };
        let width = tensor.get("shape").and_then(|shape| shape.as_array()?.last()?.as_u64());
        inputs.put(name, width, elements)?;
    }
    Ok(inputs)
}

/// Nested arrays as one.
fn flat(data: &Value) -> Vec<Value> {
    match data {
        Value::Array(values) => values.iter().flat_map(flat).collect(),
        Value::Null => Vec::new(),
        value => vec![value.clone()],
    }
}
