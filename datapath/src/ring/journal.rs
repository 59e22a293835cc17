//! The journal: what a ring's next worker must know of the requests that this one has taken.
//!
//! A small file in memory that outlives its worker; one for each ring. A place in it holds a copy
//! of a descriptor from before the request counts as taken until its answer was pushed. Answers
//! overwrite requests in the ring, in any order: the ring alone does not tell what is unanswered.
//! It knows nothing of I/O. [`crate::ring::back::BackRing`] writes it and takes it up again.
//!
//! # Why each request is answered exactly once
//! One thread writes journal and ring, and a process that is killed leaves its stores in program
//! order, up to some point. The stores of a request, in that order:
//!
//! 1. descriptor and index into a free place; then its state, *taken*.
//! 2. the answer into the ring, where the frontend does not look yet; status and the answer's
//!    index into the place; then its state, *answered*.
//! 3. the ring's `rsp_prod`: shows the frontend this answer and those before it.
//! 4. the place's state, *free*.
//!
//! Whoever comes next believes `rsp_prod`: a place that is answered below it was seen by the
//! frontend, and is free (a death between 3 and 4). All other places that are not free are owed an
//! answer, and only they are: `rsp_prod` plus their number is how many requests were taken, which
//! therefore needs no store of its own. A request that was not yet *taken* still stands in the
//! ring: a frontend puts no request, and we put no answer, where one is that was not taken.
//! A place that is answered beyond `rsp_prod` is answered anew, with the status that it has; one
//! that is only taken is done once more, which reads and writes allow as long as nobody was told
//! of their end. Taking up may itself die at any store: it only frees and answers as above.
//! `journal/tests.rs` lets it die at every store there is.
//!
//! The frontend can forge `rsp_prod`. Then its own requests are answered twice or never.

use super::abi::ENTRY_BYTES_MAX;
use super::shared::SharedMapping;
use std::os::fd::AsFd;
use std::sync::atomic::{Ordering, compiler_fence};
use zerotap_rpc_schema::worker::{
    Abi, JOURNAL_HEADER_BYTES, JOURNAL_PLACE_BYTES, VbdId, journal_bytes,
};

/// The layout that this file describes; also says that the header is whole.
const VERSION: u32 = 0x7a74_6a01;
/// Where the header tells which ring it is: words.
const IDENTITY: usize = 4;
const IDENTITY_WORDS: usize = 6 + RING_PAGES_MAX;
const RING_PAGES_MAX: usize = 16;

const INDEX: usize = 112;
const STATE: usize = 116;
const ANSWER: usize = 120;
const STATUS: usize = 124;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const ANSWERED: u32 = 2;

/// Why a journal cannot be taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// The file is too short for the ring, or cannot be mapped.
    #[error("the journal cannot be mapped: {0}")]
    Unmapped(rustix::io::Errno),
    /// It was written for a ring with other pages or another port, or by another version.
    #[error("the journal is of another ring, or of another version's")]
    Foreign,
    /// A place that cannot have come about.
    #[error("place {0} of the journal makes no sense")]
    Place(u32),
}

/// The ring that a journal is of: a journal is never taken up for another one.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// Which disk.
    pub vbd: VbdId,
    /// The frontend's port.
    pub port: u32,
    /// The ring's pages.
    pub refs: &'a [u32],
    /// The entries' layout.
    pub abi: Abi,
}

impl Identity<'_> {
    fn words(&self) -> [u32; IDENTITY_WORDS] {
        let mut words = [0; IDENTITY_WORDS];
        let pages = u32::try_from(self.refs.len()).unwrap_or(u32::MAX);
        let domid = u32::from(self.vbd.domid);
        let abi = u32::from(self.abi == Abi::X86_32);
        words[..5].copy_from_slice(&[domid, self.vbd.devid, self.port, abi, pages]);
        for (word, gref) in words[5..].iter_mut().zip(self.refs) {
            *word = *gref;
        }
        words
    }
}

/// A request that is owed an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    /// Where it stands in the journal.
    pub place: u16,
    /// The order in which it was taken.
    pub index: u32,
    /// The descriptor.
    pub entry: [u8; ENTRY_BYTES_MAX],
    /// The status that it was answered with, where the frontend did not look yet.
    pub status: Option<i16>,
}

/// A ring's journal.
#[derive(Debug)]
pub struct Journal {
    memory: SharedMapping,
    places: u32,
    free: Vec<u16>,
    /// Answered, and not known to be pushed.
    answered: Vec<u16>,
}

impl Journal {
    /// The journal of a ring of which nothing was taken yet.
    ///
    /// # Errors
    /// When the file cannot be mapped.
    pub fn begin(file: impl AsFd, ring: &Identity<'_>) -> Result<Self, Damaged> {
        let journal = Self::map(file, ring)?;
        journal.memory.store(0, 0);
        for place in 0..journal.places {
            journal.memory.store(at(place) + STATE, FREE);
        }
        for (n, word) in ring.words().into_iter().enumerate() {
            journal.memory.store(IDENTITY + n * 4, word);
        }
        // Last: without it, nothing was taken.
        journal.memory.store(0, VERSION);
        Ok(journal)
    }

    /// The journal that an earlier worker has left of the same ring.
    ///
    /// # Errors
    /// When it is not of this ring.
    pub fn resume(file: impl AsFd, ring: &Identity<'_>) -> Result<Self, Damaged> {
        let journal = Self::map(&file, ring)?;
        let version = journal.memory.load(0);
        let same = |(n, word)| journal.memory.load(IDENTITY + n * 4) == word;
        match version {
            // Its worker died before it took anything.
            0 => Self::begin(file, ring),
            VERSION if ring.words().into_iter().enumerate().all(same) => Ok(journal),
            _ => Err(Damaged::Foreign),
        }
    }

    fn map(file: impl AsFd, ring: &Identity<'_>) -> Result<Self, Damaged> {
        let bytes = journal_bytes(ring.refs.len());
        let stat = rustix::fs::fstat(&file).map_err(Damaged::Unmapped)?;
        if u64::try_from(stat.st_size).unwrap_or(0) < bytes as u64 {
            return Err(Damaged::Unmapped(rustix::io::Errno::NODATA));
        }
        let memory = SharedMapping::map(file, 0, bytes, true).map_err(Damaged::Unmapped)?;
        let places = super::abi::ring_entries(ring.abi, ring.refs.len());
        debug_assert!(at(places) <= bytes);
        let places16 = u16::try_from(places).expect("at most 512 entries");
        Ok(Journal {
            memory,
            places,
            free: (0..places16).rev().collect(),
            answered: Vec::with_capacity(usize::from(places16)),
        })
    }

    /// What is owed an answer, in the order in which it was taken. `pushed`: the ring's `rsp_prod`.
    ///
    /// # Errors
    /// When the journal makes no sense.
    pub fn owed(&mut self, pushed: u32) -> Result<Vec<Owed>, Damaged> {
        let mut owed = Vec::new();
        for place in 0..self.places {
            let base = at(place);
            let answer = self.memory.load(base + ANSWER);
            let seen = (1..=self.places).contains(&pushed.wrapping_sub(answer));
            let status = match self.memory.load(base + STATE) {
                FREE => continue,
                TAKEN => None,
                ANSWERED if seen => {
                    self.memory.store(base + STATE, FREE);
                    continue;
                }
                ANSWERED if answer.wrapping_sub(pushed) < self.places => {
                    let status = self.memory.load(base + STATUS);
                    Some(i16::try_from(status.cast_signed()).map_err(|_| Damaged::Place(place))?)
                }
                _ => return Err(Damaged::Place(place)),
            };
            owed.push(Owed {
                place: u16::try_from(place).expect("at most 512 entries"),
                index: self.memory.load(base + INDEX),
                entry: self.memory.read(base),
                status,
            });
        }
        let taken = pushed.wrapping_add(u32::try_from(owed.len()).expect("at most 512"));
        // The first taken is the farthest from the end, however long ago that was.
        owed.sort_by_key(|owed| std::cmp::Reverse(taken.wrapping_sub(owed.index)));
        if let Some(twice) = owed.windows(2).find(|two| two[0].index == two[1].index) {
            return Err(Damaged::Place(u32::from(twice[0].place)));
        }
        self.free.retain(|place| !owed.iter().any(|owed| owed.place == *place));
        Ok(owed)
    }

    /// Enters a request: from now on it counts as taken. Answers its place.
    ///
    /// # Panics
    /// When more are unanswered than the ring has entries.
    pub fn take(&mut self, index: u32, entry: &[u8; ENTRY_BYTES_MAX]) -> u16 {
        let place = self.free.pop().expect("as many places as the ring has entries");
        let base = at(u32::from(place));
        // Not before the place was freed, which the caller's push precedes.
        compiler_fence(Ordering::SeqCst);
        self.memory.copy_in(base, entry);
        self.memory.store(base + INDEX, index);
        self.memory.store(base + STATE, TAKEN);
        place
    }

    /// Enters the answer of a request, which stands in the ring by now: the `answer`th.
    pub fn answer(&mut self, place: u16, answer: u32, status: i16) {
        let base = at(u32::from(place));
        self.memory.store(base + STATUS, i32::from(status).cast_unsigned());
        self.memory.store(base + ANSWER, answer);
        self.memory.store(base + STATE, ANSWERED);
        self.answered.push(place);
    }

    /// All answers were pushed: their places are free.
    pub fn pushed(&mut self) {
        for place in self.answered.drain(..) {
            self.memory.store(at(u32::from(place)) + STATE, FREE);
            self.free.push(place);
        }
    }
}

fn at(place: u32) -> usize {
    JOURNAL_HEADER_BYTES + place as usize * JOURNAL_PLACE_BYTES
}

#[cfg(test)]
mod tests;
