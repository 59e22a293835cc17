//! One HTTP connection, over any stream: nothing that a client does, or leaves undone, holds it or
//! grows it beyond a bound.
//!
//! Heads and bodies have to come in time, bodies be short, and answers be read: who stops is hung
//! up on. Called by both doors; what is answered is theirs.

use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use hyper::StatusCode;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use jsonrpsee::server::{HttpBody, HttpRequest, HttpResponse, StopHandle};
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_io_timeout::TimeoutStream;

/// The longest request, bytes.
pub const REQUEST_BYTES_MAX: u32 = 1024 * 1024;
/// How long the head of a request may take, and how long a connection may be idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(20);
/// How long its body may take.
const BODY_DEADLINE: Duration = Duration::from_secs(20);
/// How long a client may read nothing of an answer.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// A request with its body.
pub type Request = HttpRequest<Full<Bytes>>;

/// Serves a connection until its client ends it, or `stop`: then it finishes what it has begun.
pub async fn serve<S, F>(stream: S, answer: F, stop: StopHandle) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
    F: Fn(Request) -> BoxFuture<'static, HttpResponse> + Clone + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: HttpRequest<Incoming>| {
        let answer = answer.clone();
        async move {
            let (head, body) = request.into_parts();
            let whole = Limited::new(body, REQUEST_BYTES_MAX as usize).collect();
            let body = match tokio::time::timeout(BODY_DEADLINE, whole).await {
                Ok(Ok(body)) => Full::new(body.to_bytes()),
                Ok(Err(error)) => {
                    let text = format!("a request has {REQUEST_BYTES_MAX} bytes at most: {error}");
                    return Ok(refuse(StatusCode::PAYLOAD_TOO_LARGE, text));
                }
                Err(_) => {
                    let text = "the request's body did not come in time".to_owned();
                    return Ok(refuse(StatusCode::REQUEST_TIMEOUT, text));
                }
            };
            Ok::<_, Infallible>(answer(HttpRequest::from_parts(head, body)).await)
        }
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_DEADLINE));
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
    let stream = TokioIo::new(Box::pin(stream));
    let connection = builder.serve_connection_with_upgrades(stream, service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.shutdown() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(|error| error.to_string())
}

/// An answer that is a status and a text.
#[must_use]
pub fn refuse(status: StatusCode, text: String) -> HttpResponse {
    let mut answer = HttpResponse::new(HttpBody::from(text + "\n"));
    *answer.status_mut() = status;
    answer
}
