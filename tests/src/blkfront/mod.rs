//! A simulated blkfront: connects through xenstore as Linux's does, and distrusts every answer.
//!
//! One thread, one or several queues. Checks that every request is answered exactly once, with its
//! own operation and zero padding, and that the back end has let go of a page when a grant ends.
//! What the data should be is its user's business: the verifying workload, the benchmark, a
//! scenario.

mod flight;
pub mod negotiate;
pub mod request;
pub mod ring;

pub use flight::Completion;
pub use negotiate::{Disk, Options};
pub use request::{Io, Op, Piece};

use crate::guest::{Domain, Port};
use crate::xenstore::Client;
use anyhow::{Context as _, bail, ensure};
use flight::Flight;
use ring::FrontRing;
use std::time::Instant;

/// XenBus states, `public/io/xenbus.h`.
#[expect(missing_docs, reason = "the names are upstream's")]
pub mod state {
    pub const UNKNOWN: u32 = 0;
    pub const INITIALISING: u32 = 1;
    pub const INIT_WAIT: u32 = 2;
    pub const INITIALISED: u32 = 3;
    pub const CONNECTED: u32 = 4;
    pub const CLOSING: u32 = 5;
    pub const CLOSED: u32 = 6;
}

/// What a connected front end holds of a queue.
#[derive(Debug)]
struct Queue {
    ring: FrontRing,
    ring_grefs: Vec<u32>,
    port: Port,
}

/// A front end and the domain that it is in.
#[derive(Debug)]
pub struct Blkfront {
    domain: Domain,
    xenstore: Client,
    options: Options,
    /// `device/vbd/<devid>`, relative to the domain's home.
    dir: String,
    backend: String,
    disk: Disk,
    /// None while not connected.
    queues: Vec<Queue>,
    flights: Vec<Option<Flight>>,
    free_slots: Vec<usize>,
    issued: u64,
    /// Grants that stay, by frame; 0 for none.
    kept_grefs: Vec<u32>,
}

/// How a front end comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconnect {
    /// Closes first, as a kernel started by kexec does for its predecessor.
    Orderly,
    /// Writes state 1 while connected, as after a resume.
    Abrupt,
}

impl Blkfront {
    /// Waits for the device directory, negotiates, connects.
    ///
    /// # Errors
    /// When the back end does not play along in time.
    pub fn connect(domain: Domain, options: Options) -> anyhow::Result<Blkfront> {
        let mut front = Blkfront::announce(domain, options)?;
        front.negotiate()?;
        Ok(front)
    }

    /// A front end that has not negotiated yet.
    ///
    /// # Errors
    /// When the device directory does not appear.
    pub fn announce(domain: Domain, options: Options) -> anyhow::Result<Blkfront> {
        let mut xenstore = domain.xenstore()?;
        let dir = format!("device/vbd/{}", options.devid);
        let backend = negotiate::backend_dir(&mut xenstore, &dir, options.patience)?;
        xenstore.watch(&format!("{backend}/state"), "backend")?;
        let frames = domain.memory().bytes() / crate::guest::FRAME_BYTES;
        Ok(Blkfront {
            domain,
            xenstore,
            options,
            dir,
            backend,
            disk: Disk::default(),
            queues: Vec::new(),
            flights: Vec::new(),
            free_slots: Vec::new(),
            issued: 0,
            kept_grefs: vec![0; frames],
        })
    }

    /// The domain.
    pub fn domain(&mut self) -> &mut Domain {
        &mut self.domain
    }

    /// The guest's xenstore connection.
    pub fn xenstore(&mut self) -> &mut Client {
        &mut self.xenstore
    }

    /// The back end's directory.
    #[must_use]
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// What the back end offered.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The first ring, for those who do to it what no front end should.
    ///
    /// # Panics
    /// When not connected.
    pub fn raw(&mut self) -> (&mut Domain, &mut FrontRing, &Port) {
        self.raw_queue(0)
    }

    /// As [`Blkfront::raw`], for any of its rings.
    ///
    /// # Panics
    /// When there is none of that number.
    pub fn raw_queue(&mut self, number: usize) -> (&mut Domain, &mut FrontRing, &Port) {
        let queue = self.queues.get_mut(number).expect("connected");
        (&mut self.domain, &mut queue.ring, &queue.port)
    }

    /// Writes the front end's state.
    ///
    /// # Errors
    /// When xenstored is away.
    pub fn set_state(&mut self, state: u32) -> anyhow::Result<()> {
        self.xenstore.write(&format!("{}/state", self.dir), state)
    }

    /// The back end's state; [`state::CLOSED`] once its directory is gone.
    ///
    /// # Errors
    /// When xenstored is away.
    pub fn backend_state(&mut self) -> anyhow::Result<u32> {
        while self.xenstore.event(Instant::now())?.is_some() {}
        negotiate::read_state(&mut self.xenstore, &self.backend)
    }

    /// Waits for one of `states`.
    ///
    /// # Errors
    /// When the back end does not reach one in time, or closes instead.
    pub fn wait_backend(&mut self, states: &[u32]) -> anyhow::Result<u32> {
        let patience = self.options.patience;
        let deadline = Instant::now() + patience;
        loop {
            let now = self.backend_state()?;
            if states.contains(&now) {
                return Ok(now);
            }
            let closed = matches!(now, state::CLOSING | state::CLOSED);
            let reached_by_closing = states.iter().any(|&state| state >= state::CLOSING);
            // A closed back end may open again, for a front end that waits for it to do so.
            if closed && !reached_by_closing && !states.contains(&state::INIT_WAIT) {
                bail!("the back end closed (state {now}) instead of reaching {states:?}");
            }
            self.xenstore.event(deadline)?.with_context(|| {
                format!(
                    "the back end stays in state {now}, {states:?} was expected \
                     within {patience:?}"
                )
            })?;
        }
    }

    /// Waits for answers or news in xenstore: until `answers` more are there, or `deadline`. True
    /// when there is something in xenstore.
    ///
    /// # Errors
    /// When poll fails.
    pub fn wait(&mut self, answers: u32, deadline: Instant) -> anyhow::Result<bool> {
        use std::os::fd::AsFd as _;
        // Which of several queues answers next is not known.
        let answers = if self.queues.len() == 1 { answers } else { 1 };
        let memory = self.domain.memory();
        let answered = self.queues.iter().filter(|queue| queue.ring.sleep(memory, answers));
        if self.queues.is_empty() || answered.count() > 0 {
            return Ok(self.queues.is_empty());
        }
        let ports = self.queues.iter().map(|queue| &queue.port);
        let woken = Port::wait(ports, self.xenstore.as_fd(), deadline)?;
        if woken.event {
            self.queues.iter().for_each(|queue| queue.port.drain());
        }
        Ok(woken.other)
    }

    /// Closes the device: tells the back end, waits until it has let go, ends the grants.
    ///
    /// # Errors
    /// When the back end does not follow, or keeps pages.
    pub fn close(&mut self) -> anyhow::Result<()> {
        ensure!(self.in_flight() == 0, "requests are in flight");
        if self.backend_state()? < state::CLOSING {
            self.set_state(state::CLOSING)?;
            self.wait_backend(&[state::CLOSING, state::CLOSED])?;
        }
        self.finish_close()
    }

    fn finish_close(&mut self) -> anyhow::Result<()> {
        // The toolstack may have removed the directory already.
        let _ = self.set_state(state::CLOSED);
        self.wait_backend(&[state::CLOSED])?;
        self.release()
    }

    /// Comes back to the same disk; what was not answered is asked again.
    ///
    /// # Errors
    /// When the back end does not play along, or keeps pages of the old connection.
    pub fn reconnect(&mut self, how: Reconnect) -> anyhow::Result<()> {
        if how == Reconnect::Orderly {
            self.set_state(state::CLOSING)?;
            self.wait_backend(&[state::CLOSING, state::CLOSED])?;
            self.set_state(state::CLOSED)?;
            self.wait_backend(&[state::CLOSED])?;
        }
        self.set_state(state::INITIALISING)?;
        self.wait_backend(&[state::INIT_WAIT])?;
        for flight in self.flights.iter_mut().flatten() {
            flight.end_grants(&mut self.domain)?;
        }
        self.release()?;
        self.negotiate()?;
        self.issue_again()
    }

    /// Ends all grants of a connection that the back end has left.
    fn release(&mut self) -> anyhow::Result<()> {
        let used = self.domain.uses_in_all();
        ensure!(used == 0, "the back end has closed and still maps {used} pages");
        for gref in self.kept_grefs.iter_mut().filter(|gref| **gref != 0) {
            self.domain.revoke(*gref)?;
            *gref = 0;
        }
        for queue in self.queues.drain(..) {
            for gref in queue.ring_grefs {
                self.domain.revoke(gref)?;
            }
            queue.ring.frames().iter().for_each(|&frame| self.domain.free_frame(frame));
        }
        Ok(())
    }
}
