//! The back end's half of a blkif ring: take descriptors, push answers, decide about notifications.
//!
//! It knows nothing of grants, images or I/O. Source of the rules: xen `public/io/ring.h`.
//! What the frontend can write here costs only itself: a bogus producer breaks the ring for good
//! (XSA-39), a wrong `rsp_event` loses it its own notifications.

use super::abi::{self, Abi, Descriptor, ENTRY_BYTES_MAX, RING_HEADER_BYTES};
use super::shared::{Memory, PAGE_BYTES, SharedMapping};

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
}

impl<M: Memory> BackRing<M> {
    /// A ring in `memory`, which the frontend has initialised. Both ends' private indices begin at
    /// what the ring says was answered: a ring is connected when nothing is in flight.
    #[must_use]
    pub fn new(memory: M, abi: Abi) -> Self {
        let entries = abi::ring_entries(abi, memory.bytes() / PAGE_BYTES);
        let answered = memory.load(RSP_PROD);
        BackRing {
            memory,
            abi,
            entries,
            producer: answered,
            consumed: answered,
            answered,
            pushed: answered,
        }
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

    /// Takes the next descriptor: one copy of its bytes, decoded. `None` when there is none, or
    /// when as many are unanswered as the ring has entries.
    ///
    /// # Errors
    /// When the frontend's producer index cannot be true.
    pub fn take(&mut self) -> Result<Option<Descriptor>, RingBroken> {
        if self.consumed == self.producer {
            self.producer = self.read_producer()?;
        }
        let unanswered = self.consumed.wrapping_sub(self.answered);
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
        self.consumed = self.consumed.wrapping_add(1);
        Ok(Some(abi::decode(self.abi, &entry)))
    }

    /// Writes an answer; the frontend sees it after [`BackRing::push`].
    pub fn answer(&mut self, id: u64, operation: u8, status: i16) {
        let (bytes, length) = abi::encode_response(self.abi, id, operation, status);
        self.memory.copy_in(self.offset(self.answered), &bytes[..length]);
        self.answered = self.answered.wrapping_add(1);
    }

    /// Shows the frontend all answers written so far. True when it wants to be notified.
    #[must_use]
    pub fn push(&mut self) -> bool {
        let (old, new) = (self.pushed, self.answered);
        if new == old {
            return false;
        }
        self.memory.store(RSP_PROD, new);
        self.pushed = new;
        // The store above before the load below, or a frontend going to sleep is missed.
        self.memory.fence();
        new.wrapping_sub(self.memory.load(RSP_EVENT)) < new.wrapping_sub(old)
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
        let (answered, entries) = (self.answered, self.entries);
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
        BackRing::new(SharedMapping::anonymous(PAGE_BYTES).unwrap(), Abi::X86_64)
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
        ring.answer(1, 0, 0);
        ring.memory.store(REQ_PROD, 33);
        assert!(ring.take().unwrap().is_some());
    }

    #[test]
    fn notifies_exactly_when_the_frontend_asked() {
        let mut ring = ring();
        ring.memory.store(REQ_PROD, 3);
        (0..3).for_each(|_| assert!(ring.take().unwrap().is_some()));
        ring.memory.store(RSP_EVENT, 1);
        ring.answer(1, 0, 0);
        assert!(ring.push());
        ring.answer(2, 0, 0);
        assert!(!ring.push(), "it did not ask again");
        ring.memory.store(RSP_EVENT, 3);
        ring.answer(3, 0, 0);
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
        let mut ring = BackRing::new(memory, Abi::X86_32);
        (0..2).for_each(|_| assert!(ring.take().unwrap().is_some()));
        assert!(ring.take().unwrap().is_none());
        (0..2).for_each(|n| ring.answer(n, 0, 0));
        assert!(ring.push());
    }
}
