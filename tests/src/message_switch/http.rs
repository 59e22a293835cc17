//! HTTP/1.1 with keep-alive over a unix socket, both ends, as much of it as the switch speaks.

use anyhow::{Context as _, bail, ensure};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long a client waits for an answer: longer than any long poll.
const ANSWER_SECONDS_MAX: u64 = 90;
/// The longest body, bytes.
const BODY_BYTES_MAX: usize = 64 << 20;

/// A connection, and what was read of it too early.
#[derive(Debug)]
pub(super) struct Connection {
    reader: BufReader<UnixStream>,
}

/// A request as a server reads it.
#[derive(Debug)]
pub(super) struct Request {
    /// `GET` or `POST`.
    pub(super) method: String,
    /// The path's parts, percent-decoded after they were split.
    pub(super) path: Vec<String>,
    /// The body.
    pub(super) body: String,
}

impl Connection {
    /// A server's end.
    #[must_use]
    pub(super) fn new(stream: UnixStream) -> Connection {
        Connection { reader: BufReader::new(stream) }
    }

    /// A client's end.
    ///
    /// # Errors
    /// When nobody listens.
    pub(super) fn open(socket: &Path) -> anyhow::Result<Connection> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(ANSWER_SECONDS_MAX)))?;
        Ok(Connection::new(stream))
    }

    /// Sends a request and reads the answer's status and body.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> anyhow::Result<(u16, String)> {
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.reader.get_mut().write_all(text.as_bytes())?;
        let (line, body) = self.read()?.context("the switch hung up")?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(|| format!("{line:?} is no status line"))?, body))
    }

    /// The next request; none at the end of the connection.
    ///
    /// # Errors
    /// What is no HTTP/1.1.
    pub(super) fn request(&mut self) -> anyhow::Result<Option<Request>> {
        let Some((line, body)) = self.read()? else { return Ok(None) };
        let words: Vec<&str> = line.split(' ').collect();
        let [method, path, "HTTP/1.1"] = words[..] else { bail!("{line:?} is no request line") };
        let path = path.strip_prefix('/').with_context(|| format!("{path:?} has no root"))?;
        let path = path.split('/').map(decode).collect::<anyhow::Result<_>>()?;
        Ok(Some(Request { method: method.into(), path, body }))
    }

    /// Answers a request.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) fn answer(&mut self, status: u16, body: &str) -> anyhow::Result<()> {
        let length = body.len();
        let text = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
        self.reader.get_mut().write_all(text.as_bytes()).map_err(Into::into)
    }

    fn read(&mut self) -> anyhow::Result<Option<(String, String)>> {
        let mut first = String::new();
        if self.reader.read_line(&mut first)? == 0 {
            return Ok(None);
        }
        let mut length = 0;
        loop {
            let mut line = String::new();
            ensure!(self.reader.read_line(&mut line)? > 0, "the head ends early");
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            }
            ensure!(!name.eq_ignore_ascii_case("transfer-encoding"), "upstream reads no chunks");
        }
        ensure!(length <= BODY_BYTES_MAX, "a body of {length} bytes");
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        Ok(Some((first.trim_end().into(), String::from_utf8(body)?)))
    }
}

fn decode(part: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits: Vec<u8> = rest.by_ref().take(2).collect();
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits)?, 16)?);
    }
    String::from_utf8(bytes).map_err(Into::into)
}
