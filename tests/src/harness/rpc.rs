//! The daemon's JSON-RPC as a client sees it: typed calls by the method table, and raw ones.

use super::http;
use anyhow::Context as _;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use zerotap_rpc_schema::{Method, StorageError};

/// An error that the daemon answered.
#[derive(Debug, Clone, PartialEq)]
pub struct RpcError {
    /// JSON-RPC's code.
    pub code: i64,
    /// For people.
    pub message: String,
    /// SMAPIv2's error, when it is one.
    pub storage: Option<StorageError>,
}

impl std::fmt::Display for RpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for RpcError {}

/// A client of one socket.
#[derive(Debug, Clone)]
pub struct Rpc {
    socket: PathBuf,
}

impl Rpc {
    /// A client of the daemon that listens there.
    #[must_use]
    pub fn new(socket: &Path) -> Rpc {
        Rpc { socket: socket.to_owned() }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Calls a method of the table.
    ///
    /// # Errors
    /// An [`RpcError`], or a broken connection.
    pub fn call<M: Method>(&self, params: &M::Params) -> anyhow::Result<M::Output> {
        let result = self.raw(M::NAME, &serde_json::to_value(params)?);
        let result = result.with_context(|| M::NAME)?;
        serde_json::from_value(result).with_context(|| format!("the result of {}", M::NAME))
    }

    /// Calls a method with any parameters.
    ///
    /// # Errors
    /// As [`Rpc::call`].
    pub fn raw(&self, method: &str, params: &Value) -> anyhow::Result<Value> {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let answer = http::post(&self.socket, &request.to_string())?;
        let text = || format!("HTTP {} to {method}: {}", answer.status, answer.body);
        let body: Value = serde_json::from_str(&answer.body).with_context(text)?;
        unpack(&body).with_context(text)?.map_err(anyhow::Error::new)
    }

    /// Calls a method that must fail, and answers how.
    ///
    /// # Panics
    /// When it succeeds, or fails otherwise than with an answer.
    pub fn fails(&self, method: &str, params: &Value) -> RpcError {
        match self.raw(method, params) {
            Ok(value) => panic!("{method} {params} must fail, and answered {value}"),
            Err(error) => error
                .downcast::<RpcError>()
                .unwrap_or_else(|other| panic!("{method} {params} got no answer: {other:#}")),
        }
    }
}

/// Result or error of a JSON-RPC answer; none when it is neither.
#[must_use]
pub fn unpack(body: &Value) -> Option<Result<Value, RpcError>> {
    if let Some(result) = body.get("result") {
        return Some(Ok(result.clone()));
    }
    let error = body.get("error")?;
    let storage = error.get("data").and_then(|data| serde_json::from_value(data.clone()).ok());
    Some(Err(RpcError {
        code: error.get("code")?.as_i64()?,
        message: error.get("message")?.as_str()?.to_owned(),
        storage,
    }))
}
