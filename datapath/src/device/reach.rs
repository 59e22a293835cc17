//! How the requests of a sweep get at their pages: the policy chooses for each, then all is mapped
//! and copied in few calls, because most of a call's cost is fixed.

use super::Device;
use crate::engine::Engine;
use crate::ring::abi::STATUS_ERROR;
use crate::ring::request::Transfer as Direction;
use crate::xen::policy::{Facts, Way, choose};
use crate::xen::transfer::Reach;
use crate::xen::{Access, GRANTS_PER_MAP_MAX, Towards};
use std::time::Duration;

/// Every so many sweeps the dearer way is taken, to know what it costs by now. Powers of two are
/// too: at first all that is known is what it cost elsewhere.
const PROBE_SWEEPS: u64 = 1024;

impl Device {
    /// Reaches the pages of the batch. Requests whose pages the guest does not grant end with an
    /// error; those that find no room for a copy leave the batch and wait.
    pub(super) fn reach_pages(&mut self) {
        let (calls, before_us) = (self.transfer.calls(), self.now_us);
        if self.transfer.wants_room(self.now_us) {
            self.make_room();
        }
        self.transfer.finish_standing(self.now_us);
        let loose_pages = self.find_standing();
        let mut probe = false;
        if loose_pages > 0 {
            self.loose_sweeps += 1;
            let sweeps = self.loose_sweeps;
            probe = sweeps.is_multiple_of(PROBE_SWEEPS) || sweeps.is_power_of_two();
        }
        let mut batch = std::mem::take(&mut self.batch);
        batch.retain(|&number| self.choose_way(number, loose_pages, probe));
        self.batch = batch;
        for access in [Access::ReadOnly, Access::ReadWrite] {
            self.open_windows(access);
        }
        let mut copied = std::mem::take(&mut self.copied);
        self.copy_pages(&copied, Towards::Us);
        copied.clear();
        self.copied = copied;
        if self.transfer.calls() != calls {
            self.tick();
            for &number in &self.batch {
                self.slots[usize::from(number)].reach_us = self.now_us - before_us;
            }
        }
    }

    /// Gives up standing pages that went unused, for others.
    fn make_room(&mut self) {
        self.transfer.purge(self.in_use_us(), self.now_us);
    }

    /// Since when pages may be in use: whatever the oldest request in flight uses was used then.
    fn in_use_us(&self) -> u64 {
        let in_flight = self.slots.iter().filter(|slot| slot.token.is_some());
        in_flight.map(|slot| slot.found_us).min().unwrap_or(u64::MAX)
    }

    /// Whether it holds memory that may go unused: pages of the guest that stand, or buffers.
    #[must_use]
    pub fn keeps_memory(&self) -> bool {
        self.transfer.keeps_pages() || self.buffers.resident()
    }

    /// How long it is kept so.
    #[must_use]
    pub fn unused_max(&self) -> Duration {
        self.unused_max
    }

    /// Gives up buffers and standing pages that have gone unused for that long, of pages some at a
    /// time; true when there may be more of them.
    pub fn drop_unused(&mut self, engine: &mut Engine) -> bool {
        let unused_us = u64::try_from(self.unused_max.as_micros()).unwrap_or(u64::MAX);
        let before_us = self.now_us.saturating_sub(unused_us);
        self.buffers.rest(before_us, engine);
        let before_us = before_us.min(self.in_use_us());
        self.transfer.drop_unused(before_us)
    }

    /// Sees which requests' pages all stand; answers how many pages the others of the batch have.
    fn find_standing(&mut self) -> u32 {
        let mut loose = 0;
        for &number in &self.batch {
            let slot = &mut self.slots[usize::from(number)];
            slot.found_us = self.now_us;
            if !self.transfer.stand(&slot.segments, &mut slot.places, self.now_us) {
                loose += slot.segments.len();
            }
        }
        u32::try_from(loose).expect("at most a ring full of segments")
    }

    /// Decides how a request's pages are reached; false when it has to wait for room.
    fn choose_way(&mut self, number: u16, sweep_pages: u32, probe: bool) -> bool {
        let slot = &mut self.slots[usize::from(number)];
        if !matches!(slot.plan.transfer, Direction::Read | Direction::Write) {
            return true;
        }
        let direct = slot.direct(self.memory_align_bytes);
        let mut facts = Facts {
            rule: self.rule,
            stands: slot.stands(),
            direct,
            network: self.network,
            room: true,
            sweep_pages,
            probe,
        };
        let mut way = choose(&facts, self.transfer.costs());
        // Only who would map asks for room.
        if way == Way::Map && !self.transfer.make_room(sweep_pages) {
            facts.room = false;
            way = choose(&facts, self.transfer.costs());
        }
        if way == Way::Copy || !direct {
            slot.buffer = self.buffers.take(slot.buffer_bytes(self.sector_bytes), self.now_us);
            if slot.buffer.is_none() {
                self.waiting.push(number);
                return false;
            }
        }
        let counters = &mut self.statistics.counters;
        match (way, slot.plan.transfer) {
            (Way::Standing, _) => {
                counters.standing_requests += 1;
                slot.reach = Reach::Standing;
            }
            (Way::Map, transfer) => {
                counters.mapped_requests += 1;
                self.members[usize::from(transfer == Direction::Read)].push(number);
            }
            (Way::Copy, transfer) => {
                counters.grant_copied_requests += 1;
                counters.grant_copied_bytes += slot.bytes;
                slot.reach = Reach::Copied;
                if transfer == Direction::Write {
                    self.copied.push(number);
                }
            }
        }
        true
    }

    /// Maps the pages of all requests that need this access. A guest's write needs only to be read.
    fn open_windows(&mut self, access: Access) {
        let which = usize::from(access == Access::ReadWrite);
        let mut members = std::mem::take(&mut self.members[which]);
        let mut rest = members.as_slice();
        while !rest.is_empty() {
            let mut pages = 0;
            let fit = rest.iter().take_while(|&&number| {
                pages += self.slots[usize::from(number)].segments.len();
                pages <= GRANTS_PER_MAP_MAX
            });
            let (together, others) = rest.split_at(fit.count());
            self.open_window(together, access);
            rest = others;
        }
        members.clear();
        self.members[which] = members;
    }

    /// Maps the pages of several requests as one window. When that fails, each alone: one bad
    /// reference spoils no other request.
    fn open_window(&mut self, members: &[u16], access: Access) {
        self.grefs.clear();
        for &member in members {
            let segments = &self.slots[usize::from(member)].segments;
            self.grefs.extend(segments.iter().map(|segment| segment.gref));
        }
        let mut first_page = 0u16;
        if let Ok(window) = self.transfer.open_window(&self.grefs, access) {
            for &member in members {
                let slot = &mut self.slots[usize::from(member)];
                slot.reach = Reach::Window { window, first_page };
                first_page += u16::try_from(slot.segments.len()).expect("at most 256 segments");
                self.transfer.use_window(window);
            }
        } else if members.len() > 1 {
            members.iter().for_each(|&member| self.open_window(&[member], access));
        } else {
            // Its answer goes with the others; see `start_batch`.
            self.slots[usize::from(members[0])].status = STATUS_ERROR;
        }
    }

    /// Has the hypervisor copy the data of these requests in one call. Those of which it does not
    /// copy every piece have their status set to an error.
    fn copy_pages(&mut self, members: &[u16], towards: Towards) {
        if members.is_empty() {
            return;
        }
        let mut pieces = std::mem::take(&mut self.buffers.pieces);
        pieces.clear();
        for &member in members {
            self.slots[usize::from(member)].add_pieces(&mut pieces);
        }
        self.transfer.copy(self.buffers.memory(), &mut pieces, towards);
        let mut rest = pieces.as_slice();
        for &member in members {
            let slot = &mut self.slots[usize::from(member)];
            let (own, others) = rest.split_at(slot.segments.len());
            rest = others;
            if !own.iter().all(|piece| piece.copied) {
                slot.status = STATUS_ERROR;
            }
        }
        self.buffers.pieces = pieces;
    }

    /// Has what was read for copied requests copied to the guest, in one call for all that have
    /// completed by now, and answers them.
    pub(super) fn return_copied(&mut self) {
        if self.returning.is_empty() {
            return;
        }
        let mut returning = std::mem::take(&mut self.returning);
        self.copy_pages(&returning, Towards::Guest);
        self.tick();
        for number in returning.drain(..) {
            if self.slots[usize::from(number)].status == STATUS_ERROR {
                self.count_ungranted();
            }
            self.answer(number);
        }
        self.returning = returning;
    }
}
