//! The durability campaign: histories of a guest with two disks, each wholly decided by a seed.
//!
//! Guest, workers and disks take turns in one thread. Queue, device, ring, journal, transfer and
//! policy are the very code of a worker, over the simulated host's grants and events; the disk
//! below forgets and tears (`engine/simulated.rs`). A worker dies between any two rounds or at any
//! store into shared memory, is upgraded, the disk grows, operations fail, the power goes. What the
//! guest was told is held against what it reads and what is left after each power cut.
//!
//! `cargo xtask campaign` runs ten thousand; `ZEROTAP_CAMPAIGN_SEED` and `ZEROTAP_CAMPAIGN_RUNS`
//! say which. A fence is not simulated but taken for granted: a dead worker's I/O is over before
//! the next one begins. That it is so is tried with real processes
//! (`tests/tests/worker_deaths.rs`).

mod flood;
mod front;
mod guest;
mod oracle;
mod vdi;
mod worker;

use crate::engine::simulated::Sector;
use crate::random::Random;
use front::Site;
use vdi::{PORTS, Vdi};
use worker::Worker;
use zerotap_rpc_schema::worker::Journaled;

/// Disks of a history.
const VDIS: u32 = 2;
const SECTORS_MAX: usize = 256;
/// Turns after which a guest that still waits waits for ever.
const PATIENCE: usize = 5000;
/// Histories of a plain test.
const RUNS: u64 = 80;

/// What came to pass.
#[derive(Debug, Default)]
struct Tally {
    requests: u64,
    deaths: u64,
    deaths_at_a_store: u64,
    upgrades: u64,
    growths: u64,
    snapshots: u64,
    power_cuts: u64,
    purged_pages: u64,
}

/// One history.
struct History<'a> {
    site: &'a Site,
    random: Random,
    vdis: Vec<Vdi>,
    /// Pages of the guest that no request uses.
    pages: Vec<u32>,
    /// Counts all that happens; also names requests and what they write.
    now: u64,
    trouble_percent: usize,
    tally: &'a mut Tally,
}

impl History<'_> {
    fn live(&mut self) -> Result<(), String> {
        for _ in 0..=self.random.below(4) {
            self.pages = Site::pages();
            for vdi in &mut self.vdis {
                vdi.connect(self.site, &mut self.random);
            }
            for _ in 0..100 + self.random.below(400) {
                self.turn()?;
            }
            if self.random.chance(60) {
                self.cut_power()?;
            } else {
                self.part()?;
            }
        }
        Ok(())
    }

    /// Something happens.
    fn turn(&mut self) -> Result<(), String> {
        let vdi = self.random.below(self.vdis.len());
        match self.random.below(1000) {
            0..300 => {
                (0..=self.random.below(4)).for_each(|_| self.ask(vdi));
                self.vdis[vdi].fronts.iter_mut().for_each(front::Front::publish);
            }
            300..450 => self.collect(vdi)?,
            450..465 => self.kill(vdi),
            465..485 => {
                let stores = u32::try_from(self.random.below(40)).expect("few");
                self.vdis[vdi].stores_left = Some(stores);
            }
            485..495 if !self.vdis[vdi].workers.is_empty() => {
                self.tally.upgrades += 1;
                self.vdis[vdi].upgrade = true;
                self.vdis[vdi].workers.iter().for_each(Worker::drain);
            }
            495..505 => self.grow(vdi)?,
            505..520 => self.look(vdi)?,
            _ => self.serve(vdi),
        }
        Ok(())
    }

    /// A queue of a disk has its turn; or the supervisor, where there is none.
    fn serve(&mut self, vdi: usize) {
        let own = &mut self.vdis[vdi];
        if own.workers.is_empty() || (own.upgrade && own.drained()) {
            own.end_workers();
            own.serve(self.site, Journaled::Resume);
            return;
        }
        let queue = self.random.below(own.workers.len());
        if !own.step(queue) {
            self.tally.deaths_at_a_store += 1;
        }
    }

    fn kill(&mut self, vdi: usize) {
        self.tally.deaths += u64::from(!self.vdis[vdi].workers.is_empty());
        self.vdis[vdi].kill();
    }

    fn grow(&mut self, vdi: usize) -> Result<(), String> {
        let more = 8 * (1 + self.random.below(4));
        if self.vdis[vdi].oracle.sectors() + more > SECTORS_MAX {
            return Ok(());
        }
        self.tally.growths += 1;
        self.vdis[vdi].grow(more)
    }

    /// What a snapshot would hold that is made now: all that was told.
    fn look(&mut self, vdi: usize) -> Result<(), String> {
        self.tally.snapshots += 1;
        let own = &self.vdis[vdi];
        let content: Vec<Sector> = own.disk.borrow().content();
        own.oracle.check_read(0, content.as_flattened())
    }

    /// Everything answers and ends in good order.
    fn part(&mut self) -> Result<(), String> {
        for vdi in 0..self.vdis.len() {
            self.vdis[vdi].stores_left = None;
            let mut turns = 0;
            while !self.vdis[vdi].pending.is_empty() {
                self.serve(vdi);
                self.collect(vdi)?;
                turns += 1;
                if turns > PATIENCE {
                    let waits = self.vdis[vdi].pending.values().next();
                    return Err(format!("the guest waits for ever: {waits:?}"));
                }
            }
            self.look(vdi)?;
            if self.vdis[vdi].workers.iter().any(Worker::broken) {
                return Err("the ring is held for broken".to_owned());
            }
            self.vdis[vdi].workers.iter().for_each(Worker::drain);
            while !self.vdis[vdi].drained() {
                (0..self.vdis[vdi].workers.len()).for_each(|queue| {
                    self.vdis[vdi].step(queue);
                });
                turns += 1;
                if turns > 2 * PATIENCE {
                    return Err("a worker does not end".to_owned());
                }
            }
            self.vdis[vdi].end_workers();
        }
        Ok(())
    }

    /// The host goes: guest, rings, journals and workers with it.
    fn cut_power(&mut self) -> Result<(), String> {
        self.tally.power_cuts += 1;
        for vdi in &mut self.vdis {
            vdi.disk.borrow_mut().cut_power();
            vdi.kill();
            vdi.pending.clear();
            let left = vdi.disk.borrow().content();
            vdi.oracle.check_cut(&left)?;
        }
        Ok(())
    }
}

/// Says how to see a failure again.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!("again: ZEROTAP_CAMPAIGN_SEED={seed} ZEROTAP_CAMPAIGN_RUNS=1");
        }
    }
}

fn run(seed: u64, site: &Site, tally: &mut Tally) {
    let _replay = Replay(seed);
    let mut random = Random::new(seed);
    let trouble_percent = [0, 0, 3, 20][random.below(4)];
    let vdis = (0..VDIS).map(|n| Vdi::new(n, &mut random, trouble_percent)).collect();
    let (pages, now) = (Vec::new(), 0);
    let mut history = History { site, random, vdis, pages, now, trouble_percent, tally };
    if let Err(problem) = history.live() {
        panic!("seed {seed}: {problem}");
    }
    let purged: u64 = history.vdis.iter().map(|vdi| vdi.purged_pages).sum();
    tally.purged_pages += purged;
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect(name))
}

#[test]
fn what_was_acknowledged_and_flushed_is_there() {
    let first = number("ZEROTAP_CAMPAIGN_SEED").unwrap_or(1);
    let runs = number("ZEROTAP_CAMPAIGN_RUNS").unwrap_or(RUNS);
    let (site, mut tally) = (Site::new(PORTS), Tally::default());
    for seed in first..first + runs {
        run(seed, &site, &mut tally);
    }
    println!("{runs} histories from seed {first} on: {tally:?}");
    let Tally { requests, deaths, deaths_at_a_store, upgrades, growths, snapshots, .. } = tally;
    let Tally { power_cuts, purged_pages, .. } = tally;
    let all = [requests, deaths, deaths_at_a_store, upgrades, growths, snapshots];
    let all = [&all[..], &[power_cuts, purged_pages]].concat();
    assert!(
        runs < RUNS || all.iter().all(|&count| count > runs / 2),
        "too little happens: {all:?}"
    );
}
