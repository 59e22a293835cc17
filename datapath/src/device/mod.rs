//! One ring of a VBD: takes requests off it, moves data between the guest's pages and the image,
//! answers.
//!
//! Runs at its own pace: an event or a completion only marks it; then one sweep takes all that is
//! there, maps what is missing, submits, and pushes the finished answers with one notification.
//! Its queue calls it; it calls the engine and nothing else waits.

mod buffers;
mod flow;
mod hold;
mod part;
mod reach;
mod slot;
mod space;
mod sweep;

use crate::clock::Clock;
use crate::copy::Hold;
use crate::engine::{Engine, Tag};
use crate::image::{Capacity, Claims, Image};
use crate::ring::back::BackRing;
use crate::ring::journal::{Damaged, Identity, Journal};
use crate::ring::request::{INDIRECT_SEGMENTS_MAX, Limits, Transfer as Direction};
use crate::ring::shared::PAGE_BYTES;
use crate::xen::budget::{Allowance, Budget};
use crate::xen::transfer::Transfer;
use crate::xen::{Access, Channel, Grants, Held, Host};
use buffers::Buffers;
use rustix::io::Errno;
use slot::{Fetch, Slot};
use space::SpaceWait;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
pub use sweep::Swept;
use zerotap_rpc_schema::Histogram;
use zerotap_rpc_schema::space::NoSpace;
use zerotap_rpc_schema::worker::{
    Abi, Bounds, Counters, Journaled, TransferRule, VbdCounters, VbdId,
};

/// Reads of an event channel that may fail in a row before the ring counts as broken.
const EVENT_ERRORS_MAX: u32 = 16;

/// How long a port may stay bound after the death of the worker that had it.
const REBIND_DEADLINE: Duration = Duration::from_secs(2);
const REBIND_INTERVAL: Duration = Duration::from_millis(1);

/// Why a ring cannot be connected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectFailed {
    /// The daemon checks this too; a guest chose the number.
    #[error("a ring has 1, 2, 4, 8 or 16 pages, not {0}")]
    RingPages(usize),
    /// No memory for the buffers.
    #[error("no memory for buffers: {0}")]
    Buffers(Errno),
    /// No such domain, or its grants cannot be reached.
    #[error("cannot reach the domain's grants: {0}")]
    Grants(Errno),
    /// A reference that is not granted to this domain.
    #[error("cannot map the ring's pages {refs:?}: {errno}")]
    MapRing {
        /// The references.
        refs: Vec<u32>,
        /// The reason.
        errno: Errno,
    },
    /// Bound already, or not offered to this domain.
    #[error("cannot bind event channel port {port}: {errno}")]
    BindPort {
        /// The frontend's port.
        port: u32,
        /// The reason.
        errno: Errno,
    },
    /// What an earlier worker took cannot be known.
    #[error("what an earlier worker has taken cannot be taken up: {0}")]
    Journal(#[from] Damaged),
}

/// What a device does with its ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Takes requests.
    Serving,
    /// The frontend broke the protocol: takes no more, answers what it has.
    Broken,
    /// Finishes what it has, then ends.
    Draining,
}

/// What the counters know beside what the daemon asks for.
#[derive(Debug, Default)]
struct Statistics {
    counters: Counters,
    read_latency: Histogram,
    write_latency: Histogram,
    flush_latency: Histogram,
    discard_latency: Histogram,
}

impl Statistics {
    /// Counts an answered request.
    fn count(&mut self, transfer: Direction, bytes: u64, latency_us: u64) {
        let counters = &mut self.counters;
        match transfer {
            Direction::Read => {
                counters.reads += 1;
                counters.read_bytes += bytes;
                self.read_latency.record(latency_us);
            }
            Direction::Write => {
                counters.writes += 1;
                counters.write_bytes += bytes;
                self.write_latency.record(latency_us);
            }
            Direction::Discard { .. } => {
                counters.discards += 1;
                counters.discard_bytes += bytes;
                self.discard_latency.record(latency_us);
            }
            Direction::None => {
                counters.flushes += 1;
                self.flush_latency.record(latency_us);
            }
        }
    }
}

/// The wait for the guest's next event. The kernel reads and writes these words: they stay where
/// they are (boxed) until the wait has ended.
#[derive(Debug)]
struct EventWait {
    word: Box<[u32; 16]>,
    unmask: Box<u32>,
    /// A wait is with the kernel.
    armed: bool,
    /// An event came, and the port has not been unmasked since.
    masked: bool,
    cancelled: bool,
    errors: u32,
}

/// What a device is connected with.
#[derive(Debug)]
pub struct Ring {
    /// Which host this is.
    pub host: Host,
    /// The grant device.
    pub gntdev: Arc<OwnedFd>,
    /// An event channel device that is its own.
    pub evtchn: OwnedFd,
    /// Grant references of the ring's pages.
    pub refs: Vec<u32>,
    /// The frontend's event channel port.
    pub port: u32,
    /// The entries' layout.
    pub protocol: Abi,
    /// Whether both ends keep grants.
    pub persistent: bool,
    /// Refuse writes.
    pub read_only: bool,
    /// Take discards, where the image can.
    pub discard: bool,
    /// What else was offered.
    pub bounds: Bounds,
    /// How the guest's pages are reached, as far as the administrator decides it.
    pub rule: TransferRule,
    /// Whether the image is reached over a network.
    pub network: bool,
    /// What becomes of writes that find no space.
    pub no_space: NoSpace,
    /// What this host lets its workers map.
    pub budget: Arc<Budget>,
    /// How long a guest's page stays mapped that no request uses.
    pub unused_max: Duration,
    /// The ring's journal, and what for.
    pub journal: Option<(Journaled, OwnedFd)>,
}

/// One connected ring. The field order is the order of dropping: the ring goes before the grants
/// that it is made of.
#[derive(Debug)]
pub struct Device {
    vbd: VbdId,
    capacity: Capacity,
    limits: Limits,
    memory_align_bytes: u32,
    /// The image's own, which may be larger than what the guest was told.
    sector_bytes: u32,
    claims: Option<Arc<Claims>>,
    /// Becomes readable when there is something for [`Device::unpark`].
    wake: Arc<OwnedFd>,
    state: State,
    /// Whether what it has seen in the ring is served although it drains.
    last_call: bool,
    ring: BackRing,
    _ring_grants: Held,
    channel: Channel,
    event: EventWait,
    transfer: Transfer,
    buffers: Buffers,
    rule: TransferRule,
    network: bool,
    unused_max: Duration,
    /// Sweeps that had pages to map or copy.
    loose_sweeps: u64,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// The requests of the sweep that goes on; kept for its memory.
    batch: Vec<u16>,
    /// The indirect requests of a batch; kept for their memory.
    fetches: Vec<Fetch>,
    /// A barrier that waits for the requests before it, and holds back those after.
    barrier: Option<u16>,
    /// Slots whose steps go on, the waiting barrier left out.
    running: u32,
    /// While the image is copied: what a write goes by, and those that wait for it.
    hold: Option<Hold>,
    held: Vec<u16>,
    /// Slots that finished in a window that others still use.
    finished: Vec<u16>,
    /// Slots that found no room for a copy; they are tried again before the ring is looked at.
    waiting: Vec<u16>,
    /// Slots whose sectors others write on.
    parked: Vec<u16>,
    /// Writes that wait for space.
    space: SpaceWait,
    /// The requests and pages of windows being made, the writes first; kept for their memory.
    members: [Vec<u16>; 2],
    grefs: Vec<u32>,
    /// Writes whose data is to be copied from the guest before they start.
    copied: Vec<u16>,
    /// Reads whose data is to be copied to the guest before they are answered.
    returning: Vec<u16>,
    /// The time of this round, microseconds: one reading of the clock serves all its requests. It
    /// is read again after a hypercall, beside which that costs nothing.
    now_us: u64,
    /// When the requests that are seen in the ring and not taken were seen.
    seen_us: u64,
    clock: Clock,
    statistics: Statistics,
}

impl Device {
    /// Maps the ring, binds the port and waits for the first event, which a fresh bind brings
    /// itself. `wake` becomes readable when there is something for [`Device::unpark`].
    ///
    /// # Errors
    /// When the frontend's parameters do not lead to a ring.
    pub fn connect(
        vbd: VbdId,
        given: Ring,
        image: &Image,
        wake: &Arc<OwnedFd>,
    ) -> Result<Self, ConnectFailed> {
        let Ring { host, gntdev, evtchn, refs, port, protocol, persistent, .. } = given;
        let journal = given.journal;
        if !matches!(refs.len(), 1 | 2 | 4 | 8 | 16) {
            return Err(ConnectFailed::RingPages(refs.len()));
        }
        let grants = Grants::new(host, &gntdev, vbd.domid).map_err(ConnectFailed::Grants)?;
        let mapping = grants
            .map(&refs, Access::ReadWrite)
            .map_err(|errno| ConnectFailed::MapRing { refs: refs.clone(), errno })?;
        let identity = Identity { vbd, port, refs: &refs, abi: protocol };
        let resumes = matches!(journal, Some((Journaled::Resume, _)));
        let journal = journal.map(|(what, file)| match what {
            Journaled::Begin => Journal::begin(file, &identity),
            Journaled::Resume => Journal::resume(file, &identity),
        });
        let channel = bind(host, &evtchn, vbd.domid, port, resumes)
            .map_err(|errno| ConnectFailed::BindPort { port, errno })?;
        debug_assert_eq!(mapping.memory().bytes(), refs.len() * PAGE_BYTES);
        let (memory, ring_grants) = mapping.split();
        let ring = BackRing::new(memory, protocol, journal.transpose()?)?;
        if resumes {
            tracing::info!(%vbd, port, requests = ring.owed(), "takes up what was unanswered");
        }
        let entries = u16::try_from(ring.entries()).expect("at most 512 entries");
        let (capacity, claims, image) = (image.capacity(), image.claims(), image.info());
        let limits = Limits {
            sectors: image.sectors,
            read_only: given.read_only,
            barrier: given.bounds.barrier,
            indirect_segments_max: INDIRECT_SEGMENTS_MAX
                .min(usize::try_from(given.bounds.indirect_segments_max).unwrap_or(usize::MAX)),
            discard: image.discard.filter(|_| given.discard),
        };
        Ok(Device {
            vbd,
            capacity,
            limits,
            memory_align_bytes: image.memory_align_bytes,
            sector_bytes: image.sector_bytes,
            claims,
            wake: Arc::clone(wake),
            state: State::Serving,
            last_call: false,
            ring,
            _ring_grants: ring_grants,
            event: EventWait {
                word: Box::new([0; 16]),
                unmask: Box::new(channel.unmask_word().unwrap_or(0)),
                armed: false,
                masked: false,
                cancelled: false,
                errors: 0,
            },
            channel,
            transfer: Transfer::new(
                grants,
                persistent && given.rule == TransferRule::Auto && !given.network,
                Allowance::new(given.budget),
            ),
            buffers: Buffers::new().map_err(ConnectFailed::Buffers)?,
            rule: given.rule,
            network: given.network,
            unused_max: given.unused_max,
            loose_sweeps: 0,
            slots: (0..entries).map(|_| Slot::new()).collect(),
            free: (0..entries).rev().collect(),
            batch: Vec::with_capacity(usize::from(entries)),
            fetches: (0..sweep::BATCH_REQUESTS_MAX).map(|_| Fetch::default()).collect(),
            barrier: None,
            running: 0,
            hold: None,
            held: Vec::with_capacity(usize::from(entries)),
            finished: Vec::with_capacity(usize::from(entries)),
            waiting: Vec::with_capacity(usize::from(entries)),
            parked: Vec::new(),
            space: SpaceWait::new(given.no_space, entries),
            members: [Vec::new(), Vec::new()],
            grefs: Vec::new(),
            copied: Vec::new(),
            returning: Vec::new(),
            now_us: 0,
            seen_us: 0,
            clock: Clock::new(),
            statistics: Statistics::default(),
        })
    }

    /// Which disk it is.
    #[must_use]
    pub fn vbd(&self) -> VbdId {
        self.vbd
    }

    /// Whether requests of it are with the kernel.
    #[must_use]
    pub fn running(&self) -> bool {
        self.running > 0
    }

    /// What it counted.
    #[must_use]
    pub fn counters(&self) -> VbdCounters {
        let mut counters = self.statistics.counters.clone();
        counters.in_flight = self.in_flight();
        let (waiting, waiting_ms) = self.space.waiting(self.now_us);
        (counters.waiting_for_space, counters.waiting_for_space_ms) = (waiting, waiting_ms);
        self.transfer.count(&mut counters);
        VbdCounters {
            vbd: self.vbd,
            broken: self.state == State::Broken,
            counters,
            read_latency: self.statistics.read_latency.clone(),
            write_latency: self.statistics.write_latency.clone(),
            flush_latency: self.statistics.flush_latency.clone(),
            discard_latency: self.statistics.discard_latency.clone(),
        }
    }

    /// Reads the clock: a new round begins.
    pub fn tick(&mut self) {
        self.now_us = self.clock.now_us();
    }

    /// Reads the clock; microseconds since the device began.
    pub fn clock_us(&mut self) -> u64 {
        self.tick();
        self.now_us
    }

    /// Whether a sweep would find requests in the ring, as far as the guest says. Enters no kernel.
    #[must_use]
    pub fn has_requests(&self) -> bool {
        self.state == State::Serving && self.barrier.is_none() && self.ring.has_more()
    }

    /// Its queue has looked for so long for something to do, in vain or not.
    pub fn count_look(&mut self, us: u64, found: bool) {
        let counters = &mut self.statistics.counters;
        counters.look_us += us;
        counters.look_hits += u64::from(found);
        counters.look_misses += u64::from(!found);
    }

    /// Takes no more requests; [`Device::drained`] tells when it has ended. When another worker
    /// goes on (`leave`), what is in the ring is left there, and what waits for space in the
    /// journal. Otherwise the first is served, for a guest that lets go of a disk waits for all
    /// that it has asked for, and the second is answered with an error.
    pub fn drain(&mut self, leave: bool, engine: &mut Engine) {
        // Once: a guest that goes on asking is not waited for.
        self.last_call = self.state == State::Serving && !leave && self.ring.see().is_ok();
        self.state = State::Draining;
        self.stop_waiting(leave, engine);
        self.cancel_event_when_idle(engine);
    }

    /// Whether it holds nothing of the guest any more but what dropping it gives back.
    #[must_use]
    pub fn drained(&self) -> bool {
        let idle = self.in_flight() == 0 && !self.takes();
        self.state == State::Draining && idle && !self.event.armed
    }

    fn in_flight(&self) -> u32 {
        u32::try_from(self.slots.len() - self.free.len()).expect("at most 512 slots")
    }

    /// The event channel was read: `result` bytes of events, or an error.
    pub fn on_event(&mut self, result: i32) {
        self.event.armed = false;
        if result > 0 {
            self.event.masked = true;
            self.event.errors = 0;
            self.statistics.counters.events += 1;
            return;
        }
        if self.state == State::Draining {
            return;
        }
        let errno = Errno::from_raw_os_error(-result);
        self.event.errors += 1;
        if self.event.errors == EVENT_ERRORS_MAX {
            tracing::error!(vbd = %self.vbd, %errno, "event channel unreadable; ring given up");
            self.state = State::Broken;
        }
    }

    /// Waits for the next event, if no wait goes on already.
    fn arm(&mut self, engine: &mut Engine) {
        if self.event.armed || self.event.errors >= EVENT_ERRORS_MAX {
            return;
        }
        let unmask = self.event.masked && self.channel.unmask_word().is_some();
        let port = unmask.then_some(std::ptr::from_ref(&*self.event.unmask));
        let word = std::ptr::from_mut(&mut *self.event.word);
        let tag = Tag::Event;
        // SAFETY: both words are boxed, and the channel lives as long: the device is dropped only
        // when `armed` is false again (`drained`), which the wait's completion makes it.
        unsafe { engine.wait_event(self.channel.descriptor(), port, word, tag) };
        self.event.armed = true;
        self.event.masked = false;
    }

    fn cancel_event_when_idle(&mut self, engine: &mut Engine) {
        if self.event.armed && !self.event.cancelled {
            self.event.cancelled = true;
            let tag = Tag::Event;
            engine.cancel_event(tag, Tag::Cancelled);
        }
    }
}

/// Binds the frontend's port. The kernel lets go of a dead worker's some time after its death.
fn bind(
    host: Host,
    evtchn: &OwnedFd,
    domid: u16,
    port: u32,
    patient: bool,
) -> Result<Channel, Errno> {
    let deadline = Instant::now() + REBIND_DEADLINE;
    loop {
        let device = evtchn.try_clone().map_err(|_| Errno::MFILE)?;
        match Channel::bind(host, device, domid, port) {
            Err(Errno::INVAL) if patient && Instant::now() < deadline => {
                std::thread::sleep(REBIND_INTERVAL);
            }
            bound => return bound,
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Only reached with requests in flight when the process ends without a drain.
        for slot in &mut self.slots {
            if let Some(token) = slot.token.take() {
                token.abandon();
            }
        }
    }
}
