//! The worker's loop: wait for completions, serve devices, obey the daemon.
//!
//! One thread, one place to wait. A round takes all completions that are there, then lets each
//! device that was touched push its answers and sweep its ring once.

use crate::control::{CONNECTIONS_MAX, Connection, HangUp};
use crate::device::{Device, Swept};
use crate::engine::{Completion, Engine, Tag};
use crate::image::Image;
use crate::nbd::export::Export;
use crate::nbd::server::Server;
use crate::ring::request::INDIRECT_SEGMENTS_MAX;
use crate::xen::Host;
use rustix::fs::FlockOperation;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;
use zerotap_rpc_schema::worker::{
    Answer, Ask, PROTOCOL, Request, RingParameters, VBDS_MAX, VbdCounters, VbdId,
};

/// The highest ring order that is mapped: 16 pages.
pub const RING_PAGE_ORDER_MAX: u32 = 4;
/// VBDs whose counters are kept after they went.
const PAST_VBDS_MAX: usize = 64;
const LISTENER: Tag = Tag::Control { connection: u16::MAX };

/// What a worker is given.
#[derive(Debug)]
pub struct Given {
    /// Which host this is.
    pub host: Host,
    /// Refuse writes of every VBD.
    pub read_only: bool,
    /// The image.
    pub image: Image,
    /// The control socket, listening.
    pub listener: OwnedFd,
    /// The grant device.
    pub gntdev: OwnedFd,
    /// The NBD socket, listening, and the export's name.
    pub nbd: Option<(OwnedFd, String)>,
}

/// Somebody who waits for a device to drain.
#[derive(Debug, Clone, Copy)]
struct Waiter {
    connection: u16,
    id: u64,
}

/// The worker.
#[derive(Debug)]
pub struct Worker {
    host: Host,
    read_only: bool,
    engine: Engine,
    devices: [Option<Device>; VBDS_MAX],
    nbd: Option<Server>,
    /// Devices that a completion touched in this round.
    touched: [bool; VBDS_MAX],
    /// Devices whose rings were empty, and whose guests were not asked for events yet.
    lingering: [bool; VBDS_MAX],
    waiters: Vec<(VbdId, Waiter)>,
    past: BTreeMap<VbdId, VbdCounters>,
    connections: [Option<Connection>; CONNECTIONS_MAX],
    shutdown: Option<Waiter>,
    image: Image,
    listener: OwnedFd,
    gntdev: Rc<OwnedFd>,
    started: Instant,
}

impl Worker {
    /// A worker that serves nobody yet.
    ///
    /// # Errors
    /// When the kernel has no io_uring that will do.
    pub fn new(given: Given) -> std::io::Result<Self> {
        let mut engine = Engine::new(given.image.file())?;
        engine.wait_readable(given.listener.as_fd(), LISTENER);
        let nbd = given.nbd.map(|(listener, name)| {
            let export = Export::new(name, &given.image, given.read_only)?;
            Server::new(listener, export, &mut engine)
        });
        Ok(Worker {
            host: given.host,
            read_only: given.read_only,
            engine,
            devices: std::array::from_fn(|_| None),
            nbd: nbd.transpose()?,
            touched: [false; VBDS_MAX],
            lingering: [false; VBDS_MAX],
            waiters: Vec::new(),
            past: BTreeMap::new(),
            connections: std::array::from_fn(|_| None),
            shutdown: None,
            image: given.image,
            listener: given.listener,
            gntdev: Rc::new(given.gntdev),
            started: Instant::now(),
        })
    }

    /// Serves until the daemon says `shutdown`.
    ///
    /// # Errors
    /// When the kernel refuses the ring, or the last flush fails.
    pub fn run(mut self) -> std::io::Result<()> {
        let mut completions: Vec<Completion> = Vec::with_capacity(1024);
        while !self.finished() {
            self.wait(&mut completions)?;
            let now_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
            for device in self.devices.iter_mut().flatten() {
                device.set_now(now_us);
            }
            for completion in completions.drain(..) {
                self.dispatch(completion);
            }
            self.serve_touched();
            if let Some(nbd) = &mut self.nbd {
                nbd.serve(&mut self.engine);
            }
        }
        self.end()
    }

    /// Waits for something to do. Fast storage has answered by the time that it is asked: until it
    /// turns out slow, guests are not asked for events. What they add meanwhile is found, and both
    /// ends are spared the event, which costs more than a 4 KiB read.
    fn wait(&mut self, completions: &mut Vec<Completion>) -> std::io::Result<()> {
        let running = self.devices.iter().flatten().any(Device::running);
        let lingering = self.lingering.contains(&true);
        if self.touched.contains(&true) || (lingering && running) {
            self.engine.submit_and_wait(0, completions)?;
            if self.touched.contains(&true) || !completions.is_empty() {
                return Ok(());
            }
        }
        let wanted = usize::from(!self.sleep());
        self.engine.submit_and_wait(wanted, completions)
    }

    /// Asks the guests of lingering devices for events; true when one added a request meanwhile.
    fn sleep(&mut self) -> bool {
        for (number, device) in self.devices.iter_mut().enumerate() {
            if std::mem::take(&mut self.lingering[number])
                && let Some(device) = device
                && device.sleep(&mut self.engine)
            {
                self.touched[number] = true;
            }
        }
        self.touched.contains(&true)
    }

    fn dispatch(&mut self, Completion { tag, result }: Completion) {
        match tag {
            Tag::Request { device, slot } => {
                if let Some(served) = &mut self.devices[usize::from(device)] {
                    served.on_completion(slot, result, &mut self.engine);
                    self.touched[usize::from(device)] = true;
                }
            }
            Tag::Event { device } => {
                if let Some(served) = &mut self.devices[usize::from(device)] {
                    served.on_event(result);
                    self.touched[usize::from(device)] = true;
                }
            }
            LISTENER => self.accept(),
            Tag::Control { connection } => self.hear(connection),
            Tag::Nbd { client, lane } => {
                if let Some(nbd) = &mut self.nbd {
                    nbd.on_completion(client, lane, result, &mut self.engine);
                }
            }
            Tag::Cancelled { .. } | Tag::None => {}
        }
    }

    fn serve_touched(&mut self) {
        for number in 0..VBDS_MAX {
            if !std::mem::take(&mut self.touched[number]) {
                continue;
            }
            let Some(device) = &mut self.devices[number] else { continue };
            device.flush_answers();
            let swept = device.sweep(&mut self.engine);
            self.touched[number] = swept == Swept::More;
            self.lingering[number] = swept == Swept::Empty;
            // Refusals are answered by the sweep itself.
            device.flush_answers();
            if device.drained() {
                self.remove(number);
            }
        }
    }

    fn remove(&mut self, number: usize) {
        let Some(device) = self.devices[number].take() else { return };
        let vbd = device.vbd();
        let mut counters = device.counters();
        drop(device);
        counters.counters.mapped_pages = 0;
        counters.counters.persistent_pages = 0;
        tracing::info!(%vbd, "disconnected");
        if self.past.len() >= PAST_VBDS_MAX {
            self.past.pop_first();
        }
        self.past.insert(vbd, counters);
        let (done, waiting) = self.waiters.drain(..).partition(|(waited, _)| *waited == vbd);
        self.waiters = waiting;
        for (_, waiter) in done {
            self.reply(waiter, Answer::Done);
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
                    let descriptor = connection.take_descriptor();
                    self.obey(number, request, descriptor);
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
                self.connections[index] = None;
            }
            (None, Ok(())) => {}
        }
    }

    fn obey(&mut self, connection: u16, request: Request, descriptor: Option<OwnedFd>) {
        let waiter = Waiter { connection, id: request.id };
        let answer = match request.ask {
            Ask::Hello { protocol } => self.hello(protocol),
            Ask::Connect { vbd, read_only, ring } => self.connect(vbd, read_only, ring, descriptor),
            Ask::Disconnect { vbd } => match self.disconnect(vbd, waiter) {
                Some(answer) => answer,
                None => return,
            },
            Ask::Stat => Answer::Stat {
                vbds: self.counters(),
                nbd: self.nbd.as_ref().map(Server::counters).unwrap_or_default(),
            },
            Ask::Shutdown => {
                self.shutdown = Some(waiter);
                self.nbd.iter_mut().for_each(Server::drain);
                for number in 0..VBDS_MAX {
                    self.drain(number);
                }
                return;
            }
        };
        self.reply(waiter, answer);
    }

    fn hello(&self, protocol: u32) -> Answer {
        if protocol != PROTOCOL {
            let text = format!("this worker speaks protocol {PROTOCOL}, not {protocol}");
            return Answer::Error { text };
        }
        Answer::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            image: self.image.info(),
            indirect_segments_max: u32::try_from(INDIRECT_SEGMENTS_MAX).unwrap_or(0),
            ring_page_order_max: RING_PAGE_ORDER_MAX,
            connected: self.devices.iter().flatten().map(Device::connected).collect(),
        }
    }

    fn connect(
        &mut self,
        vbd: VbdId,
        read_only: bool,
        ring: RingParameters,
        evtchn: Option<OwnedFd>,
    ) -> Answer {
        let refuse = |text: String| Answer::Error { text };
        let Some(evtchn) = evtchn else {
            return refuse("connect: no event channel descriptor came along".into());
        };
        if self.devices.iter().flatten().any(|device| device.vbd() == vbd) {
            return refuse(format!("VBD {vbd} is connected already; disconnect it first"));
        }
        let Some(number) = self.devices.iter().position(Option::is_none) else {
            return refuse(format!("a worker serves at most {VBDS_MAX} VBDs"));
        };
        let device_number = connection_number(number);
        let read_only = read_only || self.read_only;
        let (host, image) = (self.host, &self.image);
        let connected =
            Device::connect(host, &self.gntdev, evtchn, image, device_number, vbd, ring, read_only);
        match connected {
            Ok(mut device) => {
                if let Some(past) = self.past.remove(&vbd) {
                    device.resume_counters(past);
                }
                tracing::info!(%vbd, read_only, "connected");
                self.devices[number] = Some(device);
                self.touched[number] = true;
                Answer::Done
            }
            Err(error) => refuse(format!("connect VBD {vbd}: {error}")),
        }
    }

    /// Answers at once when there is nothing to wait for.
    fn disconnect(&mut self, vbd: VbdId, waiter: Waiter) -> Option<Answer> {
        let is_it = |device: &Option<Device>| matches!(device, Some(it) if it.vbd() == vbd);
        let Some(number) = self.devices.iter().position(is_it) else { return Some(Answer::Done) };
        self.waiters.push((vbd, waiter));
        self.drain(number);
        None
    }

    fn drain(&mut self, number: usize) {
        if let Some(device) = &mut self.devices[number] {
            device.drain(&mut self.engine);
            self.touched[number] = true;
        }
    }

    fn counters(&self) -> Vec<VbdCounters> {
        let live = self.devices.iter().flatten().map(Device::counters);
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
            && self.devices.iter().all(Option::is_none)
            && self.nbd.as_ref().is_none_or(Server::drained)
    }

    /// Nothing is in flight: make all durable, then say so.
    fn end(mut self) -> std::io::Result<()> {
        rustix::fs::fdatasync(self.image.file())?;
        // The daemon's fence. The process's end would release it too, but only after the kernel has
        // taken io_uring apart, tens of milliseconds later.
        rustix::fs::flock(self.image.file(), FlockOperation::Unlock)?;
        if let Some(waiter) = self.shutdown {
            self.reply(waiter, Answer::Done);
        }
        Ok(())
    }
}

fn connection_number(index: usize) -> u16 {
    u16::try_from(index).expect("a handful")
}
