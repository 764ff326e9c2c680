//! KServe's dialect over gRPC, and Triton's stream: any number of requests, each with as many answers as
//! it has. With `STREAM` an answer comes in the pieces of the native dialect's stream, without it whole.
//!
//! # Rules
//! - What is wrong with one request of a stream is told in its answer; the stream goes on.
//! - The pieces of a stream's answers come mixed; each has its request's id, and the last says that it is.
//! - A stream that says nothing while nothing is under way is ended, as an idle connection is.
use std::{pin::Pin, sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::{self, State},
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::Response as HttpResponse,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http_body_util::BodyExt as _;
use photon::Event;
use serde_json::Value;
use tokio::{sync::watch, time::timeout};
use tonic::{Code, Request, Response, Status, Streaming};
use tower_http::timeout::TimeoutBody;

use self::proto::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
    ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
    ModelStreamInferResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
    infer_parameter::ParameterChoice,
    model_infer_response::InferOutputTensor,
    model_metadata_response::TensorMetadata,
};
use super::{
    Asking, EXTENSIONS, Elements, INPUTS, Input, Inputs, OUTPUT, SERVER, VERSION, elements,
};
use crate::{
    app::{self, App},
    ask::Asked,
    error::Problem,
    native,
};

mod proto {
    #![allow(
        clippy::all,
        clippy::allow_attributes_without_reason,
        missing_docs,
        unreachable_pub,
        reason = "made from proto/inference.proto"
    )]
    tonic::include_proto!("inference");
}

/// Most requests of one stream under way; it is not read further until one of them is answered.
const STREAM_REQUESTS: usize = 64;

/// All methods.
pub(crate) fn router(app: &Arc<App>, stop: watch::Receiver<bool>) -> Router {
    let service = GrpcInferenceServiceServer::new(Service { app: Arc::clone(app), stop })
        .max_decoding_message_size(app.config.max_body_bytes);
    let methods = Router::new()
        .route_service("/inference.GRPCInferenceService/{method}", service)
        .fallback(|| async {
            Status::unimplemented("there is no such service").into_http::<Body>()
        })
        .layer(middleware::from_fn_with_state(Arc::clone(app), in_time));
    app::surround(methods, app)
}

/// Gives up a message of which nothing more comes. A stream may be silent between its messages, and has a
/// clock of its own.
async fn in_time(
    State(app): State<Arc<App>>,
    request: extract::Request,
    next: Next,
) -> HttpResponse {
    if request.uri().path().ends_with("/ModelStreamInfer") {
        return next.run(request).await;
    }
    let limit = app.config.stall_timeout;
    let late = move |_| {
        let seconds = limit.as_secs();
        Status::deadline_exceeded(format!("no piece of the message came for {seconds} seconds"))
    };
    next.run(request.map(|body| Body::new(TimeoutBody::new(limit, body).map_err(late)))).await
}

#[derive(Clone)]
struct Service {
    app: Arc<App>,
    stop: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: !self.app.is_stopping() }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        self.admit(request.metadata().as_ref())?;
        let ready = self.app.adapter_of(Some(&request.get_ref().name)).is_ok();
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: SERVER.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            extensions: EXTENSIONS.map(str::to_owned).into(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        self.admit(request.metadata().as_ref())?;
        let name = request.into_inner().name;
        self.app.adapter_of(Some(&name)).map_err(|problem| self.refuse(&problem))?;
        let tensor = |own: &Input| TensorMetadata {
            name: own.name.into(),
            datatype: own.datatype.into(),
            shape: own.shape.into(),
        };
        Ok(Response::new(ModelMetadataResponse {
            name,
            versions: vec![VERSION.into()],
            platform: SERVER.into(),
            inputs: INPUTS.iter().map(tensor).collect(),
            outputs: vec![tensor(&OUTPUT)],
        }))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        self.admit(request.metadata().as_ref())?;
        let answered = self.answer(request.into_inner()).await;
        answered.map(Response::new).map_err(|problem| self.refuse(&problem))
    }

    type ModelStreamInferStream =
        Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        self.admit(request.metadata().as_ref())?;
        let service = self.clone();
        let answers = self
            .requests(request.into_inner())
            .map(move |(request, held)| Box::pin(answers(service.clone(), request, held)))
            .flatten_unordered(STREAM_REQUESTS);
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Held by what is under way on a stream.
type Held = Arc<()>;

impl Service {
    fn admit(&self, headers: &HeaderMap) -> Result<(), Status> {
        self.app.admit(headers).map_err(|problem| self.refuse(&problem))
    }

    /// A problem as gRPC has it, counted.
    fn refuse(&self, problem: &Problem) -> Status {
        self.app.metrics.rejected(problem.code);
        status(problem)
    }

    async fn answer(&self, request: ModelInferRequest) -> Result<ModelInferResponse, Problem> {
        let arrived = Instant::now();
        let (frame, request) = Frame::open(&self.app, request);
        let asking = inputs(&request)?.ask(&self.app, &frame.model).await?;
        let response = Asked::submit(&self.app, asking.request, arrived)?.response().await?;
        let text = Value::Object(native::result(&frame.request_id, &response)).to_string();
        Ok(frame.response(text))
    }

    /// The requests of a stream until it ends, is idle for too long, or the server stops.
    fn requests(
        &self,
        requests: Streaming<ModelInferRequest>,
    ) -> impl Stream<Item = (Result<ModelInferRequest, Status>, Held)> + use<> {
        let (idle, mut stop) = (self.app.config.idle_timeout, self.stop.clone());
        let stopping = async move {
            // Without a server there is nothing to wait for either.
            let _ = stop.wait_for(|&stopping| stopping).await;
        };
        let all =
            stream::unfold((requests, Held::default()), move |(mut requests, held)| async move {
                loop {
                    match timeout(idle, requests.next()).await {
                        Ok(request) => {
                            let of_request = Arc::clone(&held);
                            return Some(((request?, of_request), (requests, held)));
                        }
                        Err(_) if Arc::strong_count(&held) > 1 => {}
                        Err(_) => return None,
                    }
                }
            });
        all.take_until(Box::pin(stopping))
    }
}

/// All answers to a request of a stream.
fn answers(
    service: Service,
    request: Result<ModelInferRequest, Status>,
    held: Held,
) -> impl Stream<Item = Result<ModelStreamInferResponse, Status>> + Send {
    let begun = async move { Ok(Answering::begin(service, request?, held).await) };
    stream::once(begun).flat_map(|begun| match begun {
        Ok(answering) => stream::unfold(Some(answering), |state| async move {
            let mut answering = state?;
            let (piece, is_last) = answering.next().await;
            Some((Ok(piece), (!is_last).then_some(answering)))
        })
        .left_stream(),
        Err(status) => stream::iter([Err(status)]).right_stream(),
    })
}

/// An answer under way on a stream.
struct Answering {
    app: Arc<App>,
    frame: Frame,
    begun: Result<(Asked, Option<native::Events>), Problem>,
    _held: Held,
}

impl Answering {
    async fn begin(service: Service, request: ModelInferRequest, held: Held) -> Self {
        let (arrived, app) = (Instant::now(), service.app);
        let (frame, request) = Frame::open(&app, request);
        let begin = async {
            let asking = inputs(&request)?.ask(&app, &frame.model).await?;
            let Asking { request, skill, streams } = asking;
            let events = streams.then(|| native::Events::new(&frame.request_id, &skill));
            Ok((Asked::submit(&app, request, arrived)?, events))
        };
        let begun = begin.await;
        Answering { app, frame, begun, _held: held }
    }

    /// The next piece, and whether it is the last.
    async fn next(&mut self) -> (ModelStreamInferResponse, bool) {
        let (response, is_last, error_message) = match self.text().await {
            Ok((text, is_last)) => (self.frame.response(text), is_last, String::new()),
            Err(problem) => {
                self.app.metrics.rejected(problem.code);
                (self.frame.empty(), true, problem.message)
            }
        };
        let infer_response = Some(finality(response, is_last));
        (ModelStreamInferResponse { error_message, infer_response }, is_last)
    }

    async fn text(&mut self) -> Result<(String, bool), Problem> {
        let (asked, events) = self.begun.as_mut().map_err(|problem| problem.clone())?;
        while let Some(event) = asked.next().await {
            let event = event?;
            let is_last = matches!(event, Event::Done(_));
            let piece = match (&mut *events, event) {
                (Some(events), event) => events.piece(event),
                (None, Event::Done(response)) => {
                    Some(Value::Object(native::result(&self.frame.request_id, &response)))
                }
                (None, _) => None,
            };
            if let Some(piece) = piece {
                return Ok((piece.to_string(), is_last));
            }
        }
        Err(Problem::internal())
    }
}

/// What is the same in every piece of an answer.
struct Frame {
    model: String,
    /// What the client calls its request, if anything.
    id: String,
    /// What answers call it.
    request_id: String,
    /// Answers have the form that the request had.
    is_raw: bool,
}

impl Frame {
    /// Takes a request's names.
    fn open(app: &App, mut request: ModelInferRequest) -> (Frame, ModelInferRequest) {
        let id = std::mem::take(&mut request.id);
        let request_id = if id.is_empty() { app.new_id().0 } else { id.clone() };
        let is_raw = !request.raw_input_contents.is_empty();
        let model = std::mem::take(&mut request.model_name);
        (Frame { model, id, request_id, is_raw }, request)
    }

    fn empty(&self) -> ModelInferResponse {
        ModelInferResponse {
            model_name: self.model.clone(),
            model_version: VERSION.into(),
            id: self.id.clone(),
            ..ModelInferResponse::default()
        }
    }

    fn response(&self, text: String) -> ModelInferResponse {
        let mut output = InferOutputTensor {
            name: OUTPUT.name.into(),
            datatype: OUTPUT.datatype.into(),
            shape: OUTPUT.shape.into(),
            ..InferOutputTensor::default()
        };
        let mut response = self.empty();
        if self.is_raw {
            let length = (text.len() as u32).to_le_bytes();
            response.raw_output_contents = vec![[&length[..], text.as_bytes()].concat().into()];
        } else {
            let bytes_contents = vec![Bytes::from(text)];
            output.contents = Some(InferTensorContents { bytes_contents, ..Default::default() });
        }
        response.outputs = vec![output];
        response
    }
}

/// Says in Triton's way whether more follows.
fn finality(mut response: ModelInferResponse, is_last: bool) -> ModelInferResponse {
    let parameter_choice = Some(ParameterChoice::BoolParam(is_last));
    let parameter = InferParameter { parameter_choice };
    response.parameters.insert("triton_final_response".into(), parameter);
    response
}

/// The tensors of a request.
fn inputs(request: &ModelInferRequest) -> Result<Inputs, Problem> {
    let (tensors, raw) = (&request.inputs, &request.raw_input_contents);
    if !raw.is_empty() && raw.len() != tensors.len() {
        return Err(Problem::invalid(format!(
            "{} raw_input_contents for {} inputs: all are raw or none is",
            raw.len(),
            tensors.len()
        )));
    }
    let mut inputs = Inputs::default();
    for (i, tensor) in tensors.iter().enumerate() {
        let elements = match (raw.get(i), &tensor.contents) {
            (Some(bytes), _) => elements(&tensor.datatype, bytes, &tensor.name)?,
            (None, Some(contents)) => listed(&tensor.datatype, contents, &tensor.name)?,
            (None, None) => continue,
        };
        let width = tensor.shape.last().and_then(|&width| u64::try_from(width).ok());
        inputs.put(&tensor.name, width, elements)?;
    }
    Ok(inputs)
}

/// The elements of a tensor that lists them.
fn listed<'a>(
    datatype: &str,
    contents: &'a InferTensorContents,
    name: &str,
) -> Result<Elements<'a>, Problem> {
    fn values<T: Copy + Into<Value>>(list: &[T]) -> Vec<Value> {
        list.iter().map(|&one| one.into()).collect()
    }
    Ok(Elements::Values(match datatype {
        "BYTES" => {
            return Ok(Elements::Texts(
                contents.bytes_contents.iter().map(AsRef::as_ref).collect(),
            ));
        }
        "BOOL" => values(&contents.bool_contents),
        "INT8" | "INT16" | "INT32" => values(&contents.int_contents),
        "INT64" => values(&contents.int64_contents),
        "UINT8" | "UINT16" | "UINT32" => values(&contents.uint_contents),
        "UINT64" => values(&contents.uint64_contents),
        "FP32" => values(&contents.fp32_contents),
        "FP64" => values(&contents.fp64_contents),
        other => {
            let message = format!("input {name} has datatype {other:?}, which is not listed");
            return Err(Problem::invalid(message).at(name));
        }
    }))
}

/// A problem as gRPC has it. When to come again is said as gRPC's own retries read it.
fn status(problem: &Problem) -> Status {
    let code = match problem.status {
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Code::DeadlineExceeded,
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        status if status.is_client_error() => Code::InvalidArgument,
        _ => Code::Internal,
    };
    let mut status = Status::new(code, problem.message.clone());
    if let Some(seconds) = problem.retry_after {
        status.metadata_mut().insert("grpc-retry-pushback-ms", (seconds * 1000).into());
    }
    status
}
