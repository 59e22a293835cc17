//! xenstore's messages, to and from bytes: a header of 16 bytes and a payload.
//!
//! No I/O. Only what xenstore-rs lacks is here. Called by `raw`.
//! Source: xen/include/public/io/xs_wire.h, docs/misc/xenstore.txt.

use super::{PAYLOAD_BYTES_MAX, Permissions};

/// A header's length, bytes.
pub(super) const HEADER_BYTES: usize = 16;

/// Message types (`enum xsd_sockmsg_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Read = 2,
    TransactionStart = 6,
    TransactionEnd = 7,
    Write = 11,
    Mkdir = 12,
    Rm = 13,
    SetPerms = 14,
    IsDomainIntroduced = 17,
    DirectoryPart = 22,
}

/// `XS_WATCH_EVENT`: the one message that answers nothing.
const WATCH_EVENT: u32 = 15;
/// `XS_ERROR`.
const ERROR: u32 = 16;

/// A header, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    kind: u32,
    /// The request that it answers.
    pub(super) request: u32,
    /// How many bytes follow.
    pub(super) payload_bytes: usize,
}

impl Header {
    /// Reads a header; `None` when no xenstored would send it.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let word =
            |n: usize| u32::from_ne_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]);
        let payload_bytes = usize::try_from(word(12)).ok()?;
        (payload_bytes <= PAYLOAD_BYTES_MAX).then_some(Header {
            kind: word(0),
            request: word(4),
            payload_bytes,
        })
    }

    /// Whether this is the answer to a request, not a watch's event.
    pub(super) fn is_answer(self) -> bool {
        self.kind != WATCH_EVENT
    }

    /// Whether it says that the request failed.
    pub(super) fn is_error(self) -> bool {
        self.kind == ERROR
    }
}

/// A request as bytes; `None` when it is too long for xenstored.
pub(super) fn request(
    kind: Kind,
    number: u32,
    transaction: u32,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let length = u32::try_from(payload.len()).ok()?;
    if payload.len() > PAYLOAD_BYTES_MAX {
        return None;
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    for word in [kind as u32, number, transaction, length] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(payload);
    Some(bytes)
}

/// Strings, each with its NUL.
pub(super) fn strings<'a>(parts: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(part.as_bytes());
        bytes.push(0);
    }
    bytes
}

/// A path and a value, which ends without a NUL.
pub(super) fn path_and_value(path: &str, value: &str) -> Vec<u8> {
    let mut bytes = strings([path]);
    bytes.extend_from_slice(value.as_bytes());
    bytes
}

/// A path and its permissions: the owner, to whom all others may do nothing, then the reader.
pub(super) fn path_and_permissions(path: &str, permissions: Permissions) -> Vec<u8> {
    let Permissions { owner, reader } = permissions;
    strings([path, &format!("n{owner}"), &format!("r{reader}")])
}

/// A payload up to its NUL, as text.
pub(super) fn text(payload: &[u8]) -> Option<&str> {
    std::str::from_utf8(payload.split(|&byte| byte == 0).next()?).ok()
}

/// One answer to DIRECTORY_PART: the directory's generation, and bytes of the list of names.
pub(super) fn directory_part(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = payload.iter().position(|&byte| byte == 0)?;
    Some((&payload[..end], &payload[end + 1..]))
}

/// Whether the bytes of a list of names are all: an empty name ends it.
pub(super) fn is_whole_list(names: &[u8]) -> bool {
    names.len() <= 1 || names.ends_with(&[0, 0])
}

/// The names in a whole list.
pub(super) fn names(list: &[u8]) -> Option<Vec<String>> {
    list.split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| std::str::from_utf8(name).ok().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_what_xenstored_reads() {
        let bytes = request(Kind::Write, 7, 3, &path_and_value("/a", "b")).unwrap();
        let header = Header::parse(bytes[..HEADER_BYTES].try_into().unwrap()).unwrap();
        assert_eq!((header.kind, header.request, header.payload_bytes), (11, 7, 4));
        assert_eq!(&bytes[8..12], 3u32.to_ne_bytes());
        assert_eq!(&bytes[HEADER_BYTES..], b"/a\0b");
        assert!(request(Kind::Read, 0, 0, &[b'x'; PAYLOAD_BYTES_MAX + 1]).is_none());
    }

    #[test]
    fn a_header_that_promises_too_much_is_refused() {
        let mut bytes = [0; HEADER_BYTES];
        bytes[12..].copy_from_slice(&4097u32.to_ne_bytes());
        assert_eq!(Header::parse(&bytes), None);
    }

    #[test]
    fn a_directory_comes_in_parts() {
        let (generation, part) = directory_part(b"12\0a\0bc\0").unwrap();
        assert_eq!(generation, b"12");
        assert!(!is_whole_list(part));
        assert!(is_whole_list(b"a\0bc\0\0"));
        assert!(is_whole_list(b"\0") && is_whole_list(b""));
        assert_eq!(names(b"a\0bc\0\0").unwrap(), ["a", "bc"]);
    }
}
