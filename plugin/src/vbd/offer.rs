//! What guests are offered at the most: an administrator's vetoes, `[vbd]` in the configuration.
//!
//! No I/O. A flush has no veto: a guest that is offered none takes what was answered for durable.

use super::frontend::RING_PAGE_ORDER_MAX;
use serde::Deserialize;
use zerotap_rpc_schema::worker::{Bounds, Discard, ImageInfo, QUEUES_MAX};

/// Segments of an indirect request, as blkback has them.
const INDIRECT_SEGMENTS_MAX: u32 = 256;

/// The most that is offered; a worker may have less. A guest that is connected keeps what it was
/// offered until its frontend connects anew.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Offer {
    /// `feature-persistent`.
    pub persistent_grants: bool,
    /// `feature-barrier`.
    pub barrier: bool,
    /// `feature-discard`; `discard-enable` = 0 in a VBD's directory forbids it for that VBD alone.
    pub discard: bool,
    /// `multi-queue-max-queues`: 1 to 4.
    pub queues_max: u32,
    /// `max-ring-page-order`: 0 to 4.
    pub ring_page_order_max: u32,
    /// `feature-max-indirect-segments`: 0, for none, to 256.
    pub indirect_segments_max: u32,
    /// `sector-size`: that of the storage where it is larger than 512 bytes.
    pub large_sectors: bool,
}

impl Default for Offer {
    fn default() -> Self {
        Offer {
            persistent_grants: true,
            barrier: true,
            discard: true,
            queues_max: u32::try_from(QUEUES_MAX).unwrap_or(1),
            ring_page_order_max: RING_PAGE_ORDER_MAX,
            indirect_segments_max: INDIRECT_SEGMENTS_MAX,
            large_sectors: false,
        }
    }
}

impl Offer {
    /// Finds what can't be offered.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self) -> Result<(), String> {
        let most = Offer::default();
        for (key, value, min, max) in [
            ("queues_max", self.queues_max, 1, most.queues_max),
            ("ring_page_order_max", self.ring_page_order_max, 0, most.ring_page_order_max),
            ("indirect_segments_max", self.indirect_segments_max, 0, most.indirect_segments_max),
        ] {
            if !(min..=max).contains(&value) {
                return Err(format!("vbd.{key} = {value} is not from {min} to {max}"));
            }
        }
        Ok(())
    }

    /// How a guest that may write can discard on `image`.
    #[must_use]
    pub fn discard(&self, image: &ImageInfo) -> Option<Discard> {
        image.discard.filter(|_| self.discard)
    }

    /// What the worker is to refuse beside that.
    #[must_use]
    pub fn bounds(&self) -> Option<Bounds> {
        let Offer { barrier, indirect_segments_max, .. } = *self;
        let all = barrier && indirect_segments_max == INDIRECT_SEGMENTS_MAX;
        (!all).then_some(Bounds { barrier, indirect_segments_max })
    }

    /// How long the sectors are, bytes, that a guest is told of. What was made on sectors of one
    /// size, a partition table to begin with, is not found on those of another.
    #[must_use]
    pub fn sector_bytes(&self, image: &ImageInfo) -> u32 {
        let emulated = image.emulated_sector_bytes.filter(|_| !self.large_sectors);
        emulated.unwrap_or(image.sector_bytes)
    }
}
