//! The [`Store`] that speaks to xenstored and outlives it: connects, reconnects with back-off, and
//! sets every watch again.
//!
//! While xenstored is away each call fails at once and says so. Once it is back every watch fires,
//! so that whoever watches reads everything again. Made once, by `vbd`.

use super::link::Link;
use super::raw::Job;
use super::{Batch, CALL_DEADLINE, Pending, Sink, Store, StoreError, Watch};
use crate::fault;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{AbortHandle, JoinHandle};

/// Pauses between two attempts to connect: from, and doubled up to.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Calls at a time. xenstore-rs has 32 slots; fewer keep its queues from filling both ways.
const CALLS_IN_FLIGHT_MAX: usize = 8;

/// xenstored, whether or not it is there.
pub struct Live {
    shared: Arc<Shared>,
    keeper: JoinHandle<()>,
}

/// Paths and whom to tell, by a number of our own.
type Watches = HashMap<u64, (String, Sink)>;

struct Shared {
    /// The connection, or why there is none.
    link: watch::Sender<Result<Arc<Link>, StoreError>>,
    watches: Mutex<Watches>,
    watches_changed: Notify,
    last_watch: AtomicU64,
    slots: Semaphore,
}

impl Live {
    /// Starts to connect, where `XENSTORED_PATH` or the custom of Xen hosts says.
    pub fn start() -> Self {
        let reason = "not connected yet".to_owned();
        let shared = Arc::new(Shared {
            link: watch::channel(Err(StoreError::Away(reason))).0,
            watches: Mutex::default(),
            watches_changed: Notify::new(),
            last_watch: AtomicU64::new(0),
            slots: Semaphore::new(CALLS_IN_FLIGHT_MAX),
        });
        let keeper = tokio::spawn(shared.clone().keep());
        Live { shared, keeper }
    }

    /// Waits until xenstored answers.
    pub async fn connected(&self) {
        // It fails only when the sender is gone, and `self` holds it.
        let _ = self.shared.link.subscribe().wait_for(Result::is_ok).await;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Shared {
    /// Keeps a link open.
    async fn keep(self: Arc<Self>) {
        let mut pause = BACKOFF_MIN;
        let mut away = false;
        loop {
            match Link::open().await {
                Ok(link) => {
                    if away {
                        tracing::info!("xenstored answers again");
                    }
                    (away, pause) = (false, BACKOFF_MIN);
                    self.serve(Arc::new(link)).await;
                    let reason = "it closed the connection or fell silent".to_owned();
                    self.publish(Err(StoreError::Away(reason)));
                }
                Err(error) => {
                    if !away {
                        tracing::error!(%error, "no connection to xenstored, trying on");
                    }
                    away = true;
                    self.publish(Err(error));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    fn publish(&self, link: Result<Arc<Link>, StoreError>) {
        drop(self.link.send_replace(link));
    }

    /// Uses a link, and keeps its watches those that are wanted, until it breaks.
    async fn serve(&self, link: Arc<Link>) {
        self.publish(Ok(link.clone()));
        let mut drains = HashMap::new();
        let broken = link.broken();
        tokio::pin!(broken);
        loop {
            self.arrange(&link, &mut drains);
            tokio::select! {
                () = &mut broken => return,
                () = self.watches_changed.notified() => {}
            }
        }
    }

    fn arrange(&self, link: &Link, drains: &mut HashMap<u64, AbortHandle>) {
        let wanted = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        drains.retain(|id, drain| {
            let keep = wanted.contains_key(id);
            if !keep {
                drain.abort();
            }
            keep
        });
        for (&id, (path, sink)) in wanted.iter() {
            if !drains.contains_key(&id)
                && let Some(drain) = link.watch(path, sink.clone())
            {
                drains.insert(id, drain);
            }
        }
    }

    /// Makes a call once a slot is free.
    async fn call<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        call: impl FnOnce(Arc<Link>) -> F,
    ) -> Result<T, StoreError> {
        let Ok(Ok(_slot)) = tokio::time::timeout(CALL_DEADLINE, self.slots.acquire()).await else {
            let reason = format!("{CALLS_IN_FLIGHT_MAX} calls wait already");
            return Err(StoreError::Away(reason));
        };
        let link = self.link.borrow().clone();
        call(link?).await
    }
}

impl Store for Live {
    fn read<'a>(&'a self, path: &'a str) -> Pending<'a, String> {
        Box::pin(self.shared.call(move |link| async move { link.read(path).await }))
    }

    fn write<'a>(&'a self, path: &'a str, value: &'a str) -> Pending<'a, ()> {
        Box::pin(self.shared.call(move |link| async move { link.write(path, value).await }))
    }

    fn remove<'a>(&'a self, path: &'a str) -> Pending<'a, ()> {
        Box::pin(self.shared.call(move |link| async move { link.remove(path).await }))
    }

    fn list<'a>(&'a self, path: &'a str) -> Pending<'a, Vec<String>> {
        Box::pin(self.shared.call(move |link| async move { link.list(path).await }))
    }

    fn transact<'a>(&'a self, batch: &'a Batch) -> Pending<'a, ()> {
        Box::pin(self.shared.call(move |link| async move {
            let committed = link.job(|reply| Job::Transact(batch.clone(), reply)).await;
            fault::point!("xenstore has a transaction");
            committed
        }))
    }

    fn snapshot<'a>(&'a self, paths: &'a [String]) -> Pending<'a, Vec<Option<String>>> {
        Box::pin(self.shared.call(move |link| async move {
            link.job(|reply| Job::Snapshot(paths.to_vec(), reply)).await
        }))
    }

    fn introduced(&self, domid: u16) -> Pending<'_, bool> {
        Box::pin(
            self.shared.call(move |link| async move {
                link.job(|reply| Job::Introduced(domid, reply)).await
            }),
        )
    }

    fn watch(&self, path: &str, sink: Sink) -> Watch {
        let shared = self.shared.clone();
        let id = shared.last_watch.fetch_add(1, Ordering::Relaxed);
        let lock = |shared: &Shared, change: &dyn Fn(&mut Watches)| {
            change(&mut shared.watches.lock().unwrap_or_else(PoisonError::into_inner));
            shared.watches_changed.notify_one();
        };
        lock(&shared, &|watches| {
            watches.insert(id, (path.to_owned(), sink.clone()));
        });
        Watch::new(move || {
            lock(&shared, &|watches| {
                watches.remove(&id);
            });
        })
    }

    fn alive(&self) -> bool {
        self.shared.link.borrow().is_ok()
    }
}
