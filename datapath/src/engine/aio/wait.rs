//! Descriptors that are waited for: poll(2) over those of now, then what each was waited for.
//!
//! Not AIO's own poll (IOCB_CMD_POLL): it came with Linux 4.18 and lost wake-ups and memory until
//! the fixes of 5.16, and it refuses descriptors with two wait queues, as a FIFO opened both ways.

use super::context::last_errno;
use crate::engine::{Completion, Message, Tag};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What is done when the descriptor is ready. Pointers are valid until the completion was taken:
/// the promise of whoever began the wait.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    /// Nothing: it is told.
    Tell,
    /// Read events.
    ReadEvents(*mut [u32; 16]),
    /// Receive what is there.
    Receive(*mut Message),
    /// Send as much as there is room for.
    Send(*const Message),
}

/// All waits of an engine, and its own signal.
#[derive(Debug)]
pub(super) struct Waits {
    /// The engine's signal, then one for each of `acts`.
    polled: Vec<libc::pollfd>,
    acts: Vec<(Tag, Act)>,
}

impl Waits {
    /// `signal` is an eventfd that lives as long.
    pub(super) fn new(signal: BorrowedFd<'_>) -> Self {
        Waits { polled: vec![polled(signal, libc::POLLIN)], acts: Vec::new() }
    }

    /// Begins a wait. One for the same tag ends silently: its descriptor has been closed, or else
    /// nobody would begin another.
    pub(super) fn add(&mut self, descriptor: BorrowedFd<'_>, tag: Tag, act: Act) {
        self.remove(tag);
        let events = if matches!(act, Act::Send(_)) { libc::POLLOUT } else { libc::POLLIN };
        self.polled.push(polled(descriptor, events));
        self.acts.push((tag, act));
    }

    /// Ends a wait without a completion; tells whether there was one.
    pub(super) fn remove(&mut self, tag: Tag) -> bool {
        let Some(index) = self.acts.iter().position(|(waiting, _)| *waiting == tag) else {
            return false;
        };
        self.acts.swap_remove(index);
        self.polled.swap_remove(index + 1);
        true
    }

    /// Waits at most so many milliseconds (-1: for ever) until something is ready, and does it.
    /// Tells whether the engine's signal was among it.
    pub(super) fn poll(
        &mut self,
        timeout_ms: i32,
        completions: &mut Vec<Completion>,
    ) -> Result<bool, Errno> {
        let (first, count) = (self.polled.as_mut_ptr(), self.polled.len());
        // SAFETY: the kernel writes `revents` of these entries.
        match unsafe { libc::poll(first, count as libc::nfds_t, timeout_ms) } {
            0 => return Ok(false),
            ..0 => return Err(last_errno()),
            _ => {}
        }
        // Backwards: whatever takes a removed one's place was looked at already.
        for index in (0..self.acts.len()).rev() {
            let ready = self.polled[index + 1];
            if ready.revents == 0 {
                continue;
            }
            let (tag, act) = self.acts[index];
            // SAFETY: who began the wait promised that its pointers are valid.
            if let Some(result) = unsafe { act.perform(&ready) } {
                self.acts.swap_remove(index);
                self.polled.swap_remove(index + 1);
                completions.push(Completion { tag, result });
            }
        }
        Ok(self.polled[0].revents != 0)
    }
}

impl Act {
    /// Does it now; nothing when the descriptor was not ready after all.
    ///
    /// # Safety
    /// The pointers are valid, and so is the memory that a message describes.
    pub(super) unsafe fn perform(self, ready: &libc::pollfd) -> Option<i32> {
        let descriptor = ready.fd;
        let done = match self {
            Act::Tell if ready.revents & libc::POLLNVAL != 0 => return Some(-libc::EBADF),
            Act::Tell => return Some(ready.revents.into()),
            // SAFETY: the caller's promise.
            Act::ReadEvents(words) => unsafe { libc::read(descriptor, words.cast(), 64) },
            // SAFETY: the caller's promise.
            Act::Receive(message) => unsafe {
                libc::recvmsg(descriptor, message, libc::MSG_DONTWAIT)
            },
            // SAFETY: the caller's promise.
            Act::Send(message) => unsafe {
                libc::sendmsg(descriptor, message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            },
        };
        match i32::try_from(done) {
            Ok(bytes) if bytes >= 0 => Some(bytes),
            _ => match last_errno() {
                Errno::AGAIN | Errno::INTR => None,
                errno => Some(-errno.raw_os_error()),
            },
        }
    }
}

pub(super) fn polled(descriptor: BorrowedFd<'_>, events: i16) -> libc::pollfd {
    libc::pollfd { fd: descriptor.as_raw_fd(), events, revents: 0 }
}
