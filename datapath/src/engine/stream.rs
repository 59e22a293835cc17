//! The rest of the vocabulary: streams for the NBD server, and what only changes where data stands.

use super::{Engine, IoVector, Kind, Tag, either};
pub use libc::msghdr as Message;
use std::os::fd::BorrowedFd;

/// What a range of the image becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// A hole, reading as zeroes.
    Hole,
    /// Allocated, reading as zeroes.
    Zeroes,
}

impl Allocation {
    /// `fallocate`'s mode; the file keeps its size.
    pub(super) fn mode(self) -> i32 {
        libc::FALLOC_FL_KEEP_SIZE
            | match self {
                Allocation::Hole => libc::FALLOC_FL_PUNCH_HOLE,
                Allocation::Zeroes => libc::FALLOC_FL_ZERO_RANGE,
            }
    }
}

impl Engine {
    /// Receives into `message`'s vectors: at least a byte, or 0 at the stream's end.
    ///
    /// # Safety
    /// The message, its vectors and the memory that they describe stay valid and in place until the
    /// completion of `tag` was taken.
    pub unsafe fn receive(&mut self, socket: BorrowedFd<'_>, message: *mut Message, tag: Tag) {
        // SAFETY: the caller's promise.
        either!(self, it => unsafe { it.receive(socket, message, tag) });
    }

    /// Sends `message`'s vectors: at least a byte, all if the socket has room.
    ///
    /// # Safety
    /// As for [`Engine::receive`].
    pub unsafe fn send(&mut self, socket: BorrowedFd<'_>, message: *const Message, tag: Tag) {
        // SAFETY: the caller's promise.
        either!(self, it => unsafe { it.send(socket, message, tag) });
    }

    /// As [`Engine::write`], and durable when it completes.
    ///
    /// # Safety
    /// As for [`Engine::read`].
    pub unsafe fn write_durable(&mut self, vectors: &[IoVector], offset: u64, tag: Tag) {
        // SAFETY: the caller's promise.
        either!(self, it => unsafe { it.write_durable(vectors, offset, tag) });
    }

    /// Makes `bytes` of the image from `offset` on what `allocation` says; its size stays.
    pub fn allocate(&mut self, allocation: Allocation, offset: u64, bytes: u64, tag: Tag) {
        either!(self, it => it.allocate(allocation, offset, bytes, tag));
    }
}
