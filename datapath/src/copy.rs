//! A copy of the image, of one moment, made while the image is in use.
//!
//! The moment is when no write of before is under way any more. From then on the copy's thread
//! clones the image piece by piece, and a write waits until what it changes is cloned: it says what
//! it waits for, which is cloned next. A whole clone in one call would be of one moment too, and
//! hold every write back for as long as it lasts: a second for an image of many extents.
//! Started by the worker; queues and the NBD server go by a [`Hold`] meanwhile.

use crate::engine::clone_range;
use crate::image::Image;
use crate::queue::{End, signal};
use rustix::io::Errno;
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a write that waits has cloned for it: whole blocks of any file system.
const GRAIN_BYTES: u64 = 64 << 10;
/// So many of them are cloned before those who wait go on. Each clone first waits for all I/O on
/// the image: one after the other, with none of it begun in between, they take a fraction.
const GRAINS_TOGETHER: usize = 32;
/// A piece that nobody waits for is as long as takes about this time: writes wait for it as well.
const PIECE_TIME: Duration = Duration::from_micros(500);
/// The first is so long, and none is longer: where extents become many its like takes longer.
const PIECE_BYTES: u64 = 1 << 20;
const PIECE_BYTES_MAX: u64 = 4 << 20;
/// Who changes more at a time waits for its turn: a discard of half the disk need not be quick.
const WANTED_BYTES_MAX: u64 = 4 << 20;
/// It makes system calls.
const STACK_BYTES: usize = 128 * 1024;

/// How far the copy is, and who waits for it.
#[derive(Debug)]
struct Progress {
    /// The image's length.
    bytes: u64,
    /// All before this byte is copied.
    up_to: u64,
    /// Where grains begin that are copied beyond it.
    apart: BTreeSet<u64>,
    /// Where grains begin that somebody waits for.
    wanted: VecDeque<u64>,
    /// Who is told of the next piece that is copied.
    waiting: Vec<Arc<OwnedFd>>,
}

impl Progress {
    /// Whether a range may be changed: it is copied. If not, it is wanted now.
    fn lets(&mut self, range: &Range<u64>) -> bool {
        let first = (range.start / GRAIN_BYTES * GRAIN_BYTES).max(self.up_to);
        // What an image has grown by meanwhile is in no copy.
        let end = if range.start < self.bytes { range.end.min(self.bytes) } else { 0 };
        let grains = (first..end).step_by(usize::try_from(GRAIN_BYTES).expect("a small number"));
        let mut missing = grains.filter(|grain| !self.apart.contains(grain)).peekable();
        if missing.peek().is_none() {
            return true;
        }
        if range.end - range.start <= WANTED_BYTES_MAX {
            for grain in missing {
                if !self.wanted.contains(&grain) {
                    self.wanted.push_back(grain);
                }
            }
        }
        false
    }

    /// What to copy next: what is wanted, otherwise up to `length` bytes of the rest in their
    /// order.
    fn next(&mut self, length: u64) -> Option<Range<u64>> {
        while let Some(grain) = self.wanted.pop_front() {
            let end = self.bytes.min(grain + GRAIN_BYTES);
            if grain >= self.up_to && !self.apart.contains(&grain) {
                return Some(grain..end);
            }
        }
        while self.apart.remove(&self.up_to) {
            self.up_to = self.bytes.min(self.up_to + GRAIN_BYTES);
        }
        let apart = self.apart.first().copied().unwrap_or(self.bytes);
        let end = apart.min(self.up_to + length.next_multiple_of(GRAIN_BYTES));
        (self.up_to < end).then_some(self.up_to..end)
    }

    fn done(&mut self, piece: &Range<u64>) {
        if piece.start == self.up_to {
            self.up_to = piece.end;
        } else {
            self.apart.insert(piece.start);
        }
    }
}

/// A copy that is being made.
#[derive(Debug)]
pub struct ImageCopy(Mutex<Progress>);

impl ImageCopy {
    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self, image: &Image, to: &OwnedFd, still: &Receiver<Infallible>) -> Result<(), Errno> {
        // It ends when all who might have writes under way have let go of their end.
        while still.recv().is_ok() {}
        let mut length = PIECE_BYTES;
        loop {
            let together = self.progress().wanted.len().clamp(1, GRAINS_TOGETHER);
            for _ in 0..together {
                let next = self.progress().next(length);
                let Some(piece) = next else { return Ok(()) };
                let begun = Instant::now();
                clone_range(image.file(), to, piece.clone())?;
                length = match begun.elapsed() {
                    longer if longer > PIECE_TIME => (length / 2).max(GRAIN_BYTES),
                    shorter if shorter < PIECE_TIME / 4 => (length * 2).min(PIECE_BYTES_MAX),
                    _ => length,
                };
                self.progress().done(&piece);
            }
            let waiting = std::mem::take(&mut self.progress().waiting);
            waiting.iter().for_each(|wake| signal(wake));
        }
    }
}

/// What those go by who change the image while it is copied.
#[derive(Debug, Clone)]
pub struct Hold {
    copy: Arc<ImageCopy>,
    wake: Arc<OwnedFd>,
}

impl Hold {
    /// `wake`: an eventfd that becomes readable when it is worth asking again.
    #[must_use]
    pub fn new(copy: &Arc<ImageCopy>, wake: &Arc<OwnedFd>) -> Hold {
        Hold { copy: Arc::clone(copy), wake: Arc::clone(wake) }
    }

    /// Whether a range, in bytes, may be changed already.
    #[must_use]
    pub fn lets(&self, range: &Range<u64>) -> bool {
        let mut progress = self.copy.progress();
        let lets = progress.lets(range);
        if !lets && !progress.waiting.iter().any(|wake| Arc::ptr_eq(wake, &self.wake)) {
            progress.waiting.push(Arc::clone(&self.wake));
        }
        lets
    }
}

/// Kept by who may have writes of before the copy under way, and dropped when there are none.
#[derive(Debug, Clone)]
pub struct Moving {
    _end: Sender<Infallible>,
}

/// The thread that makes a copy.
#[derive(Debug)]
pub struct Work {
    copy: Arc<ImageCopy>,
    thread: JoinHandle<Result<(), Errno>>,
    done: Arc<AtomicBool>,
}

impl Work {
    /// Begins to copy `image` to the empty file `to`, once all [`Moving`] are dropped. `ended`
    /// becomes readable when [`Work::is_over`].
    ///
    /// # Errors
    /// When the image cannot be inspected, or there is no room for a thread.
    pub fn start(
        image: &Arc<Image>,
        to: OwnedFd,
        ended: &Arc<OwnedFd>,
    ) -> std::io::Result<(Work, Moving)> {
        let bytes = u64::try_from(rustix::fs::fstat(image.file())?.st_size).unwrap_or(0);
        let progress = Progress {
            bytes,
            up_to: 0,
            apart: BTreeSet::new(),
            wanted: VecDeque::new(),
            waiting: Vec::new(),
        };
        let copy = Arc::new(ImageCopy(Mutex::new(progress)));
        let (end, still) = channel();
        let done = Arc::new(AtomicBool::new(false));
        let told = End::new(&done, ended);
        let (image, made) = (Arc::clone(image), Arc::clone(&copy));
        let thread = std::thread::Builder::new().name("copy".to_owned()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || {
            let _told = told;
            made.make(&image, &to, &still)
        })?;
        Ok((Work { copy, thread, done }, Moving { _end: end }))
    }

    /// What it makes.
    #[must_use]
    pub fn copy(&self) -> &Arc<ImageCopy> {
        &self.copy
    }

    /// Whether the thread has ended but for its last instructions.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// How it ended.
    ///
    /// # Errors
    /// Why the file is no copy.
    pub fn outcome(self) -> Result<(), Errno> {
        self.thread.join().unwrap_or(Err(Errno::CANCELED))
    }
}

#[cfg(test)]
mod tests;
