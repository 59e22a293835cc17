//! How a request's pages are reached: by a mapping that stands, by one shared over a sweep, or by a
//! copy that a sweep makes. `policy.rs` chooses; here is what it chooses from.
//!
//! Persistent grants (both ends offered them): a page is mapped when first seen and stays, until
//! the disk disconnects, room is short or it goes unused (`standing.rs`); in the steady state there
//! is no hypercall at all. Linux's frontend notices that a page stays mapped and keeps using it
//! (drivers/block/xen-blkfront.c, `blkif_completion`).
//! Otherwise all pages of a sweep are mapped in few calls and unmapped in one, since most of a
//! mapping's cost is fixed; the answers of the requests in it wait for that, because a frontend
//! takes its pages back with the answer.
//!
//! A mapping is only dropped when no request uses it: its users are counted here, and the device
//! counts a request as a user until the kernel has answered all its I/O.

use super::budget::Allowance;
use super::cost::Cost;
use super::policy::Costs;
pub use super::standing::Place;
use super::standing::{GREFS_MAX, Purged, Standing};
use super::{Access, CopyOut, GRANTS_PER_MAP_MAX, GrantMapping, Grants, Piece, Towards};
use crate::clock::Clock;
use crate::ring::abi::Segment;
use crate::ring::shared::{PAGE_BYTES, SharedMapping};
use std::time::Duration;
use zerotap_rpc_schema::worker::Counters;

/// Pages that stay mapped for one disk: 16 MiB of guest memory. A frontend that uses more gets the
/// rest mapped sweep by sweep. The guests of tests' histories are small.
pub const PERSISTENT_PAGES_MAX: usize = if cfg!(test) { 12 } else { 4096 };

/// How often room is made at the most, and how long a page must have been unused for that. In the
/// histories of tests hardly any time passes.
const PURGE_INTERVAL_US: u64 = if cfg!(test) { 10 } else { 100_000 };
/// The same.
pub const PURGE_INTERVAL: Duration = Duration::from_micros(PURGE_INTERVAL_US);
const UNUSED_US: u64 = if cfg!(test) { 0 } else { 1_000_000 };
/// How much room: a part of [`PERSISTENT_PAGES_MAX`], as blkback's.
const PURGE_PAGES: usize = PERSISTENT_PAGES_MAX.div_ceil(20);
/// How long no page is kept of a guest whose pages were not used again; twice as long each time.
const PAUSE_US: u64 = if cfg!(test) { 1 } else { 1_000_000 };
const PAUSE_US_MAX: u64 = 64 * PAUSE_US;

/// How a request's pages are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Each by its own standing mapping.
    Standing,
    /// Side by side in this window, from this page on.
    Window {
        /// The window's number.
        window: u16,
        /// The request's first page.
        first_page: u16,
    },
    /// Not at all: its data is in a buffer of ours, copied from there or thereto.
    Copied,
}

/// A mapping shared by the requests of a sweep.
#[derive(Debug)]
struct Window {
    mapping: GrantMapping,
    users: u16,
    map_ns: u64,
}

/// One disk's mappings.
#[derive(Debug)]
pub struct Transfer {
    grants: Grants,
    persistent: bool,
    standing: Standing,
    /// No page is kept before then.
    paused_until_us: u64,
    pause_us: u64,
    /// A page found no room; when it was last made.
    short: bool,
    purged_us: u64,
    windows: Vec<Option<Window>>,
    scratch: Vec<u32>,
    costs: Costs,
    allowance: Allowance,
    clock: Clock,
    /// Only what calls were made, and what they took.
    counters: Counters,
}

impl Transfer {
    /// No mappings yet. `persistent`: both ends offered persistent grants.
    #[must_use]
    pub fn new(grants: Grants, persistent: bool, allowance: Allowance) -> Self {
        Transfer {
            grants,
            persistent,
            standing: Standing::default(),
            paused_until_us: 0,
            pause_us: PAUSE_US,
            short: false,
            purged_us: 0,
            windows: Vec::new(),
            scratch: Vec::with_capacity(GRANTS_PER_MAP_MAX),
            costs: Costs { map: Cost::MAP, copy: Cost::COPY },
            allowance,
            clock: Clock::new(),
            counters: Counters::default(),
        }
    }

    /// What calls cost here.
    #[must_use]
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// Calls made so far that mapped pages or copied data.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.counters.map_calls + self.counters.grant_copy_calls
    }

    /// Adds what it counted and holds.
    pub fn count(&self, into: &mut Counters) {
        into.merge(&self.counters);
        into.mapped_pages = u32::try_from(self.mapped_pages()).unwrap_or(u32::MAX);
        into.persistent_pages = u32::try_from(self.standing.pages()).unwrap_or(u32::MAX);
    }

    /// Pages mapped now.
    fn mapped_pages(&self) -> usize {
        let windows = self.windows.iter().flatten();
        self.standing.pages()
            + windows.map(|window| window.mapping.memory().bytes() / PAGE_BYTES).sum::<usize>()
    }

    /// Whether any page stands.
    #[must_use]
    pub fn keeps_pages(&self) -> bool {
        self.standing.pages() > 0
    }

    /// Makes the pages of `segments` stand, as far as there is room and the guest lets us. Pages
    /// that are missing over a whole sweep are mapped together: call it for all requests, with
    /// `finish_standing` at the end.
    pub fn want_standing(&mut self, segments: &[Segment], now_us: u64) {
        if !self.persistent {
            return;
        }
        for segment in segments {
            self.want_page(segment.gref, now_us);
        }
    }

    /// The same for one page.
    pub fn want_page(&mut self, gref: u32, now_us: u64) {
        // Where there was no room, nobody asks for each page again: that takes a lock.
        let never = !self.persistent || gref as usize >= GREFS_MAX || self.short;
        if never || self.standing.get(gref).is_some() || now_us < self.paused_until_us {
            return;
        }
        let full = self.standing.pages() + self.scratch.len() >= PERSISTENT_PAGES_MAX;
        if full || !self.allowance.take(1) {
            self.short = true;
            return;
        }
        if self.scratch.len() == GRANTS_PER_MAP_MAX {
            self.finish_standing(now_us);
        }
        let wanted = self.standing.want(gref);
        debug_assert!(wanted, "it was looked for");
        self.scratch.push(gref);
    }

    /// Maps what `want_standing` found missing. When the guest gave a bad reference, each page is
    /// tried alone, so that one bad page spoils no other request.
    pub fn finish_standing(&mut self, now_us: u64) {
        if self.scratch.is_empty() {
            return;
        }
        let missing = std::mem::take(&mut self.scratch);
        self.counters.map_calls += 1;
        if let Ok(up) = self.grants.map(&missing, Access::ReadWrite) {
            let mut down = None;
            if missing.len() > 1 && self.allowance.take(missing.len()) {
                let reversed: Vec<u32> = missing.iter().rev().copied().collect();
                down = self.grants.map(&reversed, Access::ReadWrite).ok();
                if down.is_none() {
                    self.allowance.give(missing.len());
                }
            }
            self.standing.keep(&missing, up, down, now_us);
        } else {
            for gref in &missing {
                self.counters.map_calls += 1;
                if let Ok(mapping) = self.grants.map(&[*gref], Access::ReadWrite) {
                    self.standing.keep(&[*gref], mapping, None, now_us);
                } else {
                    self.standing.give_up(*gref);
                    self.allowance.give(1);
                }
            }
        }
        self.scratch = missing;
        self.scratch.clear();
    }

    /// Whether all pages of a request stand, and then where.
    pub fn stand(&mut self, segments: &[Segment], places: &mut Vec<Place>, now_us: u64) -> bool {
        self.persistent && self.standing.find(segments, places, now_us)
    }

    /// Whether [`Transfer::purge`] may make room.
    #[must_use]
    pub fn wants_room(&self, now_us: u64) -> bool {
        self.short && now_us >= self.purged_us + PURGE_INTERVAL_US
    }

    /// Makes room for pages that found none, by giving up those that have gone unused for longest;
    /// then pages are looked for anew. None is given up that was used at `in_use_us` or later: the
    /// oldest request in flight began then. A guest that never uses its pages again gets none kept
    /// for a while: they would only take the room of others.
    pub fn purge(&mut self, in_use_us: u64, now_us: u64) {
        self.short = false;
        self.purged_us = now_us;
        let before_us = in_use_us.min(now_us.saturating_sub(UNUSED_US));
        let purged = self.give_up(before_us);
        if purged.mapped == 0 {
            return;
        }
        if purged.reused {
            self.pause_us = PAUSE_US;
            return;
        }
        self.paused_until_us = now_us + self.pause_us;
        self.pause_us = (self.pause_us * 2).min(PAUSE_US_MAX);
    }

    /// Gives up pages that were not used since `before_us`, as many as one purge does; true when
    /// there may be more of them.
    pub fn drop_unused(&mut self, before_us: u64) -> bool {
        self.give_up(before_us).mapped > 0
    }

    fn give_up(&mut self, before_us: u64) -> Purged {
        let purged = self.standing.purge(before_us, PURGE_PAGES);
        if purged.mapped > 0 {
            self.allowance.give(purged.mapped);
            self.allowance.trim();
            self.counters.purged_pages += purged.mapped as u64;
        }
        purged
    }

    /// Whether so many pages may be mapped for a sweep.
    pub fn make_room(&mut self, pages: u32) -> bool {
        self.allowance.make_room(pages as usize)
    }

    /// Maps the pages of several requests side by side; answers the window's number. It has no
    /// users yet.
    ///
    /// # Errors
    /// When a page cannot be mapped; then none is.
    ///
    /// # Panics
    /// When there is no room for them.
    pub fn open_window(&mut self, grefs: &[u32], access: Access) -> rustix::io::Result<u16> {
        self.counters.map_calls += 1;
        let start_ns = self.clock.now_ns();
        let mapping = self.grants.map(grefs, access)?;
        assert!(self.allowance.take(grefs.len()), "room was made");
        let map_ns = self.clock.now_ns() - start_ns;
        let window = Some(Window { mapping, users: 0, map_ns });
        let number = self.windows.iter().position(Option::is_none).unwrap_or(self.windows.len());
        if number == self.windows.len() {
            self.windows.push(window);
        } else {
            self.windows[number] = window;
        }
        Ok(u16::try_from(number).expect("at most one window a request"))
    }

    /// Counts one more user of a window.
    pub fn use_window(&mut self, window: u16) {
        self.window(window).users += 1;
    }

    /// Counts one user less; unmaps the window when it was the last. True if so.
    pub fn leave_window(&mut self, window: u16) -> bool {
        let left = self.window(window);
        left.users -= 1;
        if left.users > 0 {
            return false;
        }
        let (map_ns, bytes) = (left.map_ns, left.mapping.memory().bytes());
        let start_ns = self.clock.now_ns();
        self.windows[usize::from(window)] = None;
        let ns = map_ns + self.clock.now_ns() - start_ns;
        let pages = u32::try_from(bytes / PAGE_BYTES).expect("at most 512");
        self.allowance.give(bytes / PAGE_BYTES);
        self.costs.map.learn(pages, ns);
        self.counters.map_ns += ns;
        self.counters.map_call_pages += u64::from(pages);
        true
    }

    /// Has the hypervisor copy all pieces between the guest's pages and `memory`, in one call.
    pub fn copy(&mut self, memory: &SharedMapping, pieces: &mut [Piece], towards: Towards) {
        let start_ns = self.clock.now_ns();
        self.grants.copy(memory, pieces, towards);
        let ns = self.clock.now_ns() - start_ns;
        let count = u32::try_from(pieces.len()).expect("at most a ring full of segments");
        self.costs.copy.learn(count, ns);
        self.counters.grant_copy_calls += 1;
        self.counters.grant_copy_ns += ns;
        self.counters.grant_copy_pieces += u64::from(count);
    }

    fn window(&mut self, window: u16) -> &mut Window {
        self.windows[usize::from(window)].as_mut().expect("a window lives while it has users")
    }

    /// Where segment `n` of a request is: its mapping, the offset in it and its length in bytes.
    /// `places`: of its pages, when they stand.
    ///
    /// # Panics
    /// When the request's pages were not mapped.
    #[must_use]
    pub fn locate(
        &self,
        reach: Reach,
        places: &[Place],
        n: usize,
        segment: Segment,
    ) -> (&SharedMapping, usize, usize) {
        let (memory, page) = match reach {
            Reach::Standing => self.standing.up(places[n]),
            Reach::Window { window, first_page } => {
                let window = self.windows[usize::from(window)].as_ref();
                let window = window.expect("a window lives while it has users");
                (window.mapping.memory(), usize::from(first_page) + n)
            }
            Reach::Copied => unreachable!("a copied request has a buffer"),
        };
        let (offset, bytes) = within(page, segment);
        (memory, offset, bytes)
    }

    /// Where the I/O of segment `n` begins, and its bytes. `end`: where the I/O of the segment
    /// before it ends.
    ///
    /// A page that stands is mapped twice. A frontend takes the pages that it keeps off a stack
    /// (Linux drivers/block/xen-blkfront.c, `get_grant`): a request has them in the order in which
    /// they were first seen or against it. In one of the two mappings they are neighbours, and the
    /// kernel pins a range in one go; page by page it costs more than the copy that it saves.
    #[must_use]
    pub fn base(
        &self,
        reach: Reach,
        places: &[Place],
        segments: &[Segment],
        n: usize,
        end: *mut u8,
    ) -> (*mut u8, usize) {
        let (memory, offset, bytes) = self.locate(reach, places, n, segments[n]);
        let up = memory.address(offset, bytes);
        // A single page has no neighbours.
        if reach != Reach::Standing || up == end || segments.len() == 1 {
            return (up, bytes);
        }
        let Some(down) = self.base_down(places[n], segments[n]) else { return (up, bytes) };
        let next = segments.get(n + 1).and_then(|next| self.base_down(places[n + 1], *next));
        let leads = down == end || next == Some(down.wrapping_add(bytes));
        (if leads { down } else { up }, bytes)
    }

    fn base_down(&self, place: Place, segment: Segment) -> Option<*mut u8> {
        let (memory, page) = self.standing.down(place)?;
        let (offset, bytes) = within(page, segment);
        Some(memory.address(offset, bytes))
    }

    /// Copies the beginning of a standing page; false when it does not stand.
    #[must_use]
    pub fn copy_standing(&self, gref: u32, to: &mut [u8]) -> bool {
        let Some(place) = self.standing.get(gref) else { return false };
        let (memory, page) = self.standing.up(place);
        memory.copy_out(page * PAGE_BYTES, to);
        true
    }

    /// Copies the beginning of granted pages, those that hold the segments of indirect requests, in
    /// one call for all.
    ///
    /// # Errors
    /// When any of them cannot be copied.
    pub fn copy_pages(&self, copies: &mut [CopyOut<'_>]) -> rustix::io::Result<()> {
        self.grants.copy_out(copies)
    }
}

/// Where a segment lies in a mapping when its page is number `page`: offset and length in bytes.
fn within(page: usize, segment: Segment) -> (usize, usize) {
    let (offset, bytes) = segment.in_page();
    (page * PAGE_BYTES + usize::from(offset), usize::from(bytes))
}
