//! Descriptors that the daemon left open for this process.

use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes the inherited descriptor `number`, once.
///
/// # Errors
/// When it is not open, is one of the standard three, or was taken before.
pub fn inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: fcntl on any number is harmless; it answers whether it is open.
    let open = unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
    let mut taken = TAKEN.lock().map_err(|_| Errno::INVAL)?;
    if !open || number < 3 || !taken.insert(number) {
        return Err(Errno::BADF);
    }
    // SAFETY: it is open and not yet owned here: `taken` sees to that, and the program takes its
    // descriptors before it opens any of its own.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
