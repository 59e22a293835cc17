//! Writes of parts of the image's sectors, for guests that are told of smaller ones: the sector is
//! read, changed and written back, and nobody else writes there meanwhile.

use super::Device;
use super::slot::Step;
use crate::engine::{Engine, add_vector};
use crate::ring::request::Transfer as Direction;

impl Device {
    /// Has a request claim the sectors that it writes or forgets; false when it has to wait.
    pub(super) fn claim(&mut self, number: u16) -> bool {
        let Some(claims) = &self.claims else { return true };
        let slot = &mut self.slots[usize::from(number)];
        if slot.bytes == 0 || slot.plan.transfer == Direction::Read {
            return true;
        }
        slot.claim = claims.take(slot.range(self.sector_bytes), slot.in_part(), &self.wake);
        slot.claim.is_some()
    }

    /// Those that wait for others' writes try again.
    pub fn unpark(&mut self, engine: &mut Engine) {
        for number in std::mem::take(&mut self.parked) {
            self.advance(number, engine);
        }
    }

    /// Reads a sector that is to be changed.
    pub(super) fn start_part(&mut self, number: u16, engine: &mut Engine) {
        let (spare, bytes) = self.spare(number);
        self.buffers.used(engine);
        let base = self.buffers.memory().address(spare, bytes);
        add_vector(&mut self.slots[usize::from(number)].vectors, base, bytes);
        self.submit_data(number, engine);
    }

    /// Puts what the data does not change of the sector beside it.
    pub(super) fn complete_part(&mut self, number: u16) {
        let (spare, sector) = self.spare(number);
        let slot = &mut self.slots[usize::from(number)];
        let start = slot.buffer.expect("parts of sectors are buffered").start;
        let at_most = |bytes: u64| usize::try_from(bytes).expect("less than a sector");
        let (head, tail) = (at_most(slot.head), at_most(slot.tail));
        let memory = self.buffers.memory();
        if slot.step == Step::Head {
            memory.copy_within(spare, start, head);
        }
        if slot.step == Step::Tail || slot.whole_bytes() == sector {
            memory.copy_within(spare + sector - tail, start + slot.whole_bytes() - tail, tail);
        }
        slot.vectors.clear();
        slot.done = 0;
    }

    /// Where in the buffers a request reads a sector that it changes, and its length.
    fn spare(&self, number: u16) -> (usize, usize) {
        let slot = &self.slots[usize::from(number)];
        let start = slot.buffer.expect("parts of sectors are buffered").start;
        (start + slot.whole_bytes(), self.sector_bytes as usize)
    }
}
