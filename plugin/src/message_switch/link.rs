//! A link to the switch: three connections of one session, and the requests that go over them.
//!
//! HTTP/1.1 over a unix socket. Knows nothing of calls. A link that fails once is broken for good:
//! what it owed comes anew over the next one, because the switch keeps all that was not
//! acknowledged. Every request has a deadline.
//! Source: xen-api `ocaml/message-switch/core/protocol.ml`.

use crate::message_switch::message::{self, Message};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

/// How long the switch waits for a message before it answers that there is none.
const POLL: Duration = Duration::from_secs(30);
/// How long it may take to answer anything.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// The longest answer of the switch, bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why a link is of no use any more, or a request was in vain.
pub(super) type Problem = String;

struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    async fn open(socket: &Path, token: &str) -> Result<Connection, Problem> {
        let connecting = async {
            let stream = UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
            let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
            let (sender, driver) = shaken.map_err(|error| error.to_string())?;
            // It moves the requests, and ends with its sender.
            tokio::spawn(driver);
            let mut connection = Connection { sender };
            connection.request(Method::GET, &format!("/login/{token}"), "", Duration::ZERO).await?;
            Ok(connection)
        };
        let opened = timeout(ANSWER_DEADLINE, connecting).await;
        opened.unwrap_or_else(|_| Err(late()))
    }

    /// `patience`: how long beyond the usual an answer may take.
    async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
        patience: Duration,
    ) -> Result<Bytes, Problem> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .body(Full::new(body.into()))
            .map_err(|error| format!("{path}: {error}"))?;
        let answering = async {
            // Right after an answer the connection may not take the next request yet.
            self.sender.ready().await.map_err(|error| error.to_string())?;
            let answer = self.sender.send_request(request).await;
            let answer = answer.map_err(|error| error.to_string())?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| error.to_string())?.to_bytes();
            if status == StatusCode::OK {
                return Ok(body);
            }
            Err(format!("{path}: {status}: {}", String::from_utf8_lossy(&body)))
        };
        timeout(ANSWER_DEADLINE + patience, answering).await.unwrap_or_else(|_| Err(late()))
    }
}

fn late() -> Problem {
    format!("it has not answered for {} s", ANSWER_DEADLINE.as_secs())
}

/// A queue's name in a path: callers choose theirs (upstream's, after their program's file).
fn encode(queue: &str) -> String {
    let mut encoded = String::with_capacity(queue.len());
    for byte in queue.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b':' => {
                encoded.push(char::from(byte));
            }
            // Into a string it never fails.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

/// A link for as long as it lasts.
pub(super) struct Link {
    queue: String,
    calls: Mutex<Connection>,
    answers: Mutex<Connection>,
    acks: Mutex<Connection>,
    broken: watch::Sender<Option<Problem>>,
}

impl Link {
    /// Connects, and makes the queue where there is none.
    pub(super) async fn open(socket: &Path, queue: &str) -> Result<Link, Problem> {
        let token = format!("zerotap-{}", uuid::Uuid::new_v4());
        let mut calls = Connection::open(socket, &token).await?;
        let answers = Connection::open(socket, &token).await?;
        let acks = Connection::open(socket, &token).await?;
        let path = format!("/persistent/{queue}");
        calls.request(Method::GET, &path, "", Duration::ZERO).await?;
        Ok(Link {
            queue: queue.into(),
            calls: Mutex::new(calls),
            answers: Mutex::new(answers),
            acks: Mutex::new(acks),
            broken: watch::Sender::new(None),
        })
    }

    /// The next messages, oldest first, and where to go on; waits for some, and may find none.
    pub(super) async fn transfer(
        &self,
        from: Option<&str>,
    ) -> Result<(Vec<Message>, String), Problem> {
        // `from` is left out at first: the switch answers `null` with an error.
        let from = from.map(|from| format!(",\"from\":{}", serde_json::json!(from)));
        let body = format!(
            "{{\"timeout\":{:.1},\"queues\":[\"{}\"]{}}}",
            POLL.as_secs_f64(),
            self.queue,
            from.unwrap_or_default()
        );
        let mut calls = self.calls.lock().await;
        let request = calls.request(Method::POST, "/transfer", body, POLL);
        let mut broken = self.broken.subscribe();
        let body = tokio::select! {
            body = request => body?,
            problem = broken.wait_for(Option::is_some) => {
                let problem = problem.ok().and_then(|problem| problem.clone());
                return Err(problem.unwrap_or_default());
            }
        };
        message::read(&body).map_err(|problem| format!("its messages make no sense: {problem}"))
    }

    /// Answers a message. Nothing is owed to a caller that has gone.
    pub(super) async fn answer(&self, message: &Message, answer: &str) {
        let Some(reply_queue) = &message.reply_queue else { return };
        let path = format!("/response/{}/{}/{}", encode(reply_queue), self.queue, message.id);
        let body = Bytes::copy_from_slice(answer.as_bytes());
        let answered = self.ask(&self.answers, Method::POST, &path, body).await;
        if answered.is_some_and(|told| told.as_ref() == b"[]") {
            tracing::info!(message = message.id, reply_queue, "answered, but its caller has gone");
        }
    }

    /// Has the switch forget a message.
    pub(super) async fn acknowledge(&self, id: i64) {
        let path = format!("/ack/{}/{id}", self.queue);
        self.ask(&self.acks, Method::GET, &path, Bytes::new()).await;
    }

    async fn ask(
        &self,
        over: &Mutex<Connection>,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Option<Bytes> {
        if self.broken.borrow().is_some() {
            return None;
        }
        let asked = over.lock().await.request(method, path, body, Duration::ZERO).await;
        asked.map_err(|problem| self.broken.send_replace(Some(problem))).ok()
    }
}

#[cfg(test)]
mod tests;
