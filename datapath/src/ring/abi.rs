//! blkif's wire layout: bytes of a ring entry to a descriptor, and an answer to bytes.
//!
//! Source: xen `xen/include/public/io/blkif.h`; the offsets of the two x86 layouts differ because a
//! 64-bit field is aligned to 4 bytes in 32-bit code. This file only decodes; `request.rs` judges.

use super::shared::PAGE_BYTES;
pub use zerotap_rpc_schema::worker::Abi;

/// Read `nr_segments` segments.
pub const OP_READ: u8 = 0;
/// Write them.
pub const OP_WRITE: u8 = 1;
/// Write them after everything before, and before everything after.
pub const OP_WRITE_BARRIER: u8 = 2;
/// Make everything answered so far durable.
pub const OP_FLUSH_DISKCACHE: u8 = 3;
/// Forget a range.
pub const OP_DISCARD: u8 = 5;
/// A read or write whose segments stand in granted pages.
pub const OP_INDIRECT: u8 = 6;
/// A discard's flag: make what was there unrecoverable.
pub const DISCARD_SECURE: u8 = 1;

/// Answer: done.
pub const STATUS_OKAY: i16 = 0;
/// Answer: failed.
pub const STATUS_ERROR: i16 = -1;
/// Answer: this back end does not know the operation.
pub const STATUS_EOPNOTSUPP: i16 = -2;

/// Segments in a descriptor itself.
pub const SEGMENTS_INLINE_MAX: usize = 11;
/// Pages of segments that an indirect descriptor can name.
pub const INDIRECT_PAGES_MAX: usize = 8;
/// Bytes of a segment on the wire.
pub const SEGMENT_BYTES: usize = 8;
/// Segments in a page of them.
pub const SEGMENTS_PER_PAGE: usize = PAGE_BYTES / SEGMENT_BYTES;
/// A ring's header before its first entry: indices and padding.
pub const RING_HEADER_BYTES: usize = 64;
/// The longest entry of the layouts.
pub const ENTRY_BYTES_MAX: usize = 112;

/// One page of a request's data: 512-byte sectors `first` to `last` of the granted page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// The page's grant reference.
    pub gref: u32,
    /// First sector of the page, 0 to 7 when valid.
    pub first: u8,
    /// Last sector, inclusive.
    pub last: u8,
}

impl Segment {
    /// Decodes a segment.
    #[must_use]
    pub fn decode(bytes: [u8; SEGMENT_BYTES]) -> Self {
        Segment { gref: word(&bytes, 0), first: bytes[4], last: bytes[5] }
    }

    /// Where it begins in its page and how long it is, in bytes. Only of a judged segment.
    #[must_use]
    pub fn in_page(self) -> (u16, u16) {
        (u16::from(self.first) * 512, (u16::from(self.last - self.first) + 1) * 512)
    }
}

/// A ring entry, decoded and not yet judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The frontend's cookie, given back with the answer.
    pub id: u64,
    /// The operation byte as it stood in the ring.
    pub operation: u8,
    /// What the rest means.
    pub body: Body,
}

/// The part of a descriptor that depends on its operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Read, write, barrier, flush.
    Direct {
        /// As claimed; may exceed the array.
        segment_count: u8,
        /// In 512-byte sectors.
        sector: u64,
        /// The array.
        segments: [Segment; SEGMENTS_INLINE_MAX],
    },
    /// Read or write with segments in granted pages.
    Indirect {
        /// Read or write, as claimed.
        operation: u8,
        /// As claimed.
        segment_count: u16,
        /// In 512-byte sectors.
        sector: u64,
        /// The pages' grant references.
        grefs: [u32; INDIRECT_PAGES_MAX],
    },
    /// Discard.
    Discard {
        /// [`DISCARD_SECURE`], or zero.
        flag: u8,
        /// In 512-byte sectors.
        sector: u64,
        /// How many of them.
        sectors: u64,
    },
    /// An operation that this back end does not offer.
    Other,
}

/// Bytes of one ring entry: the union of request and response.
#[must_use]
pub fn entry_bytes(abi: Abi) -> usize {
    match abi {
        Abi::X86_64 => 112,
        Abi::X86_32 => 108,
    }
}

/// Entries of a ring of `pages` pages: a power of two.
#[must_use]
pub fn ring_entries(abi: Abi, pages: usize) -> u32 {
    let fit = (pages * PAGE_BYTES - RING_HEADER_BYTES) / entry_bytes(abi);
    1 << fit.ilog2()
}

/// Decodes a copy of a ring entry.
#[must_use]
pub fn decode(abi: Abi, entry: &[u8; ENTRY_BYTES_MAX]) -> Descriptor {
    let operation = entry[0];
    // Where the fields after the first word begin: 64-bit code pads to 8 bytes.
    let base = match abi {
        Abi::X86_64 => 8,
        Abi::X86_32 => 4,
    };
    let body = match operation {
        OP_READ | OP_WRITE | OP_WRITE_BARRIER | OP_FLUSH_DISKCACHE => Body::Direct {
            segment_count: entry[1],
            sector: long(entry, base + 8),
            segments: std::array::from_fn(|n| {
                let at = base + 16 + n * SEGMENT_BYTES;
                Segment { gref: word(entry, at), first: entry[at + 4], last: entry[at + 5] }
            }),
        },
        OP_INDIRECT => Body::Indirect {
            operation: entry[1],
            segment_count: u16::from_le_bytes([entry[2], entry[3]]),
            sector: long(entry, base + 8),
            grefs: std::array::from_fn(|n| word(entry, base + 20 + n * 4)),
        },
        OP_DISCARD => Body::Discard {
            flag: entry[1],
            sector: long(entry, base + 8),
            sectors: long(entry, base + 16),
        },
        _ => Body::Other,
    };
    Descriptor { id: long(entry, base), operation, body }
}

/// Encodes an answer, padding included: what is not written here would leak old ring bytes
/// (XSA-216). Answers the bytes and how many of them the layout has.
#[must_use]
pub fn encode_response(abi: Abi, id: u64, operation: u8, status: i16) -> ([u8; 16], usize) {
    let mut bytes = [0; 16];
    bytes[0..8].copy_from_slice(&id.to_le_bytes());
    bytes[8] = operation;
    bytes[10..12].copy_from_slice(&status.to_le_bytes());
    match abi {
        Abi::X86_64 => (bytes, 16),
        Abi::X86_32 => (bytes, 12),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_have_the_published_number_of_entries() {
        for (pages, entries) in [(1, 32), (2, 64), (4, 128), (8, 256), (16, 512)] {
            assert_eq!(ring_entries(Abi::X86_64, pages), entries);
            assert_eq!(ring_entries(Abi::X86_32, pages), entries);
        }
    }

    #[test]
    fn both_layouts_decode() {
        for (abi, base) in [(Abi::X86_64, 8), (Abi::X86_32, 4)] {
            let mut entry = [0; ENTRY_BYTES_MAX];
            entry[1] = 3;
            entry[base..base + 8].copy_from_slice(&0x1122_3344_5566_7788u64.to_le_bytes());
            entry[base + 8..base + 16].copy_from_slice(&77u64.to_le_bytes());
            entry[base + 24..base + 28].copy_from_slice(&9u32.to_le_bytes());
            entry[base + 29] = 7;
            let descriptor = decode(abi, &entry);
            assert_eq!(descriptor.id, 0x1122_3344_5566_7788);
            let Body::Direct { segment_count, sector, segments } = descriptor.body else {
                panic!("a read is direct")
            };
            assert_eq!((segment_count, sector), (3, 77));
            assert_eq!(segments[1], Segment { gref: 9, first: 0, last: 7 });

            entry[0] = OP_INDIRECT;
            entry[1] = OP_WRITE;
            entry[2..4].copy_from_slice(&256u16.to_le_bytes());
            entry[base + 20..base + 24].copy_from_slice(&41u32.to_le_bytes());
            let Body::Indirect { operation, segment_count, sector, grefs } =
                decode(abi, &entry).body
            else {
                panic!("operation 6 is indirect")
            };
            assert_eq!((operation, segment_count, sector), (OP_WRITE, 256, 77));
            assert_eq!(grefs[0], 41);

            entry[0] = OP_DISCARD;
            entry[base + 16..base + 24].copy_from_slice(&(1u64 << 33).to_le_bytes());
            let body = Body::Discard { flag: OP_WRITE, sector: 77, sectors: 1 << 33 };
            assert_eq!(decode(abi, &entry).body, body);
        }
    }
}
