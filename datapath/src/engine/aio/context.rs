//! An AIO context: the system calls themselves, in the kernel's words (linux/aio_abi.h).

use rustix::io::Errno;
use std::io;
use std::ptr::null_mut;

/// `IOCB_CMD_*`.
pub(super) const PREAD: u16 = 0;
pub(super) const PWRITE: u16 = 1;
pub(super) const FDSYNC: u16 = 3;
pub(super) const PREADV: u16 = 7;
pub(super) const PWRITEV: u16 = 8;
/// Tell the eventfd `signal` of the completion.
pub(super) const FLAG_RESFD: u32 = 1;

/// `struct iocb` of a little-endian machine, which Xen's are.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Iocb {
    pub(super) data: u64,
    pub(super) key: u32,
    pub(super) rw_flags: i32,
    pub(super) opcode: u16,
    pub(super) priority: i16,
    pub(super) descriptor: u32,
    pub(super) buffer: u64,
    pub(super) bytes: u64,
    pub(super) offset: u64,
    pub(super) reserved: u64,
    pub(super) flags: u32,
    pub(super) signal: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Event {
    pub(super) data: u64,
    object: u64,
    pub(super) result: i64,
    result2: i64,
}

/// A context of the kernel's. Dropping it waits until nothing of it is under way.
#[derive(Debug)]
pub(super) struct Context(libc::c_ulong);

impl Context {
    /// For at least `operations` at once.
    pub(super) fn new(operations: u32) -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        let at = &raw mut context;
        // SAFETY: the kernel writes the context's name to `at`.
        match unsafe { libc::syscall(libc::SYS_io_setup, operations, at) } {
            0 => Ok(Context(context)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Hands operations over, first to last; answers how many went. An error is the first one's:
    /// EAGAIN when the context is full, anything else when that operation is impossible.
    ///
    /// # Safety
    /// Each pointer is valid, and so is what it points to, for as long as an operation of its kind
    /// demands; the operation itself is copied.
    pub(super) unsafe fn submit(&self, operations: &mut [*mut Iocb]) -> Result<usize, Errno> {
        let (count, first) = (operations.len(), operations.as_mut_ptr());
        // SAFETY: the caller's promise.
        let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.0, count, first) };
        usize::try_from(taken).map_err(|_| last_errno())
    }

    /// Takes what has completed, as much as `events` holds, without waiting.
    pub(super) fn take(&self, events: &mut [Event]) -> Result<usize, Errno> {
        let (count, first) = (events.len(), events.as_mut_ptr());
        let mut at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = &raw mut at_once;
        // SAFETY: the kernel writes at most `count` events.
        let taken =
            unsafe { libc::syscall(libc::SYS_io_getevents, self.0, 0, count, first, timeout) };
        usize::try_from(taken).map_err(|_| last_errno())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nobody names it any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0, null_mut::<()>()) };
    }
}

pub(super) fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_the_kernels() {
        assert_eq!((size_of::<Iocb>(), size_of::<Event>()), (64, 32));
        assert_eq!(std::mem::offset_of!(Iocb, rw_flags), 12);
        assert_eq!(std::mem::offset_of!(Iocb, buffer), 24);
        assert_eq!(std::mem::offset_of!(Iocb, signal), 60);
    }
}
