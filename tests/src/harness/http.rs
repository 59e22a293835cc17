//! HTTP/1.1 POST over a unix socket: one connection a request, nothing but std.

use anyhow::{Context as _, bail};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The longest answer that is read, bytes.
const BODY_BYTES_MAX: u64 = 64 << 20;
/// How long an answer may take.
const ANSWER_SECONDS_MAX: u64 = 120;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// For example 200.
    pub status: u16,
    /// What the body is.
    pub content_type: String,
    /// The body.
    pub body: String,
}

/// Opens the socket.
///
/// # Errors
/// When nobody listens or may not connect.
pub fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(ANSWER_SECONDS_MAX)))?;
    Ok(stream)
}

/// Posts a JSON body to `/` and waits for the answer.
///
/// # Errors
/// When the connection breaks or the answer is no HTTP.
pub fn post(socket: &Path, body: &str) -> anyhow::Result<Answer> {
    let mut stream = connect(socket)?;
    let length = body.len();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).context("send a request's head")?;
    // A server that refuses a body may hang up before it has read it all; its answer counts.
    let sent = stream.write_all(body.as_bytes());
    match read(stream) {
        Ok(answer) => Ok(answer),
        Err(error) => match sent {
            Ok(()) => Err(error),
            Err(sending) => Err(sending).context("send a request's body"),
        },
    }
}

/// Asks for a page.
///
/// # Errors
/// As [`post`].
pub fn get(socket: &Path, path: &str) -> anyhow::Result<Answer> {
    let mut stream = connect(socket)?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).context("send a request")?;
    read(stream)
}

/// Reads status line, header and body.
///
/// # Errors
/// As [`post`].
pub fn read(stream: UnixStream) -> anyhow::Result<Answer> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).context("the status line")?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("{line:?} is no status line"))?;
    let (mut length, mut chunked, mut content_type) = (None, false, String::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            bail!("the head of the answer ends early");
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-type" => value.trim().clone_into(&mut content_type),
            "content-length" => length = Some(value.trim().parse::<u64>()?),
            "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
            _ => {}
        }
    }
    let mut body = String::new();
    match length {
        _ if chunked => body = chunks(&mut reader)?,
        Some(length) => {
            reader.take(length.min(BODY_BYTES_MAX)).read_to_string(&mut body)?;
        }
        None => {
            reader.take(BODY_BYTES_MAX).read_to_string(&mut body)?;
        }
    }
    Ok(Answer { status, content_type, body })
}

fn chunks(reader: &mut BufReader<UnixStream>) -> anyhow::Result<String> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = u64::from_str_radix(line.trim(), 16).context("a chunk's length")?;
        if length == 0 {
            return Ok(String::from_utf8(body)?);
        }
        reader.take(length).read_to_end(&mut body)?;
        reader.read_line(&mut String::new())?;
    }
}
