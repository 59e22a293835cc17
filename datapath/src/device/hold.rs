//! While the image is copied: writes and discards wait until what they change was cloned. Reads and
//! flushes go on.

use super::Device;
use super::slot::{Slot, Step};
use crate::copy::Hold;
use crate::engine::Engine;
use crate::ring::request::{SECTOR_BYTES, Transfer as Direction};

impl Slot {
    /// Its data step changes the image.
    fn changes(&self) -> bool {
        self.bytes > 0 && matches!(self.plan.transfer, Direction::Write | Direction::Discard { .. })
    }
}

impl Device {
    /// Changes the image by `hold` from now on; without one as it likes.
    pub fn hold(&mut self, hold: Option<Hold>, engine: &mut Engine) {
        self.hold = hold;
        self.retry_held(engine);
    }

    /// Whether something that changes the image is with the kernel.
    #[must_use]
    pub fn writes(&self) -> bool {
        let begun = self
            .slots
            .iter()
            .filter(|slot| slot.token.is_some() && slot.step == Step::Data && slot.changes());
        begun.count() > self.held.len()
    }

    /// Begins those that wait, as far as the copy is.
    pub fn retry_held(&mut self, engine: &mut Engine) {
        for _ in 0..self.held.len() {
            let number = self.held.remove(0);
            self.slots[usize::from(number)].begun_us = self.now_us;
            self.advance(number, engine);
        }
    }

    /// Whether a request that is about to begin its data step has to wait; it is begun later then.
    pub(super) fn is_held(&mut self, number: u16) -> bool {
        let Some(hold) = &self.hold else { return false };
        let slot = &self.slots[usize::from(number)];
        let start = slot.plan.sector * SECTOR_BYTES;
        if !slot.changes() || hold.lets(&(start..start + slot.bytes)) {
            return false;
        }
        self.held.push(number);
        true
    }
}
