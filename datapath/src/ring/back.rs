//! The back end's half of a blkif ring: take descriptors, push answers, decide about notifications.
//!
//! It knows nothing of grants, images or I/O. Source of the rules: xen `public/io/ring.h`.
//! What the frontend can write here costs only itself: a bogus producer breaks the ring for good
//! (XSA-39), a wrong `rsp_event` loses it its own notifications.

use super::abi::{self, Abi, Descriptor, ENTRY_BYTES_MAX, RING_HEADER_BYTES};
use super::journal::{Damaged, Journal};
use super::request::answered_operation;
use super::shared::{Memory, PAGE_BYTES, SharedMapping};
use super::token::Token;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

/// The frontend claims more requests than the ring has room for. Nothing in the ring can be
/// believed any more: it is not served again until the frontend connects anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the frontend's producer index {claimed} is more than {entries} ahead of {answered}")]
pub struct RingBroken {
    /// The frontend's `req_prod`.
    pub claimed: u32,
    /// The answers pushed so far.
    pub answered: u32,
    /// The ring's size.
    pub entries: u32,
}

/// The back end's half of a ring.
#[derive(Debug)]
pub struct BackRing<M = SharedMapping> {
    memory: M,
    abi: Abi,
    entries: u32,
    /// Requests seen, as far as `req_prod` was last read.
    producer: u32,
    /// Requests taken.
    consumed: u32,
    /// Answers written, pushed or not.
    answered: u32,
    /// Answers pushed.
    pushed: u32,
    journal: Option<Journal>,
    /// What an earlier worker had taken and not answered, the first at the end.
    owed: Vec<Taken>,
    /// Whoever served the ring before may have pushed answers and not said so.
    notify_anyway: bool,
}

/// A request that was taken off the ring.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// What it asks.
    pub descriptor: Descriptor,
    /// Its place in the journal.
    pub place: u16,
}

impl<M: Memory> BackRing<M> {
    /// A ring in `memory`, which the frontend has initialised. Our private indices begin at what
    /// the ring says was answered: nothing is in flight but what `journal` tells of.
    ///
    /// # Errors
    /// When the journal makes no sense.
    pub fn new(memory: M, abi: Abi, mut journal: Option<Journal>) -> Result<Self, Damaged> {
        let entries = abi::ring_entries(abi, memory.bytes() / PAGE_BYTES);
        let pushed = memory.load(RSP_PROD);
        let all = journal.as_mut().map_or(Ok(Vec::new()), |journal| journal.owed(pushed))?;
        let consumed = pushed.wrapping_add(u32::try_from(all.len()).expect("at most 512"));
        let (answered, owed) = (pushed, Vec::with_capacity(all.len()));
        let notify_anyway = journal.is_some();
        let producer = consumed;
        let mut ring = BackRing {
            memory,
            abi,
            entries,
            producer,
            consumed,
            answered,
            pushed,
            journal,
            owed,
            notify_anyway,
        };
        for one in all.into_iter().rev() {
            let descriptor = abi::decode(abi, &one.entry);
            match one.status {
                None => ring.owed.push(Taken { descriptor, place: one.place }),
                Some(status) => {
                    let operation = answered_operation(&descriptor);
                    ring.answer(Token::new(descriptor.id, operation, one.place), status);
                }
            }
        }
        Ok(ring)
    }

    /// How many requests of an earlier worker's are still to be taken.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.owed.len()
    }

    /// Whether what is taken of it is in a journal.
    #[must_use]
    pub fn is_journaled(&self) -> bool {
        self.journal.is_some()
    }

    /// Leaves those to the next worker: they stay in the journal.
    pub fn leave_owed(&mut self) {
        self.owed.clear();
    }

    /// How many entries it has.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// The layout of its entries.
    #[must_use]
    pub fn abi(&self) -> Abi {
        self.abi
    }

    /// Whether there are requests that were seen already and not taken.
    #[must_use]
    pub fn has_seen_more(&self) -> bool {
        self.consumed != self.producer
    }

    /// Whether the frontend claims requests that were not taken. Only [`BackRing::take`] tells
    /// whether that can be true.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.memory.load(REQ_PROD) != self.consumed
    }

    /// Looks how far the frontend has come: [`BackRing::has_seen_more`] tells of no more until all
    /// of that was taken.
    ///
    /// # Errors
    /// As for [`BackRing::take`].
    pub fn see(&mut self) -> Result<(), RingBroken> {
        self.producer = self.read_producer()?;
        Ok(())
    }

    /// Takes the next descriptor: one copy of its bytes, decoded. `None` when there is none, or
    /// when as many are unanswered as the ring has entries. What an earlier worker had taken comes
    /// first, in its order.
    ///
    /// # Errors
    /// When the frontend's producer index cannot be true.
    pub fn take(&mut self) -> Result<Option<Taken>, RingBroken> {
        if let Some(owed) = self.owed.pop() {
            return Ok(Some(owed));
        }
        if self.consumed == self.producer {
            self.producer = self.read_producer()?;
        }
        // An answer that the frontend has not seen keeps its place, in ring and journal.
        let unanswered = self.consumed.wrapping_sub(self.pushed);
        if self.consumed == self.producer || unanswered >= self.entries {
            return Ok(None);
        }
        let entry = match self.abi {
            Abi::X86_64 => self.memory.read::<ENTRY_BYTES_MAX>(self.offset(self.consumed)),
            Abi::X86_32 => {
                // The last entry of a 32-bit ring ends before 112 bytes would.
                let mut entry = [0; ENTRY_BYTES_MAX];
                entry[..108].copy_from_slice(&self.memory.read::<108>(self.offset(self.consumed)));
                entry
            }
        };
        let journal = self.journal.as_mut();
        let place = journal.map_or(0, |journal| journal.take(self.consumed, &entry));
        self.consumed = self.consumed.wrapping_add(1);
        Ok(Some(Taken { descriptor: abi::decode(self.abi, &entry), place }))
    }

    /// Writes an answer; the frontend sees it after [`BackRing::push`].
    pub fn answer(&mut self, token: Token, status: i16) {
        let (id, operation, place) = token.redeem();
        let (bytes, length) = abi::encode_response(self.abi, id, operation, status);
        self.memory.copy_in(self.offset(self.answered), &bytes[..length]);
        if let Some(journal) = &mut self.journal {
            journal.answer(place, self.answered, status);
        }
        self.answered = self.answered.wrapping_add(1);
    }

    /// Shows the frontend all answers written so far. True when it wants to be notified.
    #[must_use]
    pub fn push(&mut self) -> bool {
        let (old, new) = (self.pushed, self.answered);
        let anyway = std::mem::take(&mut self.notify_anyway);
        if new == old {
            return anyway;
        }
        self.memory.store(RSP_PROD, new);
        self.pushed = new;
        // The store above before the load below, or a frontend going to sleep is missed.
        self.memory.fence();
        if let Some(journal) = &mut self.journal {
            journal.pushed();
        }
        anyway || new.wrapping_sub(self.memory.load(RSP_EVENT)) < new.wrapping_sub(old)
    }

    /// Asks to be notified of the next request, then looks once more. True when there is one
    /// already.
    ///
    /// # Errors
    /// When the frontend's producer index cannot be true.
    pub fn sleep(&mut self) -> Result<bool, RingBroken> {
        self.memory.store(REQ_EVENT, self.consumed.wrapping_add(1));
        // The store above before the load below, or a frontend that just produced is missed.
        self.memory.fence();
        self.producer = self.read_producer()?;
        Ok(self.producer != self.consumed)
    }

    fn read_producer(&self) -> Result<u32, RingBroken> {
        let claimed = self.memory.load(REQ_PROD);
        let (answered, entries) = (self.pushed, self.entries);
        let behind = claimed.wrapping_sub(self.consumed) > entries;
        if behind || claimed.wrapping_sub(answered) > entries {
            return Err(RingBroken { claimed, answered, entries });
        }
        Ok(claimed)
    }

    fn offset(&self, index: u32) -> usize {
        RING_HEADER_BYTES + (index & (self.entries - 1)) as usize * abi::entry_bytes(self.abi)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> BackRing {
        BackRing::new(SharedMapping::anonymous(PAGE_BYTES).unwrap(), Abi::X86_64, None).unwrap()
    }

    fn answer(ring: &mut BackRing, id: u64) {
        ring.answer(Token::new(id, 0, 0), 0);
    }

    #[test]
    fn a_bogus_producer_breaks_the_ring() {
        let mut ring = ring();
        ring.memory.store(REQ_PROD, 33);
        assert!(ring.take().is_err());
        ring.memory.store(REQ_PROD, 32);
        assert!(ring.take().unwrap().is_some());
        // A producer that goes back behind what was taken is as bogus.
        for _ in 1..32 {
            ring.take().unwrap().unwrap();
        }
        ring.memory.store(REQ_PROD, 31);
        assert!(ring.take().is_err());
    }

    #[test]
    fn never_more_unanswered_than_entries() {
        let mut ring = ring();
        ring.memory.store(REQ_PROD, 32);
        (0..32).for_each(|_| assert!(ring.take().unwrap().is_some()));
        assert!(ring.take().unwrap().is_none());
        answer(&mut ring, 1);
        assert!(ring.take().unwrap().is_none(), "the frontend has not seen the answer");
        let _ = ring.push();
        ring.memory.store(REQ_PROD, 33);
        assert!(ring.take().unwrap().is_some());
    }

    #[test]
    fn notifies_exactly_when_the_frontend_asked() {
        let mut ring = ring();
        ring.memory.store(REQ_PROD, 3);
        (0..3).for_each(|_| assert!(ring.take().unwrap().is_some()));
        ring.memory.store(RSP_EVENT, 1);
        answer(&mut ring, 1);
        assert!(ring.push());
        answer(&mut ring, 2);
        assert!(!ring.push(), "it did not ask again");
        ring.memory.store(RSP_EVENT, 3);
        answer(&mut ring, 3);
        assert!(ring.push());
        assert!(!ring.push(), "nothing new");
    }

    #[test]
    fn sleep_sees_what_came_meanwhile() {
        let mut ring = ring();
        assert!(!ring.sleep().unwrap());
        assert_eq!(ring.memory.load(REQ_EVENT), 1);
        ring.memory.store(REQ_PROD, 1);
        assert!(ring.sleep().unwrap());
    }

    #[test]
    fn indices_wrap() {
        let memory = SharedMapping::anonymous(PAGE_BYTES).unwrap();
        memory.store(RSP_PROD, u32::MAX);
        memory.store(REQ_PROD, 1);
        memory.store(RSP_EVENT, 1);
        let mut ring = BackRing::new(memory, Abi::X86_32, None).unwrap();
        (0..2).for_each(|_| assert!(ring.take().unwrap().is_some()));
        assert!(ring.take().unwrap().is_none());
        (0..2).for_each(|n| answer(&mut ring, n));
        assert!(ring.push());
    }
}
