//! A request's place while it is in flight: one slot for each entry of the ring, made once.

use crate::arena::Span;
use crate::engine::{IoVector, advance_vectors};
use crate::ring::abi::{SEGMENTS_INLINE_MAX, Segment};
use crate::ring::request::{INDIRECT_SEGMENTS_MAX, Plan, SECTOR_BYTES, Transfer as Direction};
use crate::ring::token::Token;
use crate::xen::Piece;
use crate::xen::transfer::{Place, Reach};
use std::ops::Range;

/// Bytes that are discarded in one go: a file system holds back other I/O meanwhile.
const DISCARD_BYTES_MAX: u64 = 128 << 20;

/// Where a request stands among its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    FlushBefore,
    /// Have the sectors that are written for oneself, where guests may write parts of them.
    Claim,
    /// Read the sector of whose end alone, or whose middle, the data is.
    Head,
    /// Read the sector of whose beginning the data is.
    Tail,
    Data,
    FlushAfter,
    Finished,
}

/// One request in flight.
#[derive(Debug)]
pub(super) struct Slot {
    /// What to answer; present while the slot is taken.
    pub(super) token: Option<Token>,
    pub(super) plan: Plan,
    pub(super) step: Step,
    /// Bytes of the whole request; bytes of the step that are done.
    pub(super) bytes: u64,
    pub(super) done: u64,
    /// What lacks before and behind the data to whole sectors of the image, bytes.
    pub(super) head: u64,
    pub(super) tail: u64,
    /// Its claim on them.
    pub(super) claim: Option<usize>,
    pub(super) segments: Vec<Segment>,
    /// Where its pages are, if all of them stand.
    pub(super) places: Vec<Place>,
    /// What the kernel reads while the data step runs; not touched until it has answered.
    pub(super) vectors: Vec<IoVector>,
    pub(super) reach: Reach,
    /// The buffer that its data passes through.
    pub(super) buffer: Option<Span>,
    pub(super) status: i16,
    /// Times that the kernel asked to try again.
    pub(super) retries: u8,
    /// When it was first seen in the ring, taken, begun and done: by the clock of the rounds.
    pub(super) seen_us: u64,
    pub(super) taken_us: u64,
    pub(super) begun_us: u64,
    pub(super) done_us: u64,
    /// When its pages were last looked for among those that stand.
    pub(super) found_us: u64,
    /// How long reaching its pages, and those of its batch, took.
    pub(super) reach_us: u64,
}

/// The segments of an indirect request, on their way out of the page that holds them.
#[derive(Debug, Default)]
pub(super) struct Fetch {
    pub(super) slot: u16,
    pub(super) gref: u32,
    /// Of the page, as far as they are segments.
    pub(super) bytes: Vec<u8>,
}

impl Slot {
    pub(super) fn new() -> Self {
        let plan = Plan {
            barrier: false,
            flush_before: false,
            transfer: Direction::None,
            flush_after: false,
            sector: 0,
            segment_count: 0,
        };
        Slot {
            token: None,
            plan,
            step: Step::Finished,
            bytes: 0,
            done: 0,
            head: 0,
            tail: 0,
            claim: None,
            segments: Vec::with_capacity(SEGMENTS_INLINE_MAX),
            places: Vec::with_capacity(SEGMENTS_INLINE_MAX),
            vectors: Vec::with_capacity(SEGMENTS_INLINE_MAX),
            reach: Reach::Standing,
            buffer: None,
            status: 0,
            retries: 0,
            seen_us: 0,
            taken_us: 0,
            begun_us: 0,
            done_us: 0,
            found_us: 0,
            reach_us: 0,
        }
    }

    /// Takes the slot for a judged request.
    pub(super) fn take(&mut self, token: Token, plan: Plan, taken_us: u64) {
        debug_assert!(self.token.is_none(), "a slot has one request at a time");
        self.token = Some(token);
        self.plan = plan;
        self.step = Step::FlushBefore;
        self.bytes = 0;
        self.done = 0;
        (self.head, self.tail) = (0, 0);
        self.segments.clear();
        self.places.clear();
        self.vectors.clear();
        self.reach = Reach::Standing;
        self.status = 0;
        self.retries = 0;
        self.seen_us = taken_us;
        self.taken_us = taken_us;
        self.begun_us = taken_us;
        self.done_us = taken_us;
        self.found_us = taken_us;
        self.reach_us = 0;
    }

    /// Makes room for as many segments as a request may have, the first time that this slot has an
    /// indirect one: most rings never have as many large requests as entries.
    pub(super) fn enlarge(&mut self) {
        self.segments.reserve_exact(INDIRECT_SEGMENTS_MAX);
        self.places.reserve_exact(INDIRECT_SEGMENTS_MAX);
        self.vectors.reserve_exact(INDIRECT_SEGMENTS_MAX);
    }

    /// Sees what lacks to whole sectors of the image, which are `sector_bytes` long.
    pub(super) fn fit(&mut self, sector_bytes: u32) {
        if matches!(self.plan.transfer, Direction::Read | Direction::Write) {
            let (start, sector) = (self.plan.sector * SECTOR_BYTES, u64::from(sector_bytes));
            let end = start + self.bytes;
            self.head = start % sector;
            self.tail = end.next_multiple_of(sector) - end;
        }
    }

    /// Whether the data are not whole sectors of the image.
    pub(super) fn in_part(&self) -> bool {
        self.head > 0 || self.tail > 0
    }

    /// Bytes of the sectors that the data is in.
    pub(super) fn whole_bytes(&self) -> usize {
        usize::try_from(self.head + self.bytes + self.tail).expect("little more than 1 MiB")
    }

    /// Bytes of the buffer that the data passes through: behind it is a sector that is read before
    /// the data is written over a part of it.
    pub(super) fn buffer_bytes(&self, sector_bytes: u32) -> usize {
        let changes = self.plan.transfer == Direction::Write && self.in_part();
        self.whole_bytes() + if changes { sector_bytes as usize } else { 0 }
    }

    /// What of the image the step is about, bytes.
    pub(super) fn range(&self, sector_bytes: u32) -> Range<u64> {
        let start = self.plan.sector * SECTOR_BYTES - self.head;
        let end = start + self.head + self.bytes + self.tail;
        match self.step {
            Step::Head => start..start + u64::from(sector_bytes),
            Step::Tail => end - u64::from(sector_bytes)..end,
            _ => start..end,
        }
    }

    /// Whether this step, to read a sector, is due.
    pub(super) fn reads_first(&self, sector_bytes: u32) -> bool {
        let single = self.whole_bytes() == sector_bytes as usize;
        let lacks = match self.step {
            Step::Head => self.head > 0 || (single && self.tail > 0),
            Step::Tail => self.tail > 0 && !single,
            _ => false,
        };
        lacks && self.plan.transfer == Direction::Write
    }

    /// Whether its pages were found among those that stand.
    pub(super) fn stands(&self) -> bool {
        self.places.len() == self.segments.len() && !self.segments.is_empty()
    }

    /// Makes it stand as if it had only just been taken, with no page in use.
    pub(super) fn begin_anew(&mut self) {
        self.step = Step::FlushBefore;
        self.done = 0;
        self.places.clear();
        self.vectors.clear();
        self.found_us = u64::MAX;
        self.retries = 0;
    }

    /// Whether direct I/O takes the pages as they are.
    pub(super) fn direct(&self, align_bytes: u32) -> bool {
        if self.in_part() {
            return false;
        }
        // What a guest can ask for begins and ends with whole sectors.
        align_bytes <= 512
            || self.segments.iter().all(|segment| {
                let (offset, bytes) = segment.in_page();
                (u32::from(offset) | u32::from(bytes)).is_multiple_of(align_bytes)
            })
    }

    /// Adds the pieces to be copied between its pages and its buffer.
    pub(super) fn add_pieces(&self, pieces: &mut Vec<Piece>) {
        let mut offset = self.data_at();
        for segment in &self.segments {
            let (page_offset, bytes) = segment.in_page();
            let gref = segment.gref;
            pieces.push(Piece { gref, page_offset, bytes, offset, copied: false });
            offset += usize::from(bytes);
        }
    }

    /// Where in the buffers the data begins.
    pub(super) fn data_at(&self) -> usize {
        let buffer = self.buffer.expect("a copied request has a buffer");
        buffer.start + usize::try_from(self.head).expect("less than a sector")
    }

    /// What of a discard is done next, bytes.
    pub(super) fn discard_bytes(&self) -> u64 {
        (self.bytes - self.done).min(DISCARD_BYTES_MAX)
    }

    /// Takes the first `bytes`, which are done, off the vectors.
    pub(super) fn advance_vectors(&mut self, bytes: usize) {
        advance_vectors(&mut self.vectors, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::add_vector;

    fn pieces(slot: &Slot) -> Vec<(usize, usize)> {
        slot.vectors.iter().map(|vector| (vector.iov_base.addr(), vector.iov_len)).collect()
    }

    #[test]
    fn vectors_merge_and_advance() {
        let mut slot = Slot::new();
        let at = |address: usize| std::ptr::without_provenance_mut::<u8>(address);
        add_vector(&mut slot.vectors, at(0x1000), 0x1000);
        add_vector(&mut slot.vectors, at(0x2000), 0x200);
        add_vector(&mut slot.vectors, at(0x4000), 0x1000);
        assert_eq!(pieces(&slot), [(0x1000, 0x1200), (0x4000, 0x1000)]);
        slot.advance_vectors(0x1000);
        assert_eq!(pieces(&slot), [(0x2000, 0x200), (0x4000, 0x1000)]);
        slot.advance_vectors(0x300);
        assert_eq!(pieces(&slot), [(0x4100, 0xf00)]);
    }

    #[test]
    fn direct_io_takes_what_is_aligned() {
        let mut slot = Slot::new();
        slot.segments.push(Segment { gref: 1, first: 0, last: 7 });
        assert!(slot.direct(512) && slot.direct(4096));
        slot.segments.push(Segment { gref: 2, first: 2, last: 3 });
        assert!(slot.direct(512) && slot.direct(1024) && !slot.direct(4096));
        slot.segments.push(Segment { gref: 3, first: 4, last: 7 });
        assert!(!slot.direct(2048), "one that fits does not excuse the others");
    }
}
