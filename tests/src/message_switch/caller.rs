//! A caller as XAPI is one: a session, a reply queue of its own, calls that may overlap.

use super::QUEUE;
use super::http::Connection;
use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Result, or SMAPIv2's error.
pub type Answer = Result<Value, Value>;

static CALLERS: AtomicU64 = AtomicU64::new(0);

/// A caller. It hangs up when it is dropped.
#[derive(Debug)]
pub struct Caller {
    asks: Connection,
    hears: Connection,
    reply_queue: String,
    from: Option<String>,
    early: HashMap<i64, String>,
    calls: u64,
}

impl Caller {
    /// Logs in twice and makes its reply queue.
    ///
    /// # Errors
    /// When the switch is away.
    pub fn connect(socket: &Path) -> anyhow::Result<Caller> {
        let number = CALLERS.fetch_add(1, Ordering::Relaxed);
        Caller::connect_as(socket, &format!("xapi:{}:{number}", std::process::id()))
    }

    /// The same with a reply queue of that name.
    ///
    /// # Errors
    /// As [`Caller::connect`].
    pub fn connect_as(socket: &Path, name: &str) -> anyhow::Result<Caller> {
        let path = encode(name);
        let open = || {
            let mut connection = Connection::open(socket)?;
            ask(&mut connection, "GET", &format!("/login/{path}"), "")?;
            anyhow::Ok(connection)
        };
        let (mut asks, hears) = (open()?, open()?);
        ask(&mut asks, "GET", &format!("/transient/{path}"), "")?;
        let reply_queue = name.to_owned();
        Ok(Caller { asks, hears, reply_queue, from: None, early: HashMap::new(), calls: 0 })
    }

    /// Sends a call; the answer is the message's id.
    ///
    /// # Errors
    /// When nobody has ever served the queue.
    pub fn post(&mut self, method: &str, params: &Value) -> anyhow::Result<i64> {
        let id = self.calls;
        self.calls += 1;
        let call = json!({"method": method, "params": [params], "id": id});
        self.post_raw(&call.to_string())
    }

    /// Sends anything.
    ///
    /// # Errors
    /// As [`Caller::post`].
    pub fn post_raw(&mut self, payload: &str) -> anyhow::Result<i64> {
        let path = format!("/request/{QUEUE}/{}", encode(&self.reply_queue));
        let sent: Value = serde_json::from_str(&ask(&mut self.asks, "POST", &path, payload)?)?;
        sent[0][1].as_i64().context("there is no such queue")
    }

    /// Waits for the answer to a message, as it is.
    ///
    /// # Errors
    /// When the switch goes away.
    pub fn raw_answer(&mut self, id: i64) -> anyhow::Result<String> {
        loop {
            if let Some(answer) = self.early.remove(&id) {
                return Ok(answer);
            }
            let mut asked = json!({"timeout": 30.0, "queues": [self.reply_queue]});
            if let Some(from) = &self.from {
                asked["from"] = json!(from);
            }
            let body = ask(&mut self.hears, "POST", "/transfer", &asked.to_string())?;
            let heard: Value = serde_json::from_str(&body)?;
            self.from = heard["next"].as_str().map(Into::into);
            for message in heard["messages"].as_array().context("messages")? {
                let to = message[1]["kind"][1][1].as_i64().context("an answer says to what")?;
                let payload = message[1]["payload"].as_str().context("a payload")?;
                self.early.insert(to, payload.into());
                let path = format!("/ack/{}/{}", encode(&self.reply_queue), message[0][1]);
                ask(&mut self.asks, "GET", &path, "")?;
            }
        }
    }

    /// Waits for the answer to a message.
    ///
    /// # Errors
    /// As [`Caller::raw_answer`].
    pub fn answer(&mut self, id: i64) -> anyhow::Result<Answer> {
        let mut answer: Value = serde_json::from_str(&self.raw_answer(id)?)?;
        let error = answer["error"].take();
        Ok(if error.is_null() { Ok(answer["result"].take()) } else { Err(error) })
    }

    /// Calls and waits.
    ///
    /// # Errors
    /// As [`Caller::raw_answer`].
    pub fn call(&mut self, method: &str, params: &Value) -> anyhow::Result<Answer> {
        let id = self.post(method, params)?;
        self.answer(id)
    }

    /// Calls and waits for a result.
    ///
    /// # Errors
    /// As [`Caller::raw_answer`], and when the call fails.
    pub fn result(&mut self, method: &str, params: &Value) -> anyhow::Result<Value> {
        match self.call(method, params)? {
            Ok(result) => Ok(result),
            Err(error) => bail!("{method} {params}: {error}"),
        }
    }
}

/// A queue's name in a path.
fn encode(name: &str) -> String {
    name.bytes().fold(String::new(), |path, byte| path + &format!("%{byte:02X}"))
}

fn ask(
    connection: &mut Connection,
    method: &str,
    path: &str,
    body: &str,
) -> anyhow::Result<String> {
    let (status, answer) = connection.ask(method, path, body)?;
    ensure!(status == 200, "{method} {path}: {status} {answer}");
    Ok(answer)
}
