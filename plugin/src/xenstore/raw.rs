//! A connection of our own to xenstored, for what xenstore-rs cannot say: transactions,
//! permissions, directories above 4 KiB, whether a domain is introduced.
//!
//! One task owns the connection and does one job at a time, start to end, whether or not the caller
//! still waits, so that no answer can be taken for another's. It never watches. That its connection
//! ended tells `link` that xenstored is gone, which xenstore-rs does not notice.

use super::wire::{self, HEADER_BYTES, Header, Kind};
use super::{Batch, COLLISIONS_MAX, Change, Guard, StoreError};
use std::io;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// Jobs that wait for the task.
const JOBS_MAX: usize = 64;
/// The longest directory, bytes of names: beyond what any host has (10,000 domains are 60 KB).
const DIRECTORY_BYTES_MAX: usize = 4 << 20;
const SOCKET: &str = "/run/xenstored/socket";
const DEVICE: &str = "/dev/xen/xenbus";

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the task is asked to do.
pub(super) enum Job {
    Transact(Batch, Reply<()>),
    List(String, Reply<Vec<String>>),
    Snapshot(Vec<String>, Reply<Vec<Option<String>>>),
    Introduced(u16, Reply<bool>),
}

/// Opens the connection, where xenstore-rs opens its own, and starts the task. The task ends, and
/// with it the channel, when the connection does.
pub(super) async fn open() -> io::Result<mpsc::Sender<Job>> {
    let mut raw = Raw { stream: connect().await?, number: 0 };
    let (jobs, mut inbox) = mpsc::channel(JOBS_MAX);
    tokio::spawn(async move {
        if let Err(error) = raw.run(&mut inbox).await {
            tracing::debug!(%error, "the connection to xenstored ended");
        }
    });
    Ok(jobs)
}

async fn connect() -> io::Result<Stream> {
    let path = std::env::var_os("XENSTORED_PATH").unwrap_or_else(|| SOCKET.into());
    let error = match UnixStream::connect(&path).await {
        Ok(stream) => return Ok(Stream::Socket(stream)),
        Err(error) => error,
    };
    let device = File::options().read(true).write(true).open(DEVICE).await;
    device.map(Stream::Device).map_err(|_no_device| {
        let text = format!("{}: {error}, and there is no {DEVICE}", path.display());
        io::Error::new(error.kind(), text)
    })
}

enum Stream {
    Socket(UnixStream),
    /// The kernel's door to xenstored; it never closes.
    Device(File),
}

struct Raw {
    stream: Stream,
    number: u32,
}

/// A request's outcome: the connection may fail, or xenstored may say no.
type Outcome<T> = io::Result<Result<T, StoreError>>;

/// Hands on a refusal, inside a function that answers an [`Outcome`].
macro_rules! agreed {
    ($outcome:expr) => {
        match $outcome? {
            Ok(value) => value,
            Err(error) => return Ok(Err(error)),
        }
    };
}

impl Raw {
    async fn run(&mut self, inbox: &mut mpsc::Receiver<Job>) -> io::Result<()> {
        loop {
            let job = tokio::select! {
                job = inbox.recv() => job,
                end = self.unasked() => return end,
            };
            match job {
                None => return Ok(()),
                Some(Job::Transact(batch, reply)) => {
                    answer(reply, self.transact(&batch).await)?;
                }
                Some(Job::List(path, reply)) => answer(reply, self.list(&path).await)?,
                Some(Job::Snapshot(paths, reply)) => answer(reply, self.snapshot(&paths).await)?,
                Some(Job::Introduced(domid, reply)) => {
                    answer(reply, self.introduced(domid).await)?;
                }
            }
        }
    }

    /// Waits, between jobs, for the end of the connection: nothing else can come then.
    async fn unasked(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Device(_) => std::future::pending().await,
            Stream::Socket(socket) => match socket.read(&mut [0]).await? {
                0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "xenstored closed it")),
                _ => Err(garbled()),
            },
        }
    }

    async fn transact(&mut self, batch: &Batch) -> Outcome<()> {
        for _ in 0..COLLISIONS_MAX {
            let id = agreed!(self.begin().await);
            if let Err(error) = self.attempt(id, batch).await? {
                // The answer to an abort changes nothing.
                let _ = self.ask(Kind::TransactionEnd, id, b"F\0", "abort").await?;
                return Ok(Err(error));
            }
            if agreed!(self.commit(id).await) {
                return Ok(Ok(()));
            }
        }
        Ok(Err(collisions()))
    }

    /// Reads in a transaction, whose commit tells whether anything changed meanwhile.
    async fn snapshot(&mut self, paths: &[String]) -> Outcome<Vec<Option<String>>> {
        for _ in 0..COLLISIONS_MAX {
            let id = agreed!(self.begin().await);
            let mut values = Vec::with_capacity(paths.len());
            for path in paths {
                match self.ask_path(Kind::Read, id, path, "read").await? {
                    Ok(value) => values.push(Some(
                        String::from_utf8(value).unwrap_or_else(|_| "\u{fffd}".to_owned()),
                    )),
                    Err(StoreError::Missing(_)) => values.push(None),
                    Err(error) => {
                        let _ = self.ask(Kind::TransactionEnd, id, b"F\0", "abort").await?;
                        return Ok(Err(error));
                    }
                }
            }
            if agreed!(self.commit(id).await) {
                return Ok(Ok(values));
            }
        }
        Ok(Err(collisions()))
    }

    async fn begin(&mut self) -> Outcome<u32> {
        let start = self.ask(Kind::TransactionStart, 0, b"\0", "start a transaction").await;
        let id = agreed!(start);
        let id = wire::text(&id).and_then(|id| id.parse().ok());
        id.map(Ok).ok_or_else(garbled)
    }

    /// False when it collided with another's.
    async fn commit(&mut self, id: u32) -> Outcome<bool> {
        Ok(match self.ask(Kind::TransactionEnd, id, b"T\0", "commit").await? {
            Err(StoreError::Refused { code, .. }) if code == "EAGAIN" => Ok(false),
            outcome => outcome.map(|_| true),
        })
    }

    async fn attempt(&mut self, id: u32, batch: &Batch) -> Outcome<()> {
        for guard in &batch.guards {
            let (Guard::Exists(path) | Guard::Absent(path) | Guard::Equals(path, _)) = guard;
            let found = match self.ask_path(Kind::Read, id, path, "read").await? {
                Ok(value) => Some(value),
                Err(StoreError::Missing(_)) => None,
                Err(error) => return Ok(Err(error)),
            };
            let holds = match guard {
                Guard::Exists(_) => found.is_some(),
                Guard::Absent(_) => found.is_none(),
                Guard::Equals(_, wanted) => found.as_deref() == Some(wanted.as_bytes()),
            };
            if !holds {
                return Ok(Err(StoreError::Changed(path.clone())));
            }
        }
        for change in &batch.changes {
            agreed!(self.change(id, change).await);
        }
        Ok(Ok(()))
    }

    async fn change(&mut self, id: u32, change: &Change) -> Outcome<()> {
        let (kind, payload, what) = match change {
            Change::Write(path, value) => {
                (Kind::Write, wire::path_and_value(path, value), format!("write {path}"))
            }
            Change::Mkdir(path) => {
                (Kind::Mkdir, wire::strings([path.as_str()]), format!("make {path}"))
            }
            Change::Remove(path) => {
                (Kind::Rm, wire::strings([path.as_str()]), format!("remove {path}"))
            }
            Change::Permit(path, permissions) => (
                Kind::SetPerms,
                wire::path_and_permissions(path, *permissions),
                format!("set the permissions of {path}"),
            ),
        };
        Ok(match (self.ask(kind, id, &payload, &what).await?, change) {
            // The C xenstored says ENOENT when not even the parent is there.
            (Err(StoreError::Missing(_)), Change::Remove(_)) => Ok(()),
            (outcome, _) => outcome.map(drop),
        })
    }

    async fn list(&mut self, path: &str) -> Outcome<Vec<String>> {
        let mut names = Vec::new();
        let mut generation = Vec::new();
        let what = format!("list {path}");
        while names.len() <= DIRECTORY_BYTES_MAX {
            let payload = wire::strings([path, &names.len().to_string()]);
            let answer = match self.ask(Kind::DirectoryPart, 0, &payload, &what).await? {
                Err(StoreError::Missing(_)) => return Ok(Ok(Vec::new())),
                other => agreed!(io::Result::Ok(other)),
            };
            let Some((now, part)) = wire::directory_part(&answer) else { return Err(garbled()) };
            if !names.is_empty() && now != generation {
                // It changed between two parts.
                names.clear();
                continue;
            }
            generation = now.to_vec();
            names.extend_from_slice(part);
            if part.is_empty() || wire::is_whole_list(&names) {
                let path = path.to_owned();
                return Ok(wire::names(&names).ok_or(StoreError::NotText(path)));
            }
        }
        Ok(Err(StoreError::Refused { what, code: "it does not end".to_owned() }))
    }

    async fn introduced(&mut self, domid: u16) -> Outcome<bool> {
        let payload = wire::strings([domid.to_string().as_str()]);
        let what = format!("tell whether domain {domid} lives");
        let answer = agreed!(self.ask(Kind::IsDomainIntroduced, 0, &payload, &what).await);
        Ok(Ok(wire::text(&answer) == Some("T")))
    }

    async fn ask_path(&mut self, kind: Kind, id: u32, path: &str, verb: &str) -> Outcome<Vec<u8>> {
        self.ask(kind, id, &wire::strings([path]), &format!("{verb} {path}")).await
    }

    /// Asks and waits for the answer. `what` completes «refused to».
    async fn ask(&mut self, kind: Kind, id: u32, payload: &[u8], what: &str) -> Outcome<Vec<u8>> {
        self.number = self.number.wrapping_add(1);
        let Some(request) = wire::request(kind, self.number, id, payload) else {
            let code = "longer than 4096 bytes".to_owned();
            return Ok(Err(StoreError::Refused { what: what.to_owned(), code }));
        };
        self.write(&request).await?;
        loop {
            let mut header = [0; HEADER_BYTES];
            self.fill(&mut header).await?;
            let header = Header::parse(&header).ok_or_else(garbled)?;
            let mut answer = vec![0; header.payload_bytes];
            self.fill(&mut answer).await?;
            if !header.is_answer() {
                continue;
            }
            if header.request != self.number {
                return Err(garbled());
            }
            return Ok(if header.is_error() { Err(refusal(&answer, what)) } else { Ok(answer) });
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Socket(socket) => socket.write_all(bytes).await,
            Stream::Device(file) => {
                file.write_all(bytes).await?;
                file.flush().await
            }
        }
    }

    async fn fill(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Socket(socket) => socket.read_exact(buffer).await,
            Stream::Device(file) => file.read_exact(buffer).await,
        }
        .map(drop)
    }
}

/// Sends a job's outcome to whoever asked; that nobody waits any more is no fault.
fn answer<T>(reply: Reply<T>, outcome: Outcome<T>) -> io::Result<()> {
    match outcome {
        Ok(result) => {
            let _ = reply.send(result);
            Ok(())
        }
        Err(error) => {
            let _ = reply.send(Err(StoreError::Away(error.to_string())));
            Err(error)
        }
    }
}

fn refusal(payload: &[u8], what: &str) -> StoreError {
    match wire::text(payload) {
        Some("ENOENT") => {
            let path = what.split(' ').next_back().unwrap_or(what);
            StoreError::Missing(path.to_owned())
        }
        code => {
            let code = code.unwrap_or("an answer that is no text").to_owned();
            StoreError::Refused { what: what.to_owned(), code }
        }
    }
}

fn collisions() -> StoreError {
    let code = "EAGAIN again and again".to_owned();
    StoreError::Refused { what: "commit".to_owned(), code }
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "xenstored's answer makes no sense")
}
