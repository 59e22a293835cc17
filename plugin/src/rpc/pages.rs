//! What the doors serve beside calls: `GET /healthz`, `GET /metrics` and `GET /status`, the page
//! with live charts.
//!
//! Only what can be answered in bounded time, whoever does not answer us.

use crate::metrics::{self, text};
use crate::rpc::Core;
use hyper::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use jsonrpsee::server::{HttpBody, HttpResponse};
use std::sync::Arc;

/// The page: nothing in it comes from elsewhere.
const STATUS: &str = include_str!("status.html");
/// And a browser sees to it.
const STATUS_POLICY: &str = concat!(
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; ",
    "connect-src 'self'; frame-ancestors 'none'"
);

/// The page of this path, if it is one.
pub async fn page(core: Arc<Core>, path: &str) -> Option<HttpResponse> {
    let (kind, body) = match path {
        "/healthz" => ("text/plain; charset=utf-8", "ok\n".to_owned()),
        "/metrics" => (text::CONTENT_TYPE, metrics::render(&core).await),
        "/status" => ("text/html; charset=utf-8", STATUS.to_owned()),
        _ => return None,
    };
    let mut page = HttpResponse::new(HttpBody::from(body));
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    let policy = HeaderValue::from_static(STATUS_POLICY);
    page.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    Some(page)
}
