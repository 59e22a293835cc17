//! What a request may be: a descriptor is judged once, and becomes a plan or a refusal.
//!
//! Pure. The checks are those of Linux `drivers/block/xen-blkback/blkback.c` and more: every number
//! here was written by a guest. That requests are whole sectors of the image is none of them: what
//! is less is read, changed and written back (`device/part.rs`), whatever the guest was told.

use super::abi::{
    Body, Descriptor, INDIRECT_PAGES_MAX, OP_FLUSH_DISKCACHE, OP_INDIRECT, OP_READ, OP_WRITE,
    OP_WRITE_BARRIER, SEGMENTS_INLINE_MAX, SEGMENTS_PER_PAGE, STATUS_EOPNOTSUPP, STATUS_ERROR,
    Segment,
};
use zerotap_rpc_schema::worker::Discard;

/// Segments of an indirect request that this back end accepts: 1 MiB in whole pages.
pub const INDIRECT_SEGMENTS_MAX: usize = 256;
/// Bytes of a sector on the wire, whatever the disk's sector is.
pub const SECTOR_BYTES: u64 = 512;
/// Sectors of a granted page.
const SECTORS_PER_PAGE: u8 = 8;

/// What a disk allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Capacity in 512-byte sectors.
    pub sectors: u64,
    /// Refuse all that writes.
    pub read_only: bool,
    /// Take barriers.
    pub barrier: bool,
    /// The most segments of an indirect request; none at all with 0.
    pub indirect_segments_max: usize,
    /// Which ranges are forgotten on request, where that was offered.
    pub discard: Option<Discard>,
}

/// What a request does to the data, apart from flushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// Image to guest.
    Read,
    /// Guest to image.
    Write,
    /// Forget so many sectors, whole units of the image: none where the guest named less than one.
    Discard {
        /// In 512-byte sectors.
        sectors: u64,
    },
    /// None: a flush or barrier without data.
    None,
}

/// A judged request, in the order of its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Wait for all earlier requests, and let no later one begin before this is answered.
    pub barrier: bool,
    /// Flush the image first.
    pub flush_before: bool,
    /// Then move data.
    pub transfer: Transfer,
    /// Then flush the image.
    pub flush_after: bool,
    /// Where the data begins, in 512-byte sectors.
    pub sector: u64,
    /// How many segments it has.
    pub segment_count: usize,
}

/// Where a request's segments stand.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// In the descriptor.
    Inline([Segment; SEGMENTS_INLINE_MAX]),
    /// In these granted pages.
    Indirect([u32; INDIRECT_PAGES_MAX]),
}

/// What a guest can ask that it does not get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An operation that was not offered.
    #[error("the operation is not offered")]
    Unsupported,
    /// More segments than offered, or none where there must be some.
    #[error("the number of segments is wrong")]
    SegmentCount,
    /// An indirect request for something else than a read or a write.
    #[error("an indirect request may only read or write")]
    IndirectOperation,
    /// A segment that ends before it begins, or leaves its page.
    #[error("a segment leaves its page")]
    SegmentRange,
    /// Beyond the disk's end.
    #[error("the request leaves the disk")]
    BeyondEnd,
    /// A page that the guest did not grant.
    #[error("the guest did not grant a page")]
    Ungranted,
    /// A write to a read-only disk.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A discard of nothing.
    #[error("the request names no sectors")]
    Empty,
}

impl Refusal {
    /// The answer's status.
    #[must_use]
    pub fn status(self) -> i16 {
        match self {
            Refusal::Unsupported => STATUS_EOPNOTSUPP,
            _ => STATUS_ERROR,
        }
    }
}

/// Judges a descriptor without its segments.
///
/// # Errors
/// What is wrong with it.
pub fn judge(descriptor: &Descriptor, limits: &Limits) -> Result<(Plan, Source), Refusal> {
    let (plan, source) = match descriptor.body {
        Body::Direct { segment_count, sector, segments } => {
            let count = usize::from(segment_count);
            (direct(descriptor.operation, count, sector, limits)?, Source::Inline(segments))
        }
        Body::Indirect { operation, segment_count, sector, grefs } => {
            let count = usize::from(segment_count);
            (indirect(operation, count, sector, limits)?, Source::Indirect(grefs))
        }
        Body::Discard { flag, sector, sectors } => {
            (discard(flag, sector, sectors, limits)?, Source::Inline(Default::default()))
        }
        Body::Other => return Err(Refusal::Unsupported),
    };
    let writes = plan.transfer == Transfer::Write || descriptor.operation == OP_WRITE_BARRIER;
    if limits.read_only && writes {
        return Err(Refusal::ReadOnly);
    }
    Ok((plan, source))
}

fn direct(operation: u8, count: usize, sector: u64, limits: &Limits) -> Result<Plan, Refusal> {
    if operation == OP_WRITE_BARRIER && !limits.barrier {
        return Err(Refusal::Unsupported);
    }
    let none_allowed = matches!(operation, OP_FLUSH_DISKCACHE | OP_WRITE_BARRIER);
    if count > SEGMENTS_INLINE_MAX || (count == 0 && !none_allowed) {
        return Err(Refusal::SegmentCount);
    }
    let transfer = match (operation, count) {
        (_, 0) => Transfer::None,
        (OP_READ, _) => Transfer::Read,
        _ => Transfer::Write,
    };
    // Nobody checks where nothing is moved: it goes no further.
    let sector = if count == 0 { 0 } else { sector };
    let barrier = operation == OP_WRITE_BARRIER;
    let flush_before = matches!(operation, OP_FLUSH_DISKCACHE | OP_WRITE_BARRIER);
    let flush_after = barrier && transfer == Transfer::Write;
    Ok(Plan { barrier, flush_before, transfer, flush_after, sector, segment_count: count })
}

fn indirect(operation: u8, count: usize, sector: u64, limits: &Limits) -> Result<Plan, Refusal> {
    if limits.indirect_segments_max == 0 {
        return Err(Refusal::Unsupported);
    }
    let transfer = match operation {
        OP_READ => Transfer::Read,
        OP_WRITE => Transfer::Write,
        _ => return Err(Refusal::IndirectOperation),
    };
    if count == 0 || count > limits.indirect_segments_max {
        return Err(Refusal::SegmentCount);
    }
    Ok(Plan {
        barrier: false,
        flush_before: false,
        transfer,
        flush_after: false,
        sector,
        segment_count: count,
    })
}

/// A hint: what is left of the range when it is rounded inwards to units is forgotten. A secure one
/// would be a promise about every copy that the storage below ever made, which none gives.
fn discard(flag: u8, sector: u64, sectors: u64, limits: &Limits) -> Result<Plan, Refusal> {
    if limits.read_only {
        return Err(Refusal::ReadOnly);
    }
    let Some(units) = limits.discard.filter(|_| flag == 0) else {
        return Err(Refusal::Unsupported);
    };
    if sectors == 0 {
        return Err(Refusal::Empty);
    }
    let end = sector.checked_add(sectors).filter(|&end| end <= limits.sectors);
    let end = end.ok_or(Refusal::BeyondEnd)?;
    let unit = (u64::from(units.granularity_bytes) / SECTOR_BYTES).max(1);
    let first = u64::from(units.alignment_bytes) / SECTOR_BYTES;
    let start = first + sector.saturating_sub(first).div_ceil(unit) * unit;
    let end = first + end.saturating_sub(first) / unit * unit;
    Ok(Plan {
        barrier: false,
        flush_before: false,
        transfer: Transfer::Discard { sectors: end.saturating_sub(start) },
        flush_after: false,
        sector: start,
        segment_count: 0,
    })
}

/// Judges a plan's segments; answers the bytes that the request moves or forgets.
///
/// # Errors
/// What is wrong with them.
pub fn judge_segments(plan: &Plan, segments: &[Segment], limits: &Limits) -> Result<u64, Refusal> {
    debug_assert_eq!(plan.segment_count, segments.len());
    if let Transfer::Discard { sectors } = plan.transfer {
        return Ok(sectors * SECTOR_BYTES);
    }
    let mut sectors = 0u64;
    for segment in segments {
        if segment.last < segment.first || segment.last >= SECTORS_PER_PAGE {
            return Err(Refusal::SegmentRange);
        }
        sectors += u64::from(segment.last - segment.first) + 1;
    }
    let end = plan.sector.checked_add(sectors).ok_or(Refusal::BeyondEnd)?;
    if sectors > 0 && end > limits.sectors {
        return Err(Refusal::BeyondEnd);
    }
    Ok(sectors * SECTOR_BYTES)
}

/// How many pages of segments an indirect request of `segment_count` has.
#[must_use]
pub fn indirect_pages(segment_count: usize) -> usize {
    segment_count.div_ceil(SEGMENTS_PER_PAGE)
}

/// The operation byte of an answer: for an indirect request the inner operation, as Linux's back
/// end answers.
#[must_use]
pub fn answered_operation(descriptor: &Descriptor) -> u8 {
    match descriptor.body {
        Body::Indirect { operation: inner @ (OP_READ | OP_WRITE), .. } => inner,
        Body::Indirect { .. } => OP_INDIRECT,
        _ => descriptor.operation,
    }
}

#[cfg(test)]
mod tests;
