//! The handshake: fixed newstyle, options, until a client has chosen the export. No I/O.
//!
//! Takes one message at a time off the front of what came, and says what to send. Called by a
//! connection, which hands over no more input before the answer was sent. `doc/proto.md`,
//! "Handshake phase".

use super::export::Export;

/// The longest data of an option, bytes: two names and a few queries. Who sends more is hung up on.
pub const OPTION_BYTES_MAX: usize = 16 << 10;
/// The most that one message is answered with, bytes.
pub const ANSWER_BYTES_MAX: usize = 4096;
/// The only metadata context.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its number in this server.
pub const BASE_ALLOCATION_ID: u32 = 1;

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const ZEROES_BYTES: usize = 124;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_LIST_META_CONTEXT: u32 = 9;
const OPT_SET_META_CONTEXT: u32 = 10;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
const REP_ERR_INVALID: u32 = 1 << 31 | 3;
const REP_ERR_UNKNOWN: u32 = 1 << 31 | 6;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_BLOCK_SIZE: u16 = 3;

/// What client and server agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Agreed {
    /// Reads are answered in chunks.
    pub structured: bool,
    /// BLOCK_STATUS tells [`BASE_ALLOCATION`].
    pub allocation: bool,
}

/// What became of the front of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Not a whole message yet.
    More,
    /// A message of so many bytes was taken, the answer written.
    Message(usize),
    /// As [`Taken::Message`], and the transmission begins behind it.
    Transmission(usize, Agreed),
    /// As [`Taken::Message`], and the client wants no more.
    Ended(usize),
    /// No NBD client, or none that can be served.
    HangUp,
}

/// A handshake under way.
#[derive(Debug, Default)]
pub struct Handshake {
    greeted: bool,
    no_zeroes: bool,
    structured: bool,
    /// The name for which [`BASE_ALLOCATION`] was chosen.
    allocation: Option<Vec<u8>>,
}

/// A cursor over an option's data. `None` where it ends too early.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// A string behind its length.
    fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.bytes(length)
    }
}

impl Handshake {
    /// What the server says first.
    #[must_use]
    pub fn greeting() -> Vec<u8> {
        let mut greeting = NBDMAGIC.to_be_bytes().to_vec();
        greeting.extend(IHAVEOPT.to_be_bytes());
        greeting.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
        greeting
    }

    /// Takes a message off the front of `input`; its answer is added to `answer`.
    pub fn take(&mut self, input: &[u8], export: &Export, answer: &mut Vec<u8>) -> Taken {
        let mut fields = Fields(input);
        if !self.greeted {
            let Some(flags) = fields.u32() else { return Taken::More };
            // A client of the old newstyle may not be answered when it asks for what is not there.
            if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0
                || flags & u32::from(FIXED_NEWSTYLE) == 0
            {
                return Taken::HangUp;
            }
            self.greeted = true;
            self.no_zeroes = flags & u32::from(NO_ZEROES) != 0;
            return Taken::Message(4);
        }
        let Some(magic) = fields.u64() else { return Taken::More };
        if magic != IHAVEOPT {
            return Taken::HangUp;
        }
        let (Some(option), Some(length)) = (fields.u32(), fields.u32()) else {
            return Taken::More;
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > OPTION_BYTES_MAX {
            return Taken::HangUp;
        }
        let Some(data) = fields.bytes(length) else { return Taken::More };
        let taken = 16 + length;
        match option {
            OPT_EXPORT_NAME if export.is_named(data) => {
                answer.extend(export.bytes().to_be_bytes());
                answer.extend(export.flags(self.structured).to_be_bytes());
                if !self.no_zeroes {
                    answer.extend([0; ZEROES_BYTES]);
                }
                Taken::Transmission(taken, self.agreed(data))
            }
            // There is no answer that says no.
            OPT_EXPORT_NAME => Taken::HangUp,
            OPT_ABORT => {
                reply(answer, option, REP_ACK, &[]);
                Taken::Ended(taken)
            }
            OPT_GO if self.info(option, data, export, answer) => {
                let name = Fields(data).string().unwrap_or_default();
                Taken::Transmission(taken, self.agreed(name))
            }
            OPT_GO => Taken::Message(taken),
            _ => {
                self.answer(option, data, export, answer);
                Taken::Message(taken)
            }
        }
    }

    fn agreed(&self, name: &[u8]) -> Agreed {
        let allocation = self.allocation.as_deref() == Some(name);
        Agreed { structured: self.structured, allocation }
    }

    fn answer(&mut self, option: u32, data: &[u8], export: &Export, answer: &mut Vec<u8>) {
        match option {
            OPT_LIST if data.is_empty() => {
                reply(answer, option, REP_SERVER, &[&length(export.name()), export.name()]);
                reply(answer, option, REP_ACK, &[]);
            }
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                reply(answer, option, REP_ACK, &[]);
            }
            OPT_INFO => {
                self.info(option, data, export, answer);
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                self.contexts(option, data, export, answer);
            }
            OPT_LIST | OPT_STRUCTURED_REPLY => invalid(answer, option, "this option has no data"),
            _ => reply(answer, option, REP_ERR_UNSUP, &[b"this server does not know the option"]),
        }
    }

    /// INFO and GO. True when the export was told.
    fn info(&self, option: u32, data: &[u8], export: &Export, answer: &mut Vec<u8>) -> bool {
        let mut fields = Fields(data);
        let parsed = (|| {
            let name = fields.string()?;
            let count = usize::from(fields.u16()?);
            let wanted = fields.bytes(count * 2)?;
            fields.0.is_empty().then_some((name, wanted))
        })();
        let Some((name, wanted)) = parsed else {
            invalid(answer, option, "the data is malformed");
            return false;
        };
        if !export.is_named(name) {
            reply(answer, option, REP_ERR_UNKNOWN, &[b"there is no such export here"]);
            return false;
        }
        let flags = export.flags(self.structured).to_be_bytes();
        let bytes = export.bytes().to_be_bytes();
        reply(answer, option, REP_INFO, &[&INFO_EXPORT.to_be_bytes(), &bytes, &flags]);
        let sizes = export.block_sizes().map(u32::to_be_bytes);
        let sizes = sizes.as_flattened();
        reply(answer, option, REP_INFO, &[&INFO_BLOCK_SIZE.to_be_bytes(), sizes]);
        if wanted.as_chunks().0.contains(&INFO_NAME.to_be_bytes()) {
            reply(answer, option, REP_INFO, &[&INFO_NAME.to_be_bytes(), export.name()]);
        }
        reply(answer, option, REP_ACK, &[]);
        true
    }

    /// LIST_META_CONTEXT and SET_META_CONTEXT.
    fn contexts(&mut self, option: u32, data: &[u8], export: &Export, answer: &mut Vec<u8>) {
        let set = option == OPT_SET_META_CONTEXT;
        let mut fields = Fields(data);
        let parsed = (|| {
            let name = fields.string()?;
            let count = fields.u32()?;
            let mut found = count == 0 && !set;
            for _ in 0..count {
                let query = fields.string()?;
                found |= query == BASE_ALLOCATION.as_bytes() || (query == b"base:" && !set);
            }
            fields.0.is_empty().then_some((name, found))
        })();
        if set {
            self.allocation = None;
        }
        let Some((name, found)) = parsed else {
            return invalid(answer, option, "the data is malformed");
        };
        if set && !self.structured {
            return invalid(answer, option, "metadata contexts need structured replies");
        }
        if !export.is_named(name) {
            return reply(answer, option, REP_ERR_UNKNOWN, &[b"there is no such export here"]);
        }
        if found {
            let id = BASE_ALLOCATION_ID.to_be_bytes();
            reply(answer, option, REP_META_CONTEXT, &[&id, BASE_ALLOCATION.as_bytes()]);
            if set {
                self.allocation = Some(name.to_vec());
            }
        }
        reply(answer, option, REP_ACK, &[]);
    }
}

fn length(text: &[u8]) -> [u8; 4] {
    u32::try_from(text.len()).expect("what is sent is short").to_be_bytes()
}

fn reply(answer: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    let data = parts.concat();
    answer.extend(REPLY_MAGIC.to_be_bytes());
    answer.extend(option.to_be_bytes());
    answer.extend(kind.to_be_bytes());
    answer.extend(length(&data));
    answer.extend(data);
}

fn invalid(answer: &mut Vec<u8>, option: u32, why: &str) {
    reply(answer, option, REP_ERR_INVALID, &[why.as_bytes()]);
}

#[cfg(test)]
mod tests;
