//! The xenstore wire protocol: a 16-byte header, then at most 4096 bytes.
//!
//! Source: xen `public/io/xs_wire.h` and `docs/misc/xenstore.txt`. Used by the simulated daemon and
//! by the client in [`crate::xenstore`]; knows nothing of nodes.

use std::io::{self, Read, Write};

/// The longest payload that either side accepts.
pub const PAYLOAD_BYTES_MAX: usize = 4096;
const HEADER_BYTES: usize = 16;

/// What a message asks or is.
#[expect(missing_docs, reason = "the names are the protocol's")]
pub mod kind {
    pub const DIRECTORY: u32 = 1;
    pub const READ: u32 = 2;
    pub const GET_PERMS: u32 = 3;
    pub const WATCH: u32 = 4;
    pub const UNWATCH: u32 = 5;
    pub const TRANSACTION_START: u32 = 6;
    pub const TRANSACTION_END: u32 = 7;
    pub const INTRODUCE: u32 = 8;
    pub const RELEASE: u32 = 9;
    pub const GET_DOMAIN_PATH: u32 = 10;
    pub const WRITE: u32 = 11;
    pub const MKDIR: u32 = 12;
    pub const RM: u32 = 13;
    pub const SET_PERMS: u32 = 14;
    pub const WATCH_EVENT: u32 = 15;
    pub const ERROR: u32 = 16;
    pub const IS_DOMAIN_INTRODUCED: u32 = 17;
    pub const RESUME: u32 = 18;
    // 20 was XS_RESTRICT once and is skipped.
    pub const RESET_WATCHES: u32 = 21;
    pub const DIRECTORY_PART: u32 = 22;
}

/// The errors of the protocol; on the wire they are their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the protocol's")]
pub enum Errno {
    EINVAL,
    EACCES,
    EEXIST,
    ENOENT,
    ENOSPC,
    ENOSYS,
    EBUSY,
    EAGAIN,
    E2BIG,
    EPERM,
    EIO,
}

const ERRNOS: [Errno; 11] = [
    Errno::EINVAL,
    Errno::EACCES,
    Errno::EEXIST,
    Errno::ENOENT,
    Errno::ENOSPC,
    Errno::ENOSYS,
    Errno::EBUSY,
    Errno::EAGAIN,
    Errno::E2BIG,
    Errno::EPERM,
    Errno::EIO,
];

impl Errno {
    /// Reads an error's payload; what is unknown counts as EIO.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Errno {
        let name = payload.strip_suffix(b"\0").unwrap_or(payload);
        let known = |errno: &&Errno| errno.to_string().as_bytes() == name;
        ERRNOS.iter().find(known).copied().unwrap_or(Errno::EIO)
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Errno {}

/// One message, either way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// One of [`kind`].
    pub kind: u32,
    /// The client's number; the answer carries it back.
    pub request: u32,
    /// The transaction, 0 for none.
    pub transaction: u32,
    /// At most [`PAYLOAD_BYTES_MAX`].
    pub payload: Vec<u8>,
}

impl Message {
    /// The bytes on the wire.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).expect("payloads are bounded");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.payload.len());
        for word in [self.kind, self.request, self.transaction, length] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&self.payload);
        bytes
    }

    /// Writes it whole.
    ///
    /// # Errors
    /// As the stream's.
    pub fn write_to(&self, stream: &mut impl Write) -> io::Result<()> {
        stream.write_all(&self.bytes())
    }

    /// Reads the next message.
    ///
    /// # Errors
    /// As the stream's; `InvalidData` for a payload that is too long, as the genuine daemon
    /// drops such a connection.
    pub fn read_from(stream: &mut impl Read) -> io::Result<Message> {
        let mut header = [0u8; HEADER_BYTES];
        stream.read_exact(&mut header)?;
        let word =
            |n: usize| u32::from_le_bytes([header[n], header[n + 1], header[n + 2], header[n + 3]]);
        let length = word(12) as usize;
        if length > PAYLOAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "xenstore payload too long"));
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        Ok(Message { kind: word(0), request: word(4), transaction: word(8), payload })
    }
}

/// Splits a payload of NUL-terminated strings; the last NUL may be missing.
#[must_use]
pub fn strings(payload: &[u8]) -> Vec<String> {
    let payload = payload.strip_suffix(b"\0").unwrap_or(payload);
    payload.split(|&byte| byte == 0).map(|s| String::from_utf8_lossy(s).into_owned()).collect()
}

/// A payload of one NUL-terminated string for each part.
#[must_use]
pub fn terminated(parts: &[&str]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.bytes().chain([0])).collect()
}
