//! io_uring's share of the vocabulary for streams and allocation.

use super::{IMAGE, Uring, raw};
use crate::engine::{Allocation, IoVector, Message, Tag};
use io_uring::{opcode, types};
use std::os::fd::{AsRawFd, BorrowedFd};

impl Uring {
    /// # Safety
    /// As for [`crate::engine::Engine::receive`].
    pub(in crate::engine) unsafe fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        message: *mut Message,
        tag: Tag,
    ) {
        let entry = opcode::RecvMsg::new(types::Fd(socket.as_raw_fd()), message).build();
        // SAFETY: the caller's promise.
        unsafe { self.push(&entry.user_data(tag.encode())) };
    }

    /// # Safety
    /// As for [`crate::engine::Engine::receive`].
    pub(in crate::engine) unsafe fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        message: *const Message,
        tag: Tag,
    ) {
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).unsigned_abs();
        let socket = types::Fd(socket.as_raw_fd());
        let entry = opcode::SendMsg::new(socket, message).flags(flags).build();
        // SAFETY: the caller's promise.
        unsafe { self.push(&entry.user_data(tag.encode())) };
    }

    /// # Safety
    /// As for [`crate::engine::Engine::read`].
    pub(in crate::engine) unsafe fn write_durable(
        &mut self,
        vectors: &[IoVector],
        offset: u64,
        tag: Tag,
    ) {
        let (first, count) = raw(vectors);
        let entry = opcode::Writev::new(IMAGE, first, count);
        let entry = entry.offset(offset).rw_flags(libc::RWF_DSYNC).build();
        // SAFETY: the caller's promise.
        unsafe { self.push(&entry.user_data(tag.encode())) };
    }

    pub(in crate::engine) fn allocate(
        &mut self,
        allocation: Allocation,
        offset: u64,
        bytes: u64,
        tag: Tag,
    ) {
        let entry = opcode::Fallocate::new(IMAGE, bytes).offset(offset);
        let entry = entry.mode(allocation.mode()).build();
        // SAFETY: names no memory.
        unsafe { self.push(&entry.user_data(tag.encode())) };
    }
}
