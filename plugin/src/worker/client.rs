//! The daemon's end of one worker's control socket: typed calls, each with a deadline.
//!
//! Never starts or ends a process. Two tasks own the socket's halves, so that a caller that goes
//! away in the middle leaves no half-written line; answers find their callers by number. The
//! protocol: `zerotap_rpc_schema::worker`. Called through a `WorkerHandle`.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use zerotap_rpc_schema::worker::{
    Answer, Ask, DESCRIPTORS_MAX, LINE_BYTES_MAX, PROTOCOL, PROTOCOL_OLDEST, Reply, Request,
};

/// Lines that wait to be written; callers beyond wait for room.
const LINES_QUEUED_MAX: usize = 16;
/// How long a worker may take for its first answer after it was started.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long it may take to serve a ring.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long it may take to give a ring up: the disk has to answer what was begun.
pub const DISCONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// How long it may take to tell its counters.
pub const STAT_DEADLINE: Duration = Duration::from_secs(2);
/// How long it may take to look at an image that has grown.
pub const RESIZE_DEADLINE: Duration = Duration::from_secs(5);
/// How long it may take to copy an image whose extents can be shared: many millions of them.
pub const COPY_DEADLINE: Duration = Duration::from_secs(600);
/// How long it may take to disconnect all, flush the image and end.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(20);

/// Why a worker did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The connection has ended, most likely because the worker has.
    #[error("the worker is gone")]
    Gone,
    /// No answer in time. It may still do it.
    #[error("the worker has not answered {what} for {} s", after.as_secs_f32())]
    Deadline {
        /// Which request.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// It said no, and why.
    #[error("the worker refused: {0}")]
    Refused(String),
    /// It answered something else than was asked.
    #[error(
        "the worker answered {what} with something else; do daemon and worker differ in version?"
    )]
    Confused {
        /// Which request.
        what: &'static str,
    },
    /// The socket or a device could not be opened.
    #[error("{0}")]
    Io(String),
}

/// A connection to a worker. Cheap to clone; it closes with the last clone.
#[derive(Debug, Clone)]
pub struct Client {
    lines: mpsc::Sender<Line>,
    waiting: Waiting,
    next: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Line {
    text: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>>;

impl Client {
    /// Connects to the socket. The worker need not run yet: its listener exists before it does.
    ///
    /// # Errors
    /// Nobody has the socket.
    pub async fn connect(socket: &Path) -> Result<Client, WorkerError> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|error| WorkerError::Io(format!("{}: {error}", socket.display())))?;
        let stream = Arc::new(stream);
        let (lines, queue) = mpsc::channel(LINES_QUEUED_MAX);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        tokio::spawn(connection(stream, queue, Arc::clone(&waiting)));
        Ok(Client { lines, waiting, next: Arc::new(AtomicU64::new(1)) })
    }

    /// Says Hello, in the newest protocol that both speak; the answer is all of `Answer::Hello`.
    ///
    /// # Errors
    /// It speaks no protocol of ours, or not in time.
    pub async fn hello(&self) -> Result<Answer, WorkerError> {
        let mut wanted = PROTOCOL;
        loop {
            let ask = Ask::Hello { protocol: wanted };
            match self.call("hello", ask, Vec::new(), HELLO_DEADLINE).await {
                Ok(Answer::Hello { protocol, .. })
                    if !(PROTOCOL_OLDEST..=PROTOCOL).contains(&protocol) =>
                {
                    let text = format!(
                        "it speaks protocol {protocol}, not {PROTOCOL_OLDEST} to {PROTOCOL}"
                    );
                    return Err(WorkerError::Refused(text));
                }
                Ok(hello @ Answer::Hello { .. }) => return Ok(hello),
                Ok(_) => return Err(WorkerError::Confused { what: "hello" }),
                // A worker that is older than we are knows only its own.
                Err(WorkerError::Refused(_)) if wanted > PROTOCOL_OLDEST => wanted -= 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks, with descriptors where the request takes some, and waits for the answer.
    ///
    /// # Errors
    /// [`WorkerError`]; a request that ran into its deadline may still take effect.
    pub async fn call(
        &self,
        what: &'static str,
        ask: Ask,
        descriptors: Vec<OwnedFd>,
        deadline: Duration,
    ) -> Result<Answer, WorkerError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut text = serde_json::to_vec(&Request { id, ask })
            .map_err(|error| WorkerError::Io(error.to_string()))?;
        text.push(b'\n');
        if text.len() > LINE_BYTES_MAX {
            return Err(WorkerError::Io(format!("{what} would be {} bytes long", text.len())));
        }
        let (sender, answer) = oneshot::channel();
        match &mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(WorkerError::Gone),
        };
        // Also when this future is dropped: nobody waits for the answer any more.
        let _forget = Forget { waiting: &self.waiting, id };
        let exchange = async {
            let line = Line { text, descriptors };
            self.lines.send(line).await.map_err(|_| WorkerError::Gone)?;
            answer.await.map_err(|_| WorkerError::Gone)
        };
        match tokio::time::timeout(deadline, exchange).await {
            Err(_) => Err(WorkerError::Deadline { what, after: deadline }),
            Ok(Ok(Answer::Error { text })) => Err(WorkerError::Refused(text)),
            Ok(other) => other,
        }
    }

    /// Asks for something that is answered with `Done`.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn done(
        &self,
        what: &'static str,
        ask: Ask,
        descriptors: Vec<OwnedFd>,
        deadline: Duration,
    ) -> Result<(), WorkerError> {
        match self.call(what, ask, descriptors, deadline).await? {
            Answer::Done => Ok(()),
            _ => Err(WorkerError::Confused { what }),
        }
    }
}

struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = &mut *waiting {
            waiting.remove(&self.id);
        }
    }
}

/// Runs until the worker or the last [`Client`] goes; then everybody who waits is told.
async fn connection(stream: Arc<UnixStream>, queue: mpsc::Receiver<Line>, waiting: Waiting) {
    let ended = tokio::select! {
        ended = write_lines(&stream, queue) => ended,
        ended = read_lines(&stream, &waiting) => ended,
    };
    if let Err(error) = ended {
        tracing::warn!("control connection to a worker: {error}");
    }
    // Dropping their senders wakes them; None tells those who come.
    waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
}

async fn write_lines(stream: &UnixStream, mut queue: mpsc::Receiver<Line>) -> io::Result<()> {
    while let Some(Line { text, mut descriptors }) = queue.recv().await {
        let mut rest = &text[..];
        while !rest.is_empty() {
            stream.writable().await?;
            match stream.try_io(Interest::WRITABLE, || send(stream, rest, &descriptors)) {
                Ok(sent) => {
                    // They went with the first byte.
                    descriptors.clear();
                    rest = &rest[sent..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn send(stream: &UnixStream, text: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for the descriptors"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(rustix::net::sendmsg(stream, &[IoSlice::new(text)], &mut control, flags)?)
}

async fn read_lines(stream: &UnixStream, waiting: &Waiting) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        stream.readable().await?;
        match stream.try_read_buf(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
            let reply: Reply = serde_json::from_slice(&buffer[..end])?;
            buffer.drain(..=end);
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let caller = waiting.as_mut().and_then(|waiting| waiting.remove(&reply.id));
            if let Some(caller) = caller {
                // A caller that has gone meanwhile does not want it.
                let _ = caller.send(reply.answer);
            }
        }
        if buffer.len() >= LINE_BYTES_MAX {
            return Err(io::Error::other("a line without end"));
        }
    }
}

#[cfg(test)]
mod tests;
