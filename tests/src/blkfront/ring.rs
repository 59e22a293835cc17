//! The front end's half of a blkif ring, over frames of the guest's memory.
//!
//! Source: xen `public/io/ring.h`. Suspicious by design: whatever the back end writes outside an
//! answer, or answers beyond what was asked, is an error.

use crate::guest::FRAME_BYTES;
use anyhow::{bail, ensure};
use std::sync::atomic::{Ordering, fence};
use zerotap_datapath::ring::abi::{
    Abi, ENTRY_BYTES_MAX, RING_HEADER_BYTES, entry_bytes, ring_entries,
};
use zerotap_datapath::ring::shared::SharedMapping;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

/// An answer as it stood in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// The request's cookie.
    pub id: u64,
    /// The operation that was answered.
    pub operation: u8,
    /// Zero, or an error.
    pub status: i16,
}

/// The ring.
#[derive(Debug)]
pub struct FrontRing {
    frames: Vec<u32>,
    abi: Abi,
    entries: u32,
    /// Requests written, shown or not.
    produced: u32,
    /// Requests shown.
    pushed: u32,
    /// Answers taken.
    consumed: u32,
    /// What was written into each slot, to see what the back end changed besides the answer.
    written: Vec<[u8; ENTRY_BYTES_MAX]>,
    checked: bool,
}

impl FrontRing {
    /// Initialises a ring in `frames`. `checked` compares each slot with what was written there.
    #[must_use]
    pub fn new(memory: &SharedMapping, frames: Vec<u32>, abi: Abi, checked: bool) -> FrontRing {
        for &frame in &frames {
            memory.copy_in(frame as usize * FRAME_BYTES, &[0; FRAME_BYTES]);
        }
        let entries = ring_entries(abi, frames.len());
        let written = vec![[0; ENTRY_BYTES_MAX]; entries as usize];
        let ring = FrontRing {
            frames,
            abi,
            entries,
            produced: 0,
            pushed: 0,
            consumed: 0,
            written,
            checked,
        };
        ring.store(memory, REQ_EVENT, 1);
        ring.store(memory, RSP_EVENT, 1);
        ring
    }

    /// The frames, in order.
    #[must_use]
    pub fn frames(&self) -> &[u32] {
        &self.frames
    }

    /// The layout.
    #[must_use]
    pub fn abi(&self) -> Abi {
        self.abi
    }

    /// How many requests fit.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Requests without an answer.
    #[must_use]
    pub fn unanswered(&self) -> u32 {
        self.produced.wrapping_sub(self.consumed)
    }

    /// Writes a request into the next slot; [`FrontRing::push`] shows it.
    ///
    /// # Panics
    /// When the ring is full: the caller counts.
    pub fn write(&mut self, memory: &SharedMapping, entry: &[u8; ENTRY_BYTES_MAX]) {
        assert!(self.unanswered() < self.entries, "the ring is full");
        let slot = self.produced & (self.entries - 1);
        self.copy_in(memory, self.offset(slot), &entry[..entry_bytes(self.abi)]);
        if self.checked {
            self.written[slot as usize] = *entry;
        }
        self.produced = self.produced.wrapping_add(1);
    }

    /// Shows the back end all requests written. True when it wants an event.
    #[must_use]
    pub fn push(&mut self, memory: &SharedMapping) -> bool {
        let (old, new) = (self.pushed, self.produced);
        if old == new {
            return false;
        }
        self.store(memory, REQ_PROD, new);
        self.pushed = new;
        // The store above before the load below, or a back end going to sleep is missed.
        fence(Ordering::SeqCst);
        new.wrapping_sub(self.load(memory, REQ_EVENT)) < new.wrapping_sub(old)
    }

    /// Takes the next answer.
    ///
    /// # Errors
    /// When the back end broke the protocol.
    pub fn take(&mut self, memory: &SharedMapping) -> anyhow::Result<Option<Response>> {
        let produced = self.load(memory, RSP_PROD);
        if produced == self.consumed {
            return Ok(None);
        }
        let (answered, asked) =
            (produced.wrapping_sub(self.consumed), self.pushed.wrapping_sub(self.consumed));
        ensure!(answered <= asked, "the back end answered {answered} of {asked} requests");
        let slot = self.consumed & (self.entries - 1);
        self.consumed = self.consumed.wrapping_add(1);
        self.decode(memory, slot).map(Some)
    }

    fn decode(&self, memory: &SharedMapping, slot: u32) -> anyhow::Result<Response> {
        let length = match self.abi {
            Abi::X86_64 => 16,
            Abi::X86_32 => 12,
        };
        let mut bytes = [0; ENTRY_BYTES_MAX];
        let looked_at = if self.checked { entry_bytes(self.abi) } else { length };
        self.copy_out(memory, self.offset(slot), &mut bytes[..looked_at]);
        if bytes[9] != 0 || bytes[12..length].iter().any(|&byte| byte != 0) {
            bail!("an answer's padding is not zero: {:02x?}", &bytes[..length]);
        }
        if self.checked
            && bytes[length..looked_at] != self.written[slot as usize][length..looked_at]
        {
            bail!("the back end wrote behind an answer: {bytes:02x?}");
        }
        let id = bytes.first_chunk().map_or(0, |id| u64::from_le_bytes(*id));
        let status = i16::from_le_bytes([bytes[10], bytes[11]]);
        Ok(Response { id, operation: bytes[8], status })
    }

    /// Asks for an event once `answers` more are there; true when there is one already.
    #[must_use]
    pub fn sleep(&self, memory: &SharedMapping, answers: u32) -> bool {
        self.store(memory, RSP_EVENT, self.consumed.wrapping_add(answers.max(1)));
        // The store above before the load below, or an answer just given is missed.
        fence(Ordering::SeqCst);
        self.load(memory, RSP_PROD) != self.consumed
    }

    /// Claims `producer` requests, whatever was written: what only a hostile guest does.
    pub fn claim(&mut self, memory: &SharedMapping, producer: u32) {
        self.store(memory, REQ_PROD, producer);
    }

    fn offset(&self, slot: u32) -> usize {
        RING_HEADER_BYTES + slot as usize * entry_bytes(self.abi)
    }

    fn load(&self, memory: &SharedMapping, index: usize) -> u32 {
        memory.load(self.frames[0] as usize * FRAME_BYTES + index)
    }

    fn store(&self, memory: &SharedMapping, index: usize, value: u32) {
        memory.store(self.frames[0] as usize * FRAME_BYTES + index, value);
    }

    /// Where an offset in the ring stands in the guest's memory, and how many bytes follow there.
    fn place(&self, offset: usize) -> (usize, usize) {
        let within = offset % FRAME_BYTES;
        let frame = self.frames[offset / FRAME_BYTES] as usize;
        (frame * FRAME_BYTES + within, FRAME_BYTES - within)
    }

    fn copy_in(&self, memory: &SharedMapping, offset: usize, bytes: &[u8]) {
        let (at, room) = self.place(offset);
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        memory.copy_in(at, first);
        if !rest.is_empty() {
            memory.copy_in(self.place(offset + room).0, rest);
        }
    }

    fn copy_out(&self, memory: &SharedMapping, offset: usize, bytes: &mut [u8]) {
        let (at, room) = self.place(offset);
        let split = room.min(bytes.len());
        let (first, rest) = bytes.split_at_mut(split);
        memory.copy_out(at, first);
        if !rest.is_empty() {
            memory.copy_out(self.place(offset + room).0, rest);
        }
    }
}
