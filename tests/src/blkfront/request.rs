//! A request as the guest means it, and its bytes in the ring.

use zerotap_datapath::ring::abi::{
    Abi, ENTRY_BYTES_MAX, INDIRECT_PAGES_MAX, OP_DISCARD, OP_FLUSH_DISKCACHE, OP_INDIRECT, OP_READ,
    OP_WRITE, OP_WRITE_BARRIER, SEGMENT_BYTES, SEGMENTS_INLINE_MAX, Segment,
};

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Disk to guest.
    Read,
    /// Guest to disk.
    Write,
    /// Guest to disk, after everything before and before everything after.
    Barrier,
    /// Make durable what was answered.
    Flush,
    /// Forget so many sectors.
    Discard {
        /// In 512-byte sectors.
        sectors: u64,
    },
}

impl Op {
    /// The byte in the ring.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Op::Read => OP_READ,
            Op::Write => OP_WRITE,
            Op::Barrier => OP_WRITE_BARRIER,
            Op::Flush => OP_FLUSH_DISKCACHE,
            Op::Discard { .. } => OP_DISCARD,
        }
    }
}

/// Sectors `first` to `last` of a frame of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The frame.
    pub frame: u32,
    /// 0 to 7.
    pub first: u8,
    /// Inclusive.
    pub last: u8,
}

impl Piece {
    /// Its length in sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        u64::from(self.last - self.first) + 1
    }
}

/// A request.
#[derive(Debug, Clone)]
pub struct Io {
    /// What it does.
    pub op: Op,
    /// Where on the disk, in 512-byte sectors.
    pub sector: u64,
    /// Where in the guest, in the disk's order.
    pub pieces: Vec<Piece>,
}

impl Io {
    /// Its length in sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        match self.op {
            Op::Discard { sectors } => sectors,
            _ => self.pieces.iter().map(Piece::sectors).sum(),
        }
    }
}

/// Where fields after the first word begin: 64-bit code pads to 8 bytes.
fn base(abi: Abi) -> usize {
    match abi {
        Abi::X86_64 => 8,
        Abi::X86_32 => 4,
    }
}

fn put(entry: &mut [u8], at: usize, bytes: &[u8]) {
    entry[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A segment's bytes.
#[must_use]
pub fn encode_segment(segment: &Segment) -> [u8; SEGMENT_BYTES] {
    let gref = segment.gref.to_le_bytes();
    [gref[0], gref[1], gref[2], gref[3], segment.first, segment.last, 0, 0]
}

/// The bytes of a request whose segments stand in it. `operation` and `count` are taken as they
/// are, so that a hostile guest can lie.
#[must_use]
pub fn encode_direct(
    abi: Abi,
    id: u64,
    operation: u8,
    count: u8,
    sector: u64,
    segments: &[Segment],
) -> [u8; ENTRY_BYTES_MAX] {
    let mut entry = [0; ENTRY_BYTES_MAX];
    let base = base(abi);
    put(&mut entry, 0, &[operation, count]);
    put(&mut entry, base, &id.to_le_bytes());
    put(&mut entry, base + 8, &sector.to_le_bytes());
    for (n, segment) in segments.iter().take(SEGMENTS_INLINE_MAX).enumerate() {
        put(&mut entry, base + 16 + n * SEGMENT_BYTES, &encode_segment(segment));
    }
    entry
}

/// The bytes of a request whose segments stand in the pages `grefs`.
#[must_use]
pub fn encode_indirect(
    abi: Abi,
    id: u64,
    operation: u8,
    count: u16,
    sector: u64,
    grefs: &[u32],
) -> [u8; ENTRY_BYTES_MAX] {
    let mut entry = [0; ENTRY_BYTES_MAX];
    let base = base(abi);
    put(&mut entry, 0, &[OP_INDIRECT, operation]);
    put(&mut entry, 2, &count.to_le_bytes());
    put(&mut entry, base, &id.to_le_bytes());
    put(&mut entry, base + 8, &sector.to_le_bytes());
    for (n, gref) in grefs.iter().take(INDIRECT_PAGES_MAX).enumerate() {
        put(&mut entry, base + 20 + n * 4, &gref.to_le_bytes());
    }
    entry
}

/// The bytes of a discard; `flag` is taken as it is.
#[must_use]
pub fn encode_discard(
    abi: Abi,
    id: u64,
    flag: u8,
    sector: u64,
    sectors: u64,
) -> [u8; ENTRY_BYTES_MAX] {
    let mut entry = encode_direct(abi, id, OP_DISCARD, flag, sector, &[]);
    put(&mut entry, base(abi) + 16, &sectors.to_le_bytes());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerotap_datapath::ring::abi::{Body, decode};

    #[test]
    fn the_back_end_decodes_what_the_front_end_encodes() {
        for abi in [Abi::X86_64, Abi::X86_32] {
            let segments = [Segment { gref: 9, first: 1, last: 6 }, Segment::default()];
            let decoded = decode(abi, &encode_direct(abi, 1 << 40, OP_WRITE, 2, 77, &segments));
            assert_eq!((decoded.id, decoded.operation), (1 << 40, OP_WRITE));
            let Body::Direct { segment_count, sector, segments: found } = decoded.body else {
                panic!("a write is direct")
            };
            assert_eq!((segment_count, sector, found[0]), (2, 77, segments[0]));

            let decoded = decode(abi, &encode_indirect(abi, 3, OP_READ, 256, 8, &[41, 42]));
            let Body::Indirect { operation, segment_count, sector, grefs } = decoded.body else {
                panic!("operation 6 is indirect")
            };
            assert_eq!((operation, segment_count, sector), (OP_READ, 256, 8));
            assert_eq!(grefs[..3], [41, 42, 0]);

            let body = Body::Discard { flag: 1, sector: 8, sectors: 1 << 40 };
            assert_eq!(decode(abi, &encode_discard(abi, 3, 1, 8, 1 << 40)).body, body);
        }
    }
}
