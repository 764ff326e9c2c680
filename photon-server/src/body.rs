//! A request's body: read within limits, and turned into fields whatever it is written in.
//!
//! JSON, a web form (`curl -F image=@photo.jpg -F question=...`) and the query string all become the same
//! [`Body`]. The limits hold while reading: nothing is allocated because of a length somebody claims.
use std::time::Duration;

use axum::{
    extract::{FromRequest, Multipart, Request, multipart::MultipartError},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use serde_json::{Map, Value};

use crate::{Config, error::Problem, fields};

/// What a request says.
#[derive(Debug, Default)]
pub(crate) struct Body {
    pub(crate) map: Map<String, Value>,
    /// Pictures that came as files of a form.
    pub(crate) files: Vec<Bytes>,
}

/// Fields of a form that are not strings; everything in a form is text.
const TYPED: [&str; 14] = [
    "reasoning",
    "stream",
    "settings",
    "spatial_refs",
    "timeout",
    "eye",
    "json_schema",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "max_tokens",
    "max_objects",
];

/// Those that JSON has in `settings`.
const SETTINGS: [&str; 7] =
    ["temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "max_objects"];

/// Fields of a form that may be files.
const FILES: [&str; 4] = ["image", "image_url", "images", "file"];

impl Body {
    /// Reads a request's body, and its query string.
    pub(crate) async fn read(request: Request, config: &Config) -> Result<Body, Problem> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let mut body = match kind(request.headers()) {
            Kind::Json => Body { map: json(&bytes(request, config).await?)?, files: Vec::new() },
            Kind::Form => {
                let bytes = bytes(request, config).await?;
                let mut body = Body::default();
                for (name, value) in form_urlencoded::parse(&bytes) {
                    body.text(&name, &value)?;
                }
                body
            }
            Kind::Multipart => Body::multipart(request, config).await?,
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if !body.map.contains_key(name.as_ref()) {
                body.text(&name, &value)?;
            }
        }
        Ok(body)
    }

    async fn multipart(request: Request, config: &Config) -> Result<Body, Problem> {
        check_length(request.headers(), config)?;
        let wrong = |error: MultipartError| Problem::invalid(format!("Invalid form: {error}"));
        let mut form = Multipart::from_request(request, &())
            .await
            .map_err(|error| Problem::invalid(format!("Invalid form: {error}")))?;
        let (mut body, mut left) = (Body::default(), config.max_body_bytes);
        while let Some(mut part) = in_time(config, form.next_field()).await?.map_err(wrong)? {
            let name = part.name().unwrap_or_default().to_owned();
            let is_file = part.file_name().is_some() && FILES.contains(&name.as_str());
            let mut bytes = BytesMut::new();
            while let Some(piece) = in_time(config, part.chunk()).await?.map_err(wrong)? {
                left = left.checked_sub(piece.len()).ok_or_else(|| too_large(config))?;
                bytes.extend_from_slice(&piece);
            }
            if is_file {
                body.files.push(bytes.freeze());
                continue;
            }
            let value = std::str::from_utf8(&bytes);
            let not_text = |_| Problem::invalid(format!("Field '{name}' is not UTF-8")).at(&name);
            body.text(&name, value.map_err(not_text)?)?;
        }
        Ok(body)
    }

    /// A field that came as text.
    fn text(&mut self, name: &str, value: &str) -> Result<(), Problem> {
        let value = match TYPED.contains(&name) {
            true => fields::parse(value.as_bytes()).map_err(|_| {
                Problem::invalid(format!("Field '{name}' must be JSON, received {value:?}"))
                    .at(name)
            })?,
            false => Value::String(value.to_owned()),
        };
        if !SETTINGS.contains(&name) {
            self.map.insert(name.to_owned(), value);
            return Ok(());
        }
        let settings = self.map.entry("settings").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(settings) = settings {
            settings.insert(name.to_owned(), value);
        }
        Ok(())
    }
}

enum Kind {
    Json,
    Form,
    Multipart,
}

/// Clients that send JSON do not always say so.
fn kind(headers: &HeaderMap) -> Kind {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "application/x-www-form-urlencoded" => Kind::Form,
        "multipart/form-data" => Kind::Multipart,
        _ => Kind::Json,
    }
}

/// A JSON object.
pub(crate) fn json(bytes: &[u8]) -> Result<Map<String, Value>, Problem> {
    match fields::parse(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Problem::invalid("Request body must be an object")),
        Err(why) => Err(Problem::invalid(format!("Invalid JSON body: {why}"))),
    }
}

/// All of a body.
pub(crate) async fn bytes(request: Request, config: &Config) -> Result<Bytes, Problem> {
    let mut bytes = BytesMut::new();
    pieces(request, config, |piece| bytes.extend_from_slice(piece)).await?;
    Ok(bytes.freeze())
}

/// Reads a body that nobody needs.
pub(crate) async fn discard(request: Request, config: &Config) -> Result<(), Problem> {
    pieces(request, config, |_| {}).await
}

/// The pieces of a body as they come, within limits.
async fn pieces(
    request: Request,
    config: &Config,
    mut take: impl FnMut(&[u8]),
) -> Result<(), Problem> {
    check_length(request.headers(), config)?;
    let (mut body, mut left) = (request.into_body(), config.max_body_bytes);
    while let Some(frame) = in_time(config, body.frame()).await? {
        let broken = |_| Problem::invalid("the request's body broke off");
        let Ok(piece) = frame.map_err(broken)?.into_data() else { continue };
        left = left.checked_sub(piece.len()).ok_or_else(|| too_large(config))?;
        take(&piece);
    }
    Ok(())
}

/// Refuses a body that says it is too large before it is sent.
fn check_length(headers: &HeaderMap, config: &Config) -> Result<(), Problem> {
    let length = headers.get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    match length.unwrap_or(0_u64) > config.max_body_bytes as u64 {
        true => Err(too_large(config)),
        false => Ok(()),
    }
}

fn too_large(config: &Config) -> Problem {
    let mib = config.max_body_bytes as f64 / f64::from(1 << 20);
    Problem::too_large(format!("the request's body is larger than {mib:.1} MiB (--max-body)"))
}

async fn in_time<T>(config: &Config, piece: impl Future<Output = T>) -> Result<T, Problem> {
    let timeout: Duration = config.stall_timeout;
    let late = |_| {
        let seconds = timeout.as_secs();
        Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            format!("no piece of the request's body came for {seconds} seconds"),
        )
    };
    tokio::time::timeout(timeout, piece).await.map_err(late)
}
