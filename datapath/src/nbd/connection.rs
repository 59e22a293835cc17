//! One client: its socket, what came and is not taken yet, its requests and their memory.
//!
//! Nothing waits: a receive and a send are with the kernel at most, and while a client has as many
//! requests or as much data in flight as it may, it is not read from. What is
//! with the kernel: `lend.rs`. What becomes of a request: `flow.rs`. Called by the server.

use super::export::Export;
use super::gather::Gather;
use super::handshake::{ANSWER_BYTES_MAX, Agreed, Handshake, Taken};
use super::lend::message;
use super::ranges::{Ranges, Writer};
use super::slot::{Slot, memory_bytes};
use super::transmission::{
    Command, HEADER_BYTES_MAX, Header, Judged, REQUEST_BYTES, Request, judge,
};
use super::{ARENA_BYTES, REQUESTS_MAX};
use crate::arena::{Arena, Span};
use crate::copy::Hold;
use crate::engine::{Engine, IoVector, Message, Tag};
use crate::ring::shared::SharedMapping;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use zerotap_rpc_schema::worker::NbdCounters;

/// What is taken in one receive, beside data that goes straight to its place.
pub(super) const STREAM_BYTES: usize = 64 << 10;
const HEADERS_AT: usize = 0;
pub(super) const ANSWER_AT: usize = HEADERS_AT + REQUESTS_MAX * HEADER_BYTES_MAX;
pub(super) const STREAM_AT: usize = ANSWER_AT + ANSWER_BYTES_MAX;
const ARENA_AT: usize = STREAM_AT + STREAM_BYTES;

/// What a connection works with, lent for a call.
pub(super) struct Ground<'a> {
    pub(super) engine: &'a mut Engine,
    pub(super) export: &'a Export,
    pub(super) ranges: &'a mut Ranges,
    pub(super) counters: &'a mut NbdCounters,
    /// Writes that may run now.
    pub(super) started: &'a mut Vec<Writer>,
    /// Nothing new begins.
    pub(super) paused: bool,
    /// While the image is copied: what writes go by, and those that wait for it.
    pub(super) hold: Option<&'a Hold>,
    pub(super) held: &'a mut Vec<Writer>,
}

#[derive(Debug)]
pub(super) enum Phase {
    Handshake(Handshake),
    Transmission(Agreed),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// Takes no more, answers what it has.
    Ending,
    /// Answers nothing.
    Dead,
}

/// A write whose data comes in.
#[derive(Debug)]
pub(super) struct Filling {
    pub(super) slot: u16,
    pub(super) at: usize,
    pub(super) left: usize,
}

/// What a connection needs before it can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wants {
    Bytes,
    Room,
}

/// One client.
pub(super) struct Connection {
    pub(super) number: u16,
    /// How old it is among the clients.
    pub(super) serial: u64,
    pub(super) socket: OwnedFd,
    pub(super) phase: Phase,
    pub(super) state: State,
    pub(super) memory: SharedMapping,
    pub(super) arena: Arena,
    pub(super) slots: Box<[Slot]>,
    pub(super) free: Vec<u16>,
    /// Requests that are with the image, or wait for others there.
    pub(super) running: u32,
    /// What of the stream's memory was received and not taken.
    pub(super) stream: std::ops::Range<usize>,
    pub(super) filling: Option<Filling>,
    /// Bytes of refused data that are read over.
    pub(super) discard: usize,
    /// Bytes of the handshake's answer.
    pub(super) answer_bytes: usize,
    /// Reads that were taken this turn, not begun yet.
    pub(super) gather: Gather,
    /// Requests whose answers wait, and those whose answers are being sent.
    pub(super) ready: VecDeque<u16>,
    pub(super) sending: Vec<u16>,
    pub(super) send_vectors: Vec<IoVector>,
    pub(super) receive_vectors: [IoVector; 2],
    pub(super) send_message: Box<Message>,
    pub(super) receive_message: Box<Message>,
    pub(super) send_armed: bool,
    pub(super) receive_armed: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Connection {
    /// Greets a client.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(number: u16, serial: u64, socket: OwnedFd) -> rustix::io::Result<Connection> {
        let requests = u16::try_from(REQUESTS_MAX).expect("a few");
        let none = IoVector { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut connection = Connection {
            number,
            serial,
            socket,
            phase: Phase::Handshake(Handshake::default()),
            state: State::Open,
            memory: SharedMapping::anonymous(ARENA_AT + ARENA_BYTES)?,
            arena: Arena::new(ARENA_AT, ARENA_BYTES),
            slots: (0..requests).map(|_| Slot::new()).collect(),
            free: (0..requests).rev().collect(),
            running: 0,
            stream: 0..0,
            filling: None,
            discard: 0,
            answer_bytes: 0,
            gather: Gather::new(),
            ready: VecDeque::with_capacity(REQUESTS_MAX),
            sending: Vec::with_capacity(REQUESTS_MAX),
            send_vectors: Vec::with_capacity(2 * REQUESTS_MAX + 1),
            receive_vectors: [none; 2],
            send_message: Box::new(message()),
            receive_message: Box::new(message()),
            send_armed: false,
            receive_armed: false,
        };
        connection.say(&Handshake::greeting());
        Ok(connection)
    }

    pub(super) fn slot(&mut self, number: u16) -> &mut Slot {
        &mut self.slots[usize::from(number)]
    }

    pub(super) fn tag(&self, lane: u16) -> Tag {
        Tag::Nbd { client: self.number, lane }
    }

    /// Whether it has not chosen the export yet.
    pub(super) fn is_in_handshake(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_)) && self.state == State::Open
    }

    /// Whether it is over, and nothing of it is with the kernel.
    pub(super) fn closed(&self) -> bool {
        let idle = !self.send_armed && !self.receive_armed && self.running == 0;
        let said = self.ready.is_empty() && self.answer_bytes == 0;
        idle && (self.state == State::Dead || (self.state == State::Ending && said))
    }

    /// Ends it. What is with the image is finished, nothing is answered.
    pub(super) fn hang_up(&mut self) {
        self.state = State::Dead;
        // Ends the waiting receive and send too. It fails when the client has gone already.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        while let Some(number) = self.ready.pop_front() {
            self.release(number);
        }
        if let Some(filling) = self.filling.take() {
            self.release(filling.slot);
        }
    }

    /// Takes no more requests; what it has is answered.
    fn end(&mut self) {
        self.state = State::Ending;
        if let Some(filling) = self.filling.take() {
            self.release(filling.slot);
        }
    }

    /// Takes what came, sends what is done, and waits for more.
    pub(super) fn serve(&mut self, ground: &mut Ground<'_>) {
        let wants = self.take_all(ground);
        self.read_gathered(ground);
        self.arm_send(ground.engine);
        if self.state == State::Open && wants == Wants::Bytes {
            self.arm_receive(ground.engine);
        }
    }

    fn take_all(&mut self, ground: &mut Ground<'_>) -> Wants {
        while self.state == State::Open {
            if ground.paused {
                return Wants::Room;
            }
            let available = self.stream.len();
            if self.discard > 0 {
                let taken = self.discard.min(available);
                self.stream.start += taken;
                self.discard -= taken;
                if self.discard > 0 {
                    return Wants::Bytes;
                }
                continue;
            }
            if let Some(filling) = &mut self.filling {
                let taken = filling.left.min(available);
                self.memory.copy_within(STREAM_AT + self.stream.start, filling.at, taken);
                ground.counters.copied_bytes += taken as u64;
                self.stream.start += taken;
                filling.at += taken;
                filling.left -= taken;
                if filling.left > 0 {
                    return Wants::Bytes;
                }
                let number = filling.slot;
                self.filling = None;
                self.begin(number, ground);
                continue;
            }
            let wants = match self.phase {
                Phase::Handshake(_) => self.take_option(ground.export),
                Phase::Transmission(agreed) => self.take_request(agreed, ground),
            };
            if let Some(wants) = wants {
                return wants;
            }
        }
        Wants::Room
    }

    /// Takes a message of the handshake, or tells what is missing.
    fn take_option(&mut self, export: &Export) -> Option<Wants> {
        // One answer at a time: a client that asks and never reads costs no more.
        if self.answer_bytes > 0 {
            return Some(Wants::Room);
        }
        let Phase::Handshake(handshake) = &mut self.phase else { return None };
        let mut input = vec![0; self.stream.len()];
        self.memory.copy_out(STREAM_AT + self.stream.start, &mut input);
        let mut answer = Vec::new();
        let taken = match handshake.take(&input, export, &mut answer) {
            Taken::More => return Some(Wants::Bytes),
            Taken::HangUp => {
                self.hang_up();
                return None;
            }
            Taken::Message(taken) => taken,
            Taken::Transmission(taken, agreed) => {
                self.phase = Phase::Transmission(agreed);
                taken
            }
            Taken::Ended(taken) => {
                self.end();
                taken
            }
        };
        self.stream.start += taken;
        self.say(&answer);
        None
    }

    /// Has a part of the handshake sent.
    fn say(&mut self, answer: &[u8]) {
        assert!(answer.len() <= ANSWER_BYTES_MAX, "answers to options are short");
        self.memory.copy_in(ANSWER_AT, answer);
        self.answer_bytes = answer.len();
    }

    /// Takes a request, or tells what is missing.
    fn take_request(&mut self, agreed: Agreed, ground: &mut Ground<'_>) -> Option<Wants> {
        if self.stream.len() < REQUEST_BYTES {
            return Some(Wants::Bytes);
        }
        let Some(&number) = self.free.last() else { return Some(Wants::Room) };
        let bytes: [u8; REQUEST_BYTES] = self.memory.read(STREAM_AT + self.stream.start);
        match judge(&bytes, ground.export, agreed) {
            Judged::Do(request) => {
                let wanted = memory_bytes(&request, ground.export);
                let span = match wanted {
                    0 => None,
                    _ => Some(self.arena.take(wanted)),
                };
                // Others give memory back.
                if span == Some(None) {
                    return Some(Wants::Room);
                }
                self.take_slot(number, request, span.flatten());
                if request.command == Command::Write {
                    let at = self.slot(number).piece_at(ground.export);
                    let left = request.length as usize;
                    self.filling = Some(Filling { slot: number, at, left });
                } else if !self.gather.take(number, &request, ground.export) {
                    self.begin(number, ground);
                }
            }
            Judged::Refuse { request, errno, data } => {
                self.take_slot(number, request, None);
                self.discard = data as usize;
                ground.counters.refused += 1;
                self.answer(number, Header::failed(&request, errno, agreed));
            }
            Judged::Disconnect => self.end(),
            Judged::HangUp => {
                tracing::warn!(client = self.number, "an NBD client broke the protocol");
                self.hang_up();
            }
        }
        None
    }

    fn take_slot(&mut self, number: u16, request: Request, span: Option<Span>) {
        self.free.pop();
        self.slot(number).take(request, span);
        self.stream.start += REQUEST_BYTES;
    }

    pub(super) fn release(&mut self, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        slot.request = None;
        if let Some(span) = slot.span.take() {
            self.arena.give(span);
        }
        self.free.push(number);
    }

    /// All I/O of a request is over.
    pub(super) fn finish(
        &mut self,
        number: u16,
        result: Result<(), Errno>,
        ground: &mut Ground<'_>,
    ) {
        self.running -= 1;
        let Phase::Transmission(agreed) = self.phase else { return };
        let slot = &mut self.slots[usize::from(number)];
        let request = slot.request();
        if std::mem::take(&mut slot.ranged) {
            ground.started.extend(ground.ranges.leave((self.number, number)));
        }
        let header = match result {
            Ok(()) => {
                count(ground.counters, &request);
                let data = u32::try_from(slot.data.1).expect("a request's data");
                Header::done(&request, data, agreed)
            }
            Err(errno) => {
                slot.data = (0, 0);
                Header::failed(&request, errno, agreed)
            }
        };
        self.answer(number, header);
    }

    fn answer(&mut self, number: u16, header: Header) {
        if self.state == State::Dead {
            return self.release(number);
        }
        self.memory.copy_in(header_at(number), header.bytes());
        let slot = self.slot(number);
        slot.header_bytes = header.bytes().len();
        slot.step = super::slot::Step::Answer;
        self.ready.push_back(number);
    }

    /// The client says no more.
    pub(super) fn end_if_open(&mut self) {
        if self.state == State::Open {
            self.end();
        }
    }
}

pub(super) fn header_at(number: u16) -> usize {
    HEADERS_AT + usize::from(number) * HEADER_BYTES_MAX
}

fn count(counters: &mut NbdCounters, request: &Request) {
    let bytes = u64::from(request.length);
    match request.command {
        Command::Read => {
            counters.reads += 1;
            counters.read_bytes += bytes;
        }
        Command::Write => {
            counters.writes += 1;
            counters.write_bytes += bytes;
        }
        Command::Flush => counters.flushes += 1,
        Command::Trim | Command::Zeroes { .. } => {
            counters.discards += 1;
            counters.discard_bytes += bytes;
        }
        Command::Cache | Command::BlockStatus { .. } => {}
    }
}
