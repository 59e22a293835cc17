//! A JSON-RPC client of a few lines, for what is timed: no process is started for a call.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Calls one daemon, one call a connection.
pub(crate) struct Client {
    socket: PathBuf,
    next: u64,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        Ok(Client { socket: socket.to_owned(), next: 0 })
    }

    /// Calls `method`; answers its result.
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.next += 1;
        let id = self.next;
        let body =
            json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string();
        let mut stream = UnixStream::connect(&self.socket)?;
        write!(
            stream,
            "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an HTTP answer has a body")?;
        let mut reply: Value =
            serde_json::from_str(body).with_context(|| format!("{method} answered {body:?}"))?;
        if let Some(error) = reply.get("error") {
            bail!("{method}: {error}");
        }
        Ok(reply["result"].take())
    }
}
