//! The transmission: a request's 28 bytes, judged once, and the headers of answers. No I/O.
//!
//! Nothing behind [`judge`] sees a client's numbers again. Called by a connection. `doc/proto.md`,
//! "Transmission phase".

use super::export::Export;
use super::handshake::Agreed;
use super::{DISCARD_BYTES_MAX, REQUEST_BYTES_MAX};
use rustix::io::Errno;

/// Bytes of a request, its data left out.
pub const REQUEST_BYTES: usize = 28;
/// The longest header of an answer, bytes.
pub const HEADER_BYTES_MAX: usize = 32;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const CHUNK_DONE: u16 = 1;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 1 << 15 | 1;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_CACHE: u16 = 5;
const CMD_WRITE_ZEROES: u16 = 6;
const CMD_BLOCK_STATUS: u16 = 7;

const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 2;
const FLAG_DF: u16 = 4;
const FLAG_REQ_ONE: u16 = 8;
const FLAG_FAST_ZERO: u16 = 16;

/// What a client wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read the range.
    Read,
    /// Write what follows the request.
    Write,
    /// Make durable what was answered before.
    Flush,
    /// The range's content is not wanted any more.
    Trim,
    /// Read ahead. The image has no cache to read into: there is nothing to do.
    Cache,
    /// Make the range read as zeroes.
    Zeroes {
        /// It may not become a hole.
        no_hole: bool,
        /// Refuse rather than write zeroes.
        fast: bool,
    },
    /// Tell which of the range is allocated.
    BlockStatus {
        /// One extent is enough.
        one: bool,
    },
}

/// A request that can be carried out: its range lies in the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The client's name for it.
    pub cookie: u64,
    /// What to do.
    pub command: Command,
    /// Where, bytes.
    pub offset: u64,
    /// How much, bytes.
    pub length: u32,
    /// Durable before it is answered.
    pub fua: bool,
}

/// What a request turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// To be done. Data follows it if it is a write.
    Do(Request),
    /// To be answered with an error, after so many bytes of data.
    Refuse {
        /// The request, its range not to be used.
        request: Request,
        /// The error.
        errno: Errno,
        /// Bytes of data behind it.
        data: u32,
    },
    /// The client takes its leave.
    Disconnect,
    /// No request, or too long to read over.
    HangUp,
}

/// Judges a request.
#[must_use]
pub fn judge(bytes: &[u8; REQUEST_BYTES], export: &Export, agreed: Agreed) -> Judged {
    let u16_at = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_be_bytes(std::array::from_fn(|n| bytes[at + n]));
    let u64_at = |at: usize| u64::from_be_bytes(std::array::from_fn(|n| bytes[at + n]));
    let (flags, kind) = (u16_at(4), u16_at(6));
    if u32_at(0) != REQUEST_MAGIC {
        return Judged::HangUp;
    }
    let (command, flags_known) = match kind {
        CMD_READ => (Command::Read, if agreed.structured { FLAG_DF } else { 0 }),
        CMD_WRITE => (Command::Write, 0),
        CMD_DISC => return Judged::Disconnect,
        CMD_FLUSH => (Command::Flush, 0),
        CMD_TRIM => (Command::Trim, 0),
        CMD_CACHE => (Command::Cache, 0),
        CMD_WRITE_ZEROES => {
            let (no_hole, fast) = (flags & FLAG_NO_HOLE != 0, flags & FLAG_FAST_ZERO != 0);
            (Command::Zeroes { no_hole, fast }, FLAG_NO_HOLE | FLAG_FAST_ZERO)
        }
        CMD_BLOCK_STATUS => (Command::BlockStatus { one: flags & FLAG_REQ_ONE != 0 }, FLAG_REQ_ONE),
        _ => (Command::Cache, 0),
    };
    let fua = flags & FLAG_FUA != 0;
    let (offset, length) = (u64_at(16), u32_at(24));
    let request = Request { cookie: u64_at(8), command, offset, length, fua };
    let data = if kind == CMD_WRITE { length } else { 0 };
    if data > DISCARD_BYTES_MAX {
        return Judged::HangUp;
    }
    let writes = matches!(command, Command::Write | Command::Trim | Command::Zeroes { .. });
    let moves = matches!(command, Command::Read | Command::Write);
    let asks_status = matches!(command, Command::BlockStatus { .. });
    let inside = offset.checked_add(u64::from(length)).is_some_and(|end| end <= export.bytes());
    let errno = if kind > CMD_BLOCK_STATUS || flags & !(flags_known | FLAG_FUA) != 0 {
        Errno::INVAL
    } else if command == Command::Flush {
        return Judged::Do(request);
    } else if writes && export.is_read_only() {
        Errno::PERM
    } else if moves && length > REQUEST_BYTES_MAX {
        Errno::OVERFLOW
    } else if writes && !inside {
        Errno::NOSPC
    } else if length == 0 || !inside || (asks_status && !agreed.allocation) {
        Errno::INVAL
    } else {
        return Judged::Do(request);
    };
    Judged::Refuse { request, errno, data }
}

/// The header of an answer; data follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    length: usize,
}

impl Header {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn of(parts: &[&[u8]]) -> Header {
        let mut header = Header { bytes: [0; HEADER_BYTES_MAX], length: 0 };
        for part in parts {
            header.bytes[header.length..][..part.len()].copy_from_slice(part);
            header.length += part.len();
        }
        header
    }

    fn simple(cookie: u64, error: u32) -> Header {
        Header::of(&[&SIMPLE_MAGIC.to_be_bytes(), &error.to_be_bytes(), &cookie.to_be_bytes()])
    }

    fn chunk(cookie: u64, kind: u16, length: u32, rest: &[u8]) -> Header {
        Header::of(&[
            &CHUNK_MAGIC.to_be_bytes(),
            &CHUNK_DONE.to_be_bytes(),
            &kind.to_be_bytes(),
            &cookie.to_be_bytes(),
            &length.to_be_bytes(),
            rest,
        ])
    }

    /// The answer to a request that was done; `data` bytes follow.
    #[must_use]
    pub fn done(request: &Request, data: u32, agreed: Agreed) -> Header {
        let cookie = request.cookie;
        match request.command {
            Command::Read if agreed.structured => {
                let offset = request.offset.to_be_bytes();
                Header::chunk(cookie, CHUNK_OFFSET_DATA, data + 8, &offset)
            }
            Command::BlockStatus { .. } => Header::chunk(cookie, CHUNK_BLOCK_STATUS, data, &[]),
            _ => Header::simple(cookie, 0),
        }
    }

    /// The answer to a request that failed or was refused.
    #[must_use]
    pub fn failed(request: &Request, errno: Errno, agreed: Agreed) -> Header {
        let error = error_number(errno);
        match request.command {
            Command::Read | Command::BlockStatus { .. } if agreed.structured => {
                let no_text = [&error.to_be_bytes()[..], &[0, 0]].concat();
                Header::chunk(request.cookie, CHUNK_ERROR, 6, &no_text)
            }
            _ => Header::simple(request.cookie, error),
        }
    }
}

/// The protocol knows few errors, by numbers of its own.
fn error_number(errno: Errno) -> u32 {
    match errno {
        Errno::PERM | Errno::ACCESS | Errno::ROFS => 1,
        Errno::NOMEM => 12,
        Errno::INVAL => 22,
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => 28,
        Errno::OVERFLOW => 75,
        Errno::OPNOTSUPP => 95,
        Errno::SHUTDOWN => 108,
        _ => 5,
    }
}

#[cfg(test)]
mod tests;
