//! Memory of ours that data passes through where the device cannot reach the guest's pages: copied
//! by the hypervisor, or by us where direct I/O does not take pages as they stand.
//!
//! A bounded piece of memory a ring. From the first request that passes through it the kernel keeps
//! its pages at hand, where it can, and need not look them up for each; a guest that copies nothing
//! for a while has none. A request that finds no room waits its turn.

use crate::arena::{Arena, Span};
use crate::engine::Engine;
use crate::ring::shared::{PAGE_BYTES, SharedMapping};
use crate::xen::Piece;

/// Four of the largest requests, or a ring of four pages full of 8 KiB.
pub(super) const BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// The buffers of one ring.
#[derive(Debug)]
pub(super) struct Buffers {
    memory: SharedMapping,
    arena: Arena,
    /// Pieces that are in use; when one last came into use.
    taken: u16,
    taken_us: u64,
    /// Whether any of it is resident.
    resident: bool,
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
        Ok(Buffers {
            memory,
            arena: Arena::new(0, BUFFER_BYTES),
            taken: 0,
            taken_us: 0,
            resident: false,
            pieces: Vec::new(),
        })
    }

    /// Room for `bytes`, page-aligned; none while others have it.
    pub(super) fn take(&mut self, bytes: usize, now_us: u64) -> Option<Span> {
        let span = self.arena.take(bytes)?;
        self.taken += 1;
        self.taken_us = now_us;
        Some(span)
    }

    /// Gives it back.
    pub(super) fn give(&mut self, span: Span) {
        self.taken -= 1;
        self.arena.give(span);
    }

    /// I/O is about to be done on a piece of it.
    pub(super) fn used(&mut self, engine: &mut Engine) {
        if !self.resident {
            self.resident = true;
            engine.register(&self.memory);
        }
    }

    /// Whether any of it is resident.
    pub(super) fn resident(&self) -> bool {
        self.resident
    }

    /// Gives the memory back to the host, unless it was used at `before_us` or later.
    pub(super) fn rest(&mut self, before_us: u64, engine: &mut Engine) {
        if self.resident && self.taken == 0 && self.taken_us < before_us {
            self.resident = false;
            engine.unregister();
            self.memory.forget();
        }
    }

    pub(super) fn memory(&self) -> &SharedMapping {
        &self.memory
    }
}

const _: () = assert!(BUFFER_BYTES.is_multiple_of(PAGE_BYTES));
