//! The benchmark: the same front end without any checking of data, as cheap as it can be.

use crate::blkfront::{Blkfront, Io, Op, Piece, state};
use crate::workload::random::Random;
use anyhow::{Context as _, ensure};
use serde::Serialize;
use std::time::{Duration, Instant};
use zerotap_rpc_schema::Histogram;

/// The order of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Reads, one after the other.
    Read,
    /// Writes, one after the other.
    Write,
    /// Reads anywhere.
    RandRead,
    /// Writes anywhere.
    RandWrite,
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Which requests.
    pub pattern: Pattern,
    /// Bytes of each.
    pub block_bytes: u64,
    /// Requests in flight.
    pub depth: u32,
    /// How long.
    pub time: Duration,
    /// How long to look at the ring before asking for an event. 0: as a guest's kernel does.
    pub spin: Duration,
    /// All of a request goes into one page.
    pub one_page: bool,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Requests answered.
    pub requests: u64,
    /// Requests a second.
    pub iops: f64,
    /// MiB a second.
    pub mib_per_second: f64,
    /// Half of the requests took no longer, microseconds.
    pub latency_p50_us: u64,
    /// 99 of 100 took no longer.
    pub latency_p99_us: u64,
    /// The longest.
    pub latency_max_us: u64,
    /// How long was measured, seconds.
    pub seconds: f64,
    /// Whether grants were kept.
    pub persistent: bool,
}

/// Sends requests for as long as the plan says.
///
/// # Errors
/// When a request fails or the back end goes.
///
/// # Panics
/// Never: slots are the ring's.
pub fn run(front: &mut Blkfront, plan: &Plan) -> anyhow::Result<Figures> {
    watch(front, plan, |_, _| true)
}

/// The same; `seen` is told when each request was sent and when its answer was seen, and says
/// whether to go on.
///
/// # Errors
/// As [`run`].
///
/// # Panics
/// Never: slots are the ring's.
pub fn watch(
    front: &mut Blkfront,
    plan: &Plan,
    mut seen: impl FnMut(Instant, Instant) -> bool,
) -> anyhow::Result<Figures> {
    let disk = front.disk().clone();
    let frames = usize::try_from(plan.block_bytes.div_ceil(4096))?;
    ensure!(frames <= disk.segments_max, "the disk takes {} segments", disk.segments_max);
    let blocks = disk.sectors * 512 / plan.block_bytes;
    ensure!(blocks > 0, "the disk is smaller than a block");
    let depth = plan.depth.min(front.room());
    let mut stream = Stream { random: Random::new(1), next: 0, blocks, plan };
    let mut sent = vec![Instant::now(); front.room() as usize];
    for _ in 0..depth {
        let pieces = pieces(front, plan)?;
        let io = stream.next(pieces);
        let slot = front.submit(io)?;
        sent[slot] = Instant::now();
    }
    front.push()?;

    let started = Instant::now();
    let mut latencies = Histogram::default();
    let (mut requests, mut goes_on) = (0u64, true);
    let mut idle_since = started;
    loop {
        let now = Instant::now();
        let mut any = false;
        while let Some(done) = front.complete()? {
            ensure!(done.status == 0, "status {} for {:?}", done.status, done.io);
            goes_on &= seen(sent[done.slot], now);
            let taken = now.duration_since(sent[done.slot]).as_micros();
            latencies.record(u64::try_from(taken)?);
            requests += 1;
            any = true;
            if goes_on && now.duration_since(started) < plan.time {
                let io = stream.next(done.io.pieces);
                let slot = front.submit(io)?;
                sent[slot] = now;
                // At once, as blkfront does for each request that is not plugged with others.
                front.push()?;
            }
        }
        if any {
            idle_since = now;
        } else if front.in_flight() == 0 {
            break;
        } else if now.duration_since(idle_since) >= plan.spin {
            let limit = now + Duration::from_secs(crate::workload::STALL_SECONDS_MAX);
            let news = front.wait(1, limit)?;
            ensure!(Instant::now() < limit, "the back end is stuck");
            if news {
                ensure!(front.backend_state()? == state::CONNECTED, "the back end closed");
            }
        }
    }
    figures(&latencies, requests, started.elapsed(), plan, disk.persistent)
}

/// The requests, one after the other.
struct Stream<'a> {
    random: Random,
    next: u64,
    blocks: u64,
    plan: &'a Plan,
}

impl Stream<'_> {
    fn next(&mut self, pieces: Vec<Piece>) -> Io {
        let block = match self.plan.pattern {
            Pattern::Read | Pattern::Write => {
                self.next += 1;
                self.next % self.blocks
            }
            Pattern::RandRead | Pattern::RandWrite => self.random.below(self.blocks),
        };
        let op = match self.plan.pattern {
            Pattern::Read | Pattern::RandRead => Op::Read,
            Pattern::Write | Pattern::RandWrite => Op::Write,
        };
        Io { op, sector: block * (self.plan.block_bytes / 512), pieces }
    }
}

fn pieces(front: &mut Blkfront, plan: &Plan) -> anyhow::Result<Vec<Piece>> {
    let mut left = plan.block_bytes / 512;
    let mut pieces: Vec<Piece> = Vec::new();
    while left > 0 {
        let sectors = left.min(8);
        let frame = match pieces.last() {
            Some(last) if plan.one_page => last.frame,
            _ => front.domain().frame().context("more --memory is needed")?,
        };
        pieces.push(Piece { frame, first: 0, last: u8::try_from(sectors - 1)? });
        left -= sectors;
    }
    Ok(pieces)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn figures(
    latencies: &Histogram,
    requests: u64,
    time: Duration,
    plan: &Plan,
    persistent: bool,
) -> anyhow::Result<Figures> {
    let seconds = time.as_secs_f64();
    ensure!(seconds > 0.0, "nothing was measured");
    Ok(Figures {
        requests,
        iops: requests as f64 / seconds,
        mib_per_second: (requests * plan.block_bytes) as f64 / f64::from(1 << 20) / seconds,
        latency_p50_us: latencies.quantile_us(0.5),
        latency_p99_us: latencies.quantile_us(0.99),
        latency_max_us: latencies.max_us,
        seconds,
        persistent,
    })
}
