//! One connection to xenstored, from opening to its end: xenstore-rs for reading, writing, listing
//! and watching, [`raw`] for the rest.
//!
//! It never reconnects: `live` opens another. xenstore-rs 0.8 leaves its tasks and its socket
//! behind when its user goes, waits for ever once xenstored went, and stops answering while a watch
//! is not drained. So each link has a runtime of its own, which takes everything down with it; each
//! watch has a task that does nothing but drain it; and `raw` tells when xenstored went.

use super::raw::{self, Job};
use super::{CALL_DEADLINE, Sink, StoreError};
use futures_util::StreamExt;
use std::io;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use xenstore_rs::tokio::XsTokio;
use xenstore_rs::{AsyncWatch, AsyncXs};

/// How often an idle link is tried, to notice an xenstored that is there and does not answer.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// A node that always can be asked for; that it is not there is an answer too.
const PROBE_PATH: &str = "/local/domain/0/domid";

/// A connection.
pub(super) struct Link {
    xs: XsTokio,
    jobs: mpsc::Sender<Job>,
    broken: Notify,
    /// Taken by `drop` only.
    runtime: Option<Runtime>,
}

impl Link {
    /// Connects, within [`CALL_DEADLINE`], and makes sure that xenstored answers.
    pub(super) async fn open() -> Result<Self, StoreError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("xenstore")
            .enable_all()
            .build()
            .map_err(away)?;
        let opening = runtime.spawn(async { Ok((XsTokio::new().await?, raw::open().await?)) });
        // From here on, dropping the link ends the runtime without waiting for it.
        let mut half = HalfOpen(Some(runtime));
        let opened = tokio::time::timeout(CALL_DEADLINE, opening).await;
        let opened: io::Result<(XsTokio, mpsc::Sender<Job>)> = match opened {
            Err(_elapsed) => Err(io::Error::from(io::ErrorKind::TimedOut)),
            Ok(joined) => joined.map_err(io::Error::other).and_then(|opened| opened),
        };
        let (xs, jobs) = opened.map_err(away)?;
        let link = Link { xs, jobs, broken: Notify::new(), runtime: half.0.take() };
        link.probe().await?;
        Ok(link)
    }

    /// Returns when the connection is of no use any more.
    pub(super) async fn broken(&self) {
        loop {
            tokio::select! {
                () = self.jobs.closed() => return,
                () = self.broken.notified() => return,
                () = tokio::time::sleep(PROBE_INTERVAL) => {
                    if self.probe().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn probe(&self) -> Result<(), StoreError> {
        match self.call("answer", PROBE_PATH, self.xs.read(PROBE_PATH)).await {
            Err(error @ StoreError::Away(_)) => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) async fn read(&self, path: &str) -> Result<String, StoreError> {
        Ok(self.call("read", path, self.xs.read(path)).await?.into())
    }

    pub(super) async fn write(&self, path: &str, value: &str) -> Result<(), StoreError> {
        self.call("write", path, self.xs.write(path, value)).await
    }

    pub(super) async fn remove(&self, path: &str) -> Result<(), StoreError> {
        match self.call("remove", path, self.xs.rm(path)).await {
            Err(StoreError::Missing(_)) => Ok(()),
            other => other,
        }
    }

    pub(super) async fn list(&self, path: &str) -> Result<Vec<String>, StoreError> {
        match self.call("list", path, self.xs.directory(path)).await {
            Ok(names) => {
                Ok(names.into_iter().map(String::from).filter(|n| !n.is_empty()).collect())
            }
            Err(StoreError::Missing(_)) => Ok(Vec::new()),
            // Longer than one message: xenstore-rs does not ask for it in parts.
            Err(StoreError::Refused { code, .. }) if code.ends_with("E2BIG") => {
                self.job(|reply| Job::List(path.to_owned(), reply)).await
            }
            Err(error) => Err(error),
        }
    }

    /// Has `raw` do a job.
    pub(super) async fn job<T>(
        &self,
        job: impl FnOnce(tokio::sync::oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let done = async {
            self.jobs.send(job(reply)).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(CALL_DEADLINE, done).await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Err(gone()),
            Err(_elapsed) => Err(self.silent()),
        }
    }

    /// Starts a task that drains a watch into `sink`; aborting it ends the watch.
    pub(super) fn watch(&self, path: &str, sink: Sink) -> Option<AbortHandle> {
        let (xs, path) = (self.xs.clone(), path.to_owned());
        let runtime = self.runtime.as_ref()?;
        let task = runtime.spawn(async move {
            match xs.watch(&path).await {
                Ok(mut events) => {
                    while let Some(changed) = events.next().await {
                        sink(&changed);
                    }
                }
                Err(error) => tracing::warn!(path, %error, "xenstored refused a watch"),
            }
        });
        Some(task.abort_handle())
    }

    async fn call<T>(
        &self,
        verb: &str,
        path: &str,
        call: impl Future<Output = io::Result<T>>,
    ) -> Result<T, StoreError> {
        tokio::select! {
            biased;
            outcome = tokio::time::timeout(CALL_DEADLINE, call) => match outcome {
                Ok(outcome) => outcome.map_err(|error| refusal(&error, verb, path)),
                Err(_elapsed) => Err(self.silent()),
            },
            () = self.jobs.closed() => Err(gone()),
        }
    }

    fn silent(&self) -> StoreError {
        self.broken.notify_one();
        let reason = format!("no answer within {} s", CALL_DEADLINE.as_secs());
        StoreError::Away(reason)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        drop(HalfOpen(self.runtime.take()));
    }
}

/// Ends a runtime in the background: one may not be dropped where others' tasks run.
struct HalfOpen(Option<Runtime>);

impl Drop for HalfOpen {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What xenstore-rs's error means: it puts xenstored's word at the end of the text.
fn refusal(error: &io::Error, verb: &str, path: &str) -> StoreError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => StoreError::Missing(path),
        io::ErrorKind::BrokenPipe => gone(),
        io::ErrorKind::InvalidData
            if error.get_ref().is_some_and(|e| e.is::<std::str::Utf8Error>()) =>
        {
            StoreError::NotText(path)
        }
        _ => {
            let text = error.to_string();
            let code = text.rsplit(' ').next().unwrap_or_default().to_owned();
            StoreError::Refused { what: format!("{verb} {path}"), code }
        }
    }
}

fn away(error: impl std::fmt::Display) -> StoreError {
    StoreError::Away(error.to_string())
}

fn gone() -> StoreError {
    away("it closed the connection")
}
