//! A request's way through the image: its steps, and where each leads.
//!
//! A write of parts of sectors reads these sectors first, keeps what it does not change, and writes
//! them whole; [`super::ranges`] keeps others away meanwhile.

use super::EXTENTS_MAX;
use super::connection::{Connection, Ground};
use super::handshake::BASE_ALLOCATION_ID;
use super::slot::{Step, ZEROES_PIECE_BYTES};
use super::transmission::Command;
use crate::engine::Allocation;
use rustix::io::Errno;

/// Times that the image is asked again when the kernel says EAGAIN or EINTR.
const RETRIES_MAX: u8 = 16;
const ZEROES: [u8; 4096] = [0; 4096];

impl Connection {
    /// Begins the small reads that came together: those that are adjacent as one.
    pub(super) fn read_gathered(&mut self, ground: &mut Ground<'_>) {
        self.gather.sort();
        while let Some((first, mut leads)) = self.gather.next() {
            let mut last = first;
            self.running += 1;
            while leads && let Some((number, leads_on)) = self.gather.next() {
                self.running += 1;
                self.slot(last).next = Some(number);
                (last, leads) = (number, leads_on);
            }
            self.read_run(first, ground);
        }
    }

    /// A run was read, or a part of it: to each request its share. One that got nothing reads by
    /// itself, and learns why.
    fn divide(&mut self, first: u16, result: i32, ground: &mut Ground<'_>) {
        let mut left = usize::try_from(result).unwrap_or(0);
        let mut next = Some(first);
        while let Some(number) = next {
            let slot = self.slot(number);
            next = slot.next.take();
            let bytes = left.min(slot.request().length as usize);
            left -= bytes;
            if bytes > 0 {
                self.on_data(number, bytes, ground);
            } else {
                self.move_data(number, ground);
            }
        }
    }

    /// A request is complete: it begins.
    pub(super) fn begin(&mut self, number: u16, ground: &mut Ground<'_>) {
        self.running += 1;
        let request = self.slot(number).request();
        match request.command {
            Command::Read => self.move_data(number, ground),
            Command::Write | Command::Zeroes { .. } | Command::Trim => {
                let length = u64::from(request.length);
                let (start, end) = ground.export.widen(request.offset, length);
                let partial = end - start != length && request.command != Command::Trim;
                self.slot(number).ranged = true;
                if ground.ranges.enter((self.number, number), start, end, partial) {
                    self.run(number, ground);
                } else {
                    self.slot(number).step = Step::Wait;
                }
            }
            Command::Flush => self.flush(number, ground),
            Command::Cache => self.finish(number, Ok(()), ground),
            Command::BlockStatus { one } => {
                let count_max = if one { 1 } else { EXTENTS_MAX };
                let extents = ground.export.extents(request.offset, request.length, count_max);
                let mut told = BASE_ALLOCATION_ID.to_be_bytes().to_vec();
                for (length, state) in extents {
                    told.extend(length.to_be_bytes());
                    told.extend(state.to_be_bytes());
                }
                let memory = self.slot(number).memory();
                self.memory.copy_in(memory, &told);
                self.slot(number).data = (memory, told.len());
                self.finish(number, Ok(()), ground);
            }
        }
    }

    /// No other write is in the way.
    pub(super) fn run(&mut self, number: u16, ground: &mut Ground<'_>) {
        let request = self.slot(number).request();
        let (start, end) = self.slot(number).piece;
        if let Some(hold) = ground.hold {
            let (start, end) = ground.export.widen(start, end - start);
            if !hold.lets(&(start..end)) {
                self.slot(number).step = Step::Wait;
                return ground.held.push((self.number, number));
            }
        }
        let tag = self.tag(number);
        let allocation = match request.command {
            Command::Trim => {
                // Only whole sectors: nobody is to lose more than they gave up.
                let sector = u64::from(ground.export.sector_bytes());
                let (start, end) = (start.next_multiple_of(sector), end / sector * sector);
                if start >= end || !ground.export.discards() {
                    return self.finish(number, Ok(()), ground);
                }
                self.slot(number).step = Step::Allocate;
                return ground.engine.discard(start, end - start, tag);
            }
            Command::Zeroes { no_hole: false, .. } if ground.export.discards() => Allocation::Hole,
            Command::Zeroes { .. } => Allocation::Zeroes,
            _ => return self.begin_piece(number, ground),
        };
        self.slot(number).step = Step::Allocate;
        ground.engine.allocate(allocation, start, end - start, tag);
    }

    /// Writes the piece, after it was made whole sectors.
    fn begin_piece(&mut self, number: u16, ground: &mut Ground<'_>) {
        let slot = self.slot(number);
        let (start, end) = slot.piece;
        let (wide_start, wide_end) = ground.export.widen(start, end - start);
        let sector = u64::from(ground.export.sector_bytes());
        slot.done = 0;
        if slot.step != Step::Head && slot.step != Step::Tail && start > wide_start {
            slot.step = Step::Head;
            return self.read_sector(number, wide_start, ground);
        }
        if slot.step != Step::Tail && end < wide_end {
            slot.step = Step::Tail;
            return self.read_sector(number, wide_end - sector, ground);
        }
        self.move_data(number, ground);
    }

    /// Reads the sector at `offset` behind the piece's memory.
    fn read_sector(&mut self, number: u16, offset: u64, ground: &mut Ground<'_>) {
        let (scratch, bytes) = (self.scratch(number, ground), ground.export.sector_bytes());
        self.read_image(number, (scratch, bytes as usize), offset, ground);
    }

    fn scratch(&mut self, number: u16, ground: &Ground<'_>) -> usize {
        let slot = self.slot(number);
        let (start, end) = slot.piece;
        let (start, end) = ground.export.widen(start, end - start);
        slot.memory() + usize::try_from(end - start).expect("a piece fits its memory")
    }

    /// A sector was read that the piece changes in part: what stays is put around the piece.
    fn merge(&mut self, number: u16, ground: &mut Ground<'_>) {
        let scratch = self.scratch(number, ground);
        let slot = self.slot(number);
        let (memory, piece, step) = (slot.memory(), slot.piece_at(ground.export), slot.step);
        let (start, end) = slot.piece;
        if step == Step::Head {
            self.memory.copy_within(scratch, memory, piece - memory);
        } else {
            let sector = ground.export.sector_bytes() as usize;
            let stays = scratch - (piece + usize::try_from(end - start).expect("as above"));
            self.memory.copy_within(scratch + sector - stays, scratch - stays, stays);
        }
        self.begin_piece(number, ground);
    }

    /// Reads or writes what is left of the piece's sectors.
    fn move_data(&mut self, number: u16, ground: &mut Ground<'_>) {
        let slot = self.slot(number);
        slot.step = Step::Data;
        let (start, end) = slot.piece;
        let (start, end) = ground.export.widen(start, end - start);
        let offset = start + slot.done as u64;
        let left = usize::try_from(end - offset).expect("a piece fits its memory");
        let memory = (slot.memory() + slot.done, left);
        let request = slot.request();
        if request.command == Command::Read {
            self.read_image(number, memory, offset, ground);
        } else {
            let durable = request.fua && request.command == Command::Write;
            self.write_image(number, memory, offset, durable, ground);
        }
    }

    fn flush(&mut self, number: u16, ground: &mut Ground<'_>) {
        self.slot(number).step = Step::Flush;
        ground.engine.flush(self.tag(number));
    }

    /// A step of a request completed.
    pub(super) fn on_step(&mut self, number: u16, result: i32, ground: &mut Ground<'_>) {
        if self.slot(number).next.is_some() {
            return self.divide(number, result, ground);
        }
        let step = self.slot(number).step;
        let moved = match usize::try_from(result) {
            Ok(0) if matches!(step, Step::Head | Step::Tail | Step::Data) => Err(Errno::IO),
            Ok(bytes) => Ok(bytes),
            Err(_) => Err(Errno::from_raw_os_error(-result)),
        };
        match (step, moved) {
            (_, Err(Errno::AGAIN | Errno::INTR)) if self.slot(number).retries < RETRIES_MAX => {
                self.slot(number).retries += 1;
                self.again(number, ground);
            }
            (Step::Allocate, Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NODEV)) => {
                self.write_zeroes(number, ground);
            }
            (_, Err(errno)) => {
                ground.counters.io_errors += 1;
                if ground.counters.io_errors.is_power_of_two() {
                    tracing::error!(client = self.number, %errno, ?step, "an NBD request failed");
                }
                self.finish(number, Err(errno), ground);
            }
            (Step::Head | Step::Tail, Ok(bytes)) => {
                if bytes < ground.export.sector_bytes() as usize {
                    return self.finish(number, Err(Errno::IO), ground);
                }
                self.merge(number, ground);
            }
            (Step::Data, Ok(bytes)) => self.on_data(number, bytes, ground),
            (Step::Allocate, Ok(_)) if self.slot(number).request().fua => {
                self.flush(number, ground);
            }
            (_, Ok(_)) => self.finish(number, Ok(()), ground),
        }
    }

    /// Submits a step once more.
    fn again(&mut self, number: u16, ground: &mut Ground<'_>) {
        match self.slot(number).step {
            Step::Allocate => self.run(number, ground),
            Step::Flush => self.flush(number, ground),
            Step::Data => self.move_data(number, ground),
            // From the piece's beginning.
            _ => {
                self.slot(number).step = Step::Receive;
                self.begin_piece(number, ground);
            }
        }
    }

    fn on_data(&mut self, number: u16, bytes: usize, ground: &mut Ground<'_>) {
        let slot = self.slot(number);
        let request = slot.request();
        let (start, end) = slot.piece;
        let (wide_start, wide_end) = ground.export.widen(start, end - start);
        slot.done += bytes;
        if wide_start + (slot.done as u64) < wide_end {
            return self.move_data(number, ground);
        }
        if let Command::Zeroes { .. } = request.command {
            let whole_end = request.offset + u64::from(request.length);
            if end < whole_end {
                self.slot(number).piece = (end, whole_end);
                return self.begin_zeroes(number, ground);
            }
            if request.fua {
                return self.flush(number, ground);
            }
        }
        if request.command == Command::Read {
            let at = self.slot(number).piece_at(ground.export);
            self.slot(number).data = (at, request.length as usize);
        }
        self.finish(number, Ok(()), ground);
    }

    /// The image cannot make zeroes or holes there.
    fn write_zeroes(&mut self, number: u16, ground: &mut Ground<'_>) {
        match self.slot(number).request().command {
            // It was an offer.
            Command::Trim => self.finish(number, Ok(()), ground),
            Command::Zeroes { fast: true, .. } => {
                self.finish(number, Err(Errno::OPNOTSUPP), ground);
            }
            _ => self.begin_zeroes(number, ground),
        }
    }

    /// Writes the next zeroes of what is left.
    fn begin_zeroes(&mut self, number: u16, ground: &mut Ground<'_>) {
        let slot = self.slot(number);
        let (start, end) = slot.piece;
        let (wide_start, wide_end) = ground.export.widen(start, end - start);
        slot.piece = (start, end.min(wide_start + ZEROES_PIECE_BYTES));
        slot.step = Step::Receive;
        let memory = slot.memory();
        let bytes = (wide_end - wide_start).min(ZEROES_PIECE_BYTES);
        let bytes = usize::try_from(bytes).expect("it is small");
        for at in (0..bytes).step_by(ZEROES.len()) {
            self.memory.copy_in(memory + at, &ZEROES[..ZEROES.len().min(bytes - at)]);
        }
        self.begin_piece(number, ground);
    }
}
