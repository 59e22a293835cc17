//! A worker's queue, driven step by step instead of by a thread.

use super::super::timer::Timer;
use super::super::{Ask, MAILBOX, Server, TIMER, UNUSED, signal};
use crate::device::{Device, Ring, Swept};
use crate::engine::simulated::{Disk, Simulated};
use crate::engine::{Completion, Engine, Tag};
use crate::image::Image;
use rustix::event::{EventfdFlags, eventfd};
use std::cell::RefCell;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::time::Duration;
use zerotap_rpc_schema::worker::{Counters, VbdCounters, VbdId};

/// Of so many times that it falls asleep, it sleeps once until pages have gone unused.
const SLEEPS: u32 = 8;

/// A queue that serves. The very code that a queue's thread runs.
pub(super) struct Worker {
    server: Server,
    asks: Sender<Ask>,
    wake: Arc<OwnedFd>,
    swept: Swept,
    completions: Vec<Completion>,
    /// Its thread would sleep in the kernel.
    asleep: bool,
    sleeps: u32,
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
        let timer = || Timer::new().expect("a timer");
        let (timer, unused, mailbox) = (timer(), timer(), Arc::clone(&wake));
        let (unused_pause, moving, looks) = (Duration::ZERO, None, None);
        let server =
            Server { device, engine, inbox, mailbox, timer, unused, unused_pause, moving, looks };
        let (swept, completions) = (Swept::More, Vec::new());
        Worker { server, asks, wake, swept, completions, asleep: false, sleeps: 0 }
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
        if self.asleep {
            let Some(tag) = self.slept_until() else { return };
            self.completions.push(Completion { tag, result: 1 });
            self.asleep = false;
        } else {
            waited.expect("a simulated engine does not fail");
        }
        self.swept = self.server.round(&mut self.completions);
    }

    /// Which timer wakes it, if it has slept long enough for one.
    fn slept_until(&mut self) -> Option<Tag> {
        self.sleeps += 1;
        if self.server.device.lacks_space() {
            return Some(TIMER);
        }
        (self.server.device.keeps_memory() && self.sleeps.is_multiple_of(SLEEPS)).then_some(UNUSED)
    }

    pub(super) fn drain(&self) {
        self.asks.send(Ask::Drain { leave: true }).expect("the queue lives");
        signal(&self.wake);
    }

    pub(super) fn ask_counters(&self) -> Receiver<VbdCounters> {
        let (tell, told) = sync_channel(1);
        self.asks.send(Ask::Tell(tell)).expect("the queue lives");
        signal(&self.wake);
        told
    }

    /// Requests that it has ever taken.
    pub(super) fn taken(&self) -> u64 {
        let Counters { reads, refused, in_flight, .. } = self.server.device.counters().counters;
        reads + refused + u64::from(in_flight)
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
