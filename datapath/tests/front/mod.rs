//! The smallest frontend: one simulated guest, one ring, requests one by one or all together.

mod rig;

pub use rig::Rig;

use rig::Control;
use rustix::fs::{Mode, OFlags, open};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use zerotap_datapath::ring::abi::{Abi, OP_DISCARD, OP_INDIRECT, entry_bytes, ring_entries};
use zerotap_datapath::ring::shared::{PAGE_BYTES, SharedMapping};
use zerotap_datapath::xen::sim::{
    GRANT_BYTES, GRANT_READ_ONLY, GRANT_VALID, GRANTS_MAX, HOLDERS_MAX, USES_BYTES, uses_name,
};
use zerotap_rpc_schema::worker::{
    Answer, Ask, Counters, QueueParameters, RingParameters, TransferRule, VbdId,
};

/// Pages of a guest; page n is granted as reference n. The ring's come first.
const GUEST_PAGES: usize = 2048;
const DEVID: u32 = 51712;
const PORT: u32 = 5;

/// A page, and its first and last sector.
pub type Piece = (u32, u8, u8);

/// How a frontend is connected.
#[derive(Clone, Copy)]
pub struct Terms {
    pub abi: Abi,
    pub persistent: bool,
    pub ring_pages: u32,
    pub read_only: bool,
    pub transfer: TransferRule,
}

/// One page, writable, grants not kept.
pub const TERMS: Terms = Terms {
    abi: Abi::X86_64,
    persistent: false,
    ring_pages: 1,
    read_only: false,
    transfer: TransferRule::Auto,
};

pub struct Front {
    domid: u16,
    directory: PathBuf,
    memory: SharedMapping,
    grants: SharedMapping,
    to_back: OwnedFd,
    to_front: OwnedFd,
    abi: Abi,
    entries: u32,
    produced: u32,
    seen: u32,
    control: Control,
}

impl Front {
    pub fn connect(rig: &Rig, abi: Abi, persistent: bool, ring_pages: u32) -> Self {
        Self::connect_as(rig, 1, Terms { abi, persistent, ring_pages, ..TERMS })
    }

    pub fn connect_second(rig: &Rig) -> Self {
        Self::connect_as(rig, 2, TERMS)
    }

    pub fn connect_as(rig: &Rig, domid: u16, terms: Terms) -> Self {
        let Terms { abi, persistent, ring_pages, read_only, transfer } = terms;
        let memory = rig.shared_file(&format!("mem.{domid}"), GUEST_PAGES * PAGE_BYTES);
        let grants = rig.shared_file(&format!("grants.{domid}"), GRANTS_MAX as usize * GRANT_BYTES);
        for page in 0..GUEST_PAGES {
            grants.store(page * GRANT_BYTES, GRANT_VALID);
            grants.store(page * GRANT_BYTES + 4, u32::try_from(page).unwrap());
        }
        for holder in 0..HOLDERS_MAX {
            let _made = rig.shared_file(&uses_name(domid, holder), USES_BYTES);
        }
        let to_back = rig.fifo(&format!("evt.{domid}.{PORT}.back"));
        let to_front = rig.fifo(&format!("evt.{domid}.{PORT}.front"));
        memory.store(4, 1);
        memory.store(12, 1);
        let mut control = rig.control();
        let ring = RingParameters {
            queues: vec![QueueParameters { ring_refs: (0..ring_pages).collect(), port: PORT }],
            protocol: abi,
            persistent,
        };
        let vbd = VbdId { domid, devid: DEVID };
        let evtchn = open(rig.directory(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let (discard, transfer, bounds, journaled) = (true, Some(transfer), None, None);
        let connect = Ask::Connect { vbd, read_only, discard, ring, transfer, bounds, journaled };
        let answer = control.ask(connect, Some(&evtchn.unwrap()));
        assert_eq!(answer, Answer::Done);
        let entries = ring_entries(abi, ring_pages as usize);
        Front {
            domid,
            directory: rig.directory().to_owned(),
            memory,
            grants,
            to_back,
            to_front,
            abi,
            entries,
            produced: 0,
            seen: 0,
            control,
        }
    }

    fn vbd(&self) -> VbdId {
        VbdId { domid: self.domid, devid: DEVID }
    }

    pub fn fill(&self, page: u32, byte: u8) {
        self.memory.copy_in(page as usize * PAGE_BYTES, &[byte; PAGE_BYTES]);
    }

    pub fn page(&self, page: u32) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        self.memory.copy_out(page as usize * PAGE_BYTES, &mut bytes);
        bytes
    }

    /// One request; answers its status.
    pub fn transfer(&mut self, operation: u8, sector: u64, segments: &[(u32, u8, u8)]) -> i16 {
        let mut entry = self.entry(operation, sector);
        entry[1] = segments.len() as u8;
        let array = self.base() + 16;
        for (n, segment) in segments.iter().enumerate() {
            entry[array + n * 8..][..8].copy_from_slice(&encode(*segment));
        }
        self.produce(&entry);
        self.answers(1)[0]
    }

    /// One discard; answers its status.
    pub fn discard(&mut self, flag: u8, sector: u64, sectors: u64) -> i16 {
        let mut entry = self.entry(OP_DISCARD, sector);
        entry[1] = flag;
        let count = self.base() + 16;
        entry[count..count + 8].copy_from_slice(&sectors.to_le_bytes());
        self.produce(&entry);
        self.answers(1)[0]
    }

    /// One indirect request.
    pub fn indirect(&mut self, operation: u8, sector: u64, segments: &[(u32, u8, u8)]) -> i16 {
        self.indirect_together(operation, &[(sector, segments.to_vec())])[0]
    }

    /// Indirect requests produced at once, their segments in page 99 and below; answers their
    /// statuses in order.
    pub fn indirect_together(&mut self, operation: u8, requests: &[(u64, Vec<Piece>)]) -> Vec<i16> {
        for (n, (sector, segments)) in requests.iter().enumerate() {
            let page = 99 - n;
            for (n, segment) in segments.iter().take(512).enumerate() {
                self.memory.copy_in(page * PAGE_BYTES + n * 8, &encode(*segment));
            }
            let (mut entry, base) = (self.entry(OP_INDIRECT, *sector), self.base());
            entry[1] = operation;
            entry[2..4].copy_from_slice(&(segments.len() as u16).to_le_bytes());
            entry[base..base + 8].copy_from_slice(&(n as u64).to_le_bytes());
            entry[base + 20..base + 24].copy_from_slice(&(page as u32).to_le_bytes());
            self.write(&entry);
        }
        self.publish();
        self.answers(requests.len())
    }

    /// Requests of one segment each, produced at once; answers their statuses in order.
    pub fn together(&mut self, requests: &[(u8, u64, (u32, u8, u8))]) -> Vec<i16> {
        for (n, (operation, sector, segment)) in requests.iter().enumerate() {
            let mut entry = self.entry(*operation, *sector);
            let (base, array) = (self.base(), self.base() + 16);
            entry[1] = 1;
            entry[base..base + 8].copy_from_slice(&(n as u64).to_le_bytes());
            entry[array..array + 8].copy_from_slice(&encode(*segment));
            self.write(&entry);
        }
        self.publish();
        self.answers(requests.len())
    }

    /// Requests in the ring that the back end is not told of, of the first sector.
    pub fn produce_unnoticed(&mut self, operation: u8, count: usize) {
        for id in 0..count {
            let (mut entry, base) = (self.entry(operation, 0), self.base());
            entry[1] = 1;
            entry[base] = u8::try_from(id).unwrap();
            entry[base + 16..][..8].copy_from_slice(&encode((20, 0, 0)));
            self.write(&entry);
        }
        self.memory.store(0, self.produced);
    }

    /// The answers to so many requests, which are there.
    pub fn answered(&mut self, count: usize) -> Vec<i16> {
        assert_eq!(self.memory.load(8), self.seen + u32::try_from(count).unwrap());
        self.answers(count)
    }

    /// Claims more requests than the ring has.
    pub fn produce_bogus(&mut self) {
        self.memory.store(0, self.produced + self.entries + 1);
        rustix::io::write(&self.to_back, &[0]).unwrap();
    }

    /// Three reads, beside a producer that is bogus every other moment, until the ring is broken:
    /// it may be before the reads are taken, or after.
    pub fn produce_flickering(&mut self) {
        self.produce_unnoticed(0, 3);
        let (good, over) = (self.produced, AtomicBool::new(false));
        let memory = self.directory.join(format!("mem.{}", self.domid));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = open(memory, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
                let memory = SharedMapping::map(&file, 0, PAGE_BYTES, true).unwrap();
                while !over.load(Ordering::Relaxed) {
                    memory.store(0, good.wrapping_sub(4));
                    memory.store(0, good);
                }
            });
            rustix::io::write(&self.to_back, &[0]).unwrap();
            let vbd = VbdId { domid: self.domid, devid: DEVID };
            let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while !stat(&mut self.control, vbd).1 && std::time::Instant::now() < until {
                std::thread::yield_now();
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(self.broken(), "the ring is served on");
    }

    pub fn broken(&mut self) -> bool {
        self.stat().1
    }

    /// Whether its queue's thread finds the ring broken, whenever its turn comes.
    pub fn breaks(&mut self) -> bool {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !self.broken() && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        self.broken()
    }

    pub fn counters(&mut self) -> Counters {
        self.stat().0
    }

    fn stat(&mut self) -> (Counters, bool) {
        let vbd = self.vbd();
        stat(&mut self.control, vbd)
    }

    pub fn disconnect(&mut self) {
        let vbd = self.vbd();
        assert_eq!(self.control.ask(Ask::Disconnect { vbd, leave: false }, None), Answer::Done);
    }

    /// Grants a page for reading only.
    pub fn forbid_writing(&self, page: u32) {
        self.grants.store(page as usize * GRANT_BYTES, GRANT_VALID | GRANT_READ_ONLY);
    }

    pub fn grants_in_use(&self) -> u32 {
        let uses = |holder| {
            let bytes = std::fs::read(self.directory.join(uses_name(self.domid, holder))).ok()?;
            let counts = bytes.as_chunks::<4>().0.iter();
            Some(counts.map(|count| u32::from_le_bytes(*count)).sum::<u32>())
        };
        (0..HOLDERS_MAX).map_while(uses).sum()
    }

    fn base(&self) -> usize {
        if self.abi == Abi::X86_64 { 8 } else { 4 }
    }

    fn entry(&self, operation: u8, sector: u64) -> [u8; 112] {
        let (mut entry, base) = ([0; 112], self.base());
        entry[0] = operation;
        entry[base + 8..base + 16].copy_from_slice(&sector.to_le_bytes());
        entry
    }

    fn produce(&mut self, entry: &[u8; 112]) {
        self.write(entry);
        self.publish();
    }

    fn write(&mut self, entry: &[u8; 112]) {
        let slot = (self.produced & (self.entries - 1)) as usize;
        let bytes = entry_bytes(self.abi);
        self.memory.copy_in(64 + slot * bytes, &entry[..bytes]);
        self.produced += 1;
    }

    fn publish(&mut self) {
        self.memory.store(12, self.seen + 1);
        self.memory.store(0, self.produced);
        rustix::io::write(&self.to_back, &[0]).unwrap();
    }

    /// Waits for `count` answers; their statuses in the order of their ids.
    fn answers(&mut self, count: usize) -> Vec<i16> {
        let mut statuses = vec![None; count];
        while statuses.contains(&None) {
            if self.memory.load(8) == self.seen {
                // Ask to be woken, then look once more: an answer may have come in between.
                self.memory.store(12, self.seen + 1);
                fence(Ordering::SeqCst);
                if self.memory.load(8) == self.seen {
                    rig::wait_readable(&self.to_front);
                }
                continue;
            }
            let slot = (self.seen & (self.entries - 1)) as usize;
            let offset = 64 + slot * entry_bytes(self.abi);
            let response = self.memory.read::<12>(offset);
            let id = u64::from_le_bytes(response[..8].try_into().unwrap());
            assert_eq!(response[9], 0, "padding");
            let status = i16::from_le_bytes([response[10], response[11]]);
            assert!(statuses[id as usize].replace(status).is_none(), "answered twice");
            self.seen += 1;
        }
        statuses.into_iter().flatten().collect()
    }
}

/// What the worker has counted, and whether it serves the ring no more.
fn stat(control: &mut Control, vbd: VbdId) -> (Counters, bool) {
    let Answer::Stat { vbds, .. } = control.ask(Ask::Stat, None) else { panic!("no stat") };
    let own = vbds.into_iter().find(|it| it.vbd == vbd).expect("own counters");
    (own.counters, own.broken)
}

fn encode((gref, first, last): (u32, u8, u8)) -> [u8; 8] {
    let g = gref.to_le_bytes();
    [g[0], g[1], g[2], g[3], first, last, 0, 0]
}
