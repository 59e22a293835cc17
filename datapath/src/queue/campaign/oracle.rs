//! What each sector of a disk may hold: of all that a guest asked for and was told, what a read may
//! answer, and what a power cut may leave. Knows nothing of rings, workers or the simulated disk.

use crate::engine::simulated::{SECTOR_BYTES, Sector};
use crate::random::mix;
use std::ops::Range;

/// Each sector that is written differs from every other that ever was: it names its disk, its place
/// and its write. Stamp 0 is a sector of zeroes.
pub(super) fn content(disk: u64, sector: usize, stamp: u64) -> Sector {
    let mut bytes = [0; SECTOR_BYTES];
    if stamp > 0 {
        let mut word = stamp;
        for (n, place) in bytes.chunks_exact_mut(8).enumerate() {
            place.copy_from_slice(&word.to_le_bytes());
            word = mix(stamp ^ disk << 60 ^ (sector as u64) << 32 ^ (n as u64) << 24);
        }
    }
    bytes
}

/// Which write a sector holds.
fn stamp(disk: u64, sector: usize, bytes: &[u8]) -> Result<u64, String> {
    let stamp = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    if content(disk, sector, stamp) == bytes {
        Ok(stamp)
    } else {
        Err(format!(
            "sector {sector} of disk {disk} holds what was never written there: {stamp:#x}"
        ))
    }
}

/// A version of a sector.
#[derive(Debug, Clone, Copy)]
struct Version {
    stamp: u64,
    queue: usize,
    asked: u64,
    /// When its success was told, if it was.
    told: Option<u64>,
}

/// A request whose success makes things durable: a flush, or a barrier of this queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flush {
    pub(super) asked: u64,
    pub(super) barrier: Option<usize>,
}

/// One disk's. Requests that are in flight together never overlap.
#[derive(Debug)]
pub(super) struct Oracle {
    disk: u64,
    /// By sector, from what is durable to what was asked last.
    sectors: Vec<Vec<Version>>,
}

impl Oracle {
    pub(super) fn new(disk: u64, sectors: usize) -> Oracle {
        let mut oracle = Oracle { disk, sectors: Vec::new() };
        oracle.grow(sectors);
        oracle
    }

    pub(super) fn grow(&mut self, sectors: usize) {
        let zeroes = Version { stamp: 0, queue: 0, asked: 0, told: Some(0) };
        self.sectors.resize(sectors, vec![zeroes]);
    }

    pub(super) fn sectors(&self) -> usize {
        self.sectors.len()
    }

    /// A write, or with stamp 0 a discard, is asked for.
    pub(super) fn asked(&mut self, range: Range<usize>, stamp: u64, queue: usize, asked: u64) {
        for sector in &mut self.sectors[range] {
            sector.push(Version { stamp, queue, asked, told: None });
        }
    }

    /// It succeeded. (One that failed may still have reached any of its sectors.)
    pub(super) fn told(&mut self, range: Range<usize>, now: u64) {
        for sector in &mut self.sectors[range] {
            sector.last_mut().expect("a version").told = Some(now);
        }
    }

    /// What was told before the flush was asked for is durable; before a barrier of its queue, what
    /// was asked for.
    pub(super) fn flushed(&mut self, flush: Flush) {
        let Flush { asked, barrier } = flush;
        let covers = |version: &Version| {
            let before = version.told.is_some_and(|told| told < asked);
            before
                || version.told.is_some()
                    && barrier == Some(version.queue)
                    && version.asked <= asked
        };
        for sector in &mut self.sectors {
            let floor = sector.iter().rposition(covers).unwrap_or(0);
            sector.drain(..floor);
        }
    }

    /// Checks what a read has brought, or a look at the whole disk.
    pub(super) fn check_read(&self, first: usize, bytes: &[u8]) -> Result<(), String> {
        for (n, bytes) in bytes.chunks(SECTOR_BYTES).enumerate() {
            let (sector, stamp) = (first + n, stamp(self.disk, first + n, bytes)?);
            let versions = &self.sectors[sector];
            let last = versions.iter().rposition(|version| version.told.is_some()).unwrap_or(0);
            if !versions[last..].iter().any(|version| version.stamp == stamp) {
                let of = format!("sector {sector} of disk {}", self.disk);
                return Err(format!(
                    "{of} reads as write {stamp}, not as of {:?}",
                    &versions[last..]
                ));
            }
        }
        Ok(())
    }

    /// Checks what a power cut has left, and takes it for what is there from now on.
    pub(super) fn check_cut(&mut self, disk: &[Sector]) -> Result<(), String> {
        for (sector, versions) in self.sectors.iter_mut().enumerate() {
            let stamp = stamp(self.disk, sector, &disk[sector])?;
            let Some(&left) = versions.iter().rev().find(|version| version.stamp == stamp) else {
                let of = format!("sector {sector} of disk {}", self.disk);
                return Err(format!(
                    "{of} is write {stamp} after a power cut, not of {versions:?}"
                ));
            };
            *versions = vec![Version { told: Some(0), asked: 0, ..left }];
        }
        Ok(())
    }
}
