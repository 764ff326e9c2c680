//! The web page: files in the program, served with headers that let them load nothing else.
use axum::{
    Router,
    http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    response::{IntoResponse, Response},
    routing::get,
};

/// Nothing from elsewhere, no code within the page, and no page around this one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' blob: data:; connect-src 'self'; media-src blob:; form-action 'none'; \
    base-uri 'none'; frame-ancestors 'none'";

/// The routes of the page's files.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    const HTML: &str = "text/html; charset=utf-8";
    const JS: &str = "text/javascript; charset=utf-8";
    Router::new()
        .route("/status", get(|| file(HTML, include_bytes!("../page/status.html"))))
        .route("/page/api.js", get(|| file(JS, include_bytes!("../page/api.js"))))
        .route("/page/app.js", get(|| file(JS, include_bytes!("../page/app.js"))))
        .route("/page/dom.js", get(|| file(JS, include_bytes!("../page/dom.js"))))
        .route("/page/draw.js", get(|| file(JS, include_bytes!("../page/draw.js"))))
        .route("/page/picture.js", get(|| file(JS, include_bytes!("../page/picture.js"))))
        .route("/page/result.js", get(|| file(JS, include_bytes!("../page/result.js"))))
        .route("/page/skills.js", get(|| file(JS, include_bytes!("../page/skills.js"))))
        .route("/page/stage.js", get(|| file(JS, include_bytes!("../page/stage.js"))))
        .route("/page/status.js", get(|| file(JS, include_bytes!("../page/status.js"))))
        .route("/page/style.css", get(|| file("text/css", include_bytes!("../page/style.css"))))
        .route("/page/icon.svg", get(|| file("image/svg+xml", include_bytes!("../page/icon.svg"))))
        .route("/page/sample.png", get(|| file("image/png", include_bytes!("../page/sample.png"))))
}

/// The page itself.
pub(crate) async fn index() -> Response {
    file("text/html; charset=utf-8", include_bytes!("../page/index.html")).await
}

async fn file(kind: &'static str, bytes: &'static [u8]) -> Response {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // A new version of the program brings new files under the same names.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, bytes).into_response()
}
