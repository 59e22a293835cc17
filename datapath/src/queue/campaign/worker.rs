//! A worker's queue, driven step by step instead of by a thread.

use super::super::timer::Timer;
use super::super::{Ask, MAILBOX, Server, TIMER, signal};
use crate::device::{Device, Ring, Swept};
use crate::engine::simulated::{Disk, Simulated};
use crate::engine::{Completion, Engine};
use crate::image::Image;
use rustix::event::{EventfdFlags, eventfd};
use std::cell::RefCell;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;
use zerotap_rpc_schema::worker::VbdId;

/// Longer than a history: its time is not the clock's.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// A queue that serves. The very code that a queue's thread runs.
pub(super) struct Worker {
    server: Server,
    asks: Sender<Ask>,
    wake: Arc<OwnedFd>,
    swept: Swept,
    completions: Vec<Completion>,
    /// Its thread would sleep in the kernel.
    asleep: bool,
}

impl Worker {
    pub(super) fn start(
        vbd: VbdId,
        ring: Ring,
        image: &Image,
        disk: &Rc<RefCell<Disk>>,
        number: u32,
    ) -> Worker {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = Arc::new(wake.expect("an eventfd"));
        let (asks, inbox) = channel();
        let mut engine = Engine::simulated(Simulated::new(disk, number));
        engine.wait_readable(wake.as_fd(), MAILBOX);
        let device = Device::connect(vbd, ring, image, &wake);
        let device = device.expect("the ring is as it should be");
        let timer = Timer::new(NEVER).expect("a timer");
        let server =
            Server { device, engine, inbox, mailbox: Arc::clone(&wake), timer, moving: None };
        let (swept, completions) = (Swept::More, Vec::new());
        Worker { server, asks, wake, swept, completions, asleep: false }
    }

    /// One round, or as far as the thread gets before it sleeps.
    pub(super) fn step(&mut self) {
        if self.drained() {
            return;
        }
        let completions = &mut self.completions;
        let waited = if self.asleep {
            self.server.engine.submit_and_wait(1, completions)
        } else {
            self.server.wait(self.swept, completions)
        };
        self.asleep = matches!(&waited, Err(error) if error.kind() == ErrorKind::WouldBlock);
        if self.asleep && self.server.device.lacks_space() {
            // It has slept long enough.
            self.completions.push(Completion { tag: TIMER, result: 1 });
            self.asleep = false;
            self.swept = self.server.round(&mut self.completions);
            return;
        }
        if !self.asleep {
            waited.expect("a simulated engine does not fail");
            self.swept = self.server.round(&mut self.completions);
        }
    }

    pub(super) fn drain(&self) {
        self.asks.send(Ask::Drain { leave: true }).expect("the queue lives");
        signal(&self.wake);
    }

    pub(super) fn drained(&self) -> bool {
        self.server.device.drained()
    }

    /// Pages that had to make room.
    pub(super) fn purged(&self) -> u64 {
        self.server.device.counters().counters.purged_pages
    }

    pub(super) fn broken(&self) -> bool {
        self.server.device.counters().broken
    }
}
