//! A sweep: take all requests that are there, judge them, reach their pages in few calls, submit.

use super::slot::{Fetch, Step};
use super::{Device, State};
use crate::engine::Engine;
use crate::ring::abi::{SEGMENT_BYTES, STATUS_ERROR, Segment};
use crate::ring::back::{RingBroken, Taken};
use crate::ring::request::{Refusal, Source, answered_operation, judge, judge_segments};
use crate::ring::token::Token;
use crate::xen::CopyOut;
use rustix::io::Errno;

/// Requests taken before the kernel is asked for completions. Small, so that the guest goes on with
/// the first answers while the rest of a full ring is still being submitted: with all at once the
/// two ends take turns at being idle, and 4 KiB reads at depth 32 lose a third of their speed.
pub(super) const BATCH_REQUESTS_MAX: u32 = 4;

/// How a sweep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// There may be more requests.
    More,
    /// The ring is empty; the guest has not been asked for an event.
    Empty,
    /// Only a completion, or nothing, brings it further.
    Waiting,
}

impl Device {
    /// Serves what the ring has, until it is empty or a batch was taken: a guest that never stops
    /// producing must not keep the worker from the others.
    #[must_use]
    pub fn sweep(&mut self, engine: &mut Engine) -> Swept {
        let mut budget = BATCH_REQUESTS_MAX;
        if !self.waiting.is_empty() {
            self.batch.append(&mut self.waiting);
            self.reach_pages();
            self.start_batch(engine);
        }
        // Who waits for room is not overtaken by those who are still in the ring.
        while self.takes() && budget > 0 && self.waiting.is_empty() {
            let taken = self.take_all(&mut budget);
            let nothing = self.batch.is_empty();
            if !nothing {
                self.statistics.counters.sweeps += 1;
                self.reach_pages();
                self.start_batch(engine);
            }
            if let Err(broken) = taken {
                self.give_up(&broken);
                break;
            }
            if nothing {
                return match self.barrier {
                    None if self.state == State::Serving => Swept::Empty,
                    // All of the batch was refused, and no completion need come for the rest. Where
                    // all slots are taken, one will.
                    None if self.takes() && !self.free.is_empty() => Swept::More,
                    _ => Swept::Waiting,
                };
            }
        }
        if self.state == State::Draining {
            self.cancel_event_when_idle(engine);
        }
        match self.waiting.is_empty() {
            true if self.takes() => Swept::More,
            // All room was given back meanwhile, and no completion will come to tell.
            false if self.running == 0 => Swept::More,
            _ => Swept::Waiting,
        }
    }

    /// Whether it takes requests. One that drains takes those that an earlier worker had taken, and
    /// those for which nobody comes after it.
    pub(super) fn takes(&self) -> bool {
        match self.state {
            State::Serving => true,
            State::Draining => {
                self.ring.owed() > 0 || (self.last_call && self.ring.has_seen_more())
            }
            State::Broken => false,
        }
    }

    /// Asks the guest for an event and waits for it; true when there is a request already.
    #[must_use]
    pub fn sleep(&mut self, engine: &mut Engine) -> bool {
        if self.state != State::Serving || self.barrier.is_some() {
            return false;
        }
        match self.ring.sleep() {
            Ok(true) => {
                self.seen_us = self.now_us;
                true
            }
            Ok(false) => {
                self.arm(engine);
                false
            }
            Err(broken) => {
                self.give_up(&broken);
                false
            }
        }
    }

    fn give_up(&mut self, why: &RingBroken) {
        tracing::error!(vbd = %self.vbd, %why, "the frontend broke the ring; it is served no more");
        self.state = State::Broken;
    }

    /// Takes requests into slots; what is refused is answered at once. Those that were taken when
    /// the ring turned out broken are in the batch like others.
    fn take_all(&mut self, budget: &mut u32) -> Result<(), RingBroken> {
        let (mut fetches, mut ended) = (0, Ok(()));
        while self.barrier.is_none() && *budget > 0 && self.takes() {
            if !self.ring.has_seen_more() {
                // What is found now came since the last look, and nobody knows when.
                self.seen_us = self.now_us;
            }
            let Taken { descriptor, place } = match self.ring.take() {
                Ok(Some(taken)) => taken,
                Ok(None) => break,
                Err(broken) => {
                    ended = Err(broken);
                    break;
                }
            };
            *budget -= 1;
            // Read after the request: a guest that was told of a disk that has grown may use it.
            self.limits.sectors = self.capacity.sectors();
            let operation = answered_operation(&descriptor);
            let token = Token::new(descriptor.id, operation, place);
            let (plan, source) = match judge(&descriptor, &self.limits) {
                Ok(judged) => judged,
                Err(refusal) => {
                    self.refuse(token, refusal);
                    continue;
                }
            };
            let number = self.free.pop().expect("as many slots as the ring has entries");
            let slot = &mut self.slots[usize::from(number)];
            slot.take(token, plan, self.now_us);
            slot.seen_us = self.seen_us;
            match source {
                Source::Inline(segments) => {
                    slot.segments.extend_from_slice(&segments[..plan.segment_count]);
                    self.admit(number);
                }
                Source::Indirect(grefs) => {
                    slot.enlarge();
                    let fetch = &mut self.fetches[fetches];
                    (fetch.slot, fetch.gref) = (number, grefs[0]);
                    fetch.bytes.resize(plan.segment_count * SEGMENT_BYTES, 0);
                    self.transfer.want_page(grefs[0], self.now_us);
                    fetches += 1;
                }
            }
        }
        if fetches > 0 {
            self.fetch_segments(fetches);
        }
        ended
    }

    /// Gets the segments of the first `count` indirect requests: out of standing pages where they
    /// are, otherwise all in one call where the guest is honest, one by one where it is not.
    fn fetch_segments(&mut self, count: usize) {
        self.transfer.finish_standing(self.now_us);
        let mut fetches = std::mem::take(&mut self.fetches);
        let mut copies: Vec<CopyOut<'_>> = Vec::new();
        for Fetch { gref, bytes, .. } in &mut fetches[..count] {
            if !self.transfer.copy_standing(*gref, bytes) {
                copies.push(CopyOut { gref: *gref, to: bytes });
            }
        }
        let fetched = copies.is_empty() || self.transfer.copy_pages(&mut copies).is_ok();
        for Fetch { slot: number, gref, bytes } in &mut fetches[..count] {
            let alone = CopyOut { gref: *gref, to: &mut *bytes };
            if !fetched && self.transfer.copy_pages(&mut [alone]).is_err() {
                self.refuse_slot(*number, Refusal::Ungranted);
                continue;
            }
            let segments = bytes.as_chunks::<SEGMENT_BYTES>().0;
            let slot = &mut self.slots[usize::from(*number)];
            slot.segments.extend(segments.iter().map(|&segment| Segment::decode(segment)));
            self.admit(*number);
        }
        self.fetches = fetches;
    }

    /// Judges a request's segments and puts it into the batch.
    fn admit(&mut self, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        match judge_segments(&slot.plan, &slot.segments, &self.limits) {
            Ok(bytes) => slot.bytes = bytes,
            Err(refusal) => return self.refuse_slot(number, refusal),
        }
        slot.fit(self.sector_bytes);
        if slot.plan.barrier {
            self.barrier = Some(number);
        }
        self.transfer.want_standing(&slot.segments, self.now_us);
        self.batch.push(number);
    }

    fn start_batch(&mut self, engine: &mut Engine) {
        for index in 0..self.batch.len() {
            let number = self.batch[index];
            let slot = &mut self.slots[usize::from(number)];
            if slot.status == STATUS_ERROR {
                self.count_ungranted();
                self.answer(number);
                continue;
            }
            slot.step = Step::FlushBefore;
            if self.barrier == Some(number) {
                continue;
            }
            slot.begun_us = self.now_us;
            self.running += 1;
            self.advance(number, engine);
        }
        self.batch.clear();
        self.start_barrier_when_alone(engine);
    }

    /// A request ends with an error because the guest did not grant a page of it.
    pub(super) fn count_ungranted(&mut self) {
        self.statistics.counters.refused += 1;
        self.log_refusal(&Refusal::Ungranted);
    }

    fn refuse(&mut self, token: Token, refusal: Refusal) {
        self.ring.answer(token, refusal.status());
        self.statistics.counters.refused += 1;
        self.log_refusal(&refusal);
    }

    fn refuse_slot(&mut self, number: u16, refusal: Refusal) {
        let slot = &mut self.slots[usize::from(number)];
        let token = slot.token.take().expect("a taken slot has a token");
        self.free.push(number);
        self.refuse(token, refusal);
    }

    /// A guest can provoke refusals at will: the log hears of the first, then of each power of two.
    fn log_refusal(&self, why: &dyn std::fmt::Display) {
        let refused = self.statistics.counters.refused;
        if refused.is_power_of_two() {
            tracing::warn!(vbd = %self.vbd, %why, refused, "request refused");
        }
    }

    /// As for refusals, a bounded number of lines.
    pub(super) fn log_io_error(&self, what: &str, errno: Errno) {
        let io_errors = self.statistics.counters.io_errors;
        if io_errors.is_power_of_two() {
            let vbd = self.vbd;
            tracing::error!(%vbd, %errno, io_errors, "{what} failed; the guest was told");
        }
    }
}
