//! The JSON-RPC client: one call, one HTTP POST on the daemon's unix socket, typed by the method
//! table.
//!
//! It decides nothing and retries nothing. Every call of the table is idempotent, so that a person
//! who saw [`CallError::Broken`] may simply repeat it.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{io, path::PathBuf, time::Duration};
use thiserror::Error;
use tokio::net::UnixStream;
use zerotap_rpc_schema::{Method, StorageError, deadline_of};

/// How much later than the daemon's own deadline its answer may come.
pub(crate) const ANSWER_DELAY_SECONDS_MAX: u64 = 5;
/// The longest answer that is read: the listing of a very large SR.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Why a call has no result.
#[derive(Debug, Error)]
pub(crate) enum CallError {
    /// Nobody listens, or not for us.
    #[error("cannot connect to {}: {source}", socket.display())]
    Connect {
        /// Where it was tried.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection ended before the answer was there: whether the call took effect is unknown.
    #[error("the daemon ended the connection before it answered {method}: {problem}")]
    Broken {
        /// What was called.
        method: String,
        /// What the connection said.
        problem: String,
    },
    /// The daemon did not answer in time: whether the call takes effect is unknown.
    #[error("the daemon did not answer {method} within {seconds} s")]
    Late {
        /// What was called.
        method: String,
        /// How long was waited.
        seconds: u64,
    },
    /// What came back is not an answer of ours.
    #[error("the answer to {method} is not understood: {problem}")]
    Garbled {
        /// What was called.
        method: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The daemon answered with a storage error.
    #[error("{method}: {error}")]
    Storage {
        /// What was called.
        method: String,
        /// SMAPIv2's variant, from the error object's `data`.
        error: StorageError,
    },
    /// The daemon answered with another JSON-RPC error: an unknown method, bad parameters.
    #[error("{method}: {message} [{code}]")]
    Rpc {
        /// What was called.
        method: String,
        /// JSON-RPC's number.
        code: i64,
        /// Message and data in one.
        message: String,
    },
}

/// How long an answer is waited for; VBD.unplug, which waits for a guest, brings its own.
pub(crate) fn patience_seconds(method: &str) -> u64 {
    deadline_of(method).as_secs() + ANSWER_DELAY_SECONDS_MAX
}

/// Where the daemon listens.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client for the daemon behind `socket`. Connects at each call, not before.
    pub(crate) fn new(socket: impl Into<PathBuf>) -> Self {
        Client { socket: socket.into() }
    }

    /// Calls a method of the table.
    pub(crate) async fn call<M: Method>(&self, params: &M::Params) -> Result<M::Output, CallError> {
        self.call_within::<M>(params, patience_seconds(M::NAME)).await
    }

    /// Calls a method of the table that may take longer than others.
    pub(crate) async fn call_within<M: Method>(
        &self,
        params: &M::Params,
        seconds: u64,
    ) -> Result<M::Output, CallError> {
        let garbled = |error: serde_json::Error| CallError::Garbled {
            method: M::NAME.to_owned(),
            problem: error.to_string(),
        };
        let params = serde_json::to_value(params).map_err(garbled)?;
        let result = self.call_any(M::NAME, &params, seconds).await?;
        serde_json::from_value(result).map_err(garbled)
    }

    /// Calls any method, known to this program or not; the result as it came.
    pub(crate) async fn call_any(
        &self,
        method: &str,
        params: &Value,
        seconds: u64,
    ) -> Result<Value, CallError> {
        let call = self.exchange(method, params);
        match tokio::time::timeout(Duration::from_secs(seconds), call).await {
            Ok(answer) => result_of(method, &answer?),
            Err(_) => Err(CallError::Late { method: method.to_owned(), seconds }),
        }
    }

    /// A connection to the daemon.
    pub(crate) async fn connect(&self) -> Result<UnixStream, CallError> {
        let connected = UnixStream::connect(&self.socket).await;
        connected.map_err(|source| CallError::Connect { socket: self.socket.clone(), source })
    }

    /// Posts the call and reads the body of the answer.
    async fn exchange(&self, method: &str, params: &Value) -> Result<Bytes, CallError> {
        let broken = |problem: String| CallError::Broken { method: method.to_owned(), problem };
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(error.to_string()))?;
        // The connection must be driven for the request to move; it ends with its sender.
        tokio::spawn(connection);
        let response = sender
            .send_request(post(method, params))
            .await
            .map_err(|error| broken(error.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| broken(error.to_string()))?
            .to_bytes();
        if status != StatusCode::OK {
            let text = String::from_utf8_lossy(&body);
            let problem = format!("HTTP status {status} {}", text.trim());
            return Err(CallError::Garbled { method: method.to_owned(), problem });
        }
        Ok(body)
    }
}

fn post(method: &str, params: &Value) -> Request<Full<Bytes>> {
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    Request::post("/")
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(call.to_string())))
        .expect("constant headers are valid")
}

/// Takes a JSON-RPC answer apart.
fn result_of(method: &str, body: &[u8]) -> Result<Value, CallError> {
    let garbled = |problem: String| CallError::Garbled { method: method.to_owned(), problem };
    let mut answer: Value =
        serde_json::from_slice(body).map_err(|error| garbled(error.to_string()))?;
    if let Some(error) = answer.get("error") {
        return Err(refusal(method, error));
    }
    match answer.get_mut("result") {
        Some(result) => Ok(result.take()),
        None => Err(garbled("it has neither a result nor an error".into())),
    }
}

/// An error object as a typed error: SMAPIv2's variant where `data` holds one.
fn refusal(method: &str, error: &Value) -> CallError {
    let method = method.to_owned();
    let data = error.get("data").cloned().unwrap_or_default();
    if let Ok(error) = serde_json::from_value::<StorageError>(data.clone()) {
        return CallError::Storage { method, error };
    }
    let message = error["message"].as_str().unwrap_or("an error without a message");
    let message = match data {
        Value::Null => message.to_owned(),
        Value::String(detail) => format!("{message}: {detail}"),
        detail => format!("{message}: {detail}"),
    };
    CallError::Rpc { method, code: error["code"].as_i64().unwrap_or_default(), message }
}

#[cfg(test)]
mod tests;
