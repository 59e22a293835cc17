//! How a workload fares, and orders to it, across threads.

use crate::blkfront::{Io, Op, Reconnect};
use serde::Serialize;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

pub(super) const NONE: u8 = 0;
pub(super) const STOP: u8 = 1;
pub(super) const ABANDON: u8 = 2;
pub(super) const RECONNECT_ORDERLY: u8 = 3;
pub(super) const RECONNECT_ABRUPT: u8 = 4;

/// Counters that grow while the workload runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests answered.
    pub requests: AtomicU64,
    /// Bytes read, and checked.
    pub read_bytes: AtomicU64,
    /// Bytes written.
    pub write_bytes: AtomicU64,
    /// Flushes and barriers.
    pub flushes: AtomicU64,
    /// Discards.
    pub discards: AtomicU64,
    /// Requests answered with an error.
    pub errors: AtomicU64,
    /// Reconnects done.
    pub reconnects: AtomicU64,
    /// The disk's capacity once it has grown; 0 before.
    pub sectors: AtomicU64,
    pub(super) order: AtomicU8,
}

/// How a workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The plan is done, or an end was ordered; nothing is in flight.
    Finished,
    /// The back end closes; nothing is in flight.
    BackendClosing,
    /// Given up with requests in flight.
    Abandoned,
}

/// The sum of a run, for people and scripts.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Requests answered.
    pub requests: u64,
    /// Bytes read, and checked.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Flushes and barriers.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// How long, seconds.
    pub seconds: f64,
    /// Requests a second.
    pub iops: f64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Whether every byte was right.
    pub verified: bool,
}

impl Progress {
    /// Asks for an end: what is in flight is waited for.
    pub fn stop(&self) {
        self.order.store(STOP, Ordering::Release);
    }

    /// Asks for an end at once, whatever is in flight.
    pub fn abandon(&self) {
        self.order.store(ABANDON, Ordering::Release);
    }

    /// Asks for a reconnect in the middle of it all.
    pub fn reconnect(&self, how: Reconnect) {
        let order = match how {
            Reconnect::Orderly => RECONNECT_ORDERLY,
            Reconnect::Abrupt => RECONNECT_ABRUPT,
        };
        self.order.store(order, Ordering::Release);
    }

    pub(super) fn count(&self, io: &Io, success: bool) {
        let add = |counter: &AtomicU64, n| counter.fetch_add(n, Ordering::Relaxed);
        let bytes = io.sectors() * 512;
        match (success, io.op) {
            (false, _) => add(&self.errors, 1),
            (true, Op::Read) => add(&self.read_bytes, bytes),
            (true, Op::Write) => add(&self.write_bytes, bytes),
            (true, Op::Flush | Op::Barrier) => {
                add(&self.write_bytes, bytes);
                add(&self.flushes, 1)
            }
            (true, Op::Discard { .. }) => add(&self.discards, 1),
        };
        // Last, so that who waits for it sees the others.
        self.requests.fetch_add(1, Ordering::Release);
    }

    /// Requests answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.requests.load(Ordering::Acquire)
    }

    /// The sum so far.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub fn report(&self, time: Duration, verified: bool) -> Report {
        let requests = self.answered();
        let seconds = time.as_secs_f64();
        Report {
            requests,
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            write_bytes: self.write_bytes.load(Ordering::Relaxed),
            flushes: self.flushes.load(Ordering::Relaxed),
            discards: self.discards.load(Ordering::Relaxed),
            seconds,
            iops: requests as f64 / seconds.max(f64::MIN_POSITIVE),
            errors: self.errors.load(Ordering::Relaxed),
            verified,
        }
    }
}

pub(super) fn reconnect(order: u8) -> Reconnect {
    if order == RECONNECT_ABRUPT { Reconnect::Abrupt } else { Reconnect::Orderly }
}
