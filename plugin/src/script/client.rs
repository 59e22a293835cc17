//! One call to the daemon, blocking: connect, post, read, end.
//!
//! HTTP/1.0, so that the answer ends with the connection and is never in chunks. Decides nothing.
//! It waits for a daemon that is just being restarted; a call that was sent is never sent again.

use super::failure::Failed;
use serde_json::{Value, json};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi3::PREFIX;
use zerotap_rpc_schema::{StorageError, deadline_of};

/// How long a daemon may take to come back.
const CONNECT_SECONDS_MAX: u64 = 5;
/// How often it is looked for.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
/// How much later than the daemon's own deadline its answer may come; xapi-storage-script itself
/// would wait for ever.
const ANSWER_DELAY_MAX: Duration = Duration::from_secs(5);
/// The longest answer that is read, bytes: the daemon's own limit and its head.
const ANSWER_BYTES_MAX: u64 = 65 << 20;

/// Calls a SMAPIv3 method.
///
/// # Errors
/// What the daemon answers; that it does not.
pub(super) fn call(socket: &Path, method: &str, arguments: &Value) -> Result<Value, Failed> {
    let place = socket.display();
    let stream = connect(socket).map_err(|error| {
        let text = format!(
            "cannot call {method}: the zerotap daemon does not listen on {place}: {error}. Start \
             it (systemctl start zerotap), then try again"
        );
        Failed::backend(number::SR_UNAVAILABLE, text)
    })?;
    let answer = exchange(stream, method, arguments).map_err(|error| {
        let text = format!(
            "the zerotap daemon did not answer {method}: {error}. Its log tells why; what it has \
             begun it finishes. Try again"
        );
        Failed::backend(number::SR_UNAVAILABLE, text)
    })?;
    result_of(method, &answer)
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(CONNECT_SECONDS_MAX);
    loop {
        match UnixStream::connect(socket) {
            Err(error) if is_passing(error.kind()) && Instant::now() < deadline => {
                std::thread::sleep(CONNECT_PAUSE);
            }
            connected => return connected,
        }
    }
}

fn is_passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::WouldBlock)
}

fn exchange(mut stream: UnixStream, method: &str, arguments: &Value) -> io::Result<Vec<u8>> {
    let method = format!("{PREFIX}{method}");
    let patience = Some(deadline_of(&method) + ANSWER_DELAY_MAX);
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": arguments });
    let body = call.to_string();
    let request = format!(
        "POST / HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}

fn result_of(method: &str, answer: &[u8]) -> Result<Value, Failed> {
    let garbled = || {
        let text = format!(
            "the answer to {method} is not understood. Is it the zerotap daemon that listens \
             there, and of this version?"
        );
        Failed::backend(number::GENERAL, text)
    };
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or_else(garbled)?;
    let mut body: Value = serde_json::from_slice(&answer[end + 4..]).map_err(|_| garbled())?;
    if let Some(result) = body.get_mut("result") {
        return Ok(result.take());
    }
    let error = body.get_mut("error").ok_or_else(garbled)?;
    match serde_json::from_value::<StorageError>(error["data"].take()) {
        Ok(error) => Err(Failed::from(error)),
        Err(_) => {
            let problem = error["message"].as_str().unwrap_or("an error without a message");
            let text = format!("the zerotap daemon refused {method}: {problem}");
            Err(Failed::backend(number::GENERAL, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let answer = |body: &str| {
            let text = format!("HTTP/1.0 200 OK\r\ncontent-type: x\r\n\r\n{body}");
            result_of("SR.stat", text.as_bytes())
        };
        assert_eq!(answer(r#"{"result":null}"#).expect("a unit"), Value::Null);
        let refused = answer(r#"{"error":{"data":["Backend_error",["C",["","t",""]]]}}"#);
        assert_eq!(refused.expect_err("an error").text(), "t");
        let unknown = answer(r#"{"error":{"code":-32601,"message":"Method not found"}}"#);
        assert!(unknown.expect_err("an error").text().contains("Method not found"));
        for garbled in ["", "{", "{}", "7"] {
            assert!(answer(garbled).expect_err("no answer").text().contains("not understood"));
        }
        assert!(result_of("SR.stat", b"hello").is_err());
    }
}
