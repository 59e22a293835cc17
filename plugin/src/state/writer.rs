//! The one connection that writes: what several callers want written at a time is one commit.
//!
//! A commit waits for the disk, and meanwhile more orders gather: they go together into the next.
//! Each is a savepoint, so that one that fails takes no other along. Knows no SQL; called by
//! [`State`](crate::state::State) alone. An order is carried out though its caller has gone.

use crate::fault;
use anyhow::{Context, Result, anyhow};
use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use zerotap_rpc_schema::Histogram;

/// The most orders of one commit.
const ORDERS_MAX: usize = 256;
/// Orders that wait.
const ORDERS_QUEUED_MAX: usize = 1024;
/// How long an order that nobody waits for may wait for company.
const LAZY_DELAY: Duration = Duration::from_millis(20);

type Work = Box<dyn for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<()>> + Send>;

enum Order {
    Write { work: Work, lazy: bool, done: oneshot::Sender<Result<()>> },
    Close(oneshot::Sender<()>),
}

/// What was committed since the start.
#[derive(Debug, Clone, Default)]
pub struct Commits {
    /// Orders that were carried out, or failed by themselves.
    pub orders: u64,
    /// Commits that failed as a whole.
    pub failed: u64,
    /// How long each commit took, all of its orders and the disk included.
    pub duration: Histogram,
}

/// The writer's desk. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    orders: mpsc::Sender<Order>,
    commits: Arc<Mutex<Commits>>,
}

impl Writer {
    /// Takes the connection over, which was made with `options`; no other may write.
    pub(super) fn start(connection: SqliteConnection, options: SqliteConnectOptions) -> Writer {
        let (orders, queue) = mpsc::channel(ORDERS_QUEUED_MAX);
        let commits = Arc::<Mutex<Commits>>::default();
        let connection = Some(connection);
        let desk = Desk { connection, options, commits: Arc::clone(&commits) };
        tokio::spawn(run(desk, queue));
        Writer { orders, commits }
    }

    /// What it has committed.
    pub(super) fn commits(&self) -> Commits {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has `work` done in a transaction; durable when it returns. `lazy`: the commit may wait
    /// [`LAZY_DELAY`] for another one.
    pub(super) async fn write<T, F>(&self, lazy: bool, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let (put, mut value) = oneshot::channel();
        let (done, finished) = oneshot::channel();
        let work: Work = Box::new(move |connection| {
            Box::pin(async move {
                // Its reader may have gone; the work counts.
                let _ = put.send(work(connection).await?);
                Ok(())
            })
        });
        let gone = || anyhow!("the state database is closed");
        let order = Order::Write { work, lazy, done };
        self.orders.send(order).await.map_err(|_| gone())?;
        finished.await.map_err(|_| gone())??;
        value.try_recv().context("work that succeeded has a value")
    }

    /// Writes what was ordered, and closes.
    pub(super) async fn close(&self) {
        let (done, finished) = oneshot::channel();
        if self.orders.send(Order::Close(done)).await.is_ok() {
            let _ = finished.await;
        }
    }
}

type Waiting = Vec<(Work, oneshot::Sender<Result<()>>)>;

/// Where it writes, and what is counted of that.
struct Desk {
    connection: Option<SqliteConnection>,
    options: SqliteConnectOptions,
    commits: Arc<Mutex<Commits>>,
}

impl Desk {
    /// The connection, made anew after a failure.
    async fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.options.connect().await?,
        };
        Ok(self.connection.insert(connection))
    }

    /// A full disk has SQLite end a transaction of which sqlx then believes that it goes on: no
    /// other would ever begin.
    async fn give_up_connection(&mut self) {
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close_hard().await
        {
            tracing::warn!("the state database: {error}");
        }
    }
}

async fn run(mut desk: Desk, mut queue: mpsc::Receiver<Order>) {
    let mut waiting: Waiting = Vec::new();
    let mut due = Instant::now();
    loop {
        let order = if waiting.is_empty() {
            queue.recv().await
        } else if let Ok(order) = timeout_at(due, queue.recv()).await {
            order
        } else {
            desk.commit(std::mem::take(&mut waiting)).await;
            continue;
        };
        let mut next = order;
        let mut hurry = false;
        let closing = loop {
            match next {
                None => break Some(None),
                Some(Order::Close(done)) => break Some(Some(done)),
                Some(Order::Write { work, lazy, done }) => {
                    if waiting.is_empty() {
                        due = Instant::now() + LAZY_DELAY;
                    }
                    hurry |= !lazy || waiting.len() >= ORDERS_MAX;
                    waiting.push((work, done));
                }
            }
            match queue.try_recv() {
                Ok(order) if waiting.len() < ORDERS_MAX => next = Some(order),
                Ok(order) => {
                    desk.commit(std::mem::take(&mut waiting)).await;
                    next = Some(order);
                }
                Err(_) => break None,
            }
        };
        if hurry || closing.is_some() {
            desk.commit(std::mem::take(&mut waiting)).await;
        }
        if let Some(done) = closing {
            if let Some(connection) = desk.connection
                && let Err(error) = connection.close().await
            {
                tracing::warn!("the state database: {error}");
            }
            if let Some(done) = done {
                let _ = done.send(());
            }
            return;
        }
    }
}

impl Desk {
    /// Carries all out and tells each how it went, once the disk has it.
    async fn commit(&mut self, waiting: Waiting) {
        if waiting.is_empty() {
            return;
        }
        let began = Instant::now();
        let (works, callers): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        let mut outcomes = Vec::new();
        fault::point!("before a commit");
        let written = async {
            let mut tx = self.connection().await?.begin_with("BEGIN IMMEDIATE").await?;
            for work in works {
                let mut point = tx.begin().await?;
                let outcome = work(&mut point).await;
                if outcome.is_ok() {
                    point.commit().await?;
                } else {
                    point.rollback().await?;
                }
                outcomes.push(outcome);
            }
            tx.commit().await
        };
        let failed: Option<sqlx::Error> = written.await.err();
        if failed.is_some() {
            self.give_up_connection().await;
        }
        fault::point!("after a commit");
        self.count(callers.len(), failed.is_some(), began);
        let mut outcomes = outcomes.into_iter();
        for done in callers {
            let outcome = match (outcomes.next(), &failed) {
                (Some(outcome), None) => outcome,
                (Some(Err(error)), Some(_)) => Err(error),
                (_, failed) => Err(anyhow!("cannot commit: {failed:?}")),
            };
            // Its caller may have gone.
            let _ = done.send(outcome);
        }
    }

    fn count(&self, orders: usize, failed: bool, began: Instant) {
        let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        commits.orders += orders as u64;
        commits.failed += u64::from(failed);
        commits.duration.record(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
}
