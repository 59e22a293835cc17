//! A ring that is never empty, whatever its queue takes: the other things that the queue's thread
//! attends to have their turns all the same.

use super::front::Site;
use super::vdi::{PORTS, Vdi};
use crate::random::Random;
use crate::ring::abi::OP_READ;
use std::sync::mpsc::TryRecvError;

/// Turns in which a queue obeys, whatever its guest does.
const TURNS_MAX: usize = 3;
/// What a turn takes out of a ring at most.
const TAKEN_MAX: u64 = 4;
/// No operation of blkif's.
const UNKNOWN: u8 = 77;

/// A guest, its one queue, and how many requests it has made.
struct Flood {
    vdi: Vdi,
    operation: u8,
    asked: u64,
}

impl Flood {
    fn new(site: &Site, seed: u64, operation: u8) -> Flood {
        let mut random = Random::new(seed);
        let mut vdi = Vdi::new(0, &mut random, 0);
        vdi.connect(site, &mut random);
        vdi.fronts.truncate(1);
        vdi.workers.truncate(1);
        Flood { vdi, operation, asked: 0 }
    }

    /// The ring is filled to the brim, then the queue has its turn.
    fn turn(&mut self) {
        let front = &mut self.vdi.fronts[0];
        front.answers();
        while !front.full() {
            self.asked += 1;
            front.data(self.operation, self.asked, 0, &[(Site::pages()[0], 0, 7)], None);
        }
        front.publish();
        self.vdi.workers[0].step();
    }
}

fn floods(site: &Site) -> impl Iterator<Item = Flood> {
    let both = [OP_READ, UNKNOWN].into_iter().cycle();
    both.zip(0..12).map(|(what, seed)| Flood::new(site, seed, what))
}

#[test]
fn a_turn_takes_a_few_requests_however_many_there_are() {
    let site = Site::new(PORTS);
    for mut flood in floods(&site) {
        for _ in 0..200 {
            let before = flood.vdi.workers[0].taken();
            flood.turn();
            let taken = flood.vdi.workers[0].taken() - before;
            assert!(taken <= TAKEN_MAX, "{taken} at once");
        }
        assert!(flood.vdi.workers[0].taken() > 200, "the guest is served meanwhile");
    }
}

#[test]
fn a_queue_obeys_however_much_its_guest_asks() {
    let site = Site::new(PORTS);
    for mut flood in floods(&site) {
        for _ in 0..50 {
            flood.turn();
            let told = flood.vdi.workers[0].ask_counters();
            let turns = (1..=TURNS_MAX).find(|_| {
                flood.turn();
                told.try_recv() != Err(TryRecvError::Empty)
            });
            assert!(turns.is_some(), "it was asked {TURNS_MAX} turns ago");
        }
        flood.vdi.workers[0].drain();
        let (taken, mut turns) = (flood.vdi.workers[0].taken(), 0);
        while !flood.vdi.workers[0].drained() {
            flood.turn();
            turns += 1;
            assert!(turns < 1000, "it goes on as long as its guest does");
        }
        let more = flood.vdi.workers[0].taken() - taken;
        assert!(more <= TURNS_MAX as u64 * TAKEN_MAX, "{more} were taken since");
    }
}
