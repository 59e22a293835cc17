//! How many pages of guests this host's workers may have mapped, all together.
//!
//! Xen keeps a record of each mapping (`gnttab_max_maptrack_frames`), and when those run out no
//! backend of the host maps anything any more. A file that the daemon hands to every worker stands
//! for what there is: each byte for [`LEASE_PAGES`] pages. Who has a byte locked may map so many.
//! The kernel takes the locks of a worker that dies away, so nobody has to keep count of whom.
//! The ring's own pages are not counted.

use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Pages that a byte of the file stands for.
pub const LEASE_PAGES: usize = 64;
/// How long nobody asks again after all was taken: looking for a free byte costs a call for each.
const PAUSE: Duration = Duration::from_secs(1);

/// A worker's part of it, which its queues share.
#[derive(Debug)]
pub struct Budget {
    /// Locks belong to an open file: it must be this worker's own. None: there is no limit.
    file: Option<OwnedFd>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// By byte of the file.
    bytes: Vec<bool>,
    /// Nothing was free then.
    refused: Option<Instant>,
}

impl Budget {
    /// What this file stands for.
    ///
    /// # Errors
    /// When its size cannot be told.
    pub fn new(file: OwnedFd) -> rustix::io::Result<Self> {
        let bytes = usize::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        let held = Held { bytes: vec![false; bytes], refused: None };
        Ok(Budget { file: Some(file), held: Mutex::new(held) })
    }

    /// As much as anyone wants.
    #[must_use]
    pub fn unlimited() -> Self {
        Budget { file: None, held: Mutex::default() }
    }

    /// The number of a lease that is the caller's now.
    fn take(&self) -> Option<usize> {
        let Some(file) = &self.file else { return Some(0) };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.refused.is_some_and(|when| when.elapsed() < PAUSE) {
            return None;
        }
        let free = (0..held.bytes.len())
            .find(|&byte| !held.bytes[byte] && lock(file, byte, libc::F_WRLCK).is_ok());
        match free {
            Some(byte) => held.bytes[byte] = true,
            None => held.refused = Some(Instant::now()),
        }
        free
    }

    fn give(&self, byte: usize) {
        let Some(file) = &self.file else { return };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let unlocked = lock(file, byte, libc::F_UNLCK);
        debug_assert!(unlocked.is_ok(), "an own lock is given back: {unlocked:?}");
        held.bytes[byte] = false;
        held.refused = None;
    }
}

/// Locks or unlocks one byte, for the open file and not for the process.
fn lock(file: &OwnedFd, byte: usize, kind: i32) -> rustix::io::Result<()> {
    let mut wanted = libc::flock {
        l_type: i16::try_from(kind).map_err(|_| Errno::INVAL)?,
        l_whence: i16::try_from(libc::SEEK_SET).map_err(|_| Errno::INVAL)?,
        l_start: i64::try_from(byte).map_err(|_| Errno::INVAL)?,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the structure is the call's own, valid for its duration.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut wanted) };
    if done == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

/// A queue's part. It keeps what it ever needed at a time until it is trimmed or dropped.
#[derive(Debug)]
pub struct Allowance {
    budget: Arc<Budget>,
    leases: Vec<usize>,
    used_pages: usize,
}

impl Allowance {
    /// Nothing yet.
    #[must_use]
    pub fn new(budget: Arc<Budget>) -> Self {
        Allowance { budget, leases: Vec::new(), used_pages: 0 }
    }

    /// Makes sure that so many pages more may be mapped; false when they may not.
    pub fn make_room(&mut self, pages: usize) -> bool {
        while self.leases.len() * LEASE_PAGES < self.used_pages + pages {
            match self.budget.take() {
                Some(lease) => self.leases.push(lease),
                None => return false,
            }
        }
        true
    }

    /// Takes the place of so many pages; false when there is none.
    pub fn take(&mut self, pages: usize) -> bool {
        let room = self.make_room(pages);
        if room {
            self.used_pages += pages;
        }
        room
    }

    /// Gives it back.
    pub fn give(&mut self, pages: usize) {
        self.used_pages -= pages;
    }

    /// Lets others have what is not used now.
    pub fn trim(&mut self) {
        let needed = self.used_pages.div_ceil(LEASE_PAGES).min(self.leases.len());
        self.leases.drain(needed..).for_each(|lease| self.budget.give(lease));
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        self.leases.iter().for_each(|&lease| self.budget.give(lease));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker's part of a host's `leases`.
    fn worker(path: &std::path::Path, leases: u64) -> Arc<Budget> {
        let options =
            std::fs::File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = options.unwrap();
        file.set_len(leases).unwrap();
        Arc::new(Budget::new(file.into()).unwrap())
    }

    #[test]
    fn workers_share_what_there_is_and_the_dead_have_none_of_it() {
        let place = tempfile::NamedTempFile::new().unwrap();
        let (one, two) = (worker(place.path(), 3), worker(place.path(), 3));
        let (mut a, mut b) = (Allowance::new(one.clone()), Allowance::new(one));
        let mut c = Allowance::new(two);
        assert!(a.take(LEASE_PAGES) && b.take(1), "queues of a worker share its part");
        assert!(c.take(LEASE_PAGES) && !c.take(1), "all is taken");
        assert!(!a.make_room(1) && b.take(LEASE_PAGES - 1), "what is leased may be used up");
        a.give(1);
        a.trim();
        assert!(a.take(1) && !a.take(1), "a byte of which a page is used is kept");
        // A worker dies: its open file is closed, and nobody has unlocked anything.
        let Allowance { budget, .. } = &mut c;
        let dead = std::mem::replace(budget, Arc::new(Budget::unlimited()));
        drop(dead);
        let mut next = Allowance::new(worker(place.path(), 3));
        assert!(next.take(LEASE_PAGES) && !next.take(1));
        a.give(LEASE_PAGES);
        a.trim();
        let mut other = Allowance::new(worker(place.path(), 3));
        assert!(other.take(LEASE_PAGES) && !other.take(1), "what is trimmed is free");
        drop(other);
        let mut last = Allowance::new(worker(place.path(), 3));
        assert!(last.take(LEASE_PAGES), "and so is what is dropped");
    }

    #[test]
    fn without_a_file_there_is_no_limit() {
        let mut allowance = Allowance::new(Arc::new(Budget::unlimited()));
        assert!(allowance.take(1 << 20));
        allowance.give(1 << 20);
    }
}
