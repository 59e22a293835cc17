//! The pages of a guest that stay mapped, by grant reference, in the mappings that they were made
//! with: those that go longest unused are given up first.
//!
//! It makes no calls but unmapping what it drops, and knows nothing of requests: whoever uses a
//! page says when, and purges nothing that is in use.

use super::GrantMapping;
use crate::ring::abi::Segment;
use crate::ring::shared::{PAGE_BYTES, SharedMapping};

/// References from this one on never stand: a guest's table has 32 768 by default (Xen's
/// `gnttab_max_frames`), and a guest must not choose how much memory we keep.
pub(super) const GREFS_MAX: usize = 64 * 1024;

/// Where a page is: which mapping, which page of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    mapping: u16,
    page: u16,
}

/// The place of a page that is about to be mapped.
const WANTED: Place = Place { mapping: u16::MAX, page: 0 };

/// Pages that were mapped together.
#[derive(Debug)]
struct Kept {
    up: GrantMapping,
    /// The same pages in reverse order, where there is more than one: see `Transfer::base`.
    down: Option<GrantMapping>,
    grefs: Box<[u32]>,
    /// When they were made and last used.
    made_us: u64,
    used_us: u64,
}

/// What a purge gave up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Purged {
    /// Mapped pages, those that were mapped twice counted twice.
    pub(super) mapped: usize,
    /// Whether any page had been used again since it was mapped.
    pub(super) reused: bool,
}

/// The pages. A plain table by reference: a lookup a page is all that a request costs in the steady
/// state.
#[derive(Debug, Default)]
pub(super) struct Standing {
    places: Vec<Option<Place>>,
    mappings: Vec<Option<Kept>>,
    free: Vec<u16>,
    pages: usize,
}

impl Standing {
    /// How many there are.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Where a page is. Not between [`Standing::want`] and what comes of it.
    pub(super) fn get(&self, gref: u32) -> Option<Place> {
        self.places.get(gref as usize).copied().flatten()
    }

    /// Marks a page that is to be mapped; false when it stands, or is marked already.
    pub(super) fn want(&mut self, gref: u32) -> bool {
        let index = gref as usize;
        debug_assert!(index < GREFS_MAX, "the caller asks for no others");
        if index >= self.places.len() {
            self.places.resize((index + 1).next_power_of_two(), None);
        }
        let new = self.places[index].is_none();
        if new {
            self.places[index] = Some(WANTED);
        }
        new
    }

    /// It was not to be had.
    pub(super) fn give_up(&mut self, gref: u32) {
        self.places[gref as usize] = None;
    }

    /// Where each page of a request is, into `places`; false, and none of it, when one does not
    /// stand. They count as used now.
    pub(super) fn find(
        &mut self,
        segments: &[Segment],
        places: &mut Vec<Place>,
        now_us: u64,
    ) -> bool {
        places.clear();
        for segment in segments {
            let Some(place) = self.get(segment.gref) else {
                places.clear();
                return false;
            };
            places.push(place);
        }
        for place in &*places {
            self.kept_mut(*place).used_us = now_us;
        }
        true
    }

    /// Keeps pages, wanted ones, that were mapped together.
    pub(super) fn keep(
        &mut self,
        grefs: &[u32],
        up: GrantMapping,
        down: Option<GrantMapping>,
        now_us: u64,
    ) {
        let grefs: Box<[u32]> = grefs.into();
        let mapping = self.free.pop().unwrap_or_else(|| {
            self.mappings.push(None);
            u16::try_from(self.mappings.len() - 1).expect("at most one a page")
        });
        for (page, &gref) in (0..).zip(&grefs) {
            let before = self.places[gref as usize].replace(Place { mapping, page });
            debug_assert_eq!(before, Some(WANTED), "nothing stands twice");
        }
        self.pages += grefs.len();
        let kept = Kept { up, down, grefs, made_us: now_us, used_us: now_us };
        self.mappings[usize::from(mapping)] = Some(kept);
    }

    /// Gives up what was not used since `before_us`, the longest unused first, until `enough` pages
    /// are gone.
    pub(super) fn purge(&mut self, before_us: u64, enough: usize) -> Purged {
        let mut purged = Purged::default();
        let mut pages = 0;
        while pages < enough {
            let unused = self.mappings.iter().enumerate().filter_map(|(number, kept)| {
                let used_us = kept.as_ref()?.used_us;
                (used_us < before_us).then_some((used_us, number))
            });
            let Some((_, number)) = unused.min() else { break };
            let kept = self.mappings[number].take().expect("it was just seen");
            kept.grefs.iter().for_each(|&gref| self.places[gref as usize] = None);
            self.free.push(u16::try_from(number).expect("at most one a page"));
            self.pages -= kept.grefs.len();
            pages += kept.grefs.len();
            purged.mapped += kept.grefs.len() * if kept.down.is_some() { 2 } else { 1 };
            purged.reused |= kept.used_us > kept.made_us;
        }
        purged
    }

    /// The mapping that a page is in, and its number there.
    pub(super) fn up(&self, place: Place) -> (&SharedMapping, usize) {
        (self.kept(place).up.memory(), usize::from(place.page))
    }

    /// The same in reverse order.
    pub(super) fn down(&self, place: Place) -> Option<(&SharedMapping, usize)> {
        let memory = self.kept(place).down.as_ref()?.memory();
        Some((memory, memory.bytes() / PAGE_BYTES - 1 - usize::from(place.page)))
    }

    fn kept(&self, place: Place) -> &Kept {
        self.mappings[usize::from(place.mapping)].as_ref().expect("what is in use is kept")
    }

    fn kept_mut(&mut self, place: Place) -> &mut Kept {
        self.mappings[usize::from(place.mapping)].as_mut().expect("what is in use is kept")
    }
}
