//! One VBD: the task that owns its machine, feeds it and does what it says.
//!
//! It decides nothing. Nothing it waits for keeps it from listening: everything that takes time
//! runs beside it, xenstore's part one thing at a time, so that what was read is never older than
//! what was written. Started by `watcher`, which pokes it; its status is read by `report` and
//! `plug`.

use super::address::Address;
use super::asking::{self, RETRY_PAUSE, let_go};
use super::backend::{Action, Backend, ConnectError, Event, PublishError, Worker};
use super::disk::Disk;
use super::pace::Pace;
use super::publish::{self, Identity, OWN_KIND};
use super::reading;
use super::status::Status;
use crate::events::Events;
use crate::worker::{Offered, WorkerError};
use crate::xenstore::{Batch, Store, StoreError, Watch};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// Messages that wait: a handful is all that the watcher ever sends.
pub const MESSAGES_MAX: usize = 32;

/// What an actor is told.
#[derive(Debug)]
pub enum Message {
    /// A worker serves the VDI.
    Ready(Arc<dyn Disk>),
    /// The worker of this id is about to be ended.
    Releasing(String, oneshot::Sender<()>),
    /// The worker of this id died, or (no id) there is none for this device; why, and what is done
    /// about it, for people.
    Died(String, String),
    /// Let go of the guest at once.
    Force,
    /// The ring turned out to be broken.
    Broken,
    /// Its writes wait for space, or not any more.
    Short(bool),
    /// The worker did not tell of the ring that it should serve.
    Doubted,
}

/// What a job beside the actor came to.
enum Done {
    /// Of a worker.
    Event(Event),
    /// The worker of this id was asked to serve the ring.
    Connected(Option<String>, Result<(), WorkerError>),
    /// Of xenstore, whose turn is over.
    Store(Asked),
    /// The worker of this id has told what it serves, and whether its guest broke the ring.
    Met(String, Worker, bool),
    /// The worker of this id died before it could.
    Lost(String),
    /// Time to look again.
    Again,
}

/// What asking xenstore came to.
enum Asked {
    Event(Event),
    Done,
    Failed(String),
}

/// What is done with xenstore, in this order.
enum Errand {
    Publish(Batch),
    Complain(String),
    RemoveDirectories,
}

/// What an actor has for itself.
pub struct Actor {
    store: Arc<dyn Store>,
    address: Address,
    identity: Identity,
    machine: Backend,
    disk: Option<Arc<dyn Disk>>,
    /// The worker that is about to be ended, and who waits until it holds nothing of the guest.
    leaving: Option<String>,
    releasing: Vec<oneshot::Sender<()>>,
    jobs: JoinSet<Done>,
    errands: VecDeque<Errand>,
    /// xenstore is being asked.
    asking: bool,
    /// Both directories have to be read.
    look: bool,
    pace: Pace,
    complained: bool,
    /// Why the directories could not be read.
    unread: Option<String>,
    /// The device is gone: what is left to do is done, then the task ends.
    ending: bool,
    status: watch::Sender<Status>,
    events: Events,
}

/// How to reach an actor.
pub struct Hold {
    /// To tell it something.
    pub messages: mpsc::Sender<Message>,
    /// To have it look again; any number of times is as good as one.
    pub poke: Arc<Notify>,
    /// How it is.
    pub status: watch::Receiver<Status>,
}

/// Starts the actor of a device, with the worker that serves its VDI, or why it has none (empty:
/// there is none); `ended` is called when the device is gone and nothing of it is
/// left.
pub fn start(
    store: Arc<dyn Store>,
    address: Address,
    identity: Identity,
    disk: Result<Arc<dyn Disk>, String>,
    events: Events,
    ended: impl FnOnce() + Send + 'static,
) -> Hold {
    let (messages, inbox) = mpsc::channel(MESSAGES_MAX);
    let (sender, status) = watch::channel(Status::new(address.clone(), identity.clone()));
    let poke = Arc::new(Notify::new());
    let actor = Actor {
        store,
        machine: Backend::new(identity.read_only, address.kind == OWN_KIND),
        address,
        identity,
        disk: None,
        leaving: None,
        releasing: Vec::new(),
        jobs: JoinSet::new(),
        errands: VecDeque::new(),
        asking: false,
        look: true,
        pace: Pace::new(Instant::now()),
        complained: false,
        unread: None,
        ending: false,
        status: sender,
        events,
    };
    let run = actor.run(inbox, poke.clone(), disk);
    tokio::spawn(async move {
        if run.await {
            ended();
        }
    });
    Hold { messages, poke, status }
}

impl Actor {
    /// True when the device is gone; false when the daemon stops.
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Message>,
        poke: Arc<Notify>,
        disk: Result<Arc<dyn Disk>, String>,
    ) -> bool {
        let watch = self.watch_frontend(&poke);
        match disk {
            Ok(disk) => self.meet(disk),
            Err(why) => self.step(Event::WorkerDied(why)),
        }
        while !self.ending || self.asking || !self.errands.is_empty() {
            self.run_errands();
            tokio::select! {
                biased;
                message = inbox.recv() => match message {
                    Some(message) => self.hear(message),
                    // The daemon stops: ring and xenstore stay as they are.
                    None => break,
                },
                Some(done) = self.jobs.join_next() => match done {
                    Ok(done) => self.finish(done),
                    Err(error) => tracing::error!(vbd = %self.address.id, %error, "a job failed"),
                },
                () = poke.notified() => self.look = true,
            }
        }
        drop(watch);
        self.status.send_modify(|status| status.ended = self.ending);
        if self.ending {
            self.events.tell(self.status.borrow().change());
        }
        self.ending
    }

    /// The guest's `state` alone: what else it writes is read when its state says so.
    fn watch_frontend(&self, poke: &Arc<Notify>) -> Watch {
        let poke = poke.clone();
        let path = format!("{}/state", self.address.frontend());
        self.store.watch(&path, Arc::new(move |_| poke.notify_one()))
    }

    fn serves(&self, worker: &str) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.id() == worker)
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Ready(disk) => self.meet(disk),
            Message::Releasing(id, done) if self.serves(&id) => {
                if self.machine.holds_guest() {
                    let vbd = self.address.id;
                    tracing::warn!(%vbd, worker = id, "the VDI is deactivated under its guest");
                }
                self.releasing.push(done);
                self.leaving = Some(id);
                // What it serves of an earlier daemon's is not known before it has told.
                if self.machine.has_met_worker() {
                    self.step(Event::WorkerLeaves);
                }
            }
            // Told again, with other words, while there is none.
            Message::Died(id, why) if self.disk.is_none() || self.serves(&id) => {
                self.disk = None;
                self.step(Event::WorkerDied(why));
            }
            // Of a worker that is not ours: nothing to let go of.
            Message::Releasing(..) | Message::Died(..) => {}
            Message::Force => self.step(Event::Forced),
            Message::Broken => self.step(Event::RingBroken),
            Message::Short(short) => return self.step(Event::Short(short)),
            Message::Doubted => {
                if let (Some(disk), None) = (self.disk.clone(), &self.leaving) {
                    self.meet(disk);
                }
            }
        }
        self.look = true;
    }

    /// Asks a worker what it serves, before it counts as ready.
    fn meet(&mut self, disk: Arc<dyn Disk>) {
        self.disk = Some(disk.clone());
        self.leaving = None;
        let id = self.address.id;
        self.jobs.spawn(async move {
            match asking::what_it_serves(&*disk, id).await {
                Some((worker, broken)) => Done::Met(disk.id().to_owned(), worker, broken),
                None => Done::Lost(disk.id().to_owned()),
            }
        });
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Event(event) => {
                self.step(event);
                self.look = true;
            }
            Done::Connected(worker, outcome) => {
                if let (Some(id), Err(WorkerError::Gone)) = (worker, &outcome) {
                    self.hear(Message::Died(id, String::new()));
                }
                if let Err(error) = &outcome {
                    tracing::error!(vbd = %self.address.id, "the ring is not served: {error}");
                }
                self.step(Event::Connected(outcome.map_err(|error| match error {
                    WorkerError::Gone | WorkerError::Deadline { .. } => ConnectError::Again,
                    error => ConnectError::Refused(error.to_string()),
                })));
                self.look = true;
            }
            Done::Store(asked) => {
                self.asking = false;
                self.asked(asked);
            }
            Done::Met(id, worker, broken) => {
                // Unless it died or was released meanwhile, or another has come.
                if self.serves(&id) {
                    self.step(Event::WorkerReady(worker));
                    if broken {
                        self.step(Event::RingBroken);
                    }
                    if self.leaving.is_some() {
                        self.step(Event::WorkerLeaves);
                    }
                }
                self.look = true;
            }
            Done::Lost(id) => self.hear(Message::Died(id, String::new())),
            Done::Again => self.look = true,
        }
    }

    fn asked(&mut self, asked: Asked) {
        match asked {
            Asked::Done => {}
            Asked::Failed(text) => {
                tracing::debug!(vbd = %self.address.id, %text, "xenstore could not be asked");
                self.unread = Some(text);
                self.look_later();
                self.tell();
            }
            Asked::Event(event) => {
                match &event {
                    Event::Seen(_) => self.unread = None,
                    Event::Published(Err(PublishError::Changed)) => self.look = true,
                    Event::Published(Err(PublishError::Failed(text))) => {
                        tracing::warn!(vbd = %self.address.id, %text, "publishing failed");
                        self.look_later();
                    }
                    _ => {}
                }
                self.step(event);
            }
        }
    }

    /// After a failure. When xenstored comes back its watches come first.
    fn look_later(&mut self) {
        self.jobs.spawn(async {
            tokio::time::sleep(RETRY_PAUSE).await;
            Done::Again
        });
    }

    fn step(&mut self, event: Event) {
        let empty = Backend::new(self.identity.read_only, false);
        let (machine, actions) = std::mem::replace(&mut self.machine, empty).step(event);
        self.machine = machine;
        for action in actions {
            tracing::debug!(vbd = %self.address.id, ?action, "acting");
            self.act(action);
        }
        let free = self.machine.has_met_worker() && !self.machine.holds_guest();
        if free && self.leaving.is_some() {
            self.disk = None;
            for done in self.releasing.drain(..) {
                // The VDI side may have stopped waiting.
                let _ = done.send(());
            }
        }
        self.tell();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Connect(ring, how) => {
                let (disk, id, identity) =
                    (self.disk.clone(), self.address.id, self.identity.clone());
                self.jobs.spawn(async move {
                    let Some(disk) = disk else {
                        return Done::Connected(None, Err(WorkerError::Gone));
                    };
                    // One that knows no rules would not understand the call.
                    let transfer = disk.transfer().and(identity.transfer);
                    let offered = Offered {
                        discard: identity.discard(&disk.image()).is_some(),
                        bounds: identity.offer.bounds(),
                    };
                    let outcome =
                        disk.connect(id, ring, identity.read_only, offered, transfer, how).await;
                    if let Err(WorkerError::Deadline { .. }) = outcome {
                        // It may yet have done it.
                        let_go(&*disk, id, false, None).await;
                    }
                    Done::Connected(Some(disk.id().to_owned()), outcome)
                });
            }
            Action::Disconnect => {
                let (disk, id) = (self.disk.clone(), self.address.id);
                let leaving = self.leaving.is_some();
                // Whoever told it before has let it leave what waits for space.
                let leave = leaving || self.machine.goes_on_draining();
                let conclude = self.machine.leaving_ring().filter(|_| leaving).cloned();
                self.jobs.spawn(async move {
                    let drained = match disk {
                        Some(disk) => {
                            let leave = leave && disk.leaves();
                            let_go(&*disk, id, leave, conclude.as_ref()).await
                        }
                        None => false,
                    };
                    Done::Event(Event::Disconnected { drained })
                });
            }
            Action::Publish { from, what } => {
                let batch = publish::batch(&self.address, &self.identity, &from, &what);
                self.errands.push_back(Errand::Publish(batch));
            }
            Action::Complain(text) => self.errands.push_back(Errand::Complain(text)),
            Action::RemoveDirectories => self.errands.push_back(Errand::RemoveDirectories),
            Action::End => {
                if self.complained {
                    self.errands.push_back(Errand::Complain(String::new()));
                }
                self.ending = true;
            }
        }
    }

    /// Starts the next thing to be done with xenstore, if its turn has come.
    fn run_errands(&mut self) {
        if self.asking {
            return;
        }
        let (store, address) = (self.store.clone(), self.address.clone());
        match self.errands.pop_front() {
            Some(Errand::Publish(batch)) => self.ask(async move {
                let outcome = store.transact(&batch).await.map_err(|error| match error {
                    StoreError::Changed(_) => PublishError::Changed,
                    other => PublishError::Failed(other.to_string()),
                });
                Asked::Event(Event::Published(outcome))
            }),
            Some(Errand::Complain(text)) => {
                self.complained = !text.is_empty();
                self.ask(async move {
                    complain(&*store, &address, &text).await;
                    Asked::Done
                });
            }
            Some(Errand::RemoveDirectories) => self.ask(async move {
                let mut batch = Batch::default();
                batch.remove(address.frontend()).remove(address.backend());
                match store.transact(&batch).await {
                    Ok(()) => Asked::Done,
                    Err(error) => Asked::Failed(error.to_string()),
                }
            }),
            None if self.look => self.read(),
            None => {}
        }
    }

    fn ask(&mut self, errand: impl Future<Output = Asked> + Send + 'static) {
        self.asking = true;
        self.jobs.spawn(async move { Done::Store(errand.await) });
    }

    /// Reads both directories, at the pace that this device has left.
    fn read(&mut self) {
        self.look = false;
        let (store, address) = (self.store.clone(), self.address.clone());
        let (identity, machine) = (self.identity.clone(), self.machine.clone());
        let pause = self.pace.next(Instant::now());
        self.ask(async move {
            tokio::time::sleep(pause).await;
            match reading::sight(&*store, &address, &identity, &machine).await {
                Ok(sight) => Asked::Event(Event::Seen(sight)),
                Err(error) => Asked::Failed(error.to_string()),
            }
        });
    }

    fn tell(&self) {
        let (machine, disk) = (&self.machine, self.disk.as_ref());
        let unread = self.unread.as_deref();
        let before = self.status.borrow().change();
        self.status
            .send_if_modified(|status| status.update(machine, disk.map(|disk| &**disk), unread));
        let now = self.status.borrow().change();
        if now != before {
            self.events.tell(now);
        }
    }
}

async fn complain(store: &dyn Store, address: &Address, text: &str) {
    let node = address.error_node();
    let outcome = if text.is_empty() {
        store.remove(&node).await
    } else {
        tracing::warn!(vbd = %address.id, problem = text, "the guest's fault");
        store.write(&node, text).await
    };
    if let Err(error) = outcome {
        tracing::warn!(vbd = %address.id, %error, "the error node could not be written");
    }
}
