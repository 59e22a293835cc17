//! The lock over an SR's records among all hosts that see them: `flock` on the SR's own record.
//!
//! A network file system takes it to its server, and it goes with whoever holds it, however that
//! ends; an SR on a file system that keeps it to one host (NFS mounted with `local_lock=flock`)
//! must not be shared. Held for as long as a record takes to be replaced. Called by the catalog.

use crate::sr::catalog::SR_RECORD;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The lock, while it is held.
#[derive(Debug)]
pub(super) struct SrLock(OwnedFd);

impl Drop for SrLock {
    fn drop(&mut self) {
        // A worker that is being started has a copy of the descriptor until it runs; unlocking
        // ends the lock for that one too.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl SrLock {
    /// Waits for the lock: alone to write, with others to read. `None` where there is no SR and so
    /// nobody to wait for.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn take(dir: &Path, alone: bool) -> Result<Option<SrLock>, Errno> {
        let path = dir.join(SR_RECORD);
        // NFS locks alone only what is open for writing, and shared what is open for reading.
        let (access, operation) = if alone {
            (OFlags::RDWR, FlockOperation::LockExclusive)
        } else {
            (OFlags::RDONLY, FlockOperation::LockShared)
        };
        loop {
            let fd = match rustix::fs::open(&path, access | OFlags::CLOEXEC, Mode::empty()) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                other => other?,
            };
            match rustix::fs::flock(&fd, operation) {
                Err(Errno::INTR) => continue,
                other => other?,
            }
            let locked = rustix::fs::fstat(&fd)?;
            match rustix::fs::stat(&path) {
                Ok(there) if (there.st_dev, there.st_ino) == (locked.st_dev, locked.st_ino) => {
                    return Ok(Some(SrLock(fd)));
                }
                // The SR's record was replaced, or removed, while we waited.
                Ok(_) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
