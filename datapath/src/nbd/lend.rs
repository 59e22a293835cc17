//! What a connection lends to the kernel: memory to receive into, to send, to read and write.
//!
//! All of it is in the connection's one mapping, never a Rust reference. A receive and a send are
//! with the kernel at most, and a step for each request.

use super::connection::{ANSWER_AT, Connection, Ground, STREAM_AT, STREAM_BYTES, State, header_at};
use super::slot::Step;
use crate::engine::{Engine, IoVector, Message, add_vector, advance_vectors};
use std::os::fd::AsFd;

/// The lanes of a tag that are no request's.
pub(super) const RECEIVE: u16 = u16::MAX;
pub(super) const SEND: u16 = u16::MAX - 1;

/// Of that, so much behind data that is long: most of what follows is data again.
const STREAM_BEHIND_BYTES: usize = 4096;

impl Connection {
    /// Sends all answers that are ready, if none are being sent.
    pub(super) fn arm_send(&mut self, engine: &mut Engine) {
        if self.send_armed || self.state == State::Dead {
            return;
        }
        if self.send_vectors.is_empty() {
            if self.answer_bytes > 0 {
                self.send_vectors.push(self.vector(ANSWER_AT, self.answer_bytes));
            }
            while let Some(number) = self.ready.pop_front() {
                let slot = &self.slots[usize::from(number)];
                let header = self.vector(header_at(number), slot.header_bytes);
                let (start, bytes) = slot.data;
                self.send_vectors.push(header);
                if bytes > 0 {
                    self.send_vectors.push(self.vector(start, bytes));
                }
                self.sending.push(number);
            }
        }
        if self.send_vectors.is_empty() {
            return;
        }
        self.send_message.msg_iov = self.send_vectors.as_mut_ptr();
        self.send_message.msg_iovlen = self.send_vectors.len();
        self.send_armed = true;
        let tag = self.tag(SEND);
        // SAFETY: the message is boxed, the vectors are left alone while `send_armed`, and the
        // memory is this connection's mapping: it is dropped only when `closed`.
        unsafe { engine.send(self.socket.as_fd(), &raw const *self.send_message, tag) };
    }

    /// So many bytes of the answers were sent.
    pub(super) fn on_sent(&mut self, result: i32) {
        self.send_armed = false;
        match usize::try_from(result) {
            Ok(bytes) if self.state != State::Dead => {
                advance_vectors(&mut self.send_vectors, bytes);
                if !self.send_vectors.is_empty() {
                    return;
                }
            }
            Err(_) if -result == libc::EINTR && self.state != State::Dead => return,
            _ => {
                self.send_vectors.clear();
                self.hang_up();
            }
        }
        self.answer_bytes = 0;
        while let Some(number) = self.sending.pop() {
            self.release(number);
        }
    }

    pub(super) fn arm_receive(&mut self, engine: &mut Engine) {
        if self.receive_armed {
            return;
        }
        let left = self.stream.len();
        self.memory.copy_within(STREAM_AT + self.stream.start, STREAM_AT, left);
        self.stream = 0..left;
        let mut room = STREAM_BYTES - left;
        let mut data = (0, 0);
        if let Some(filling) = &self.filling {
            data = (filling.at, filling.left);
            if filling.left >= STREAM_BYTES {
                room = STREAM_BEHIND_BYTES;
            }
        }
        self.receive_vectors = [self.vector(data.0, data.1), self.vector(STREAM_AT + left, room)];
        let vectors = if data.1 > 0 { 0..2 } else { 1..2 };
        self.receive_message.msg_iovlen = vectors.len();
        self.receive_message.msg_iov = self.receive_vectors[vectors].as_mut_ptr();
        self.receive_armed = true;
        let tag = self.tag(RECEIVE);
        // SAFETY: the message is boxed, so is the connection with its vectors, which are left alone
        // while `receive_armed`; the memory is this connection's mapping: it is dropped only when
        // `closed`. A request whose data comes in keeps its memory: `hang_up` does not give it to
        // others, for a dead connection takes no more requests.
        unsafe { engine.receive(self.socket.as_fd(), &raw mut *self.receive_message, tag) };
    }

    /// So many bytes came.
    pub(super) fn on_received(&mut self, result: i32) {
        self.receive_armed = false;
        let mut bytes = match usize::try_from(result) {
            Ok(0) => return self.end_if_open(),
            Ok(bytes) => bytes,
            Err(_) if -result == libc::EINTR => return,
            Err(_) => return self.hang_up(),
        };
        if let Some(filling) = &mut self.filling {
            let data = bytes.min(filling.left);
            filling.at += data;
            filling.left -= data;
            bytes -= data;
        }
        self.stream.end += bytes;
    }

    /// Reads from the image into this connection's memory.
    pub(super) fn read_image(
        &mut self,
        number: u16,
        (start, bytes): (usize, usize),
        offset: u64,
        ground: &mut Ground<'_>,
    ) {
        let (vector, tag) = (self.vector(start, bytes), self.tag(number));
        let slot = self.slot(number);
        slot.vectors.clear();
        slot.vectors.push(vector);
        // SAFETY: the vector stays in its slot and the memory the slot's until the request is
        // finished, which is after this completion.
        unsafe { ground.engine.read(&slot.vectors, offset, tag) };
    }

    /// Reads a run of requests, each into its own memory. The completion is the first one's.
    pub(super) fn read_run(&mut self, first: u16, ground: &mut Ground<'_>) {
        let mut vectors = std::mem::take(&mut self.slot(first).vectors);
        vectors.clear();
        let mut next = Some(first);
        while let Some(number) = next {
            let slot = self.slot(number);
            slot.step = Step::Data;
            next = slot.next;
            let (start, bytes) = (slot.memory(), slot.request().length as usize);
            add_vector(&mut vectors, self.memory.address(start, bytes), bytes);
        }
        let (tag, offset) = (self.tag(first), self.slot(first).request().offset);
        let slot = self.slot(first);
        slot.vectors = vectors;
        // SAFETY: the vectors stay in the first one's slot, and each request keeps its memory until
        // it is finished, which is after this completion.
        unsafe { ground.engine.read(&slot.vectors, offset, tag) };
    }

    /// Writes this connection's memory to the image.
    pub(super) fn write_image(
        &mut self,
        number: u16,
        (start, bytes): (usize, usize),
        offset: u64,
        durable: bool,
        ground: &mut Ground<'_>,
    ) {
        let (vector, tag) = (self.vector(start, bytes), self.tag(number));
        let slot = self.slot(number);
        slot.vectors.clear();
        slot.vectors.push(vector);
        // SAFETY: as for `read_image`.
        unsafe {
            if durable {
                ground.engine.write_durable(&slot.vectors, offset, tag);
            } else {
                ground.engine.write(&slot.vectors, offset, tag);
            }
        }
    }

    fn vector(&self, start: usize, bytes: usize) -> IoVector {
        IoVector { iov_base: self.memory.address(start, bytes).cast(), iov_len: bytes }
    }
}

/// A message with no address and nothing beside its vectors.
pub(super) fn message() -> Message {
    // SAFETY: a C structure of numbers and pointers, for which zero means none.
    unsafe { std::mem::zeroed() }
}
