//! A guest's memory on a simulated host of its own, and its half of a ring.

use crate::ring::abi::{Abi, RING_HEADER_BYTES, SEGMENT_BYTES, entry_bytes, ring_entries};
use crate::ring::shared::{PAGE_BYTES, SharedMapping};
use crate::xen::sim::{
    GRANT_BYTES, GRANT_VALID, GRANTS_MAX, HOLDERS_MAX, USES_BYTES, event_name, grants_name,
    memory_name, uses_name,
};
use rustix::fs::{CWD, Mode, OFlags, mkfifoat, open};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

pub(super) const DOMID: u16 = 1;
/// Pages of the guest; page n is granted as reference n. The rings' come first.
const PAGES: u32 = 512;
pub(super) const RINGS_PAGES: u32 = 16;

/// A page, and its first and last sector.
pub(super) type Segment = (u32, u8, u8);

/// The host that a guest runs on.
pub(super) struct Site {
    directory: tempfile::TempDir,
    pub(super) memory: Rc<SharedMapping>,
    /// The directory, which stands for the grant device and for event channels.
    pub(super) device: Arc<OwnedFd>,
}

impl Site {
    pub(super) fn new(ports: u32) -> Site {
        let directory = tempfile::tempdir_in("/dev/shm").expect("memory");
        let path = |name: String| directory.path().join(name);
        let file = |name: String, bytes: usize| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
            let file = open(path(name), flags, Mode::RUSR | Mode::WUSR).expect("a file");
            rustix::fs::ftruncate(&file, bytes as u64).expect("memory");
            SharedMapping::map(&file, 0, bytes, true).expect("memory")
        };
        let memory = Rc::new(file(memory_name(DOMID), PAGES as usize * PAGE_BYTES));
        let grants = file(grants_name(DOMID), GRANTS_MAX as usize * GRANT_BYTES);
        for page in 0..PAGES {
            grants.store(page as usize * GRANT_BYTES, GRANT_VALID);
            grants.store(page as usize * GRANT_BYTES + 4, page);
        }
        for holder in 0..HOLDERS_MAX {
            let _made = file(uses_name(DOMID, holder), USES_BYTES);
        }
        for port in 0..ports {
            for end in ["back", "front"] {
                let fifo = path(event_name(DOMID, port, end));
                mkfifoat(CWD, fifo, Mode::RUSR | Mode::WUSR).expect("a FIFO");
            }
        }
        let device = open(directory.path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        Site { memory, device: Arc::new(device.expect("a directory")), directory }
    }

    /// Pages that are nobody's yet.
    pub(super) fn pages() -> Vec<u32> {
        (RINGS_PAGES..PAGES).collect()
    }

    fn fifo(&self, port: u32, end: &str) -> OwnedFd {
        let path = self.directory.path().join(event_name(DOMID, port, end));
        let fifo = open(path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).expect("a FIFO");
        while rustix::io::read(&fifo, &mut [0; 64]).is_ok() {}
        fifo
    }
}

/// A ring. It sleeps as a guest does: it looks for answers only when it was told of some.
pub(super) struct Front {
    memory: Rc<SharedMapping>,
    pub(super) abi: Abi,
    pub(super) refs: Vec<u32>,
    pub(super) port: u32,
    to_back: OwnedFd,
    to_front: OwnedFd,
    entries: u32,
    produced: u32,
    published: u32,
    seen: u32,
}

impl Front {
    /// A fresh ring; its indices begin at `start`.
    pub(super) fn new(site: &Site, port: u32, refs: Vec<u32>, abi: Abi, start: u32) -> Front {
        let memory = Rc::clone(&site.memory);
        let entries = ring_entries(abi, refs.len());
        let (to_back, to_front) = (site.fifo(port, "back"), site.fifo(port, "front"));
        let front = Front {
            memory,
            abi,
            refs,
            port,
            to_back,
            to_front,
            entries,
            produced: start,
            published: start,
            seen: start,
        };
        for (word, value) in [(0, start), (4, start + 1), (8, start), (12, start + 1)] {
            front.memory.store(front.base() + word, value);
        }
        front
    }

    /// Where the ring stands; its pages are one after the other.
    fn base(&self) -> usize {
        self.refs[0] as usize * PAGE_BYTES
    }

    pub(super) fn full(&self) -> bool {
        self.produced.wrapping_sub(self.seen) >= self.entries
    }

    /// A direct request, whose segments stand in its entry, or an indirect one.
    pub(super) fn data(
        &mut self,
        operation: u8,
        id: u64,
        sector: u64,
        segments: &[Segment],
        indirect: Option<u32>,
    ) {
        let (mut entry, base) = ([0; 112], self.body());
        let count = u8::try_from(segments.len()).expect("few segments");
        match indirect {
            None => {
                entry[..2].copy_from_slice(&[operation, count]);
                for (n, segment) in segments.iter().enumerate() {
                    let at = base + 16 + n * SEGMENT_BYTES;
                    entry[at..at + SEGMENT_BYTES].copy_from_slice(&encode(*segment));
                }
            }
            Some(page) => {
                entry[..4].copy_from_slice(&[crate::ring::abi::OP_INDIRECT, operation, count, 0]);
                entry[base + 20..base + 24].copy_from_slice(&page.to_le_bytes());
                for (n, segment) in segments.iter().enumerate() {
                    let at = page as usize * PAGE_BYTES + n * SEGMENT_BYTES;
                    self.memory.copy_in(at, &encode(*segment));
                }
            }
        }
        self.write(entry, id, sector);
    }

    pub(super) fn discard(&mut self, id: u64, sector: u64, sectors: u64) {
        let (mut entry, base) = ([0; 112], self.body());
        entry[0] = crate::ring::abi::OP_DISCARD;
        entry[base + 16..base + 24].copy_from_slice(&sectors.to_le_bytes());
        self.write(entry, id, sector);
    }

    fn body(&self) -> usize {
        if self.abi == Abi::X86_64 { 8 } else { 4 }
    }

    fn write(&mut self, mut entry: [u8; 112], id: u64, sector: u64) {
        let (base, bytes) = (self.body(), entry_bytes(self.abi));
        entry[base..base + 8].copy_from_slice(&id.to_le_bytes());
        entry[base + 8..base + 16].copy_from_slice(&sector.to_le_bytes());
        let slot = (self.produced & (self.entries - 1)) as usize;
        self.memory.copy_in(self.base() + RING_HEADER_BYTES + slot * bytes, &entry[..bytes]);
        self.produced = self.produced.wrapping_add(1);
    }

    /// Shows what was written, with an event where the back end asked for one.
    pub(super) fn publish(&mut self) {
        let (old, new) = (self.published, self.produced);
        self.memory.store(self.base(), new);
        self.published = new;
        fence(Ordering::SeqCst);
        let wanted = self.memory.load(self.base() + 4);
        if new.wrapping_sub(wanted) < new.wrapping_sub(old) {
            let _ = rustix::io::write(&self.to_back, &[0]);
        }
    }

    /// The answers that it was told of: id and status.
    pub(super) fn answers(&mut self) -> Vec<(u64, i16)> {
        let mut answers = Vec::new();
        if rustix::io::read(&self.to_front, &mut [0; 64]).is_err() {
            return answers;
        }
        loop {
            while self.memory.load(self.base() + 8) != self.seen {
                let slot = (self.seen & (self.entries - 1)) as usize;
                let at = self.base() + RING_HEADER_BYTES + slot * entry_bytes(self.abi);
                let answer = self.memory.read::<12>(at);
                let id = u64::from_le_bytes(answer[..8].try_into().expect("eight bytes"));
                answers.push((id, i16::from_le_bytes([answer[10], answer[11]])));
                self.seen = self.seen.wrapping_add(1);
            }
            self.memory.store(self.base() + 12, self.seen.wrapping_add(1));
            fence(Ordering::SeqCst);
            if self.memory.load(self.base() + 8) == self.seen {
                return answers;
            }
        }
    }
}

fn encode((gref, first, last): Segment) -> [u8; SEGMENT_BYTES] {
    let g = gref.to_le_bytes();
    [g[0], g[1], g[2], g[3], first, last, 0, 0]
}
