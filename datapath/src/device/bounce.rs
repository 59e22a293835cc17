//! Buffers for the few requests whose pages direct I/O does not take as they are.
//!
//! A bounded number, made when first needed; a request that finds none free waits its turn.

use crate::ring::request::INDIRECT_SEGMENTS_MAX;
use crate::ring::shared::{PAGE_BYTES, SharedMapping};
use std::collections::VecDeque;

/// Buffers of one disk.
pub(super) const BOUNCE_BUFFERS_MAX: usize = 4;
/// Bytes of a buffer: the largest request.
pub(super) const BOUNCE_BYTES: usize = INDIRECT_SEGMENTS_MAX * PAGE_BYTES;

/// The buffers, and who waits for one.
#[derive(Debug, Default)]
pub(super) struct BouncePool {
    buffers: Vec<SharedMapping>,
    free: Vec<u16>,
    waiting: VecDeque<u16>,
}

impl BouncePool {
    /// A free buffer's number. Without one, `slot` waits, unless the pool is
    /// [`BouncePool::exhausted`]: it is handed out by
    /// [`BouncePool::release`].
    pub(super) fn acquire(&mut self, slot: u16) -> Option<u16> {
        if let Some(number) = self.free.pop() {
            return Some(number);
        }
        if self.buffers.len() < BOUNCE_BUFFERS_MAX
            && let Ok(buffer) = SharedMapping::anonymous(BOUNCE_BYTES)
        {
            self.buffers.push(buffer);
            return u16::try_from(self.buffers.len() - 1).ok();
        }
        // Without any buffer there is no release that would ever hand one out: the caller gives up.
        if !self.buffers.is_empty() {
            self.waiting.push_back(slot);
        }
        None
    }

    /// Gives a buffer back; answers the slot that waited longest, which tries again.
    pub(super) fn release(&mut self, number: u16) -> Option<u16> {
        self.free.push(number);
        self.waiting.pop_front()
    }

    /// Whether a buffer can ever be had.
    pub(super) fn exhausted(&self) -> bool {
        self.buffers.is_empty()
    }

    pub(super) fn buffer(&self, number: u16) -> &SharedMapping {
        &self.buffers[usize::from(number)]
    }
}
