//! A disk that forgets or tears whatever was not flushed, and its engine: for the campaign
//! (`queue/campaign`), where a seed decides when an operation is done, how far, and what a power
//! cut leaves.
//!
//! What was written stands in a cache. A flush makes durable what had been done when it was asked
//! for, and nothing else. A power cut leaves of each sector what was durable or any version since.
//! A sector itself is never torn: no disk does that, and no file system could live with it.

use super::{Allocation, Completion, IoVector, Message, Tag};
use crate::random::Random;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;

/// Bytes of a sector.
pub(crate) const SECTOR_BYTES: usize = 512;
/// A sector's content.
pub(crate) type Sector = [u8; SECTOR_BYTES];

/// An operation that is under way.
#[derive(Debug)]
struct Operation {
    engine: u32,
    tag: Tag,
    what: What,
}

#[derive(Debug)]
enum What {
    Read(Vec<IoVector>, u64),
    Write(Vec<IoVector>, u64),
    Hole(u64, u64),
    /// Of all that was done by then.
    Flush(u64),
}

/// How far an operation gets.
#[derive(Debug, Clone, Copy)]
enum Extent {
    All,
    First(usize),
    /// Any sectors.
    Torn,
    Nothing,
}

/// The disk.
#[derive(Debug)]
pub(crate) struct Disk {
    random: Random,
    durable: Vec<Sector>,
    /// What was written and not flushed, by sector: when, and what. The last is what is read.
    cache: BTreeMap<usize, Vec<(u64, Sector)>>,
    done: u64,
    operations: Vec<Operation>,
    /// Operations are on whole blocks, those that end early too.
    pub(crate) block_sectors: usize,
    /// How many of 100 operations fail, end early or have to be asked for again.
    pub(crate) trouble_percent: usize,
}

impl Disk {
    /// All zeroes, and durable.
    pub(crate) fn new(seed: u64, sectors: usize) -> Disk {
        Disk {
            random: Random::new(seed),
            durable: vec![[0; SECTOR_BYTES]; sectors],
            cache: BTreeMap::new(),
            done: 0,
            operations: Vec::new(),
            block_sectors: 1,
            trouble_percent: 0,
        }
    }

    /// Makes it longer; what is new reads as zeroes.
    pub(crate) fn grow(&mut self, sectors: usize) {
        self.durable.resize(sectors, [0; SECTOR_BYTES]);
    }

    /// What a read would see.
    pub(crate) fn content(&self) -> Vec<Sector> {
        (0..self.durable.len()).map(|sector| self.sector(sector)).collect()
    }

    fn sector(&self, sector: usize) -> Sector {
        let cached = self.cache.get(&sector).and_then(|versions| versions.last());
        cached.map_or(self.durable[sector], |(_, content)| *content)
    }

    /// Who asked for what is under way is no more: each operation is done, done by parts or not at
    /// all, in any order. (A dead process's I/O ends before its image's fence is free.)
    pub(crate) fn abandon(&mut self) {
        let mut operations = std::mem::take(&mut self.operations);
        self.random.shuffle(&mut operations);
        for operation in operations {
            let extent = match self.random.below(3) {
                0 => Extent::All,
                1 => Extent::Torn,
                _ => Extent::Nothing,
            };
            self.perform(&operation.what, extent);
        }
    }

    /// The power goes, and comes back.
    pub(crate) fn cut_power(&mut self) {
        self.abandon();
        for (sector, versions) in std::mem::take(&mut self.cache) {
            if let Some(kept) = self.random.below(versions.len() + 1).checked_sub(1) {
                self.durable[sector] = versions[kept].1;
            }
        }
    }

    /// Does some of what an engine has asked for, in any order.
    fn work(&mut self, engine: u32, completions: &mut Vec<Completion>) {
        let mut operations = std::mem::take(&mut self.operations);
        self.random.shuffle(&mut operations);
        for operation in operations {
            if operation.engine == engine && self.random.chance(50) {
                let (extent, result) = self.fate(&operation.what);
                let moved = self.perform(&operation.what, extent);
                completions
                    .push(Completion { tag: operation.tag, result: result.unwrap_or(moved) });
            } else {
                self.operations.push(operation);
            }
        }
    }

    /// How far an operation gets, and what is answered if not that.
    fn fate(&mut self, what: &What) -> (Extent, Option<i32>) {
        let error = |errno: Errno| Some(-errno.raw_os_error());
        if !self.random.chance(self.trouble_percent) {
            return (Extent::All, None);
        }
        match (self.random.below(6), what) {
            (0 | 1, What::Read(vectors, _) | What::Write(vectors, _)) => {
                let sectors = bytes(vectors) / SECTOR_BYTES;
                let first = 1 + self.random.below(sectors);
                (Extent::First(first.next_multiple_of(self.block_sectors)), None)
            }
            (2, What::Read(..) | What::Write(..)) => (Extent::Nothing, error(Errno::AGAIN)),
            (3, What::Read(..) | What::Write(..)) => (Extent::Torn, error(Errno::INTR)),
            (4, What::Write(..)) => (Extent::Torn, error(Errno::NOSPC)),
            (_, What::Flush(_)) => (Extent::Nothing, error(Errno::IO)),
            _ => (Extent::Torn, error(Errno::IO)),
        }
    }

    fn perform(&mut self, what: &What, extent: Extent) -> i32 {
        match what {
            What::Flush(until) if matches!(extent, Extent::All) => {
                for (sector, versions) in &mut self.cache {
                    let covered = versions.iter().filter(|(done, _)| done <= until).count();
                    if let Some((_, last)) = versions.drain(..covered).next_back() {
                        self.durable[*sector] = last;
                    }
                }
                self.cache.retain(|_, versions| !versions.is_empty());
                0
            }
            What::Flush(_) => 0,
            What::Hole(offset, bytes) => {
                let (offset, bytes) = (in_memory(*offset), in_memory(*bytes));
                self.write(offset, &vec![0; bytes], extent);
                0
            }
            What::Write(vectors, offset) => {
                // SAFETY: who submitted keeps the memory until the completion, and a device that
                // dies is dropped after `abandon`.
                let data = unsafe { gather(vectors) };
                self.write(in_memory(*offset), &data, extent)
            }
            What::Read(vectors, offset) => {
                let first = in_memory(*offset) / SECTOR_BYTES;
                let sectors = extent.of(bytes(vectors) / SECTOR_BYTES, &mut self.random);
                let data: Vec<u8> = (first..).take(sectors).flat_map(|n| self.sector(n)).collect();
                // SAFETY: as above.
                unsafe { scatter(&data, vectors) };
                moved(sectors)
            }
        }
    }

    fn write(&mut self, offset: usize, data: &[u8], extent: Extent) -> i32 {
        let sectors = extent.of(data.len() / SECTOR_BYTES, &mut self.random);
        let pieces = data.as_chunks::<SECTOR_BYTES>().0;
        for (n, piece) in pieces.iter().take(sectors).enumerate() {
            if matches!(extent, Extent::Torn) && self.random.chance(50) {
                continue;
            }
            self.done += 1;
            let sector = offset / SECTOR_BYTES + n;
            assert!(sector < self.durable.len(), "a write beyond the disk's end");
            self.cache.entry(sector).or_default().push((self.done, *piece));
        }
        moved(sectors)
    }
}

impl Extent {
    /// How many of so many sectors are reached.
    fn of(self, sectors: usize, random: &mut Random) -> usize {
        match self {
            Extent::All => sectors,
            Extent::First(first) => first.min(sectors),
            Extent::Torn => random.below(sectors + 1),
            Extent::Nothing => 0,
        }
    }
}

fn bytes(vectors: &[IoVector]) -> usize {
    vectors.iter().map(|vector| vector.iov_len).sum()
}

fn moved(sectors: usize) -> i32 {
    i32::try_from(sectors * SECTOR_BYTES).expect("at most 1 MiB")
}

fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a small disk")
}

/// # Safety
/// The vectors describe valid memory.
unsafe fn gather(vectors: &[IoVector]) -> Vec<u8> {
    let mut data = vec![0; bytes(vectors)];
    let mut rest = data.as_mut_slice();
    for vector in vectors {
        let (piece, behind) = rest.split_at_mut(vector.iov_len);
        // SAFETY: the caller's promise; `piece` is ours and as long.
        unsafe {
            let from = vector.iov_base.cast::<u8>();
            std::ptr::copy_nonoverlapping(from, piece.as_mut_ptr(), vector.iov_len);
        }
        rest = behind;
    }
    data
}

/// # Safety
/// The vectors describe valid memory.
unsafe fn scatter(data: &[u8], vectors: &[IoVector]) {
    let mut rest = data;
    for vector in vectors {
        let (piece, behind) = rest.split_at(vector.iov_len.min(rest.len()));
        // SAFETY: the caller's promise; `piece` is ours and not longer.
        unsafe {
            let to = vector.iov_base.cast::<u8>();
            std::ptr::copy_nonoverlapping(piece.as_ptr(), to, piece.len());
        }
        rest = behind;
    }
}

/// A wait for an event.
#[derive(Debug)]
struct EventWait {
    channel: RawFd,
    word: *mut [u32; 16],
    tag: Tag,
}

/// One queue's engine over a disk. It never sleeps: where it would, it says so.
#[derive(Debug)]
pub(crate) struct Simulated {
    disk: Rc<RefCell<Disk>>,
    number: u32,
    event: Option<EventWait>,
    readable: Vec<(RawFd, Tag)>,
    cancelled: Vec<Completion>,
}

impl Simulated {
    /// An engine, whose number no other has that this disk serves.
    pub(crate) fn new(disk: &Rc<RefCell<Disk>>, number: u32) -> Self {
        let (disk, readable, cancelled) = (Rc::clone(disk), Vec::new(), Vec::new());
        Simulated { disk, number, event: None, readable, cancelled }
    }

    fn submit(&mut self, tag: Tag, what: What) {
        let mut disk = self.disk.borrow_mut();
        if let What::Read(vectors, offset) | What::Write(vectors, offset) = &what {
            let block = disk.block_sectors * SECTOR_BYTES;
            let whole =
                bytes(vectors).is_multiple_of(block) && in_memory(*offset).is_multiple_of(block);
            assert!(whole, "{what:?}: parts of blocks of {block} bytes");
        }
        disk.operations.push(Operation { engine: self.number, tag, what });
    }

    /// # Safety
    /// As for [`super::Engine::read`].
    pub(super) unsafe fn read(&mut self, vectors: &[IoVector], offset: u64, tag: Tag) {
        self.submit(tag, What::Read(vectors.to_vec(), offset));
    }

    /// # Safety
    /// As for [`super::Engine::read`].
    pub(super) unsafe fn write(&mut self, vectors: &[IoVector], offset: u64, tag: Tag) {
        self.submit(tag, What::Write(vectors.to_vec(), offset));
    }

    pub(super) fn flush(&mut self, tag: Tag) {
        let done = self.disk.borrow().done;
        self.submit(tag, What::Flush(done));
    }

    pub(super) fn allocate(&mut self, _: Allocation, offset: u64, bytes: u64, tag: Tag) {
        self.submit(tag, What::Hole(offset, bytes));
    }

    pub(super) fn wait_readable(&mut self, descriptor: BorrowedFd<'_>, tag: Tag) {
        self.readable.push((descriptor.as_raw_fd(), tag));
    }

    /// # Safety
    /// As for [`super::Engine::wait_event`].
    pub(super) unsafe fn wait_event(
        &mut self,
        channel: BorrowedFd<'_>,
        _: Option<*const u32>,
        word: *mut [u32; 16],
        tag: Tag,
    ) {
        self.event = Some(EventWait { channel: channel.as_raw_fd(), word, tag });
    }

    pub(super) fn cancel_event(&mut self, tag: Tag, done: Tag) {
        if self.event.take().is_some() {
            self.cancelled.push(Completion { tag, result: -Errno::CANCELED.raw_os_error() });
        }
        self.cancelled.push(Completion { tag: done, result: 0 });
    }

    /// WouldBlock where it would sleep: then this alone is to be called again, as the kernel's call
    /// goes on.
    pub(super) fn submit_and_wait(
        &mut self,
        wanted: usize,
        completions: &mut Vec<Completion>,
    ) -> std::io::Result<()> {
        let before = completions.len();
        completions.append(&mut self.cancelled);
        self.disk.borrow_mut().work(self.number, completions);
        if let Some(EventWait { channel, word, tag }) = self.event {
            // SAFETY: the caller of `wait_event` keeps both until the completion.
            let taken = unsafe {
                rustix::io::read(BorrowedFd::borrow_raw(channel), &mut *word.cast::<[u8; 64]>())
            };
            if let Ok(bytes) = taken {
                self.event = None;
                completions.push(Completion { tag, result: i32::try_from(bytes).expect("64") });
            }
        }
        self.readable.retain(|&(descriptor, tag)| {
            // SAFETY: a queue keeps its mailbox as long as its engine.
            let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
            let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
            let ready = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(1);
            if ready {
                completions.push(Completion { tag, result: 1 });
            }
            !ready
        });
        if wanted > 0 && completions.len() == before {
            return Err(std::io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    /// # Safety
    /// None is needed: no NBD client is served over a simulated disk.
    pub(super) unsafe fn receive(&mut self, _: BorrowedFd<'_>, _: *mut Message, _: Tag) {
        unreachable!("a queue has no streams");
    }

    /// # Safety
    /// As for [`Simulated::receive`].
    pub(super) unsafe fn send(&mut self, _: BorrowedFd<'_>, _: *const Message, _: Tag) {
        unreachable!("a queue has no streams");
    }

    /// # Safety
    /// As for [`Simulated::receive`].
    pub(super) unsafe fn write_durable(&mut self, _: &[IoVector], _: u64, _: Tag) {
        unreachable!("a queue flushes");
    }
}
