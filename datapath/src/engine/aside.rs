//! A thread beside the engine's, for what the kernel does only while its caller waits: BLKDISCARD.
//! (io_uring has a command for it since Linux 6.12; dom0's kernels are older.)
//!
//! Made when first needed. One operation at a time: discards are hints, and may not crowd out I/O.

use super::{Completion, Tag};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl, opcode};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// It makes one system call.
const STACK_BYTES: usize = 64 * 1024;
/// `linux/fs.h`: `_IO(0x12, 119)`, of a start and a length in bytes.
const BLKDISCARD: rustix::ioctl::Opcode = opcode::none(0x12, 119);

/// A range to be discarded.
struct Job {
    offset: u64,
    bytes: u64,
    tag: Tag,
}

/// The thread, as the engine holds it; it ends when this is dropped and its work is done.
#[derive(Debug)]
pub(super) struct Aside {
    jobs: Sender<Job>,
    done: Receiver<Completion>,
    wake: Arc<OwnedFd>,
}

impl Aside {
    /// Starts it.
    ///
    /// # Errors
    /// When there is no room for a thread or a descriptor.
    pub(super) fn start(device: OwnedFd) -> std::io::Result<Aside> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (jobs, inbox) = channel::<Job>();
        let (outbox, done) = channel();
        let signal = Arc::clone(&wake);
        let thread = std::thread::Builder::new().name("discard".to_owned());
        thread.stack_size(STACK_BYTES).spawn(move || {
            for Job { offset, bytes, tag } in inbox {
                let result = match discard(&device, offset, bytes) {
                    Ok(()) => 0,
                    Err(errno) => -errno.raw_os_error(),
                };
                // An engine that has gone wants no answer.
                let _ = outbox.send(Completion { tag, result });
                // It fails only when it is readable already.
                let _ = rustix::io::write(&signal, &1u64.to_ne_bytes());
            }
        })?;
        Ok(Aside { jobs, done, wake })
    }

    /// Discards a range of the device.
    pub(super) fn discard(&self, offset: u64, bytes: u64, tag: Tag) {
        self.jobs.send(Job { offset, bytes, tag }).expect("the thread lives as long as this");
    }

    /// Readable when something was done.
    pub(super) fn wake(&self) -> &Arc<OwnedFd> {
        &self.wake
    }

    /// What was done since the last call.
    pub(super) fn completions(&self) -> impl Iterator<Item = Completion> {
        // Emptied first: what is done later signals anew.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        self.done.try_iter()
    }
}

/// BLKDISCARD: the device may forget the range. Not the hole that fallocate(2) would punch into a
/// device: that one is kept from being slow by refusing wherever zeroes cannot be had for nothing,
/// dm-thin and many SSDs, whose space a discard is for.
///
/// # Errors
/// EOPNOTSUPP where the device does not discard, and before that EINVAL for a range that no sectors
/// begin and end.
pub(crate) fn discard(device: impl AsFd, offset: u64, bytes: u64) -> Result<(), Errno> {
    // SAFETY: the request reads two 64-bit words, as Linux has it since 2.6.28.
    unsafe { ioctl(device, Setter::<BLKDISCARD, [u64; 2]>::new([offset, bytes])) }
}
