//! A request's place in a connection while it is in flight.

use super::EXTENTS_MAX;
use super::export::Export;
use super::transmission::{Command, Request};
use crate::arena::Span;
use crate::engine::IoVector;

/// Zeroes that are written in one piece where the image cannot make them, bytes.
pub(super) const ZEROES_PIECE_BYTES: u64 = 64 << 10;

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Its data comes in.
    Receive,
    /// An overlapping write goes first.
    Wait,
    /// The image makes a hole or zeroes.
    Allocate,
    /// The sector is read whose end the piece changes.
    Head,
    /// The sector is read whose beginning the piece changes.
    Tail,
    /// The piece is read or written.
    Data,
    /// The image is flushed.
    Flush,
    /// All done but the answer.
    Answer,
}

/// One request.
#[derive(Debug)]
pub(super) struct Slot {
    /// Present while the slot is taken.
    pub(super) request: Option<Request>,
    pub(super) step: Step,
    /// Its memory: the piece's whole sectors, then a sector to read into.
    pub(super) span: Option<Span>,
    /// The piece of the request that is moved now: all of it, but for zeroes that are written.
    pub(super) piece: (u64, u64),
    /// Bytes moved of the piece's whole sectors.
    pub(super) done: usize,
    /// What the kernel reads or writes; not touched until it has answered.
    pub(super) vectors: Vec<IoVector>,
    /// The request that is read with it, behind it.
    pub(super) next: Option<u16>,
    /// Times that the kernel asked to try again.
    pub(super) retries: u8,
    /// It is among the server's ranges.
    pub(super) ranged: bool,
    /// The answer's header and data in the connection's memory: start and length.
    pub(super) header_bytes: usize,
    pub(super) data: (usize, usize),
}

impl Slot {
    pub(super) fn new() -> Slot {
        Slot {
            request: None,
            step: Step::Answer,
            span: None,
            piece: (0, 0),
            done: 0,
            vectors: Vec::new(),
            next: None,
            retries: 0,
            ranged: false,
            header_bytes: 0,
            data: (0, 0),
        }
    }

    /// Takes the slot.
    pub(super) fn take(&mut self, request: Request, span: Option<Span>) {
        debug_assert!(self.request.is_none(), "a slot has one request at a time");
        let vectors = std::mem::take(&mut self.vectors);
        let piece = (request.offset, request.offset.saturating_add(u64::from(request.length)));
        let step = Step::Receive;
        *self = Slot { request: Some(request), span, piece, step, vectors, ..Slot::new() };
    }

    /// What is asked.
    pub(super) fn request(&self) -> Request {
        self.request.expect("a taken slot has a request")
    }

    /// Where its memory begins.
    pub(super) fn memory(&self) -> usize {
        self.span.expect("a request that moves data has memory").start
    }

    /// Where the piece's first byte lies in the memory.
    pub(super) fn piece_at(&self, export: &Export) -> usize {
        let (start, end) = self.piece;
        self.memory() + usize::try_from(start - export.widen(start, end - start).0).unwrap_or(0)
    }
}

/// Memory that a request needs, bytes.
pub(super) fn memory_bytes(request: &Request, export: &Export) -> usize {
    let sector = export.sector_bytes() as usize;
    let length = u64::from(request.length);
    let (start, end) = export.widen(request.offset, length);
    let wide = usize::try_from(end - start).expect("a request has 32-bit length");
    match request.command {
        Command::Read => wide,
        Command::Write if end - start == length => wide,
        Command::Write => wide + sector,
        Command::Zeroes { .. } => wide.min(ZEROES_PIECE_BYTES as usize) + sector,
        Command::BlockStatus { .. } => 4 + 8 * EXTENTS_MAX,
        Command::Flush | Command::Trim | Command::Cache => 0,
    }
}
