//! The worker's first thread: obey the daemon, serve the NBD clients, and have each queue of a VBD
//! served by a thread of its own.

use crate::control::{CONNECTIONS_MAX, Connection, HangUp};
use crate::copy::{Hold, Moving, Work};
use crate::elder;
use crate::engine::{Completion, Engine, Tag, Unavailable};
use crate::image::Image;
use crate::nbd::export::Export;
use crate::nbd::server::Server;
use crate::patience::{self, Patience};
use crate::ring::request::INDIRECT_SEGMENTS_MAX;
use crate::vbd::{Common, Order, Vbd};
use crate::xen::Host;
use crate::xen::budget::Budget;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::FlockOperation;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerotap_rpc_schema::engine::EngineChoice;
use zerotap_rpc_schema::space::NoSpace;
use zerotap_rpc_schema::worker::{
    Answer, Ask, PROTOCOL, PROTOCOL_OLDEST, QUEUES_MAX, Request, TransferRule, VBDS_MAX,
    VbdCounters, VbdId,
};

/// The highest ring order that is mapped: 16 pages.
pub const RING_PAGE_ORDER_MAX: u32 = 4;
/// VBDs whose counters are kept after they went.
const PAST_VBDS_MAX: usize = 64;
const LISTENER: Tag = Tag::Control { connection: u16::MAX };
const ENDED: Tag = Tag::Control { connection: u16::MAX - 1 };

/// What a worker is given.
#[derive(Debug)]
pub struct Given {
    /// Which host this is.
    pub host: Host,
    /// Refuse writes of every VBD.
    pub read_only: bool,
    /// The image is reached over a network: guests' pages are copied, whatever the rule.
    pub network: bool,
    /// What becomes of guests' writes that find no space.
    pub no_space: NoSpace,
    /// What this host lets its workers map.
    pub budget: Budget,
    /// How long a guest's page stays mapped that no request uses.
    pub unused_max: Duration,
    /// How guests' pages are reached, unless a VBD has a rule of its own.
    pub transfer: TransferRule,
    /// What tells how idle the host is (`/proc/stat`), when queues shall look for work before they
    /// sleep.
    pub stat: Option<OwnedFd>,
    /// The image.
    pub image: Image,
    /// By what the I/O is done.
    pub engine: EngineChoice,
    /// The control socket, listening.
    pub listener: OwnedFd,
    /// The grant device.
    pub gntdev: OwnedFd,
    /// The NBD socket, listening, and the export's name.
    pub nbd: Option<(OwnedFd, String)>,
}

/// Why a worker does not start.
#[derive(Debug, thiserror::Error)]
pub enum NotStarted {
    /// Its engine is not to be had, or not once more.
    #[error(transparent)]
    Engine(#[from] Unavailable),
    /// No descriptor for the queues' end, or no memory for NBD.
    #[error(transparent)]
    Os(#[from] std::io::Error),
}

/// Somebody who waits for a device to drain.
#[derive(Debug, Clone, Copy)]
struct Waiter {
    connection: u16,
    id: u64,
}

/// A copy that is being made.
#[derive(Debug)]
struct Copying {
    work: Work,
    /// Who is told, unless they have hung up.
    waiter: Option<Waiter>,
    /// NBD clients' requests of before are under way.
    moving: Option<Moving>,
}

/// The worker.
#[derive(Debug)]
pub struct Worker {
    common: Common,
    read_only: bool,
    transfer: TransferRule,
    choice: EngineChoice,
    engine: Engine,
    vbds: Vec<Vbd>,
    nbd: Option<Server>,
    waiters: Vec<(VbdId, Waiter)>,
    copying: Option<Copying>,
    past: BTreeMap<VbdId, VbdCounters>,
    connections: [Option<Connection>; CONNECTIONS_MAX],
    shutdown: Option<Waiter>,
    listener: OwnedFd,
}

impl Worker {
    /// A worker that serves nobody yet.
    ///
    /// # Errors
    /// When the kernel does not give what it takes.
    pub fn new(given: Given) -> Result<Self, NotStarted> {
        let mut engine = Engine::new(given.image.file(), given.engine.kind)?;
        engine.wait_readable(given.listener.as_fd(), LISTENER);
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let ended = ended.map_err(std::io::Error::from)?;
        engine.wait_readable(ended.as_fd(), ENDED);
        let nbd = given.nbd.map(|(listener, name)| {
            let export = Export::new(name, &given.image, given.read_only)?;
            Server::new(listener, export, &mut engine)
        });
        Ok(Worker {
            read_only: given.read_only,
            transfer: if given.network { TransferRule::Copy } else { given.transfer },
            nbd: nbd.transpose()?,
            engine,
            common: Common {
                host: given.host,
                network: given.network,
                no_space: given.no_space,
                budget: Arc::new(given.budget),
                unused_max: given.unused_max,
                stat: given.stat.map(Arc::new),
                gntdev: Arc::new(given.gntdev),
                image: Arc::new(given.image),
                engine: given.engine.kind,
                ended: Arc::new(ended),
                copy: None,
            },
            choice: given.engine,
            vbds: Vec::new(),
            waiters: Vec::new(),
            copying: None,
            past: BTreeMap::new(),
            connections: std::array::from_fn(|_| None),
            shutdown: None,
            listener: given.listener,
        })
    }

    /// Serves until the daemon says `shutdown`.
    ///
    /// # Errors
    /// When the kernel refuses the ring, or the last flush fails.
    pub fn run(mut self) -> std::io::Result<()> {
        let mut completions: Vec<Completion> = Vec::with_capacity(1024);
        let (mut patience, started) = (Patience::new(patience::NBD), Instant::now());
        while !self.finished() {
            self.wait(&mut patience, started, &mut completions)?;
            for completion in completions.drain(..) {
                self.dispatch(completion);
            }
            self.still_nbd();
            if let Some(nbd) = &mut self.nbd {
                nbd.serve(&mut self.engine);
            }
        }
        self.end()
    }

    /// Waits for something to do: NBD clients that were answered may be about to ask again.
    fn wait(
        &mut self,
        patience: &mut Patience,
        started: Instant,
        completions: &mut Vec<Completion>,
    ) -> std::io::Result<()> {
        let now_us = || u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let from_us = now_us();
        let look_us = patience.look_us(from_us);
        if look_us > 0 {
            self.engine.submit_and_wait(0, completions)?;
            let mut looked_us = 0;
            while completions.is_empty() && looked_us < look_us {
                std::hint::spin_loop();
                if self.engine.has_news() != Some(false) {
                    self.engine.submit_and_wait(0, completions)?;
                }
                looked_us = now_us() - from_us;
            }
            patience.looked(looked_us, !completions.is_empty());
        }
        if completions.is_empty() {
            self.engine.submit_and_wait(1, completions)?;
        }
        patience.waited(now_us() - from_us);
        Ok(())
    }

    fn dispatch(&mut self, Completion { tag, result }: Completion) {
        match tag {
            LISTENER => self.accept(),
            ENDED => self.reap(),
            Tag::Control { connection } => self.hear(connection),
            Tag::Nbd { client, lane } => {
                if let Some(nbd) = &mut self.nbd {
                    nbd.on_completion(client, lane, result, &mut self.engine);
                }
            }
            Tag::Request { .. } | Tag::Event | Tag::Cancelled | Tag::None => {}
        }
    }

    /// Queues have ended: VBDs without any are gone. A copy is further, or over.
    fn reap(&mut self) {
        let mut count = [0; 8];
        // Emptied before the queues are looked at: one that ends later signals anew.
        let _ = rustix::io::read(&self.common.ended, &mut count);
        self.engine.wait_readable(self.common.ended.as_fd(), ENDED);
        self.nbd.iter_mut().for_each(Server::retry_held);
        self.end_copy();
        let gone: Vec<Vbd> = self.vbds.extract_if(.., Vbd::reap).collect();
        for mut vbd in gone {
            let id = vbd.id();
            tracing::info!(vbd = %id, "disconnected");
            if self.past.len() >= PAST_VBDS_MAX {
                self.past.pop_first();
            }
            self.past.insert(id, vbd.counters());
            let (done, waiting) = self.waiters.drain(..).partition(|(waited, _)| *waited == id);
            self.waiters = waiting;
            let answer = if vbd.has_left() { Answer::Left } else { Answer::Done };
            for (_, waiter) in done {
                self.reply(waiter, answer.clone());
            }
        }
    }

    fn accept(&mut self) {
        self.engine.wait_readable(self.listener.as_fd(), LISTENER);
        let Ok(connection) = Connection::accept(&self.listener) else { return };
        let Some(number) = self.connections.iter().position(Option::is_none) else {
            tracing::warn!(CONNECTIONS_MAX, "too many control connections; one more was refused");
            return;
        };
        let tag = Tag::Control { connection: connection_number(number) };
        self.engine.wait_readable(connection.descriptor(), tag);
        self.connections[number] = Some(connection);
    }

    /// A control connection is readable.
    fn hear(&mut self, number: u16) {
        let index = usize::from(number);
        let Some(connection) = &mut self.connections[index] else { return };
        let mut heard = connection.fill();
        while heard.is_ok() {
            let Some(connection) = &mut self.connections[index] else { return };
            match connection.next_request() {
                Ok(Some(request)) => {
                    // A read may bring lines before the one that its descriptors belong to.
                    let descriptors = match request.ask {
                        Ask::Connect { .. } | Ask::Copy => connection.take_descriptors(),
                        _ => Vec::new(),
                    };
                    self.obey(number, request, descriptors);
                }
                Ok(None) => break,
                Err(hang_up) => heard = Err(hang_up),
            }
        }
        match (&self.connections[index], heard) {
            (Some(connection), Ok(())) => {
                let tag = Tag::Control { connection: number };
                self.engine.wait_readable(connection.descriptor(), tag);
            }
            (_, Err(HangUp)) => {
                // Its place goes to the next one, who must not get the answers it waited for.
                self.waiters.retain(|(_, waiter)| waiter.connection != number);
                let copying = self.copying.iter_mut();
                for copying in
                    copying.filter(|it| it.waiter.is_some_and(|it| it.connection == number))
                {
                    copying.waiter = None;
                }
                self.connections[index] = None;
            }
            (None, Ok(())) => {}
        }
    }

    fn obey(&mut self, connection: u16, request: Request, descriptors: Vec<OwnedFd>) {
        let waiter = Waiter { connection, id: request.id };
        if let Some(text) = elder::refusal(&request.ask, elder::newest()) {
            return self.reply(waiter, Answer::Error { text });
        }
        let answer = match request.ask {
            Ask::Hello { protocol } => self.hello(protocol),
            Ask::Connect {
                vbd,
                read_only,
                discard,
                ring: parameters,
                transfer,
                bounds,
                journaled,
            } => {
                let read_only = read_only || self.read_only;
                let rule = transfer.unwrap_or(self.transfer);
                let bounds = bounds.unwrap_or_default();
                let order =
                    Order { parameters, read_only, discard, bounds, rule, journaled, descriptors };
                self.connect(vbd, order)
            }
            Ask::Disconnect { vbd, leave } => match self.disconnect(vbd, leave, waiter) {
                Some(answer) => answer,
                None => return,
            },
            Ask::Stat => Answer::Stat {
                vbds: self.counters(),
                nbd: self.nbd.as_ref().map(Server::counters).unwrap_or_default(),
            },
            Ask::Resize { sectors } => self.resize(sectors),
            Ask::Copy => match self.copy(waiter, descriptors) {
                Ok(()) => return,
                Err(text) => Answer::Error { text },
            },
            Ask::Shutdown => {
                self.shutdown = Some(waiter);
                self.nbd.iter_mut().for_each(Server::drain);
                self.vbds.iter_mut().for_each(|vbd| vbd.drain(true));
                return;
            }
        };
        self.reply(waiter, answer);
    }

    fn hello(&mut self, protocol: u32) -> Answer {
        if protocol < PROTOCOL_OLDEST {
            let text = format!(
                "this worker speaks protocols {PROTOCOL_OLDEST} to {PROTOCOL}, not {protocol}"
            );
            return Answer::Error { text };
        }
        Answer::Hello {
            protocol: protocol.min(elder::newest()),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            image: self.common.image.info(),
            indirect_segments_max: u32::try_from(INDIRECT_SEGMENTS_MAX).unwrap_or(0),
            ring_page_order_max: RING_PAGE_ORDER_MAX,
            queues_max: queues_max(),
            connected: self.vbds.iter_mut().map(Vbd::connected).collect(),
            resizes: true,
            transfer: Some(self.transfer),
            engine: self.choice.clone(),
            leaves: elder::newest() == PROTOCOL,
        }
    }

    /// Guests and new NBD clients may go as far as the image has grown.
    fn resize(&mut self, sectors: u64) -> Answer {
        if let Err(problem) = self.common.image.grow(sectors) {
            return Answer::Error { text: format!("resize to {sectors} sectors: {problem}") };
        }
        self.nbd.iter_mut().for_each(|nbd| nbd.grow(sectors));
        tracing::info!(sectors, "grown");
        Answer::Done
    }

    /// Has all whom it serves stand still for a moment, and the copy made.
    fn copy(&mut self, waiter: Waiter, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        if self.copying.is_some() {
            return Err("the image is being copied already".to_owned());
        }
        let Ok([to]) = <[OwnedFd; 1]>::try_from(descriptors) else {
            return Err("a copy wants one file".to_owned());
        };
        let started = Work::start(&self.common.image, to, &self.common.ended);
        let (work, moving) = started.map_err(|error| format!("copy the image: {error}"))?;
        self.vbds.iter().for_each(|vbd| vbd.copy(work.copy(), &moving));
        self.nbd.iter_mut().for_each(Server::pause);
        self.common.copy = Some(Arc::clone(work.copy()));
        self.copying = Some(Copying { work, waiter: Some(waiter), moving: Some(moving) });
        Ok(())
    }

    /// Once nothing of before the copy is under way, NBD clients go on, by the copy.
    fn still_nbd(&mut self) {
        let Some(copying) = self.copying.as_mut().filter(|copying| copying.moving.is_some()) else {
            return;
        };
        if self.nbd.as_ref().is_none_or(Server::quiet) {
            copying.moving = None;
            let hold = Hold::new(copying.work.copy(), &self.common.ended);
            self.nbd.iter_mut().for_each(|nbd| nbd.resume(Some(hold.clone())));
        }
    }

    fn end_copy(&mut self) {
        let Some(Copying { work, waiter, .. }) = self.copying.take_if(|it| it.work.is_over())
        else {
            return;
        };
        self.common.copy = None;
        self.vbds.iter().for_each(Vbd::copied);
        self.nbd.iter_mut().for_each(|nbd| nbd.resume(None));
        let answer = match work.outcome() {
            Ok(()) => Answer::Done,
            Err(errno) => Answer::Error { text: format!("copy the image: {errno}") },
        };
        if let Some(waiter) = waiter {
            self.reply(waiter, answer);
        }
    }

    fn connect(&mut self, vbd: VbdId, order: Order) -> Answer {
        let refuse = |text: String| Answer::Error { text };
        if self.vbds.iter().any(|served| served.id() == vbd) {
            return refuse(format!("VBD {vbd} is connected already; disconnect it first"));
        }
        if self.vbds.len() >= VBDS_MAX {
            return refuse(format!("a worker serves at most {VBDS_MAX} VBDs"));
        }
        let (read_only, discard, rule) = (order.read_only, order.discard, order.rule);
        let queues = order.parameters.queues.len();
        let past = self.past.get(&vbd).cloned();
        match Vbd::connect(&self.common, vbd, order, past) {
            Ok(connected) => {
                self.past.remove(&vbd);
                tracing::info!(%vbd, read_only, discard, queues, transfer = ?rule, "connected");
                self.vbds.push(connected);
                Answer::Done
            }
            Err(problem) => refuse(format!("connect VBD {vbd}: {problem}")),
        }
    }

    /// Answers at once when there is nothing to wait for.
    fn disconnect(&mut self, vbd: VbdId, leave: bool, waiter: Waiter) -> Option<Answer> {
        let Some(served) = self.vbds.iter_mut().find(|served| served.id() == vbd) else {
            return Some(Answer::Done);
        };
        served.drain(leave);
        self.waiters.push((vbd, waiter));
        None
    }

    fn counters(&mut self) -> Vec<VbdCounters> {
        let live = self.vbds.iter_mut().map(Vbd::counters);
        live.chain(self.past.values().cloned()).collect()
    }

    fn reply(&mut self, waiter: Waiter, answer: Answer) {
        let connection = &mut self.connections[usize::from(waiter.connection)];
        if let Some(open) = connection
            && open.reply(waiter.id, answer).is_err()
        {
            // Its wait is with the kernel and names only a descriptor; it ends when that closes.
            tracing::warn!("a control connection took no answer; hung up on it");
        }
    }

    fn finished(&self) -> bool {
        self.shutdown.is_some()
            && self.vbds.is_empty()
            && self.copying.is_none()
            && self.nbd.as_ref().is_none_or(Server::drained)
    }

    /// Nothing is in flight: make all durable, then say so.
    fn end(mut self) -> std::io::Result<()> {
        rustix::fs::fdatasync(self.common.image.file())?;
        // The daemon's fence. The process's end would release it too, but only after the kernel has
        // taken io_uring apart, tens of milliseconds later.
        rustix::fs::flock(self.common.image.file(), FlockOperation::Unlock)?;
        if let Some(waiter) = self.shutdown {
            self.reply(waiter, Answer::Done);
        }
        Ok(())
    }
}

fn connection_number(index: usize) -> u16 {
    u16::try_from(index).expect("a handful")
}

/// A queue beyond the host's CPUs only takes turns with the others.
fn queues_max() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cpus.min(QUEUES_MAX)).unwrap_or(1)
}
