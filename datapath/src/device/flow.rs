//! A request's way through its steps: flush, data, flush, answer.

use super::Device;
use super::slot::{Step, add_vector};
use crate::engine::{Engine, Tag};
use crate::ring::abi::{STATUS_ERROR, STATUS_OKAY};
use crate::ring::request::{SECTOR_BYTES, Transfer as Direction};
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
                Step::FlushBefore => slot.step = Step::Data,
                Step::Data if slot.plan.transfer != Direction::None => {
                    return self.start_data(number, engine);
                }
                Step::Data => slot.step = Step::FlushAfter,
                Step::FlushAfter if slot.plan.flush_after => return engine.flush(tag),
                Step::FlushAfter => slot.step = Step::Finished,
                Step::Finished => return self.finish(number, STATUS_OKAY, engine),
            }
        }
    }

    /// Builds a request's vectors: its pages, or a bounce buffer where direct I/O needs one.
    fn start_data(&mut self, number: u16, engine: &mut Engine) {
        let slot = &mut self.slots[usize::from(number)];
        let mut end = std::ptr::null_mut();
        for n in 0..slot.segments.len() {
            let (base, bytes) = self.transfer.base(slot.reach, &slot.segments, n, end);
            add_vector(&mut slot.vectors, base, bytes);
            end = base.wrapping_add(bytes);
        }
        if slot.aligned(self.memory_align_bytes) {
            self.statistics.counters.mapped_bytes += u64::from(slot.bytes);
            return self.submit_data(number, engine);
        }
        slot.vectors.clear();
        let Some(bounce) = self.bounce.acquire(number) else {
            if self.bounce.exhausted() {
                self.statistics.counters.io_errors += 1;
                self.log_io_error("making a bounce buffer", Errno::NOMEM);
                return self.finish(number, STATUS_ERROR, engine);
            }
            return;
        };
        self.fill_bounce(number, bounce);
        self.submit_data(number, engine);
    }

    /// Points a request at a bounce buffer, with its data in it if it is a write.
    fn fill_bounce(&mut self, number: u16, bounce: u16) {
        let slot = &mut self.slots[usize::from(number)];
        let buffer = self.bounce.buffer(bounce);
        slot.bounce = Some(bounce);
        let bytes = slot.bytes as usize;
        add_vector(&mut slot.vectors, buffer.address(0, bytes), bytes);
        if slot.plan.transfer == Direction::Write {
            let mut at = 0;
            for (n, segment) in slot.segments.iter().enumerate() {
                let (memory, offset, bytes) = self.transfer.locate(slot.reach, n, *segment);
                buffer.copy_from(at, memory, offset, bytes);
                at += bytes;
            }
        }
        self.statistics.counters.copied_bytes += u64::from(slot.bytes);
    }

    /// Copies what was read from a request's bounce buffer into its pages.
    fn empty_bounce(&mut self, number: u16) {
        let slot = &self.slots[usize::from(number)];
        let Some(bounce) = slot.bounce else { return };
        let buffer = self.bounce.buffer(bounce);
        let mut at = 0;
        for (n, segment) in slot.segments.iter().enumerate() {
            let (memory, offset, bytes) = self.transfer.locate(slot.reach, n, *segment);
            memory.copy_from(offset, buffer, at, bytes);
            at += bytes;
        }
    }

    fn submit_data(&mut self, number: u16, engine: &mut Engine) {
        let slot = &self.slots[usize::from(number)];
        let offset = slot.plan.sector * SECTOR_BYTES + u64::from(slot.done);
        let tag = Tag::Request { slot: number };
        // SAFETY: the vectors stay in the slot, which stays taken until this completion; what they
        // describe is the slot's window or standing mapping or bounce buffer, none of which is
        // given back before `finish`.
        unsafe {
            match slot.plan.transfer {
                Direction::Read => engine.read(&slot.vectors, offset, tag),
                _ => engine.write(&slot.vectors, offset, tag),
            }
        }
    }

    /// A step of the request in `slot` completed.
    pub fn on_completion(&mut self, number: u16, result: i32, engine: &mut Engine) {
        let slot = &mut self.slots[usize::from(number)];
        let data = slot.step == Step::Data;
        let what = match (slot.step, slot.plan.transfer) {
            (Step::Data, Direction::Read) => "a read",
            (Step::Data, _) => "a write",
            _ => "a flush",
        };
        let moved = match u32::try_from(result) {
            Ok(0) if data => Err(Errno::NXIO),
            Ok(bytes) => Ok(bytes),
            Err(_) => Err(Errno::from_raw_os_error(-result)),
        };
        match moved {
            Ok(bytes) if data => {
                slot.done += bytes;
                if slot.done < slot.bytes {
                    slot.advance_vectors(bytes as usize);
                    return self.submit_data(number, engine);
                }
            }
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) if data && slot.retries < RETRIES_MAX => {
                slot.retries += 1;
                return self.submit_data(number, engine);
            }
            Err(errno) => {
                self.statistics.counters.io_errors += 1;
                self.log_io_error(what, errno);
                return self.finish(number, STATUS_ERROR, engine);
            }
        }
        slot.step = match slot.step {
            Step::FlushBefore => Step::Data,
            Step::Data => Step::FlushAfter,
            Step::FlushAfter | Step::Finished => Step::Finished,
        };
        self.advance(number, engine);
    }

    /// All I/O of a request is over. It is answered now, or with its window.
    fn finish(&mut self, number: u16, status: i16, engine: &mut Engine) {
        self.running -= 1;
        let read = self.slots[usize::from(number)].plan.transfer == Direction::Read;
        if status == STATUS_OKAY && read {
            self.empty_bounce(number);
        }
        let slot = &mut self.slots[usize::from(number)];
        slot.status = status;
        slot.step = Step::Finished;
        if let Some(bounce) = slot.bounce.take()
            && let Some(waiting) = self.bounce.release(bounce)
        {
            self.start_data(waiting, engine);
        }
        match self.slots[usize::from(number)].reach {
            Reach::Standing => self.answer(number),
            Reach::Window { window, .. } => {
                self.finished.push(number);
                if self.transfer.leave_window(window) {
                    self.answer_window(window);
                }
            }
        }
        self.start_barrier_when_alone(engine);
    }

    /// The pages of a window are unmapped: its requests can be answered.
    fn answer_window(&mut self, window: u16) {
        let mut index = 0;
        while index < self.finished.len() {
            let number = self.finished[index];
            match self.slots[usize::from(number)].reach {
                Reach::Window { window: own, .. } if own == window => {
                    self.finished.swap_remove(index);
                    self.answer(number);
                }
                _ => index += 1,
            }
        }
    }

    /// Writes the answer; `flush_answers` shows it to the guest.
    pub(super) fn answer(&mut self, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        let token = slot.token.take().expect("a taken slot has a token");
        let (id, operation) = token.redeem();
        self.ring.answer(id, operation, slot.status);
        if slot.status == STATUS_OKAY {
            let latency_us = self.now_us.saturating_sub(slot.taken_us);
            self.statistics.count(slot.plan.transfer, slot.bytes, latency_us);
        }
        if self.barrier == Some(number) {
            self.barrier = None;
        }
        self.free.push(number);
    }

    /// Shows the guest all answers written since the last call, with one notification at the most.
    pub fn flush_answers(&mut self) {
        if self.ring.push() {
            self.statistics.counters.notifications += 1;
            // Its end is gone only when the guest is: the daemon learns that from xenstore.
            let _ = self.channel.notify();
        }
    }

    /// Starts a waiting barrier once all before it is done.
    pub(super) fn start_barrier_when_alone(&mut self, engine: &mut Engine) {
        let Some(number) = self.barrier else { return };
        if self.running > 0 || !self.batch.is_empty() {
            return;
        }
        let slot = &self.slots[usize::from(number)];
        if slot.step == Step::FlushBefore {
            self.running += 1;
            self.advance(number, engine);
        }
    }
}
