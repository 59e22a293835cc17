//! Every rule has a request that breaks only it; random requests never escape the disk.

use super::*;
use crate::ring::abi::{DISCARD_SECURE, ENTRY_BYTES_MAX, OP_DISCARD, decode};
use proptest::prelude::*;
use zerotap_rpc_schema::worker::Abi;

const UNITS: Discard = Discard { granularity_bytes: 4096, alignment_bytes: 1024 };
const DISK: Limits = Limits {
    sectors: 1000,
    read_only: false,
    barrier: true,
    indirect_segments_max: 256,
    discard: Some(UNITS),
};
const FULL: Segment = Segment { gref: 1, first: 0, last: 7 };

fn direct_request(operation: u8, segment_count: u8, sector: u64) -> Descriptor {
    let segments = [FULL; SEGMENTS_INLINE_MAX];
    Descriptor { id: 1, operation, body: Body::Direct { segment_count, sector, segments } }
}

fn judge_all(descriptor: &Descriptor, limits: &Limits) -> Result<(Plan, u64), Refusal> {
    let (plan, source) = judge(descriptor, limits)?;
    let Source::Inline(segments) = source else { panic!("inline") };
    let bytes = judge_segments(&plan, &segments[..plan.segment_count], limits)?;
    Ok((plan, bytes))
}

#[test]
fn a_read_and_a_write_pass() {
    let (plan, bytes) = judge_all(&direct_request(OP_READ, 2, 984), &DISK).unwrap();
    assert_eq!((plan.transfer, plan.barrier, bytes), (Transfer::Read, false, 8192));
    let (plan, _) = judge_all(&direct_request(OP_WRITE, 11, 0), &DISK).unwrap();
    assert_eq!(
        (plan.transfer, plan.flush_before, plan.flush_after),
        (Transfer::Write, false, false)
    );
}

#[test]
fn flushes_and_barriers_may_be_empty() {
    let (plan, bytes) = judge_all(&direct_request(OP_FLUSH_DISKCACHE, 0, u64::MAX), &DISK).unwrap();
    assert_eq!((plan.flush_before, plan.transfer, bytes), (true, Transfer::None, 0));
    assert_eq!(plan.sector, 0, "a number that nobody has checked goes no further");
    let (plan, _) = judge_all(&direct_request(OP_WRITE_BARRIER, 0, 0), &DISK).unwrap();
    assert!(plan.barrier && plan.flush_before && !plan.flush_after);
    let (plan, _) = judge_all(&direct_request(OP_WRITE_BARRIER, 1, 0), &DISK).unwrap();
    assert!(plan.barrier && plan.flush_before && plan.flush_after);
    let without = Limits { barrier: false, ..DISK };
    let refused = judge_all(&direct_request(OP_WRITE_BARRIER, 1, 0), &without).unwrap_err();
    assert_eq!(refused, Refusal::Unsupported);
    assert!(judge_all(&direct_request(OP_FLUSH_DISKCACHE, 0, 0), &without).is_ok());
}

#[test]
fn each_rule_refuses() {
    let refused = |descriptor: Descriptor| judge_all(&descriptor, &DISK).unwrap_err();
    assert_eq!(refused(direct_request(OP_READ, 0, 0)), Refusal::SegmentCount);
    assert_eq!(refused(direct_request(OP_READ, 12, 0)), Refusal::SegmentCount);
    assert_eq!(refused(direct_request(OP_READ, 255, 0)), Refusal::SegmentCount);
    assert_eq!(refused(direct_request(OP_READ, 1, 993)), Refusal::BeyondEnd);
    assert_eq!(refused(direct_request(OP_READ, 1, u64::MAX - 3)), Refusal::BeyondEnd);
    let unknown = Descriptor { id: 1, operation: 77, body: Body::Other };
    assert_eq!(refused(unknown).status(), STATUS_EOPNOTSUPP);
    for bad in [Segment { gref: 1, first: 3, last: 2 }, Segment { gref: 1, first: 0, last: 8 }] {
        let body = Body::Direct { segment_count: 1, sector: 0, segments: [bad; 11] };
        let descriptor = Descriptor { id: 1, operation: OP_READ, body };
        assert_eq!(refused(descriptor), Refusal::SegmentRange);
    }
}

#[test]
fn a_read_only_disk_refuses_all_that_writes_and_flushes_on() {
    let disk = Limits { read_only: true, ..DISK };
    for operation in [OP_WRITE, OP_WRITE_BARRIER, OP_FLUSH_DISKCACHE] {
        let refused = judge(&direct_request(operation, 1, 0), &disk).unwrap_err();
        assert_eq!(refused, Refusal::ReadOnly);
    }
    assert_eq!(
        judge(&direct_request(OP_WRITE_BARRIER, 0, 0), &disk).unwrap_err(),
        Refusal::ReadOnly
    );
    assert!(judge(&direct_request(OP_FLUSH_DISKCACHE, 0, 0), &disk).is_ok());
    let grefs = [1; INDIRECT_PAGES_MAX];
    let body = Body::Indirect { operation: OP_WRITE, segment_count: 1, sector: 0, grefs };
    let descriptor = Descriptor { id: 1, operation: OP_INDIRECT, body };
    assert_eq!(judge(&descriptor, &disk).unwrap_err(), Refusal::ReadOnly);
}

#[test]
fn indirect_requests_are_bounded() {
    let request = |operation, segment_count| {
        let grefs = [1; INDIRECT_PAGES_MAX];
        let body = Body::Indirect { operation, segment_count, sector: 0, grefs };
        judge(&Descriptor { id: 1, operation: OP_INDIRECT, body }, &DISK)
    };
    assert!(request(OP_READ, 256).is_ok());
    assert_eq!(request(OP_READ, 257).unwrap_err(), Refusal::SegmentCount);
    assert_eq!(request(OP_READ, 0).unwrap_err(), Refusal::SegmentCount);
    assert_eq!(request(OP_FLUSH_DISKCACHE, 1).unwrap_err(), Refusal::IndirectOperation);
    let bounded = |most, segment_count| {
        let disk = Limits { indirect_segments_max: most, ..DISK };
        let grefs = [1; INDIRECT_PAGES_MAX];
        let body = Body::Indirect { operation: OP_READ, segment_count, sector: 0, grefs };
        judge(&Descriptor { id: 1, operation: OP_INDIRECT, body }, &disk).map(drop)
    };
    assert_eq!((bounded(32, 32), bounded(32, 33)), (Ok(()), Err(Refusal::SegmentCount)));
    assert_eq!(bounded(0, 1), Err(Refusal::Unsupported), "they were not offered at all");
    assert_eq!((indirect_pages(1), indirect_pages(512), indirect_pages(513)), (1, 1, 2));
}

fn discard_request(flag: u8, sector: u64, sectors: u64) -> Descriptor {
    Descriptor { id: 1, operation: OP_DISCARD, body: Body::Discard { flag, sector, sectors } }
}

#[test]
fn a_discard_is_rounded_inwards_to_units() {
    // Units begin at sectors 2, 10, 18 and so on.
    for ((sector, sectors), (start, bytes)) in [
        ((0, 1000), (2, 992 * 512)),
        ((2, 8), (2, 4096)),
        ((2, 7), (2, 0)),
        ((3, 7), (10, 0)),
        ((3, 15), (10, 4096)),
        ((0, 1), (2, 0)),
        ((999, 1), (1002, 0)),
    ] {
        let (plan, whole) = judge_all(&discard_request(0, sector, sectors), &DISK).unwrap();
        let transfer = Transfer::Discard { sectors: bytes / 512 };
        assert_eq!((plan.transfer, plan.sector, whole), (transfer, start, bytes), "{sector}");
        assert!(!plan.barrier && !plan.flush_before && !plan.flush_after);
    }
}

#[test]
fn each_rule_of_discards_refuses() {
    let refused = |flag, sector, sectors, disk| {
        judge_all(&discard_request(flag, sector, sectors), &disk).unwrap_err()
    };
    assert_eq!(refused(0, 8, 0, DISK), Refusal::Empty);
    assert_eq!(refused(0, 999, 2, DISK), Refusal::BeyondEnd);
    assert_eq!(refused(0, 1000, 1, DISK), Refusal::BeyondEnd);
    assert_eq!(refused(0, 8, u64::MAX, DISK), Refusal::BeyondEnd);
    assert_eq!(refused(0, u64::MAX, 8, DISK), Refusal::BeyondEnd);
    assert_eq!(refused(DISCARD_SECURE, 8, 8, DISK), Refusal::Unsupported);
    assert_eq!(refused(2, 8, 8, DISK), Refusal::Unsupported);
    assert_eq!(refused(0, 8, 8, Limits { discard: None, ..DISK }), Refusal::Unsupported);
    assert_eq!(refused(0, 8, 8, Limits { read_only: true, ..DISK }), Refusal::ReadOnly);
}

proptest! {
    #[test]
    fn a_discard_forgets_nothing_outside_and_only_whole_units(
        sector in prop_oneof![0u64..1100, any::<u64>()],
        sectors in prop_oneof![0u64..1100, any::<u64>()],
        granularity_bytes in prop_oneof![0u32..70_000, any::<u32>()],
        alignment_bytes in prop_oneof![0u32..70_000, any::<u32>()],
    ) {
        let discard = Some(Discard { granularity_bytes, alignment_bytes });
        let disk = Limits { discard, ..DISK };
        let judged = judge_all(&discard_request(0, sector, sectors), &disk);
        let outside = sector.checked_add(sectors).is_none_or(|end| end > disk.sectors);
        prop_assert_eq!(judged.is_err(), sectors == 0 || outside);
        if let Ok((plan, bytes)) = judged && bytes > 0 {
            let (start, end) = (plan.sector, plan.sector + bytes / 512);
            prop_assert!(sector <= start && end <= sector + sectors);
            let unit = u64::from(granularity_bytes / 512).max(1);
            let first = u64::from(alignment_bytes / 512);
            prop_assert!((start - first).is_multiple_of(unit));
            prop_assert!((end - first).is_multiple_of(unit));
            // Nothing is left out that was a whole unit.
            prop_assert!(start < sector + unit || start == first);
            prop_assert!(end + unit > sector + sectors);
        }
    }

    #[test]
    fn whatever_the_bytes_a_judged_request_stays_inside(
        entry in proptest::array::uniform32(any::<u8>()),
        tail in proptest::collection::vec(any::<u8>(), ENTRY_BYTES_MAX - 32),
        operation in 0u8..8,
        count in 0u8..14,
        native in any::<bool>(),
    ) {
        let mut bytes = [0; ENTRY_BYTES_MAX];
        bytes[..32].copy_from_slice(&entry);
        bytes[32..].copy_from_slice(&tail);
        bytes[0] = operation;
        bytes[1] = count;
        let abi = if native { Abi::X86_64 } else { Abi::X86_32 };
        let descriptor = decode(abi, &bytes);
        if let Ok((plan, Source::Inline(segments))) = judge(&descriptor, &DISK) {
            prop_assert!(plan.segment_count <= SEGMENTS_INLINE_MAX);
            let segments = &segments[..plan.segment_count];
            if let Ok(bytes) = judge_segments(&plan, segments, &DISK) {
                let end = plan.sector.saturating_add(bytes / 512);
                prop_assert!(bytes == 0 || end <= DISK.sectors);
                let discard = matches!(plan.transfer, Transfer::Discard { .. });
                prop_assert!(discard || bytes as usize <= segments.len() * 4096);
            }
        }
    }
}
