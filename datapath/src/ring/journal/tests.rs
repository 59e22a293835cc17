//! A worker that dies at every store there is, under a frontend that counts its answers.

use super::super::back::{BackRing, Taken};
use super::super::crash;
use super::super::shared::{PAGE_BYTES, SharedMapping};
use super::super::token::Token;
use super::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;
const ENTRIES: u32 = 32;
const REFS: [u32; 1] = [8];

fn identity() -> Identity<'static> {
    let vbd = VbdId { domid: 5, devid: 51712 };
    Identity { vbd, port: 2, refs: &REFS, abi: Abi::X86_64 }
}

fn file(bytes: usize) -> OwnedFd {
    let file = memfd_create("journal", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, bytes as u64).unwrap();
    file
}

/// The status that a request gets, whoever does it.
fn status(id: u64) -> i16 {
    if id.is_multiple_of(3) { -1 } else { 0 }
}

/// A frontend, and what outlives a worker.
struct World {
    ring: OwnedFd,
    journal: OwnedFd,
    front: SharedMapping,
    produced: u32,
    seen: u32,
    next: u64,
    /// What it waits for.
    waiting: BTreeSet<u64>,
    random: u64,
}

/// What dies.
struct Back {
    ring: BackRing,
    taken: Vec<Token>,
}

impl World {
    /// Its indices are about to wrap.
    fn new(seed: u64) -> World {
        let (ring, journal) = (file(PAGE_BYTES), file(journal_bytes(1)));
        let front = SharedMapping::map(&ring, 0, PAGE_BYTES, true).unwrap();
        let start = u32::MAX - 20;
        front.store(REQ_PROD, start);
        front.store(RSP_PROD, start);
        Journal::begin(&journal, &identity()).unwrap();
        let (produced, seen) = (start, start);
        let waiting = BTreeSet::new();
        World { ring, journal, front, produced, seen, next: 1, waiting, random: seed }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(97);
        usize::try_from(self.random >> 40).unwrap() % limit
    }

    fn at(index: u32) -> usize {
        64 + (index % ENTRIES) as usize * 112
    }

    fn produce(&mut self) {
        for _ in 0..=self.below(20) {
            if self.produced.wrapping_sub(self.seen) == ENTRIES {
                break;
            }
            let mut entry = [0; 112];
            entry[1] = 1;
            entry[8..16].copy_from_slice(&self.next.to_le_bytes());
            self.front.copy_in(Self::at(self.produced), &entry);
            self.waiting.insert(self.next);
            self.next += 1;
            self.produced = self.produced.wrapping_add(1);
        }
        self.front.store(REQ_PROD, self.produced);
    }

    fn consume(&mut self) {
        let pushed = self.front.load(RSP_PROD);
        assert!(pushed.wrapping_sub(self.seen) <= ENTRIES, "answers of nothing");
        while self.seen != pushed {
            let answer = self.front.read::<16>(Self::at(self.seen));
            let id = u64::from_le_bytes(*answer.first_chunk().unwrap());
            let told = i16::from_le_bytes([answer[10], answer[11]]);
            assert!(self.waiting.remove(&id), "{id} is answered and not waited for");
            assert_eq!(told, status(id), "of {id}");
            self.seen = self.seen.wrapping_add(1);
        }
    }

    fn back(&self) -> Back {
        let memory = SharedMapping::map(&self.ring, 0, PAGE_BYTES, true).unwrap();
        let journal = Journal::resume(&self.journal, &identity()).unwrap();
        let ring = BackRing::new(memory, Abi::X86_64, Some(journal)).unwrap();
        Back { ring, taken: Vec::new() }
    }

    /// A request is only ever done while the frontend waits for it.
    fn take(&self, back: &mut Back) -> bool {
        let Some(Taken { descriptor, place }) = back.ring.take().unwrap() else { return false };
        back.taken.push(Token::new(descriptor.id, descriptor.operation, place));
        assert!(self.waiting.contains(&descriptor.id), "{} is done twice", descriptor.id);
        true
    }

    fn answer(back: &mut Back, which: usize) {
        let (id, operation, place) = back.taken.swap_remove(which).redeem();
        back.ring.answer(Token::new(id, operation, place), status(id));
    }

    /// Some of everything, in some order: requests, their ends in another, pushes.
    fn live(&mut self, back: &mut Back) {
        for _ in 0..10 {
            match self.below(4) {
                0 => while self.below(4) > 0 && self.take(back) {},
                1 | 2 if !back.taken.is_empty() => {
                    let which = self.below(back.taken.len());
                    Self::answer(back, which);
                }
                _ => {
                    let _ = back.ring.push();
                }
            }
        }
    }

    /// Answers all that there is.
    fn finish(&mut self, mut back: Back) {
        while !self.waiting.is_empty() {
            let before = self.waiting.len();
            while self.take(&mut back) {}
            while !back.taken.is_empty() {
                Self::answer(&mut back, 0);
            }
            let _ = back.ring.push();
            self.consume();
            assert!(self.waiting.len() < before, "{:?} are never answered", self.waiting);
        }
    }
}

/// A life with deaths, each so many stores after the one before. False when it ended too early for
/// them all.
fn life(seed: u64, deaths: &[u32]) -> bool {
    let mut world = World::new(seed);
    let mut deaths = deaths.iter().copied();
    let mut left = deaths.next();
    let mut back: Option<Back> = None;
    for _ in 0..6 {
        world.produce();
        let before = back.take();
        back = crash::until(&mut left, || {
            let mut back = before.unwrap_or_else(|| world.back());
            world.live(&mut back);
            back
        });
        if back.is_none() {
            left = deaths.next();
        }
        world.consume();
    }
    let back = back.unwrap_or_else(|| world.back());
    world.finish(back);
    left.is_none() && deaths.next().is_none()
}

#[test]
fn whoever_dies_where_each_request_is_answered_once() {
    for seed in 0..20 {
        let stores = (0..).take_while(|&first| life(seed, &[first])).count();
        assert!(stores > 100, "{stores} stores are no life");
    }
}

#[test]
fn whoever_dies_while_it_takes_up_what_a_dead_one_left_too() {
    let mut lives = 0;
    for first in (0..).step_by(3).take_while(|&first| life(0, &[first])) {
        lives += (0..40).take_while(|&second| life(0, &[first, second])).count();
    }
    assert!(lives > 1000, "{lives}");
}

#[test]
fn a_request_that_outlasts_all_others_keeps_its_turn() {
    let mut world = World::new(1);
    let mut back = world.back();
    world.produce();
    while world.take(&mut back) {}
    let slow = back.taken.remove(0);
    for _ in 0..10 {
        while !back.taken.is_empty() {
            World::answer(&mut back, 0);
        }
        let _ = back.ring.push();
        world.consume();
        world.produce();
        while world.take(&mut back) {}
    }
    let (id, ..) = slow.redeem();
    back.taken.into_iter().for_each(Token::abandon);
    let first = world.back().ring.take().unwrap().unwrap();
    assert_eq!(first.descriptor.id, id);
    let back = world.back();
    world.finish(back);
}

#[test]
fn a_journal_of_another_ring_is_refused() {
    let journal = file(journal_bytes(1));
    Journal::begin(&journal, &identity()).unwrap();
    assert!(Journal::resume(&journal, &identity()).is_ok());
    let other = Identity { port: 3, ..identity() };
    assert_eq!(Journal::resume(&journal, &other).unwrap_err(), Damaged::Foreign);
    let other = Identity { refs: &[9], ..identity() };
    assert_eq!(Journal::resume(&journal, &other).unwrap_err(), Damaged::Foreign);
    let short = file(64);
    assert!(matches!(Journal::resume(&short, &identity()), Err(Damaged::Unmapped(_))));
    assert!(Journal::resume(file(journal_bytes(1)), &identity()).is_ok(), "nothing was taken");
}

#[test]
fn no_bytes_make_it_panic() {
    for seed in 0..2000 {
        let mut world = World::new(seed);
        let memory = SharedMapping::map(&world.journal, 0, journal_bytes(1), true).unwrap();
        for _ in 0..=world.below(40) {
            let place = u32::try_from(world.below(ENTRIES as usize)).unwrap();
            let field = [INDEX, STATE, ANSWER, STATUS][world.below(4)];
            let value = [0, 1, 2, 3, u32::MAX, u32::MAX - 20, u32::MAX - 15][world.below(7)];
            memory.store(at(place) + field, value);
        }
        let ring = SharedMapping::map(&world.ring, 0, PAGE_BYTES, true).unwrap();
        let journal = Journal::resume(&world.journal, &identity()).unwrap();
        if let Ok(mut ring) = BackRing::new(ring, Abi::X86_64, Some(journal)) {
            while let Ok(Some(taken)) = ring.take() {
                let token = Token::new(taken.descriptor.id, 0, taken.place);
                ring.answer(token, 0);
            }
            let _ = ring.push();
        }
    }
}
