//! Writes that wait for space: the image's file system, its quota or its thin pool is full.
//!
//! Such a write stands as if it had only just been taken, its pages let go of: reads go on, and so
//! does what is written where the image has its space already. Each time that the queue's timer
//! says so the one that waits longest is tried, and where it goes through all others follow.
//! A device that drains waits for nothing. Never judges what other errors mean. Called by the flow
//! of requests and by the queue, which has the timer.

use super::{Device, State};
use crate::engine::Engine;
use crate::ring::abi::STATUS_ERROR;
use crate::ring::request::Transfer as Direction;
use crate::xen::transfer::Reach;
use rustix::io::Errno;
use std::collections::VecDeque;
use zerotap_rpc_schema::space::NoSpace;

/// What of a ring waits for space.
#[derive(Debug)]
pub(super) struct SpaceWait {
    rule: NoSpace,
    /// Slots, the first to be tried in front.
    pub(super) slots: VecDeque<u16>,
    /// The one that is tried.
    scout: Option<u16>,
    /// Since when there has been any, by the clock of the rounds.
    since_us: u64,
    /// The device drains, and another worker will go on.
    leaving: bool,
    /// It has something to go on with.
    left: bool,
}

impl SpaceWait {
    /// Nothing, of a ring of so many entries.
    pub(super) fn new(rule: NoSpace, entries: u16) -> Self {
        let slots = VecDeque::with_capacity(usize::from(entries));
        SpaceWait { rule, slots, scout: None, since_us: 0, leaving: false, left: false }
    }

    /// How many wait, and since how many milliseconds there has been any.
    pub(super) fn waiting(&self, now_us: u64) -> (u32, u64) {
        let waiting = self.slots.len() + usize::from(self.scout.is_some());
        let waited_us = if waiting > 0 { now_us.saturating_sub(self.since_us) } else { 0 };
        (u32::try_from(waiting).expect("at most 512 slots"), waited_us / 1000)
    }
}

impl Device {
    /// Whether a request is to wait after its step failed with `errno`.
    pub(super) fn waits_for_space(&self, number: u16, errno: Errno) -> bool {
        let write = self.slots[usize::from(number)].plan.transfer == Direction::Write;
        let full = matches!(errno, Errno::NOSPC | Errno::DQUOT);
        full && write && self.space.rule == NoSpace::Pause
    }

    /// Whether any request waits for [`Device::try_for_space`].
    #[must_use]
    pub fn lacks_space(&self) -> bool {
        !self.space.slots.is_empty()
    }

    /// Whether requests were left to the next worker.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.space.left
    }

    /// A write found no space, all of its own I/O being over.
    pub(super) fn wait_for_space(&mut self, number: u16, engine: &mut Engine) {
        self.running -= 1;
        let slot = &mut self.slots[usize::from(number)];
        slot.begin_anew();
        if let (Some(claims), Some(claim)) = (&self.claims, slot.claim.take()) {
            claims.give(claim);
        }
        if let Some(buffer) = slot.buffer.take() {
            self.buffers.give(buffer);
        }
        match slot.reach {
            // As long as others use its window its pages are mapped, and it must not be answered,
            // on whatever other way.
            Reach::Window { window, .. } => {
                self.finished.push(number);
                if self.transfer.leave_window(window) {
                    self.tick();
                    self.answer_window(window);
                } else {
                    self.part_barrier_from(window);
                }
            }
            Reach::Standing | Reach::Copied => self.queue_for_space(number),
        }
        self.start_barrier_when_alone(engine);
    }

    /// A barrier that was to begin once this window's requests are done would hold the window, and
    /// with it those that found no space: they could not be tried again, nor be seen to wait, and
    /// it would begin before them. Its own pages are reached anew.
    fn part_barrier_from(&mut self, window: u16) {
        let Some(barrier) = self.barrier else { return };
        let slot = &self.slots[usize::from(barrier)];
        if matches!(slot.reach, Reach::Window { window: own, .. } if own == window) {
            self.slots[usize::from(barrier)].begin_anew();
            self.waiting.push(barrier);
            self.let_go_of_pages(barrier);
        }
    }

    /// A request that waits for space holds no page of the guest's any more.
    pub(super) fn queue_for_space(&mut self, number: u16) {
        self.slots[usize::from(number)].reach = Reach::Standing;
        let tried = self.space.scout == Some(number);
        if self.space.waiting(0).0 == 0 {
            self.space.since_us = self.now_us;
        }
        if !tried {
            self.statistics.counters.space_waits += 1;
            let waits = self.statistics.counters.space_waits;
            if waits.is_power_of_two() {
                tracing::warn!(vbd = %self.vbd, waits, "no space: writes wait until there is some");
            }
        }
        self.space.scout.take_if(|_| tried);
        self.space.slots.push_back(number);
        if self.state == State::Draining {
            self.end_space_wait();
        }
    }

    /// Tries the write that waits longest, at the next sweep. One at a time: as long as there is no
    /// space, each try of all others would be for nothing.
    pub fn try_for_space(&mut self) {
        if self.space.scout.is_none() {
            self.space.scout = self.space.slots.pop_front();
            self.waiting.extend(self.space.scout);
        }
    }

    /// A request is over: when it was the one that was tried, and went through, all others follow.
    pub(super) fn look_for_space(&mut self, number: u16, went_through: bool) {
        if self.space.scout == Some(number) {
            self.space.scout = None;
            if went_through {
                self.waiting.extend(self.space.slots.drain(..));
            }
        }
    }

    /// Nothing waits any more: the device drains. `leave`: another worker will go on with what the
    /// journal has.
    pub(super) fn stop_waiting(&mut self, leave: bool, engine: &mut Engine) {
        self.space.leaving |= leave && self.ring.is_journaled();
        self.end_space_wait();
        self.start_barrier_when_alone(engine);
    }

    fn end_space_wait(&mut self) {
        while let Some(number) = self.space.slots.pop_front() {
            if self.space.leaving {
                self.leave(number);
                continue;
            }
            self.statistics.counters.io_errors += 1;
            self.log_io_error("a write that waited for space", Errno::NOSPC);
            self.slots[usize::from(number)].status = STATUS_ERROR;
            self.answer(number);
        }
    }

    /// Leaves a request to the next worker, and with it what must not be done before it: a barrier
    /// that waits, and whatever an earlier worker had taken.
    fn leave(&mut self, number: u16) {
        let barrier = self.barrier.take().filter(|barrier| *barrier != number);
        self.waiting.retain(|waiting| Some(*waiting) != barrier);
        for left in std::iter::once(number).chain(barrier) {
            self.let_go_of_pages(left);
            let token = self.slots[usize::from(left)].token.take();
            token.expect("a taken slot has a token").abandon();
            self.free.push(left);
        }
        self.ring.leave_owed();
        self.space.left = true;
    }

    /// Gives back the window or the buffer of a request that is not answered here.
    fn let_go_of_pages(&mut self, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        if let Some(buffer) = slot.buffer.take() {
            self.buffers.give(buffer);
        }
        if let Reach::Window { window, .. } = std::mem::replace(&mut slot.reach, Reach::Standing)
            && self.transfer.leave_window(window)
        {
            self.tick();
            self.answer_window(window);
        }
    }
}
