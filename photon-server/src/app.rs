//! What all requests share: the routes, and what happens around every one of them.
use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use photon::{Budget, Photon, Skill};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};

use crate::{
    Config,
    auth::Keys,
    body,
    error::{Problem, Refused},
    kserve,
    metrics::Metrics,
    native, ollama, openai, page, route, station,
    wire::Defaults,
};

/// The state of a server.
pub(crate) struct App {
    pub(crate) photon: Photon,
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    pub(crate) started: Instant,
    keys: Keys,
    stopping: AtomicBool,
    /// Tells requests of this process from those of others.
    run: u32,
    requests: AtomicU64,
}

/// What answers are identified by.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

impl App {
    pub(crate) fn new(photon: Photon, config: Config) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        App {
            metrics: Metrics::new(config.metrics_prefix, &config.model_name, photon.clone()),
            keys: Keys::new(&config.api_keys),
            photon,
            config,
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            run: now.subsec_nanos() ^ now.as_secs() as u32,
            requests: AtomicU64::new(0),
        }
    }

    /// From now on the server says that it is not ready.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Before everything that costs something: a key, and a server that goes on.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if !self.keys.allow(headers) {
            return Err(Problem::unauthorized());
        }
        if self.is_stopping() { Err(Problem::stopping()) } else { Ok(()) }
    }

    pub(crate) fn needs_key(&self) -> bool {
        self.keys.required()
    }

    /// A name for a request that has none.
    pub(crate) fn new_id(&self) -> RequestId {
        let n = self.requests.fetch_add(1, Ordering::Relaxed);
        RequestId(format!("{:08x}-{n}", self.run))
    }

    /// Checks that a request's `model` is this server's; gives what follows its name: the adapter's
    /// `id@step` in `name/id@step`.
    ///
    /// Every name that begins with `moondream` is this server's, since clients have such names built in.
    pub(crate) fn adapter_of<'a>(
        &self,
        model: Option<&'a str>,
    ) -> Result<Option<&'a str>, Problem> {
        let Some(model) = model.filter(|model| !model.is_empty()) else { return Ok(None) };
        let own = |name: &str| {
            name == self.config.model_name
                || name == "photon"
                || name.starts_with("moondream")
                || self.config.aliases.iter().any(|alias| alias == name)
        };
        if own(model) {
            return Ok(None);
        }
        match model.split_once('/') {
            Some((name, adapter)) if own(name) && !adapter.is_empty() => Ok(Some(adapter)),
            _ => {
                let known = &self.config.model_name;
                let message =
                    format!("the model {model:?} is not here; this server runs {known:?}");
                Err(Problem::new(StatusCode::NOT_FOUND, "model_not_found", message).at("model"))
            }
        }
    }
}

/// What requests are checked for before anything is spent on them, beside what the engine checks.
impl App {
    /// What holds where a request of the native dialect says nothing.
    pub(crate) fn wire_defaults(&self) -> Defaults {
        Defaults {
            temperature: None,
            top_p: None,
            top_k: None,
            min_p: None,
            seed: 0,
            max_tokens: Budget::default().max_tokens,
            max_objects: MAX_OBJECTS,
            reasoning: false,
        }
    }

    /// Checks sizes.
    pub(crate) fn check(&self, request: &photon::Request) -> Result<(), Problem> {
        self.check_images(request.images.len())?;
        let (most, asked) = (self.config.max_objects, request.budget.max_objects);
        if asked > most {
            let message =
                format!("Field 'settings.max_objects' must be <= {most}, received {asked}");
            return Err(Problem::invalid(message).at("settings.max_objects"));
        }
        let refs = match &request.skill {
            Skill::Query { question, spatial_refs, .. } => {
                self.check_text(question, "question")?;
                spatial_refs.len()
            }
            Skill::Detect { object } => {
                self.check_text(object, "object")?;
                0
            }
            Skill::Point { object, spatial_refs } | Skill::Segment { object, spatial_refs } => {
                self.check_text(object, "object")?;
                spatial_refs.len()
            }
            _ => 0,
        };
        let most = self.config.max_spatial_refs;
        if refs > most {
            let message = format!("there are {refs} spatial_refs, the most is {most}");
            return Err(Problem::invalid(message).at("spatial_refs"));
        }
        Ok(())
    }

    pub(crate) fn check_images(&self, count: usize) -> Result<(), Problem> {
        let most = self.config.max_images;
        if count <= most {
            return Ok(());
        }
        let message = format!("there are {count} pictures, the most is {most} (--max-images)");
        Err(Problem::invalid(message).at("images"))
    }

    pub(crate) fn check_text(&self, text: &str, field: &str) -> Result<(), Problem> {
        let (bytes, most) = (text.len(), self.config.max_text_bytes);
        if bytes <= most {
            return Ok(());
        }
        let message = format!("Field '{field}' has {bytes} bytes, the most is {most} (--max-text)");
        Err(Problem::invalid(message).at(field))
    }

    /// The file of the adapter `id@step`, or of the one that everybody else gets.
    pub(crate) fn adapter(&self, name: Option<&str>) -> Result<Option<PathBuf>, Problem> {
        let Some(name) = name else { return Ok(self.config.adapter.clone()) };
        let found = name.parse().and_then(|name| self.photon.find_adapter(&name));
        found.map(Some).map_err(|error| {
            // It may name a folder of this machine.
            tracing::info!(%error, "an adapter was asked for");
            let message = format!("there is no adapter {name:?} here");
            Problem::new(StatusCode::NOT_FOUND, "model_not_found", message).at("model")
        })
    }

    /// Names under which the model can be asked: itself, and with each adapter.
    pub(crate) fn model_names(&self) -> Vec<String> {
        let base = &self.config.model_name;
        let adapters = self.photon.adapters().unwrap_or_else(|error| {
            tracing::warn!(%error, "adapters cannot be listed");
            Vec::new()
        });
        let named = adapters.iter().map(|adapter| format!("{base}/{adapter}"));
        std::iter::once(base.clone()).chain(named).collect()
    }
}

/// Most objects where a request does not say, as in Moondream's cloud.
const MAX_OBJECTS: usize = 150;

/// All routes.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let open = Router::new()
        .route("/", get(root))
        .merge(page::routes())
        .merge(station::open_routes())
        .merge(kserve::http::open_routes())
        .route("/api/version", get(ollama::version))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi));
    let guarded = Router::new()
        .route("/v1/{skill}", post(native::answer))
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/route_key", post(route::answer))
        .merge(station::routes())
        .merge(ollama::routes())
        .merge(kserve::http::routes())
        .layer(middleware::from_fn_with_state(Arc::clone(app), guard));
    let routes = open
        .merge(guarded)
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::clone(app));
    surround(routes, app)
}

/// Routes with what happens around every request.
pub(crate) fn surround(routes: Router, app: &Arc<App>) -> Router {
    routes
        .layer(CatchPanicLayer::custom(panicked))
        .layer(cors(&app.config))
        .layer(middleware::from_fn_with_state(Arc::clone(app), around))
}

/// The page for people; Ollama's greeting for programs that look for Ollama.
async fn root(headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    match accept.is_some_and(|accept| accept.contains("text/html")) {
        true => page::index().await,
        false => "Ollama is running".into_response(),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPEN_METRICS)], app.metrics.text()).into_response()
}

async fn openapi() -> Response {
    let document = include_str!("openapi.json");
    ([(header::CONTENT_TYPE, "application/json")], document).into_response()
}

async fn nothing_here(request: Request) -> Problem {
    let path = request.uri().path();
    Problem::not_found(format!("there is nothing at {path}; /openapi.json lists what there is"))
}

async fn wrong_method(request: Request) -> Problem {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!("{path} does not take {method}; /openapi.json says what it takes");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    tracing::error!(panic = %text, "a handler panicked; this is a bug in Photon");
    Problem::internal().into_response()
}

fn cors(config: &Config) -> CorsLayer {
    let origins = &config.cors_origins;
    let allowed = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|origin| origin.parse().ok())),
    };
    let headers =
        ["content-type", "authorization", "x-moondream-auth", "x-request-id", route::HEADER];
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(headers.map(HeaderName::from_static))
        .expose_headers(["x-request-id", "retry-after", route::HEADER].map(HeaderName::from_static))
}

/// Around everything: an id, a line in the log, counting what is refused, and no requests from web pages
/// of others.
async fn around(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let given = request.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    let id = match given.filter(|id| is_plain(id)) {
        Some(id) => RequestId(id.to_owned()),
        None => app.new_id(),
    };
    let trace = request.headers().get("traceparent").cloned().filter(is_traceparent);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    request.extensions_mut().insert(id.clone());
    let mut response = match is_foreign(request.headers(), &app.config) {
        true => {
            let message = "web pages of other sites may not ask this server (--cors allows some)";
            Problem::new(StatusCode::FORBIDDEN, "foreign_origin", message).into_response()
        }
        false => route::around(next.run(request)).await,
    };
    if let Some(&Refused(reason)) = response.extensions().get() {
        app.metrics.rejected(reason);
    }
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert("x-request-id", value);
    }
    let status = response.status().as_u16();
    let ms = begun.elapsed().as_secs_f64() * 1000.0;
    let trace_id = trace.as_ref().and_then(|trace| trace.to_str().ok()).unwrap_or_default();
    tracing::info!(%method, path, status, ms, id = id.0, trace_id, "answered");
    if let Some(trace) = trace {
        response.headers_mut().insert("traceparent", trace);
    }
    response
}

async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if let Err(problem) = app.admit(request.headers()) {
        return problem.into_response();
    }
    if request.method() != Method::POST || !app.photon.is_full() {
        return next.run(request).await;
    }
    // Making sense of what will be refused would take time from those that are answered. It is read all the same:
    // a client that still sends when the connection closes may never see the refusal.
    match body::discard(request, &app.config).await {
        Ok(()) => Problem::full().into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// Whether an id may stand in logs and headers.
fn is_plain(id: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-_.:@".contains(&c);
    (1..=128).contains(&id.len()) && id.bytes().all(plain)
}

/// W3C's `version-trace-parent-flags`.
fn is_traceparent(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    bytes.len() == 55 && bytes.iter().all(|c| c.is_ascii_hexdigit() || *c == b'-')
}

/// Whether a request comes from a web page that this server did not serve and that it was not told of.
/// Such a page could not read the answer, but it could keep the device busy; and a name that was made to
/// lead here (DNS rebinding) could read it.
fn is_foreign(headers: &HeaderMap, config: &Config) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let Some(origin) = text(header::ORIGIN) else { return false };
    let allowed = |known: &String| known == "*" || known.eq_ignore_ascii_case(origin);
    if config.cors_origins.iter().any(allowed) {
        return false;
    }
    let host = text(header::HOST).unwrap_or_default();
    let same = origin.split_once("://").is_some_and(|(_, at)| at.eq_ignore_ascii_case(host));
    if !same {
        return true;
    }
    // Here, a page of this server was opened by the machine's own name or address.
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let is_own = name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok();
    config.listen.ip().is_loopback() && !is_own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(origin: &str, host: &str, cors: &[&str]) -> bool {
        let cors_origins = cors.iter().map(ToString::to_string).collect();
        let config = Config { cors_origins, ..Config::default() };
        let mut headers = HeaderMap::new();
        headers.insert("origin", origin.parse().unwrap());
        headers.insert("host", host.parse().unwrap());
        is_foreign(&headers, &config)
    }

    #[test]
    fn only_own_pages_and_those_allowed_may_ask() {
        assert!(!is_foreign(&HeaderMap::new(), &Config::default()));
        assert!(!foreign("http://localhost:2020", "localhost:2020", &[]));
        assert!(!foreign("http://127.0.0.1:2020", "127.0.0.1:2020", &[]));
        assert!(!foreign("http://[::1]:2020", "[::1]:2020", &[]));
        assert!(foreign("http://evil.example", "localhost:2020", &[]));
        assert!(foreign("null", "localhost:2020", &[]));
        // A name that leads to this machine.
        assert!(foreign("http://evil.example:2020", "evil.example:2020", &[]));
        assert!(!foreign("http://app.example", "localhost:2020", &["http://app.example"]));
        assert!(!foreign("http://app.example", "localhost:2020", &["*"]));
    }
}
