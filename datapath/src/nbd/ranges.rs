//! The order of writes that overlap, where one of them changes a part of a sector.
//!
//! Such a write reads the sector, changes it and writes it back: whatever else wrote to the sector
//! in between would be lost. So it runs alone on its sectors, in the order of arrival; writes of
//! whole sectors do not wait for each other. Numbers only.

use std::collections::VecDeque;

/// A write of the server: connection and slot.
pub(super) type Writer = (u16, u16);

#[derive(Debug)]
struct Entry {
    writer: Writer,
    start: u64,
    end: u64,
    /// It changes parts of sectors.
    partial: bool,
    running: bool,
}

/// All writes that run or wait, in the order of arrival.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    entries: VecDeque<Entry>,
    partial: usize,
}

impl Ranges {
    /// A write of whole sectors from `start` to `end` begins. True when it can run at once;
    /// otherwise [`Ranges::leave`] tells when.
    pub(super) fn enter(&mut self, writer: Writer, start: u64, end: u64, partial: bool) -> bool {
        self.partial += usize::from(partial);
        let running = self.partial == 0
            || !self.entries.iter().any(|earlier| conflict(earlier, start, end, partial));
        self.entries.push_back(Entry { writer, start, end, partial, running });
        running
    }

    /// A write has ended. Answers those that can run now.
    pub(super) fn leave(&mut self, writer: Writer) -> Vec<Writer> {
        let found = self.entries.iter().position(|entry| entry.writer == writer);
        let Some(index) = found else { return Vec::new() };
        let gone = self.entries.remove(index).expect("it was found there");
        let waited = self.partial > 0;
        self.partial -= usize::from(gone.partial);
        let mut started = Vec::new();
        // Without a partial one nobody waits.
        for later in if waited { index } else { self.entries.len() }..self.entries.len() {
            let entry = &self.entries[later];
            if entry.running {
                continue;
            }
            let (start, end, partial) = (entry.start, entry.end, entry.partial);
            let mut earlier = self.entries.range(..later);
            if !earlier.any(|earlier| conflict(earlier, start, end, partial)) {
                self.entries[later].running = true;
                started.push(self.entries[later].writer);
            }
        }
        started
    }
}

fn conflict(earlier: &Entry, start: u64, end: u64, partial: bool) -> bool {
    (earlier.partial || partial) && earlier.start < end && start < earlier.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the order of ends: no two that conflict run together, none waits for ever, and
        /// two that conflict run in the order of arrival.
        #[test]
        fn a_partial_write_is_alone_on_its_sectors(
            writes in prop::collection::vec((0u64..12, 1u64..4, any::<bool>()), 1..40),
            ends in prop::collection::vec(any::<prop::sample::Index>(), 40),
        ) {
            let mut ranges = Ranges::default();
            let mut running: Vec<usize> = Vec::new();
            let mut begun = vec![false; writes.len()];
            let overlap = |a: usize, b: usize| {
                let ((s, l, p), (t, m, q)) = (writes[a], writes[b]);
                (p || q) && s < t + m && t < s + l
            };
            for (n, &(start, length, partial)) in writes.iter().enumerate() {
                if ranges.enter((0, u16::try_from(n).unwrap()), start, start + length, partial) {
                    running.push(n);
                    begun[n] = true;
                }
            }
            for end in ends {
                for (n, &a) in running.iter().enumerate() {
                    prop_assert!(running[n + 1..].iter().all(|&b| !overlap(a, b)));
                    prop_assert!((0..a).all(|b| begun[b] || !overlap(a, b)));
                }
                if running.is_empty() {
                    break;
                }
                let gone = running.swap_remove(end.index(running.len()));
                for (_, slot) in ranges.leave((0, u16::try_from(gone).unwrap())) {
                    begun[usize::from(slot)] = true;
                    running.push(usize::from(slot));
                }
            }
            prop_assert!(begun.iter().all(|&begun| begun));
        }
    }
}
