//! What a client is told when there is no answer.
//!
//! A [`Problem`] is the same in every dialect; the dialect gives it a shape. Messages say what to do and
//! hold nothing of the machine: what happened inside goes to the log.
use axum::{
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use photon::RunError;
use serde_json::{Value, json};

use crate::fields::Invalid;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The field at fault, where one is.
    pub(crate) param: Option<String>,
    /// A stable word for programs.
    pub(crate) code: &'static str,
    /// Seconds after which it is worth trying again.
    pub(crate) retry_after: Option<u64>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Problem { status, message: message.into(), param: None, code, retry_after: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    pub(crate) fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Problem::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "this server asks for a key: send it as X-Moondream-Auth or as \
                       Authorization: Bearer";
        Problem::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }

    pub(crate) fn busy(message: impl Into<String>, retry_after: u64) -> Self {
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "busy", message);
        Problem { retry_after: Some(retry_after), ..problem }
    }

    /// Too many requests wait.
    pub(crate) fn full() -> Self {
        Problem::busy("the server is busy; try again later", RETRY_SECONDS)
    }

    pub(crate) fn deadline() -> Self {
        let message = "the deadline passed before the answer was complete";
        Problem::new(StatusCode::GATEWAY_TIMEOUT, "deadline", message)
    }

    pub(crate) fn stopping() -> Self {
        let problem = Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "stopping",
            "Engine is not ready: the server is stopping",
        );
        Problem { retry_after: Some(5), ..problem }
    }

    pub(crate) fn internal() -> Self {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Inference failed")
    }

    /// `{"error": "..."}`.
    pub(crate) fn native(&self) -> Value {
        json!({ "error": self.message })
    }

    /// OpenAI's object.
    pub(crate) fn openai(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            504 => "timeout_error",
            _ => "server_error",
        };
        json!({ "error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code,
        } })
    }

    /// With a body in the dialect's shape.
    pub(crate) fn respond(&self, body: &Value) -> Response {
        let mut response = (self.status, axum::Json(body)).into_response();
        response.extensions_mut().insert(Refused(self.code));
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.respond(&self.native())
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        Problem { param: invalid.field, ..Problem::invalid(invalid.message) }
    }
}

impl From<RunError> for Problem {
    fn from(error: RunError) -> Self {
        let message = error.to_string();
        match error {
            RunError::Rejected(_) | RunError::NoAdapters => Problem::invalid(message),
            RunError::TooLarge { .. } => Problem::invalid(message).at("max_tokens"),
            RunError::Image(_) => {
                Problem::new(StatusCode::BAD_REQUEST, "image_decode_failed", message)
                    .at("image_url")
            }
            RunError::Busy { .. } => Problem::full(),
            RunError::Deadline => Problem::deadline(),
            RunError::Cancelled | RunError::Stopped(_) => Problem::stopping(),
            // A path of this machine stands in the message.
            RunError::Open(_) | RunError::Adapter(_) => {
                tracing::error!(error = %message, "an adapter cannot be used");
                Problem::not_found("the adapter of this model cannot be used; see the server's log")
                    .at("model")
            }
            _ => {
                tracing::error!(error = %message, "a request failed");
                Problem::internal()
            }
        }
    }
}

/// An answer's mark by which metrics count it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused(pub(crate) &'static str);

/// When it is worth trying again after a full queue.
const RETRY_SECONDS: u64 = 1;
