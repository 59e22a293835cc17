//! What a disk should hold: a generation for each sector, and the bytes that follow from it.
//!
//! Every sector that the workload writes carries its own number, its generation and the seed, then
//! bytes that follow from these: a sector out of place, stale, torn or mixed shows.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::ops::Range;
use std::path::Path;

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;

/// Never written through this model, or discarded: zeros when the disk was fresh.
pub(super) const UNWRITTEN: u32 = 0;
/// Written by somebody else before: only its form is known.
const FOREIGN: u32 = u32::MAX;

/// The disk as it should be.
#[derive(Debug, Clone)]
pub struct Model {
    seed: u64,
    generations: Vec<u32>,
    /// Sectors whose writes since the last sure one failed or were never answered: they may hold
    /// any of these generations.
    uncertain: BTreeMap<u64, Vec<u32>>,
    /// Sectors that requests in flight read (count) or write (`WRITING`).
    busy: Vec<u8>,
    last_generation: u32,
}

const WRITING: u8 = u8::MAX;

impl Model {
    /// A disk of zeros.
    ///
    /// # Panics
    /// When the disk does not fit in memory.
    #[must_use]
    pub fn fresh(seed: u64, sectors: u64) -> Model {
        let sectors = usize::try_from(sectors).expect("a test's disk is small");
        let generations = vec![UNWRITTEN; sectors];
        let busy = vec![0; sectors];
        Model { seed, generations, uncertain: BTreeMap::new(), busy, last_generation: UNWRITTEN }
    }

    /// A disk of zeros and of what an earlier model of any seed wrote.
    #[must_use]
    pub fn used(seed: u64, sectors: u64) -> Model {
        let mut model = Model::fresh(seed, sectors);
        model.generations.fill(FOREIGN);
        model
    }

    /// How many sectors the disk has.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.generations.len() as u64
    }

    /// The disk has grown by zeros.
    pub fn grow(&mut self, sectors: u64) {
        let sectors = usize::try_from(sectors).expect("a test's disk is small");
        self.generations.resize(sectors.max(self.generations.len()), UNWRITTEN);
        self.busy.resize(self.generations.len(), 0);
    }

    /// Reserves a range for a request in flight; false when another one is in its way.
    pub fn claim(&mut self, range: Range<u64>, write: bool) -> bool {
        let busy = &mut self.busy[indices(&range)];
        let free = |&b: &u8| if write { b == 0 } else { b < WRITING - 1 };
        if !busy.iter().all(free) {
            return false;
        }
        busy.iter_mut().for_each(|b| if write { *b = WRITING } else { *b += 1 });
        true
    }

    /// Ends a claim.
    pub fn release(&mut self, range: Range<u64>, write: bool) {
        self.busy[indices(&range)].iter_mut().for_each(|b| if write { *b = 0 } else { *b -= 1 });
    }

    /// A generation for a new write.
    pub fn next_generation(&mut self) -> u32 {
        self.last_generation += 1;
        self.last_generation
    }

    /// A write of `generation` was answered with success.
    pub fn written(&mut self, range: Range<u64>, generation: u32) {
        self.uncertain.retain(|sector, _| !range.contains(sector));
        self.generations[indices(&range)].fill(generation);
    }

    /// A write of `generation` failed or was never answered: each sector may hold what it held or
    /// the new.
    pub fn unsure(&mut self, range: Range<u64>, generation: u32) {
        for sector in range {
            self.uncertain.entry(sector).or_default().push(generation);
        }
    }

    /// The bytes of `sector` at `generation`.
    pub fn stamp(&self, sector: u64, generation: u32, to: &mut [u8; SECTOR_BYTES]) {
        stamp(self.seed, sector, generation, to);
    }

    /// Judges what a read gave for `sector`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&mut self, sector: u64, found: &[u8; SECTOR_BYTES]) -> Result<(), String> {
        let expected = self.generations[index(sector)];
        let others = self.uncertain.get(&sector).cloned().unwrap_or_default();
        if expected == FOREIGN {
            return check_form(sector, found);
        }
        if self.holds(sector, expected, found) {
            return Ok(());
        }
        if let Some(&other) = others.iter().find(|&&other| self.holds(sector, other, found)) {
            // From now on it is known; the old content must not come back.
            self.uncertain.remove(&sector);
            self.generations[index(sector)] = other;
            return Ok(());
        }
        Err(format!(
            "sector {sector} should be generation {expected} or of {others:?}, of seed {:#x}; {}",
            self.seed,
            describe(found)
        ))
    }

    fn holds(&self, sector: u64, generation: u32, found: &[u8; SECTOR_BYTES]) -> bool {
        let mut expected = [0; SECTOR_BYTES];
        if generation != UNWRITTEN {
            self.stamp(sector, generation, &mut expected);
        }
        *found == expected
    }

    /// Judges a whole raw image.
    ///
    /// # Errors
    /// When the image is short, or a sector is wrong.
    pub fn check_image(&mut self, image: &Path) -> anyhow::Result<()> {
        self.check_image_below(image, self.sectors())
    }

    /// Judges a raw image as far as `end`.
    ///
    /// # Errors
    /// As [`Model::check_image`].
    pub fn check_image_below(&mut self, image: &Path, end: u64) -> anyhow::Result<()> {
        let mut image = BufReader::with_capacity(1 << 20, File::open(image)?);
        let mut found = [0; SECTOR_BYTES];
        for sector in 0..end {
            image.read_exact(&mut found)?;
            self.check(sector, &found).map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }

    /// How many sectors were written.
    #[must_use]
    pub fn written_sectors(&self) -> usize {
        self.generations.iter().filter(|&&g| g != UNWRITTEN && g != FOREIGN).count()
    }
}

fn index(sector: u64) -> usize {
    usize::try_from(sector).expect("a test's disk is small")
}

fn indices(range: &Range<u64>) -> Range<usize> {
    index(range.start)..index(range.end)
}

/// One step of splitmix64: from a counter to well mixed bits.
#[must_use]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn stamp(seed: u64, sector: u64, generation: u32, to: &mut [u8; SECTOR_BYTES]) {
    let start = mix(seed ^ sector.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(generation));
    for (n, word) in to.chunks_exact_mut(8).enumerate() {
        let value = match n {
            0 => sector,
            1 => u64::from(generation),
            2 => seed,
            _ => mix(start.wrapping_add(n as u64)),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

fn header(found: &[u8; SECTOR_BYTES]) -> [u64; 3] {
    std::array::from_fn(|n| {
        found[n * 8..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
    })
}

/// Zeros, or a stamp of this very sector.
fn check_form(sector: u64, found: &[u8; SECTOR_BYTES]) -> Result<(), String> {
    let [_, generation, seed] = header(found);
    let mut expected = [0; SECTOR_BYTES];
    let generation = u32::try_from(generation).unwrap_or(FOREIGN);
    stamp(seed, sector, generation, &mut expected);
    if *found == expected || found.iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    Err(format!("sector {sector} holds neither zeros nor a stamp of its own; {}", describe(found)))
}

fn describe(found: &[u8; SECTOR_BYTES]) -> String {
    if found.iter().all(|byte| byte == &found[0]) {
        return format!("every byte of it is {:#04x}", found[0]);
    }
    let [sector, generation, seed] = header(found);
    let mut expected = [0; SECTOR_BYTES];
    stamp(seed, sector, u32::try_from(generation).unwrap_or(FOREIGN), &mut expected);
    match (0..SECTOR_BYTES).find(|&n| expected[n] != found[n]) {
        None => format!("it holds sector {sector}, generation {generation}, seed {seed:#x}"),
        Some(at) => format!(
            "it begins as sector {sector}, generation {generation}, seed {seed:#x} \
             and differs from byte {at} on"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(model: &Model, sector: u64, generation: u32) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        model.stamp(sector, generation, &mut bytes);
        bytes
    }

    #[test]
    fn every_kind_of_wrong_sector_is_found() {
        let mut model = Model::fresh(7, 16);
        assert!(model.check(3, &[0; SECTOR_BYTES]).is_ok());
        let generation = model.next_generation();
        model.written(2..5, generation);
        let good = stamped(&model, 3, generation);
        assert!(model.check(3, &good).is_ok());
        let mut torn = good;
        torn[511] ^= 1;
        let wrong = [
            ("misplaced", stamped(&model, 4, generation)),
            ("stale", [0; SECTOR_BYTES]),
            ("torn", torn),
            ("of another disk", stamped(&Model::fresh(8, 16), 3, generation)),
        ];
        for (what, bytes) in wrong {
            assert!(model.check(3, &bytes).is_err(), "{what}");
        }
    }

    #[test]
    fn an_unanswered_write_may_be_there_or_not_but_never_both() {
        let mut model = Model::fresh(7, 16);
        model.unsure(0..2, 1);
        let new = stamped(&model, 0, 1);
        assert!(model.clone().check(0, &[0; SECTOR_BYTES]).is_ok());
        assert!(model.check(0, &new).is_ok());
        assert!(model.check(0, &[0; SECTOR_BYTES]).is_err(), "it was there already");
    }

    #[test]
    fn claims_exclude_each_other_where_the_outcome_would_be_open() {
        let mut model = Model::fresh(7, 16);
        assert!(model.claim(0..4, false) && model.claim(2..6, false));
        assert!(!model.claim(3..5, true));
        model.release(0..4, false);
        model.release(2..6, false);
        assert!(model.claim(3..5, true));
        assert!(!model.claim(4..8, false));
    }
}
