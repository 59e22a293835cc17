//! A request's way through its steps: flush, data, flush, answer.

use super::Device;
use super::slot::Step;
use crate::engine::{Engine, Tag, add_vector};
use crate::ring::abi::{STATUS_EOPNOTSUPP, STATUS_ERROR, STATUS_OKAY};
use crate::ring::request::Transfer as Direction;
use crate::xen::Towards;
use crate::xen::transfer::Reach;
use rustix::io::Errno;

/// Times that a request is submitted again when the kernel says EAGAIN or EINTR.
const RETRIES_MAX: u8 = 16;

impl Device {
    /// Submits the next step that a request needs, or finishes it.
    pub(super) fn advance(&mut self, number: u16, engine: &mut Engine) {
        let tag = Tag::Request { slot: number };
        loop {
            let slot = &mut self.slots[usize::from(number)];
            match slot.step {
                Step::FlushBefore if slot.plan.flush_before => return engine.flush(tag),
                Step::FlushBefore => slot.step = Step::Claim,
                Step::Claim => {
                    if !self.claim(number) {
                        return self.parked.push(number);
                    }
                    self.slots[usize::from(number)].step = Step::Head;
                }
                Step::Head | Step::Tail if slot.reads_first(self.sector_bytes) => {
                    return self.start_part(number, engine);
                }
                Step::Head => slot.step = Step::Tail,
                Step::Tail => slot.step = Step::Data,
                Step::Data if slot.bytes > 0 => {
                    if !self.is_held(number) {
                        self.start_data(number, engine);
                    }
                    return;
                }
                Step::Data => slot.step = Step::FlushAfter,
                Step::FlushAfter if slot.plan.flush_after => return engine.flush(tag),
                Step::FlushAfter => slot.step = Step::Finished,
                Step::Finished => return self.finish(number, STATUS_OKAY, engine),
            }
        }
    }

    /// Builds a request's vectors: its pages, or the buffer that stands for them.
    fn start_data(&mut self, number: u16, engine: &mut Engine) {
        let slot = &mut self.slots[usize::from(number)];
        if let Direction::Discard { .. } = slot.plan.transfer {
            return self.submit_data(number, engine);
        }
        let Some(buffer) = slot.buffer else {
            let mut end = std::ptr::null_mut();
            for n in 0..slot.segments.len() {
                let (base, bytes) =
                    self.transfer.base(slot.reach, &slot.places, &slot.segments, n, end);
                add_vector(&mut slot.vectors, base, bytes);
                end = base.wrapping_add(bytes);
            }
            self.statistics.counters.mapped_bytes += slot.bytes;
            return self.submit_data(number, engine);
        };
        self.buffers.used(engine);
        let bytes = slot.whole_bytes();
        let base = self.buffers.memory().address(buffer.start, bytes);
        add_vector(&mut slot.vectors, base, bytes);
        if slot.reach != Reach::Copied {
            self.statistics.counters.copied_bytes += slot.bytes;
            if slot.plan.transfer == Direction::Write {
                self.copy_standing(number, Towards::Us);
            }
        }
        self.submit_data(number, engine);
    }

    /// Copies between a request's standing pages and its buffer, if it has one.
    fn copy_standing(&self, number: u16, towards: Towards) {
        let slot = &self.slots[usize::from(number)];
        if slot.buffer.is_none() {
            return;
        }
        let ours = self.buffers.memory();
        let mut at = slot.data_at();
        for (n, segment) in slot.segments.iter().enumerate() {
            let (memory, offset, bytes) =
                self.transfer.locate(slot.reach, &slot.places, n, *segment);
            match towards {
                Towards::Us => ours.copy_from(at, memory, offset, bytes),
                Towards::Guest => memory.copy_from(offset, ours, at, bytes),
            }
            at += bytes;
        }
    }

    pub(super) fn submit_data(&mut self, number: u16, engine: &mut Engine) {
        let slot = &self.slots[usize::from(number)];
        let offset = slot.range(self.sector_bytes).start + slot.done;
        let tag = Tag::Request { slot: number };
        // SAFETY: the vectors stay in the slot, which stays taken until this completion; what they
        // describe is the slot's window, standing mapping or buffer, none of which is given back
        // before `finish`.
        unsafe {
            match slot.plan.transfer {
                _ if slot.step != Step::Data => engine.read(&slot.vectors, offset, tag),
                Direction::Read => engine.read(&slot.vectors, offset, tag),
                Direction::Discard { .. } => engine.discard(offset, slot.discard_bytes(), tag),
                _ => engine.write(&slot.vectors, offset, tag),
            }
        }
    }

    /// A step of the request in `slot` completed.
    pub fn on_completion(&mut self, number: u16, result: i32, engine: &mut Engine) {
        let slot = &mut self.slots[usize::from(number)];
        let data = matches!(slot.step, Step::Head | Step::Tail | Step::Data);
        let range = slot.range(self.sector_bytes);
        let discard = matches!(slot.plan.transfer, Direction::Discard { .. });
        let what = match (slot.step, slot.plan.transfer) {
            (Step::Data, Direction::Read) => "a read",
            (Step::Head | Step::Tail, _) => "the read before a write",
            (Step::Data, _) if discard => "a discard",
            (Step::Data, _) => "a write",
            _ => "a flush",
        };
        let moved = match u64::try_from(result) {
            Ok(_) if data && discard => Ok(slot.discard_bytes()),
            Ok(0) if data => Err(Errno::NXIO),
            Ok(bytes) => Ok(bytes),
            Err(_) => Err(Errno::from_raw_os_error(-result)),
        };
        match moved {
            Ok(bytes) if data => {
                slot.done += bytes;
                if slot.done < range.end - range.start {
                    slot.advance_vectors(usize::try_from(bytes).unwrap_or(0));
                    return self.submit_data(number, engine);
                }
            }
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) if data && slot.retries < RETRIES_MAX => {
                slot.retries += 1;
                return self.submit_data(number, engine);
            }
            Err(errno) if data && self.waits_for_space(number, errno) => {
                return self.wait_for_space(number, engine);
            }
            Err(errno) => {
                self.statistics.counters.io_errors += 1;
                self.log_io_error(what, errno);
                // The frontend then asks for no more of them.
                let unsupported = discard && errno == Errno::OPNOTSUPP;
                let status = if unsupported { STATUS_EOPNOTSUPP } else { STATUS_ERROR };
                return self.finish(number, status, engine);
            }
        }
        if matches!(slot.step, Step::Head | Step::Tail) {
            self.complete_part(number);
        }
        let slot = &mut self.slots[usize::from(number)];
        slot.step = match slot.step {
            Step::FlushBefore => Step::Claim,
            Step::Claim => Step::Head,
            Step::Head => Step::Tail,
            Step::Tail => Step::Data,
            Step::Data => Step::FlushAfter,
            Step::FlushAfter | Step::Finished => Step::Finished,
        };
        self.advance(number, engine);
    }

    /// All I/O of a request is over. It is answered now, or with its window, or once what it read
    /// was copied.
    fn finish(&mut self, number: u16, status: i16, engine: &mut Engine) {
        self.running -= 1;
        let slot = &mut self.slots[usize::from(number)];
        if let (Some(claims), Some(claim)) = (&self.claims, slot.claim.take()) {
            claims.give(claim);
        }
        slot.status = status;
        slot.step = Step::Finished;
        slot.done_us = self.now_us;
        let reads = status == STATUS_OKAY && slot.plan.transfer == Direction::Read;
        match slot.reach {
            Reach::Standing => {
                if reads {
                    self.copy_standing(number, Towards::Guest);
                }
                self.answer(number);
            }
            Reach::Window { window, .. } => {
                self.finished.push(number);
                if self.transfer.leave_window(window) {
                    self.tick();
                    self.answer_window(window);
                }
            }
            Reach::Copied if reads => self.returning.push(number),
            Reach::Copied => self.answer(number),
        }
        self.start_barrier_when_alone(engine);
    }

    /// The pages of a window are unmapped: its requests can be answered, or wait for space.
    pub(super) fn answer_window(&mut self, window: u16) {
        let mut index = 0;
        while index < self.finished.len() {
            let number = self.finished[index];
            match self.slots[usize::from(number)].reach {
                Reach::Window { window: own, .. } if own == window => {
                    self.finished.swap_remove(index);
                    match self.slots[usize::from(number)].step {
                        Step::Finished => self.answer(number),
                        _ => {
                            self.queue_for_space(number);
                            // It may have left others, whose windows were answered, too.
                            index = 0;
                        }
                    }
                }
                _ => index += 1,
            }
        }
    }

    /// Writes the answer; `flush_answers` shows it to the guest.
    pub(super) fn answer(&mut self, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        let token = slot.token.take().expect("a taken slot has a token");
        self.ring.answer(token, slot.status);
        if slot.status == STATUS_OKAY {
            let latency_us = self.now_us.saturating_sub(slot.taken_us);
            self.statistics.count(slot.plan.transfer, slot.bytes, latency_us);
            let counters = &mut self.statistics.counters;
            counters.ring_wait_us += slot.taken_us.saturating_sub(slot.seen_us);
            let begun_us = slot.begun_us.saturating_sub(slot.taken_us);
            counters.held_us += begun_us.saturating_sub(slot.reach_us);
            counters.reach_us += slot.reach_us;
            counters.device_us += slot.done_us.saturating_sub(slot.begun_us);
            counters.release_us += self.now_us.saturating_sub(slot.done_us);
        }
        let went_through = slot.status == STATUS_OKAY;
        if self.barrier == Some(number) {
            self.barrier = None;
        }
        if let Some(buffer) = slot.buffer.take() {
            self.buffers.give(buffer);
        }
        self.free.push(number);
        self.look_for_space(number, went_through);
    }

    /// Shows the guest all answers written since the last call, with one notification at the most.
    pub fn flush_answers(&mut self) {
        self.return_copied();
        if self.ring.push() {
            self.statistics.counters.notifications += 1;
            // Its end is gone only when the guest is: the daemon learns that from xenstore.
            let _ = self.channel.notify();
        }
    }

    /// Starts a waiting barrier once all before it is done.
    pub(super) fn start_barrier_when_alone(&mut self, engine: &mut Engine) {
        let Some(number) = self.barrier else { return };
        let before = [&self.batch, &self.waiting].into_iter().any(|slots| !slots.is_empty());
        // One that waits for space itself is tried again when that is.
        if self.running > 0 || before || self.lacks_space() {
            return;
        }
        let slot = &self.slots[usize::from(number)];
        if slot.step == Step::FlushBefore {
            self.slots[usize::from(number)].begun_us = self.now_us;
            self.running += 1;
            self.advance(number, engine);
        }
    }
}
