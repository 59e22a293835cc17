//! Memory of ours that data passes through where the device cannot reach the guest's pages: copied
//! by the hypervisor, or by us where direct I/O does not take pages as they stand.
//!
//! A bounded piece of memory a ring, used from its start on, so that only as much of it is resident
//! as was ever in use at a time. A request that finds no room waits its turn.

use crate::arena::{Arena, Span};
use crate::ring::shared::{PAGE_BYTES, SharedMapping};
use crate::xen::Piece;

/// Four of the largest requests, or a ring of four pages full of 8 KiB.
pub(super) const BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// The buffers of one ring.
#[derive(Debug)]
pub(super) struct Buffers {
    memory: SharedMapping,
    arena: Arena,
    /// The pieces of a copy; kept for their memory.
    pub(super) pieces: Vec<Piece>,
}

impl Buffers {
    /// All free, none of it resident.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn new() -> rustix::io::Result<Self> {
        let memory = SharedMapping::anonymous(BUFFER_BYTES)?;
        Ok(Buffers { memory, arena: Arena::new(0, BUFFER_BYTES), pieces: Vec::new() })
    }

    /// Room for `bytes`, page-aligned; none while others have it.
    pub(super) fn take(&mut self, bytes: usize) -> Option<Span> {
        self.arena.take(bytes)
    }

    /// Gives it back.
    pub(super) fn give(&mut self, span: Span) {
        self.arena.give(span);
    }

    pub(super) fn memory(&self) -> &SharedMapping {
        &self.memory
    }
}

const _: () = assert!(BUFFER_BYTES.is_multiple_of(PAGE_BYTES));
