//! The verifying workload: random reads, writes, flushes and barriers, every byte checked.
//!
//! Requests in flight never overlap where the outcome would be open; all else is random, from a
//! seed.

pub mod model;
mod pages;
pub mod progress;
pub mod random;

pub use model::Model;
use model::UNWRITTEN;
pub use progress::{Outcome, Progress, Report};

use crate::blkfront::{Blkfront, Completion, Io, Op, state};
use anyhow::{Context as _, bail, ensure};
use progress::{ABANDON, NONE, RECONNECT_ABRUPT, RECONNECT_ORDERLY, STOP};
use random::Random;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use zerotap_datapath::ring::abi::SEGMENTS_INLINE_MAX;

/// How long nothing may be answered before the back end counts as stuck, where the plan does not
/// say.
pub const STALL_SECONDS_MAX: u64 = 60;
/// How often orders are looked at.
const LOOK_MS: u64 = 20;
/// How many places are tried for a request that is in nobody's way.
const PLACES_MAX: u32 = 16;

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Of the random numbers; the model has its own.
    pub seed: u64,
    /// Requests in flight at once.
    pub depth: u32,
    /// The longest request, bytes.
    pub bytes_max: u64,
    /// Of 100 requests, how many read.
    pub read_percent: u64,
    /// End after so many requests.
    pub requests_max: u64,
    /// Or after that long.
    pub time_max: Duration,
    /// Only use sectors below this one; 0 for all.
    pub sectors: u64,
    /// Whether errors end the run.
    pub errors_fatal: bool,
    /// Ask for no more than so many requests a second, on the long run.
    pub rate_max: u64,
    /// How long nothing may be answered before the back end counts as stuck.
    pub stall_max: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            seed: 1,
            depth: 32,
            bytes_max: 64 * 1024,
            read_percent: 50,
            requests_max: u64::MAX,
            time_max: Duration::from_secs(3600),
            sectors: 0,
            errors_fatal: true,
            rate_max: u64::MAX,
            stall_max: Duration::from_secs(STALL_SECONDS_MAX),
        }
    }
}

/// A request in flight, as the workload remembers it.
#[derive(Debug, Clone, Copy)]
struct Sent {
    generation: Option<u32>,
}

/// A running workload.
#[derive(Debug)]
pub struct Workload<'a> {
    front: &'a mut Blkfront,
    model: &'a mut Model,
    plan: &'a Plan,
    progress: &'a Progress,
    random: Random,
    sent: Vec<Option<Sent>>,
    started: Instant,
    submitted: u64,
}

/// Runs until the plan is done, somebody orders an end, or the back end closes.
///
/// # Errors
/// Any wrong byte, any breach of the protocol, an error where `errors_fatal`, a stuck back end.
pub fn run(
    front: &mut Blkfront,
    model: &mut Model,
    plan: &Plan,
    progress: &Progress,
) -> anyhow::Result<Outcome> {
    let limit = front.disk().sectors;
    ensure!(model.sectors() <= limit, "the model is larger than the disk of {limit} sectors");
    let random = Random::new(plan.seed);
    let started = Instant::now();
    let sent = Vec::new();
    Workload { front, model, plan, progress, random, sent, started, submitted: 0 }.run()
}

impl Workload<'_> {
    fn run(&mut self) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::Finished;
        let mut ending = false;
        let mut answered_last = Instant::now();
        let mut looked_last = Instant::now();
        loop {
            if !ending {
                self.fill_ring()?;
                ending = self.submitted >= self.plan.requests_max
                    || self.started.elapsed() >= self.plan.time_max;
            }
            self.front.push()?;
            if self.reap()? {
                answered_last = Instant::now();
            } else if self.front.in_flight() == 0 && ending {
                return Ok(outcome);
            }
            let pause = Instant::now() + Duration::from_millis(LOOK_MS);
            let news = self.front.wait(1, pause)?;
            if news {
                let backend = self.front.backend_state()?;
                if backend == state::CONNECTED && self.front.notice_growth()? {
                    let sectors = self.front.disk().sectors;
                    self.model.grow(sectors);
                    self.progress.sectors.store(sectors, Ordering::Release);
                }
                if backend >= state::CLOSING {
                    (outcome, ending) = (Outcome::BackendClosing, true);
                }
                if backend == state::CLOSED {
                    // It closed without waiting for us: what has no answer by now gets none.
                    self.reap()?;
                    return Ok(if self.front.in_flight() > 0 { self.abandon() } else { outcome });
                }
            }
            if looked_last.elapsed() >= Duration::from_millis(LOOK_MS) {
                looked_last = Instant::now();
                match self.progress.order.swap(NONE, Ordering::AcqRel) {
                    STOP => ending = true,
                    ABANDON => return Ok(self.abandon()),
                    how @ (RECONNECT_ABRUPT | RECONNECT_ORDERLY) => {
                        self.front.reconnect(progress::reconnect(how))?;
                        self.progress.reconnects.fetch_add(1, Ordering::AcqRel);
                        answered_last = Instant::now();
                    }
                    _ => {}
                }
            }
            let stuck = self.front.in_flight() > 0 && answered_last.elapsed() > self.plan.stall_max;
            if stuck {
                let (in_flight, stall) = (self.front.in_flight(), self.plan.stall_max);
                bail!("{in_flight} requests are unanswered for {stall:?}");
            }
        }
    }

    fn fill_ring(&mut self) -> anyhow::Result<()> {
        let due = self.plan.rate_max.saturating_mul(1 + self.started.elapsed().as_secs());
        while self.front.in_flight() < self.plan.depth
            && self.front.room() > 0
            && self.submitted < self.plan.requests_max.min(due)
        {
            let Some(io) = self.choose()? else { return Ok(()) };
            let generation = match io.op {
                Op::Discard { .. } => Some(UNWRITTEN),
                Op::Write | Op::Barrier if !io.pieces.is_empty() => {
                    Some(self.model.next_generation())
                }
                _ => None,
            };
            pages::fill(self.front.domain().memory(), self.model, &io, generation);
            let slot = self.front.submit(io)?;
            if self.sent.len() <= slot {
                self.sent.resize(slot + 1, None);
            }
            self.sent[slot] = Some(Sent { generation });
            self.submitted += 1;
        }
        Ok(())
    }

    /// The next request, in nobody's way; none when the disk is too busy.
    fn choose(&mut self) -> anyhow::Result<Option<Io>> {
        let disk = self.front.disk().clone();
        let read = disk.read_only || self.random.chance(self.plan.read_percent);
        let op = match read {
            true => Op::Read,
            false if disk.flush && self.random.chance(3) => Op::Flush,
            false if disk.barrier && self.random.chance(2) => Op::Barrier,
            false if disk.discard.is_some() && self.random.chance(3) => Op::Discard { sectors: 0 },
            false => Op::Write,
        };
        if op == Op::Flush || (op == Op::Barrier && self.random.chance(20)) {
            return Ok(Some(Io { op, sector: 0, pieces: Vec::new() }));
        }
        let unit = u64::from(disk.sector_bytes / 512);
        let limit = if self.plan.sectors > 0 { self.plan.sectors } else { self.model.sectors() };
        let longest = (self.plan.bytes_max / 512 / unit).max(1);
        // Short requests are the most; now and then the longest.
        let units = match self.random.below(8) {
            0 => longest,
            1..=4 => 1 + self.random.below(longest.min(8)),
            _ => 1 + self.random.below(longest),
        };
        let sectors = (units * unit).min(limit / unit * unit);
        let unit8 = u8::try_from(unit)?;
        // Only reads and writes can have more segments than a ring entry holds.
        let indirect = matches!(op, Op::Read | Op::Write);
        let pieces_max = if indirect { disk.segments_max } else { SEGMENTS_INLINE_MAX };
        let (domain, random) = (self.front.domain(), &mut self.random);
        let mut io = if let Op::Discard { .. } = op {
            Io { op: Op::Discard { sectors }, sector: 0, pieces: Vec::new() }
        } else {
            let pieces = pages::lay_out(domain, random, sectors, unit8, pieces_max)?;
            Io { op, sector: 0, pieces }
        };
        for _ in 0..PLACES_MAX {
            io.sector = self.random.below((limit - io.sectors()) / unit + 1) * unit;
            if self.model.claim(io.sector..io.sector + io.sectors(), !read) {
                return Ok(Some(io));
            }
        }
        io.pieces.iter().for_each(|piece| self.front.domain().free_frame(piece.frame));
        Ok(None)
    }

    /// Takes all answers that are there; true when there was one.
    fn reap(&mut self) -> anyhow::Result<bool> {
        let mut any = false;
        while let Some(completion) = self.front.complete()? {
            self.settle(&completion)
                .with_context(|| format!("answer {} to {:?}", completion.status, completion.io))?;
            any = true;
        }
        Ok(any)
    }

    fn settle(&mut self, completion: &Completion) -> anyhow::Result<()> {
        let Completion { slot, io, status } = completion;
        let sent = self.sent[*slot].take().context("the workload did not send this")?;
        let success = *status == 0;
        let range = io.sector..io.sector + io.sectors();
        let changed = self.changed(io);
        let domain = self.front.domain();
        pages::check(domain.memory(), self.model, io, sent.generation, success)
            .map_err(anyhow::Error::msg)?;
        io.pieces.iter().for_each(|piece| domain.free_frame(piece.frame));
        match sent.generation {
            Some(generation) if success => self.model.written(changed, generation),
            Some(generation) => self.model.unsure(changed, generation),
            None => {}
        }
        self.model.release(range, sent.generation.is_some());
        self.progress.count(io, success);
        ensure!(success || !self.plan.errors_fatal, "the back end answered with an error");
        Ok(())
    }

    /// Leaves all that is in flight as it is.
    fn abandon(&mut self) -> Outcome {
        for (slot, io) in self.front.abandon() {
            if let Some(generation) = self.sent[slot].take().and_then(|sent| sent.generation) {
                self.model.unsure(self.changed(&io), generation);
            }
            self.model.release(io.sector..io.sector + io.sectors(), io.op != Op::Read);
        }
        Outcome::Abandoned
    }

    /// Which sectors a request that writes, or forgets, changes.
    fn changed(&self, io: &Io) -> std::ops::Range<u64> {
        let range = io.sector..io.sector + io.sectors();
        match io.op {
            Op::Discard { .. } => self.front.disk().forgets(&range),
            _ => range,
        }
    }
}
