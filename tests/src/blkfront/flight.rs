//! Requests in flight: grants, slots, cookies, answers.

use super::request::{Io, encode_direct, encode_discard, encode_indirect, encode_segment};
use super::{Blkfront, Queue};
use crate::guest::{Domain, FRAME_BYTES};
use anyhow::{Context as _, ensure};
use zerotap_datapath::ring::abi::{SEGMENT_BYTES, SEGMENTS_INLINE_MAX, SEGMENTS_PER_PAGE, Segment};

/// Bits of a cookie that name the slot; those above tell one use of a slot from the next.
const SLOT_BITS: u32 = 16;

/// One request that waits for its answer.
#[derive(Debug)]
pub(super) struct Flight {
    id: u64,
    io: Io,
    /// Grants that end with the request.
    grefs: Vec<u32>,
    /// Frames with the segments of an indirect request.
    indirect: Vec<u32>,
}

impl Flight {
    /// Ends the request's own grants.
    pub(super) fn end_grants(&mut self, domain: &mut Domain) -> anyhow::Result<()> {
        self.indirect.drain(..).for_each(|frame| domain.free_frame(frame));
        self.grefs.drain(..).try_for_each(|gref| domain.revoke(gref))
    }
}

/// A request that was answered.
#[derive(Debug)]
pub struct Completion {
    /// What [`Blkfront::submit`] answered.
    pub slot: usize,
    /// The request.
    pub io: Io,
    /// Zero, or an error.
    pub status: i16,
}

impl Blkfront {
    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.queues.iter().map(|queue| queue.ring.unanswered()).sum()
    }

    /// How many more requests fit.
    #[must_use]
    pub fn room(&self) -> u32 {
        let room = |queue: &Queue| queue.ring.entries() - queue.ring.unanswered();
        self.queues.iter().map(room).sum()
    }

    /// Writes a request into the ring; [`Blkfront::push`] shows it. Answers its slot.
    ///
    /// # Errors
    /// When the guest is out of grants.
    ///
    /// # Panics
    /// When there is no [`Blkfront::room`].
    pub fn submit(&mut self, io: Io) -> anyhow::Result<usize> {
        let slot = self.free_slots.pop().expect("there is room");
        self.flights[slot] = Some(Flight { id: 0, io, grefs: Vec::new(), indirect: Vec::new() });
        self.issue(slot)?;
        Ok(slot)
    }

    /// Puts the slot's request into the ring, with fresh grants and a fresh cookie.
    fn issue(&mut self, slot: usize) -> anyhow::Result<()> {
        let mut flight = self.flights[slot].take().context("an empty slot is issued")?;
        self.issued += 1;
        flight.id = self.issued << SLOT_BITS | slot as u64;
        let read_only = flight.io.op != super::Op::Read;
        let mut segments = Vec::with_capacity(flight.io.pieces.len());
        for piece in &flight.io.pieces {
            let gref = self.grant(piece.frame, read_only, &mut flight.grefs)?;
            segments.push(Segment { gref, first: piece.first, last: piece.last });
        }
        let (id, operation, sector) = (flight.id, flight.io.op.byte(), flight.io.sector);
        let entry = if let super::Op::Discard { sectors } = flight.io.op {
            encode_discard(self.options.abi, id, 0, sector, sectors)
        } else if segments.len() <= SEGMENTS_INLINE_MAX {
            let count = u8::try_from(segments.len())?;
            encode_direct(self.options.abi, id, operation, count, sector, &segments)
        } else {
            let pages = self.write_segments(&segments, &mut flight)?;
            let count = u16::try_from(segments.len())?;
            encode_indirect(self.options.abi, id, operation, count, sector, &pages)
        };
        let queue = slot * self.queues.len() / self.flights.len();
        let queue = self.queues.get_mut(queue).context("not connected")?;
        queue.ring.write(self.domain.memory(), &entry);
        self.flights[slot] = Some(flight);
        Ok(())
    }

    /// Writes segments into frames of their own; answers their grants.
    fn write_segments(
        &mut self,
        segments: &[Segment],
        flight: &mut Flight,
    ) -> anyhow::Result<Vec<u32>> {
        let mut grefs = Vec::new();
        for page in segments.chunks(SEGMENTS_PER_PAGE) {
            let frame = self.domain.frame()?;
            for (n, segment) in page.iter().enumerate() {
                let at = frame as usize * FRAME_BYTES + n * SEGMENT_BYTES;
                self.domain.memory().copy_in(at, &encode_segment(segment));
            }
            flight.indirect.push(frame);
            grefs.push(self.grant(frame, true, &mut flight.grefs)?);
        }
        Ok(grefs)
    }

    fn grant(&mut self, frame: u32, read_only: bool, own: &mut Vec<u32>) -> anyhow::Result<u32> {
        if !self.disk.persistent {
            own.push(self.domain.grant(frame, read_only)?);
            return Ok(own[own.len() - 1]);
        }
        let kept = &mut self.kept_grefs[frame as usize];
        if *kept == 0 {
            *kept = self.domain.grant(frame, false)?;
        }
        Ok(*kept)
    }

    /// Shows the back end what was submitted.
    ///
    /// # Errors
    /// When the event cannot be sent.
    pub fn push(&mut self) -> anyhow::Result<()> {
        for queue in &mut self.queues {
            if queue.ring.push(self.domain.memory()) {
                queue.port.notify()?;
            }
        }
        Ok(())
    }

    /// Takes the next answer.
    ///
    /// # Errors
    /// When the back end broke the protocol: an answer nobody waits for, another operation, a page
    /// that it did not let go.
    pub fn complete(&mut self) -> anyhow::Result<Option<Completion>> {
        let memory = self.domain.memory();
        let taken = self.queues.iter_mut().map(|queue| queue.ring.take(memory));
        let Some(response) = taken.filter_map(Result::transpose).next().transpose()? else {
            return Ok(None);
        };
        let slot = usize::try_from(response.id & ((1 << SLOT_BITS) - 1))?;
        let flight = self.flights.get_mut(slot).and_then(Option::take);
        let mut flight = flight.filter(|flight| flight.id == response.id).with_context(|| {
            format!("an answer nobody waits for, or a second one: {response:?}")
        })?;
        let operation = flight.io.op.byte();
        ensure!(response.operation == operation, "operation {operation} answered by {response:?}");
        flight.end_grants(&mut self.domain)?;
        self.free_slots.push(slot);
        Ok(Some(Completion { slot, io: flight.io, status: response.status }))
    }

    /// Forgets what is in flight, grants and all; answers the slots and requests.
    pub fn abandon(&mut self) -> Vec<(usize, Io)> {
        let flights = self.flights.iter_mut().enumerate();
        flights.filter_map(|(slot, flight)| Some((slot, flight.take()?.io))).collect()
    }

    /// Asks once more for all that a lost connection did not answer.
    pub(super) fn issue_again(&mut self) -> anyhow::Result<()> {
        for slot in 0..self.flights.len() {
            if self.flights[slot].is_some() {
                self.issue(slot)?;
            }
        }
        self.push()
    }
}
