//! A blocking xenstore client: what a guest's kernel and a toolstack use.
//!
//! One connection, one thread. Watch events that arrive between answers are kept until asked for.

use crate::xenstored::wire::{Errno, Message, kind, strings, terminated};
use anyhow::{Context as _, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long an answer may take before the client gives up.
const ANSWER_SECONDS_MAX: u64 = 10;

/// A watch that fired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEvent {
    /// The path that changed.
    pub path: String,
    /// As given when the watch was set.
    pub token: String,
}

/// A connection to a xenstored.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    events: VecDeque<WatchEvent>,
    last_request: u32,
    transaction: u32,
}

impl Client {
    /// Connects to a socket.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(socket: &Path) -> anyhow::Result<Client> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connect to xenstored at {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(ANSWER_SECONDS_MAX)))?;
        Ok(Client { stream, events: VecDeque::new(), last_request: 0, transaction: 0 })
    }

    /// Sends any request and waits for its answer.
    ///
    /// # Errors
    /// An [`Errno`] that the daemon answered, or a broken connection.
    pub fn request(&mut self, kind: u32, payload: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        self.last_request = self.last_request.wrapping_add(1);
        let (request, transaction) = (self.last_request, self.transaction);
        Message { kind, request, transaction, payload }.write_to(&mut self.stream)?;
        loop {
            let message = Message::read_from(&mut self.stream).context("xenstored's answer")?;
            match message.kind {
                kind::WATCH_EVENT => self.keep(&message),
                kind::ERROR => bail!(Errno::parse(&message.payload)),
                _ if message.kind != kind || message.request != request => {
                    bail!("xenstored answered {} with {message:?}", self.last_request)
                }
                _ => return Ok(message.payload),
            }
        }
    }

    fn keep(&mut self, event: &Message) {
        let mut parts = strings(&event.payload).into_iter();
        let (path, token) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        self.events.push_back(WatchEvent { path, token });
    }

    /// A node's value.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn read(&mut self, path: &str) -> anyhow::Result<String> {
        let value = self.request(kind::READ, terminated(&[path]))?;
        Ok(String::from_utf8_lossy(&value).into_owned())
    }

    /// A node's value, or `None` when there is no such node.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn read_optional(&mut self, path: &str) -> anyhow::Result<Option<String>> {
        match self.read(path) {
            Ok(value) => Ok(Some(value)),
            Err(error) if errno(&error) == Some(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a node, and makes it if need be.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn write(&mut self, path: &str, value: impl std::fmt::Display) -> anyhow::Result<()> {
        let mut payload = terminated(&[path]);
        payload.extend(value.to_string().bytes());
        self.request(kind::WRITE, payload).with_context(|| format!("write {path}"))?;
        Ok(())
    }

    /// Makes an empty node.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn mkdir(&mut self, path: &str) -> anyhow::Result<()> {
        self.request(kind::MKDIR, terminated(&[path])).map(drop)
    }

    /// Removes a node and all below it.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn remove(&mut self, path: &str) -> anyhow::Result<()> {
        self.request(kind::RM, terminated(&[path])).map(drop)
    }

    /// The names of a node's children.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn list(&mut self, path: &str) -> anyhow::Result<Vec<String>> {
        let names = self.request(kind::DIRECTORY, terminated(&[path]))?;
        Ok(if names.is_empty() { Vec::new() } else { strings(&names) })
    }

    /// Sets permissions, for example `["n0", "r5"]`.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn set_perms(&mut self, path: &str, perms: &[&str]) -> anyhow::Result<()> {
        let mut payload = terminated(&[path]);
        payload.extend(terminated(perms));
        self.request(kind::SET_PERMS, payload).map(drop)
    }

    /// Sets a watch; its first event is on its way at once.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn watch(&mut self, path: &str, token: &str) -> anyhow::Result<()> {
        self.request(kind::WATCH, terminated(&[path, token])).map(drop)
    }

    /// Makes a domain known to the daemon; only for dom0.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn introduce(&mut self, domid: u16) -> anyhow::Result<()> {
        self.request(kind::INTRODUCE, terminated(&[&domid.to_string(), "1", "1"])).map(drop)
    }

    /// Tells the daemon that a domain is dead; only for dom0.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn release(&mut self, domid: u16) -> anyhow::Result<()> {
        self.request(kind::RELEASE, terminated(&[&domid.to_string()])).map(drop)
    }

    /// The next watch event, or `None` when none came until `deadline`.
    ///
    /// # Errors
    /// When the connection broke.
    pub fn event(&mut self, deadline: Instant) -> anyhow::Result<Option<WatchEvent>> {
        while self.events.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = rustix::event::Timespec::try_from(left)?;
            let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let message = Message::read_from(&mut self.stream).context("wait for a watch")?;
            ensure!(message.kind == kind::WATCH_EVENT, "{message:?} and nobody asked");
            self.keep(&message);
        }
        Ok(self.events.pop_front())
    }

    /// Runs `body` in a transaction until it ends without a conflict.
    ///
    /// # Errors
    /// What `body` says; as [`Client::request`].
    pub fn transaction(
        &mut self,
        body: impl Fn(&mut Client) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        loop {
            let number = self.request(kind::TRANSACTION_START, terminated(&[""]))?;
            self.transaction = strings(&number)[0].parse()?;
            let result = body(self);
            let verdict = if result.is_ok() { "T" } else { "F" };
            let ended = self.request(kind::TRANSACTION_END, terminated(&[verdict]));
            self.transaction = 0;
            match ended {
                Err(error) if errno(&error) == Some(Errno::EAGAIN) => {}
                Err(error) => return Err(error),
                Ok(_) => return result,
            }
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The daemon's own word in an error of a [`Client`].
#[must_use]
pub fn errno(error: &anyhow::Error) -> Option<Errno> {
    error.downcast_ref().copied()
}
