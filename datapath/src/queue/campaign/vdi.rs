//! A disk of the campaign: its guest's rings, its workers and what replaces them, its requests.

use super::front::{DOMID, Front, RINGS_PAGES, Segment, Site};
use super::oracle::Oracle;
use super::worker::Worker;
use crate::device::Ring;
use crate::engine::simulated::Disk;
use crate::image::Image;
use crate::random::Random;
use crate::ring::abi::ring_entries;
use crate::ring::crash;
use crate::xen::Host;
use crate::xen::budget::Budget;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use zerotap_rpc_schema::space::NoSpace;
use zerotap_rpc_schema::worker::{
    Abi, Bounds, Discard, ImageInfo, Journaled, TransferRule, VbdId, journal_bytes,
};

const QUEUES_MAX: u32 = 2;
const RING_PAGES_MAX: u32 = 2;
pub(super) const PORTS: u32 = super::VDIS * QUEUES_MAX;
const _: () = assert!(PORTS * RING_PAGES_MAX <= RINGS_PAGES);

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Barrier,
    Discard,
    /// Beyond the disk's end.
    Wrong,
}

/// A request that its guest waits for.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) kind: Kind,
    pub(super) queue: usize,
    /// Sectors that no other request may touch meanwhile.
    pub(super) sectors: Range<usize>,
    pub(super) segments: Vec<Segment>,
    pub(super) indirect: Option<u32>,
    pub(super) asked: u64,
}

/// A disk.
pub(super) struct Vdi {
    pub(super) number: u32,
    pub(super) disk: Rc<RefCell<Disk>>,
    pub(super) oracle: Oracle,
    pub(super) fronts: Vec<Front>,
    pub(super) workers: Vec<Worker>,
    pub(super) pending: BTreeMap<u64, Pending>,
    /// The worker dies at the store into shared memory that comes after so many.
    pub(super) stores_left: Option<u32>,
    /// It is being replaced by one of another version, and ends of itself.
    pub(super) upgrade: bool,
    pub(super) info: ImageInfo,
    /// What the guest was told that a sector is.
    pub(super) block_sectors: usize,
    image: Image,
    file: OwnedFd,
    journals: Vec<OwnedFd>,
    rule: TransferRule,
    persistent: bool,
    network: bool,
    /// Pages that had to make room.
    pub(super) purged_pages: u64,
    /// So small that pages that stand have to make room.
    budget: Arc<Budget>,
    no_space: NoSpace,
}

impl Vdi {
    pub(super) fn new(number: u32, random: &mut Random, trouble_percent: usize) -> Vdi {
        let block_sectors = if random.chance(70) { 1 } else { 8 };
        let memory_sectors = if random.chance(70) { 1 } else { 8 };
        let sectors = 64 + 8 * random.below(8);
        let units = Discard { granularity_bytes: 4096, alignment_bytes: 0 };
        let info = ImageInfo {
            sectors: sectors as u64,
            sector_bytes: 512 * block_sectors,
            physical_sector_bytes: 4096,
            emulated_sector_bytes: None,
            memory_align_bytes: 512 * memory_sectors,
            discard: Some(units),
        };
        let file = memfd_create("image", MemfdFlags::CLOEXEC).expect("memory");
        ftruncate(&file, 512 * sectors as u64).expect("memory");
        let mut disk = Disk::new(random.bits(), sectors);
        disk.block_sectors = block_sectors as usize;
        disk.trouble_percent = trouble_percent;
        Vdi {
            number,
            disk: Rc::new(RefCell::new(disk)),
            oracle: Oracle::new(u64::from(number), sectors),
            fronts: Vec::new(),
            workers: Vec::new(),
            pending: BTreeMap::new(),
            stores_left: None,
            upgrade: false,
            info,
            block_sectors: if random.chance(70) { 1 } else { block_sectors as usize },
            image: Image::known(file.try_clone().expect("a descriptor"), info),
            file,
            journals: Vec::new(),
            rule: TransferRule::Auto,
            persistent: false,
            network: false,
            purged_pages: 0,
            budget: Arc::new(budget(1 + random.below(3) as u64)),
            no_space: NoSpace::Pause,
        }
    }

    /// The guest makes fresh rings, on other terms than before, and a worker serves them.
    pub(super) fn connect(&mut self, site: &Site, random: &mut Random) {
        let queues = 1 + random.below(QUEUES_MAX as usize);
        let pages = 1 + random.below(RING_PAGES_MAX as usize);
        let abi = if random.chance(70) { Abi::X86_64 } else { Abi::X86_32 };
        self.rule = [TransferRule::Auto, TransferRule::Map, TransferRule::Copy][random.below(3)];
        self.persistent = random.chance(50);
        self.network = random.chance(20);
        self.no_space = [NoSpace::Pause, NoSpace::Error][random.below(2)];
        self.fronts.clear();
        self.journals.clear();
        for queue in 0..u32::try_from(queues).expect("few") {
            let port = self.number * QUEUES_MAX + queue;
            let first = port * RING_PAGES_MAX;
            let refs = (first..RING_PAGES_MAX * (port + 1)).take(pages).collect();
            // Some are about to wrap.
            let start = [0, 0u32.wrapping_sub(ring_entries(abi, pages))][random.below(2)];
            self.fronts.push(Front::new(site, port, refs, abi, start));
            let journal = memfd_create("journal", MemfdFlags::CLOEXEC).expect("memory");
            ftruncate(&journal, journal_bytes(pages) as u64).expect("memory");
            self.journals.push(journal);
        }
        self.serve(site, Journaled::Begin);
    }

    /// A worker takes the rings up; it may die over that, too.
    pub(super) fn serve(&mut self, site: &Site, how: Journaled) {
        let file = self.file.try_clone().expect("a descriptor");
        self.image = Image::known(file, self.info);
        let mut left = self.stores_left.take();
        let mut how = how;
        self.workers = loop {
            if let Some(workers) = crash::until(&mut left, || self.start(site, how)) {
                break workers;
            }
            how = Journaled::Resume;
        };
        self.stores_left = left;
        self.upgrade = false;
    }

    fn start(&self, site: &Site, how: Journaled) -> Vec<Worker> {
        let queues = self.fronts.iter().zip(&self.journals);
        let started = queues.enumerate().map(|(queue, (front, journal))| {
            let ring = Ring {
                host: Host::Sim,
                gntdev: Arc::clone(&site.device),
                evtchn: site.device.try_clone().expect("a descriptor"),
                refs: front.refs.clone(),
                port: front.port,
                protocol: front.abi,
                persistent: self.persistent,
                read_only: false,
                discard: true,
                bounds: Bounds::default(),
                rule: self.rule,
                network: self.network,
                no_space: self.no_space,
                budget: Arc::clone(&self.budget),
                unused_max: Duration::ZERO,
                journal: Some((how, journal.try_clone().expect("a descriptor"))),
            };
            let vbd = VbdId { domid: DOMID, devid: self.number };
            let queue = u32::try_from(queue).expect("few");
            Worker::start(vbd, ring, &self.image, &self.disk, queue)
        });
        started.collect()
    }

    /// A turn of a queue's thread; false when the worker died of it.
    pub(super) fn step(&mut self, queue: usize) -> bool {
        let Some(worker) = self.workers.get_mut(queue) else { return true };
        let survived = crash::until(&mut self.stores_left, || worker.step()).is_some();
        if !survived {
            self.kill();
        }
        survived
    }

    /// kill -9.
    pub(super) fn kill(&mut self) {
        self.disk.borrow_mut().abandon();
        self.end_workers();
        self.stores_left = None;
    }

    pub(super) fn end_workers(&mut self) {
        self.purged_pages += self.workers.drain(..).map(|worker| worker.purged()).sum::<u64>();
    }

    pub(super) fn drained(&self) -> bool {
        self.workers.iter().all(Worker::drained)
    }

    /// The image grows, and then the disk.
    pub(super) fn grow(&mut self, sectors: usize) -> Result<(), String> {
        self.info.sectors += sectors as u64;
        ftruncate(&self.file, 512 * self.info.sectors).expect("memory");
        let sectors = self.oracle.sectors() + sectors;
        self.disk.borrow_mut().grow(sectors);
        self.image.grow(self.info.sectors).map_err(|error| error.to_string())?;
        self.oracle.grow(sectors);
        Ok(())
    }

    /// Whether requests in flight touch any of these.
    pub(super) fn busy(&self, sectors: &Range<usize>) -> bool {
        let overlaps = |pending: &Pending| {
            pending.sectors.start < sectors.end && sectors.start < pending.sectors.end
        };
        self.pending.values().any(overlaps)
    }
}

/// What a host lets its workers map.
fn budget(leases: u64) -> Budget {
    let file = memfd_create("budget", MemfdFlags::CLOEXEC).expect("memory");
    ftruncate(&file, leases).expect("memory");
    Budget::new(file).expect("a file has a size")
}
