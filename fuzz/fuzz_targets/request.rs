//! A ring entry, and the page of segments that an indirect one names, from bytes to a plan.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zerotap_datapath::ring::abi::{Abi, ENTRY_BYTES_MAX, SEGMENT_BYTES, Segment, decode};
use zerotap_datapath::ring::request::{
    INDIRECT_SEGMENTS_MAX, Limits, Source, Transfer, answered_operation, judge, judge_segments,
};
use zerotap_rpc_schema::worker::Discard;

const SECTORS: u64 = 1 << 20;

fuzz_target!(|input: (u8, [u8; ENTRY_BYTES_MAX], &[u8])| {
    let (kind, entry, page) = input;
    let limits = Limits {
        sectors: SECTORS,
        read_only: kind & 2 != 0,
        barrier: kind & 1 == 0,
        indirect_segments_max: [0, 32, 100, INDIRECT_SEGMENTS_MAX][usize::from(kind >> 6)],
        discard: (kind & 8 == 0).then(|| Discard {
            granularity_bytes: 4096 << (kind >> 6),
            alignment_bytes: u32::from(kind >> 4 & 3) * 4096,
        }),
    };
    let abi = if kind & 4 == 0 { Abi::X86_64 } else { Abi::X86_32 };
    let descriptor = decode(abi, &entry);
    let answered = answered_operation(&descriptor);
    assert!(answered == entry[0] || answered == entry[1], "an operation that nobody asked for");
    let Ok((plan, source)) = judge(&descriptor, &limits) else { return };
    let reads = matches!(plan.transfer, Transfer::Read | Transfer::None);
    assert!(!limits.read_only || reads, "a write to a read-only disk");
    assert!(!plan.barrier || limits.barrier, "a barrier that was not offered");
    let segments: Vec<Segment> = match source {
        Source::Inline(segments) => segments[..plan.segment_count].to_vec(),
        Source::Indirect(_) => {
            assert!(plan.segment_count <= limits.indirect_segments_max);
            let mut bytes = page.to_vec();
            bytes.resize(plan.segment_count * SEGMENT_BYTES, 0);
            bytes.as_chunks().0.iter().map(|&segment| Segment::decode(segment)).collect()
        }
    };
    let Ok(bytes) = judge_segments(&plan, &segments, &limits) else { return };
    if let Transfer::Discard { sectors } = plan.transfer {
        assert!(limits.discard.is_some() && bytes == sectors * 512);
        assert!(sectors == 0 || plan.sector.checked_add(sectors).is_some_and(|end| end <= SECTORS));
        return;
    }
    let moved: u64 = segments
        .iter()
        .map(|segment| {
            assert!(segment.first <= segment.last && segment.last < 8, "a segment leaves its page");
            u64::from(segment.last - segment.first + 1)
        })
        .sum();
    assert_eq!(bytes, moved * 512);
    if moved > 0 {
        assert!(u128::from(plan.sector) + u128::from(moved) <= u128::from(SECTORS), "off the disk");
    }
});
