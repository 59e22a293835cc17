//! Operations for the NBD server: streams, and what only it asks of the image.

use super::uring::{IMAGE, raw};
use super::{Engine, IoVector, Tag};
use io_uring::{opcode, types};
pub use libc::msghdr as Message;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What a range of the image becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// A hole, reading as zeroes.
    Hole,
    /// Allocated, reading as zeroes.
    Zeroes,
}

impl Engine {
    /// Receives into `message`'s vectors: at least a byte, or 0 at the stream's end.
    ///
    /// # Safety
    /// The message, its vectors and the memory that they describe stay valid and in place until the
    /// completion of `tag` was taken.
    pub unsafe fn receive(&mut self, socket: BorrowedFd<'_>, message: *mut Message, tag: Tag) {
        let entry = opcode::RecvMsg::new(types::Fd(socket.as_raw_fd()), message).build();
        // SAFETY: the caller's promise.
        unsafe { self.push(&entry.user_data(tag.encode())) };
    }

    /// Sends `message`'s vectors, all of them if the stream goes on so long.
    ///
    /// # Safety
    /// As for [`Engine::receive`].
    pub unsafe fn send(&mut self, socket: BorrowedFd<'_>, message: *const Message, tag: Tag) {
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).unsigned_abs();
        let socket = types::Fd(socket.as_raw_fd());
        let entry = opcode::SendMsg::new(socket, message).flags(flags).build();
        // SAFETY: the caller's promise.
        unsafe { self.push(&entry.user_data(tag.encode())) };
    }

    /// As [`Engine::write`], and durable when it completes.
    ///
    /// # Safety
    /// As for [`Engine::read`].
    pub unsafe fn write_durable(&mut self, vectors: &[IoVector], offset: u64, tag: Tag) {
        let (first, count) = raw(vectors);
        let entry = opcode::Writev::new(IMAGE, first, count);
        let entry = entry.offset(offset).rw_flags(libc::RWF_DSYNC).build();
        // SAFETY: the caller's promise.
        unsafe { self.push(&entry.user_data(tag.encode())) };
    }

    /// Makes `bytes` of the image from `offset` on what `allocation` says; its size stays.
    pub fn allocate(&mut self, allocation: Allocation, offset: u64, bytes: u64, tag: Tag) {
        let mode = libc::FALLOC_FL_KEEP_SIZE
            | match allocation {
                Allocation::Hole => libc::FALLOC_FL_PUNCH_HOLE,
                Allocation::Zeroes => libc::FALLOC_FL_ZERO_RANGE,
            };
        let entry = opcode::Fallocate::new(IMAGE, bytes).offset(offset).mode(mode).build();
        // SAFETY: names no memory.
        unsafe { self.push(&entry.user_data(tag.encode())) };
    }
}
