//! One queue of a VBD: a thread that serves one ring, with an engine and grants of its own.
//!
//! Queues share nothing that changes, so that none waits for another. The worker's first thread
//! starts a queue, asks it for its counters and tells it to drain; it decides nothing else.

use crate::copy::{Hold, ImageCopy, Moving};
use crate::device::{ConnectFailed, Device, Ring, Swept};
use crate::engine::{Completion, Engine, Tag};
use crate::image::Image;
use crate::xen::transfer::PURGE_INTERVAL;
pub use look::Looks;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use timer::Timer;
use zerotap_rpc_schema::engine::EngineKind;
use zerotap_rpc_schema::worker::{VbdCounters, VbdId};

/// A queue's stack. It calls a handful of functions deep, and keeps a map call's references there.
const STACK_BYTES: usize = 256 * 1024;
/// How long a queue may take to tell its counters. It takes longer when the kernel holds it up in
/// the submission of I/O; then what it told last is as good.
const TELL_MS_MAX: u64 = 100;
const MAILBOX: Tag = Tag::Control { connection: 0 };
const TIMER: Tag = Tag::Control { connection: 1 };
const UNUSED: Tag = Tag::Control { connection: 2 };
/// How often it is tried whether there is space for a write that waits for some.
const SPACE_PAUSE: Duration = Duration::from_secs(1);

/// What a queue is told.
#[derive(Debug)]
enum Ask {
    /// All queues of the VBD are connected: take requests. By a hold, if the image is copied.
    Serve(Option<Hold>),
    /// The image is about to be copied.
    Copy(Hold, Moving),
    /// It no longer is.
    Copied,
    /// Send the counters there.
    Tell(SyncSender<VbdCounters>),
    /// Take no more requests; end when those taken are answered, or `leave` what waits for space to
    /// the next worker.
    Drain { leave: bool },
}

/// How a queue ended.
#[derive(Debug)]
pub struct LastWords {
    /// What it counted.
    pub counters: VbdCounters,
    /// Whether its journal has what the next worker must answer.
    pub left: bool,
}

/// A queue, as the worker's first thread holds it.
#[derive(Debug)]
pub struct Queue {
    thread: JoinHandle<LastWords>,
    asks: Sender<Ask>,
    wake: Arc<OwnedFd>,
    done: Arc<AtomicBool>,
    told: VbdCounters,
}

/// Tells, however the thread ends.
pub(crate) struct End {
    done: Arc<AtomicBool>,
    ended: Arc<OwnedFd>,
}

impl End {
    /// Sets `done`, then makes `ended` readable.
    pub(crate) fn new(done: &Arc<AtomicBool>, ended: &Arc<OwnedFd>) -> End {
        End { done: Arc::clone(done), ended: Arc::clone(ended) }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        signal(&self.ended);
    }
}

impl Queue {
    /// Maps the ring and binds the port, in a thread of its own. `ended` becomes readable when the
    /// thread is about to end.
    ///
    /// # Errors
    /// When the frontend's parameters do not lead to a ring, or there is no room for a thread.
    pub fn connect(
        vbd: VbdId,
        ring: Ring,
        image: &Arc<Image>,
        engine: EngineKind,
        ended: &Arc<OwnedFd>,
        looks: Option<Looks>,
    ) -> Result<Self, String> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = Arc::new(wake.map_err(|errno| format!("make an eventfd: {errno}"))?);
        let (asks, inbox) = channel();
        let (connected, answer) = sync_channel(1);
        let (mailbox, image) = (Arc::clone(&wake), Arc::clone(image));
        let done = Arc::new(AtomicBool::new(false));
        let end = End::new(&done, ended);
        let span = tracing::Span::current();
        let port = ring.port;
        let thread = std::thread::Builder::new().name(format!("queue {port}"));
        let thread = thread.stack_size(STACK_BYTES).spawn(move || {
            let _end = end;
            let _span = span.entered();
            match Server::connect(vbd, ring, &image, engine, inbox, mailbox, looks) {
                Ok(server) => {
                    let _ = connected.send(Ok(()));
                    server.run()
                }
                Err(problem) => {
                    let _ = connected.send(Err(problem));
                    LastWords { counters: VbdCounters::new(vbd), left: false }
                }
            }
        });
        let thread = thread.map_err(|error| format!("start a thread: {error}"))?;
        answer.recv().map_err(|_| "the queue's thread died".to_owned())??;
        Ok(Queue { thread, asks, wake, done, told: VbdCounters::new(vbd) })
    }

    /// Begins to take requests. `copy`: the one of the image that is being made.
    pub fn serve(&self, copy: Option<&Arc<ImageCopy>>) {
        self.ask(Ask::Serve(copy.map(|copy| Hold::new(copy, &self.wake))));
    }

    /// Changes nothing any more that is not copied yet; `moving` is dropped once that is so.
    pub fn copy(&self, copy: &Arc<ImageCopy>, moving: Moving) {
        self.ask(Ask::Copy(Hold::new(copy, &self.wake), moving));
    }

    /// The copy is over.
    pub fn copied(&self) {
        self.ask(Ask::Copied);
    }

    /// Takes no more requests; the thread ends when those taken are answered, or left in the
    /// journal, where they wait for space and `leave` is set.
    pub fn drain(&self, leave: bool) {
        self.ask(Ask::Drain { leave });
    }

    /// Whether the thread has ended but for its last instructions.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Lets go of the guest, before [`Queue::serve`].
    pub fn abandon(self) {
        drop(self.asks);
        // It has nothing in flight, and ends at once.
        let _ = self.thread.join();
    }

    /// How it ended.
    #[must_use]
    pub fn last_words(self) -> LastWords {
        self.thread.join().unwrap_or(LastWords { counters: self.told, left: false })
    }

    /// Asks for the counters; [`Queue::counters`] waits for them. Two steps, so that all queues of
    /// a worker answer at the same time.
    #[must_use]
    pub fn ask_counters(&self) -> Receiver<VbdCounters> {
        let (tell, told) = sync_channel(1);
        self.ask(Ask::Tell(tell));
        told
    }

    /// What it has counted: as of now, or as it told last.
    pub fn counters(&mut self, told: &Receiver<VbdCounters>) -> &VbdCounters {
        if let Ok(counters) = told.recv_timeout(Duration::from_millis(TELL_MS_MAX)) {
            self.told = counters;
        }
        &self.told
    }

    fn ask(&self, ask: Ask) {
        // A thread that has ended wants nothing more.
        let _ = self.asks.send(ask);
        signal(&self.wake);
    }
}

/// Makes an eventfd readable.
pub(crate) fn signal(eventfd: &OwnedFd) {
    // It fails only when it is readable already.
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}

/// The thread's side.
struct Server {
    device: Device,
    engine: Engine,
    inbox: Receiver<Ask>,
    mailbox: Arc<OwnedFd>,
    timer: Timer,
    /// Expires when memory may have gone unused for too long.
    unused: Timer,
    unused_pause: Duration,
    /// Writes may be under way that began before the copy.
    moving: Option<Moving>,
    /// None: it sleeps at once.
    looks: Option<Looks>,
}

impl Server {
    fn connect(
        vbd: VbdId,
        ring: Ring,
        image: &Image,
        engine: EngineKind,
        inbox: Receiver<Ask>,
        mailbox: Arc<OwnedFd>,
        looks: Option<Looks>,
    ) -> Result<Self, String> {
        let engine = Engine::new(image.file(), engine).map_err(|problem| problem.to_string())?;
        let unused_pause = ring.unused_max;
        let device = Device::connect(vbd, ring, image, &mailbox);
        let device = device.map_err(|problem: ConnectFailed| problem.to_string())?;
        let timer = || Timer::new().map_err(|errno| format!("make a timer: {errno}"));
        let (timer, unused) = (timer()?, timer()?);
        let moving = None;
        Ok(Server { device, engine, inbox, mailbox, timer, unused, unused_pause, moving, looks })
    }

    /// Serves until drained.
    fn run(mut self) -> LastWords {
        let Ok(Ask::Serve(hold)) = self.inbox.recv() else {
            return LastWords { counters: self.device.counters(), left: false };
        };
        self.device.hold(hold, &mut self.engine);
        self.engine.wait_readable(self.mailbox.as_fd(), MAILBOX);
        let mut completions: Vec<Completion> = Vec::with_capacity(1024);
        let mut swept = Swept::More;
        while !self.device.drained() {
            if let Err(error) = self.wait(swept, &mut completions) {
                // Without its engine it can answer nobody. The daemon sees the death of the worker
                // and says so; a guest would wait for ever for a thread.
                tracing::error!("a queue of VBD {} stopped: {error}", self.device.vbd());
                std::process::exit(1);
            }
            swept = self.round(&mut completions);
        }
        let mut counters = self.device.counters();
        counters.counters.mapped_pages = 0;
        counters.counters.persistent_pages = 0;
        LastWords { counters, left: self.device.has_left() }
    }

    /// Attends to what has completed, then to what the ring has.
    fn round(&mut self, completions: &mut Vec<Completion>) -> Swept {
        self.device.tick();
        for completion in completions.drain(..) {
            self.dispatch(completion);
        }
        self.device.flush_answers();
        let swept = self.device.sweep(&mut self.engine);
        // Refusals are answered by the sweep itself.
        self.device.flush_answers();
        if self.device.lacks_space() && self.timer.set(SPACE_PAUSE) {
            self.engine.wait_readable(self.timer.as_fd(), TIMER);
        }
        if self.device.keeps_memory() && self.unused.set(self.unused_pause) {
            self.engine.wait_readable(self.unused.as_fd(), UNUSED);
        }
        if self.moving.is_some() && !self.device.writes() {
            self.moving = None;
        }
        swept
    }

    /// Waits for something to do. Fast storage has answered by the time that it is asked: until it
    /// turns out slow, the guest is not asked for events. What it adds meanwhile is found, and both
    /// ends are spared the event, which costs more than a 4 KiB read.
    fn wait(&mut self, swept: Swept, completions: &mut Vec<Completion>) -> std::io::Result<()> {
        if swept == Swept::More || (swept == Swept::Empty && self.device.running()) {
            self.engine.submit_and_wait(0, completions)?;
            if swept == Swept::More || !completions.is_empty() {
                return Ok(());
            }
        }
        if self.looks.is_some() {
            return self.look_and_sleep(swept, completions);
        }
        self.sleep(swept, completions)
    }

    fn sleep(&mut self, swept: Swept, completions: &mut Vec<Completion>) -> std::io::Result<()> {
        let more = swept == Swept::Empty && self.device.sleep(&mut self.engine);
        self.engine.submit_and_wait(usize::from(!more), completions)
    }

    fn dispatch(&mut self, Completion { tag, result }: Completion) {
        match tag {
            Tag::Request { slot } => self.device.on_completion(slot, result, &mut self.engine),
            Tag::Event => self.device.on_event(result),
            MAILBOX => self.obey(),
            TIMER => {
                self.timer.expired();
                self.device.try_for_space();
            }
            UNUSED => {
                self.unused.expired();
                let more = self.device.drop_unused(&mut self.engine);
                self.unused_pause = if more { PURGE_INTERVAL } else { self.device.unused_max() };
            }
            Tag::Control { .. } | Tag::Nbd { .. } | Tag::Cancelled | Tag::None => {}
        }
    }

    fn obey(&mut self) {
        let mut count = [0; 8];
        // Emptied before the asks are taken: one that comes later signals anew.
        let _ = rustix::io::read(&self.mailbox, &mut count);
        self.engine.wait_readable(self.mailbox.as_fd(), MAILBOX);
        while let Ok(ask) = self.inbox.try_recv() {
            match ask {
                Ask::Serve(_) => {}
                Ask::Copy(hold, moving) => {
                    self.device.hold(Some(hold), &mut self.engine);
                    self.moving = Some(moving);
                }
                Ask::Copied => {
                    self.moving = None;
                    self.device.hold(None, &mut self.engine);
                }
                Ask::Tell(tell) => {
                    // Who asked may have given up.
                    let _ = tell.try_send(self.device.counters());
                }
                Ask::Drain { leave } => self.device.drain(leave, &mut self.engine),
            }
        }
        self.device.unpark(&mut self.engine);
        self.device.retry_held(&mut self.engine);
    }
}

#[cfg(test)]
mod campaign;
mod look;
mod timer;
