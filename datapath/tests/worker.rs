//! A worker in a thread, and a hand-made frontend on the simulated host: what a disk does, request
//! by request. Whole guests, with the real processes, are the business of the workspace's `tests`
//! crate.
#![expect(
    unreachable_pub,
    clippy::cast_possible_truncation,
    reason = "a test, with its own helpers, of small numbers"
)]

mod front;

use front::{Front, Rig, TERMS, Terms};
use rustix::fs::{MemfdFlags, memfd_create};
use std::time::{Duration, Instant};
use zerotap_datapath::ring::abi::{
    Abi, DISCARD_SECURE, OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, OP_WRITE_BARRIER,
    STATUS_EOPNOTSUPP, STATUS_ERROR, STATUS_OKAY,
};
use zerotap_rpc_schema::worker::TransferRule;

/// Some of them have their rings broken amid a sweep.
const GUESTS_THAT_FLICKER: u16 = 24;
const ABIS: [Abi; 2] = [Abi::X86_64, Abi::X86_32];

/// Every way to a guest's pages: what stands, what is mapped and what is copied, and a mixture of
/// the last two.
const WAYS: [(bool, TransferRule); 5] = [
    (true, TransferRule::Auto),
    (false, TransferRule::Map),
    (false, TransferRule::Copy),
    (true, TransferRule::Copy),
    (false, TransferRule::Auto),
];

fn terms(abi: Abi, (persistent, transfer): (bool, TransferRule)) -> Terms {
    Terms { abi, persistent, transfer, ..TERMS }
}

#[test]
fn what_is_written_is_read_back_and_stands_in_the_file() {
    for abi in ABIS {
        for way in WAYS {
            let rig = Rig::new(64);
            let mut front = Front::connect_as(&rig, 1, terms(abi, way));
            front.fill(20, 0xa1);
            assert_eq!(front.transfer(OP_WRITE, 8, &[(20, 0, 7)]), STATUS_OKAY);
            assert_eq!(front.transfer(OP_READ, 8, &[(21, 0, 7)]), STATUS_OKAY);
            assert_eq!(front.page(21), vec![0xa1; 4096]);
            // Parts of pages, scattered.
            assert_eq!(front.transfer(OP_READ, 8, &[(22, 1, 1), (23, 7, 7)]), STATUS_OKAY);
            assert_eq!(front.page(22)[512..1024], [0xa1; 512]);
            assert_eq!(front.page(22)[..512], [0; 512], "nothing outside the segment");
            assert_eq!(rig.image()[4096..8192], [0xa1; 4096]);
            assert_eq!(front.transfer(OP_FLUSH_DISKCACHE, 0, &[]), STATUS_OKAY);
            let counters = front.counters();
            assert_eq!((counters.reads, counters.writes, counters.flushes), (2, 1, 1));
            let bytes = 4096 * 2 + 1024;
            let (mapped, granted) = (counters.mapped_bytes, counters.grant_copied_bytes);
            assert_eq!((mapped + granted, counters.copied_bytes), (bytes, 0));
            let requests = [
                counters.standing_requests,
                counters.mapped_requests,
                counters.grant_copied_requests,
            ];
            let (stands, pages) = (way == WAYS[0], counters.persistent_pages);
            assert_eq!(pages, if stands { 4 } else { 0 });
            match way {
                _ if stands => assert_eq!((mapped, requests), (bytes, [3, 0, 0])),
                (_, TransferRule::Map) => assert_eq!((mapped, requests), (bytes, [0, 3, 0])),
                (_, TransferRule::Copy) => assert_eq!((granted, requests), (bytes, [0, 0, 3])),
                _ => assert_eq!((requests[0], requests.iter().sum::<u64>()), (0, 3)),
            }
            assert_eq!(counters.grant_copy_calls, requests[2], "one after the other");
            front.disconnect();
            assert_eq!(front.grants_in_use(), 0, "all is given back");
        }
    }
}

#[test]
fn a_queue_looks_before_it_sleeps_while_the_host_has_processors_to_spare() {
    for (stat, idle) in [("cpu  0 0 0 9 0 0 0 0\n", true), ("cpu  99 0 0 1 0 0 0 0\n", false)] {
        let file = memfd_create("stat", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&file, stat.as_bytes()).unwrap();
        let rig = Rig::looking(64, file);
        let (mut hits, mut looks) = (0, 0);
        let until = Instant::now() + Duration::from_secs(60);
        // A queue that has looked in vain seldom looks again: on a busy machine each has a few
        // chances, so there are as many queues as it takes.
        for domid in 1.. {
            let mut front = Front::connect_as(&rig, domid, TERMS);
            front.fill(20, 0xa1);
            for _ in 0..50 {
                assert_eq!(front.transfer(OP_WRITE, 8, &[(20, 0, 7)]), STATUS_OKAY);
                assert_eq!(front.transfer(OP_READ, 8, &[(21, 0, 7)]), STATUS_OKAY);
            }
            assert_eq!(front.page(21), vec![0xa1; 4096]);
            let counters = front.counters();
            hits += counters.look_hits;
            looks += counters.look_hits + counters.look_misses;
            front.disconnect();
            let enough = if idle { hits > 0 } else { domid == 3 };
            if enough || Instant::now() > until {
                break;
            }
        }
        match idle {
            true => assert!(hits > 0, "{looks} looks, all in vain"),
            false => assert_eq!(looks, 0),
        }
    }
}

#[test]
fn indirect_requests_move_a_mebibyte() {
    for way in WAYS {
        let rig = Rig::new(4096);
        let mut front = Front::connect_as(&rig, 1, terms(Abi::X86_64, way));
        let pages: Vec<(u32, u8, u8)> = (0..256).map(|n| (100 + n, 0, 7)).collect();
        (0..256).for_each(|n| front.fill(100 + n, n as u8));
        assert_eq!(front.indirect(OP_WRITE, 0, &pages), STATUS_OKAY);
        let image = rig.image();
        (0..256).for_each(|n| assert_eq!(image[n * 4096], n as u8));
        let back: Vec<(u32, u8, u8)> = (0..256).map(|n| (400 + n, 0, 7)).collect();
        assert_eq!(front.indirect(OP_READ, 0, &back), STATUS_OKAY);
        assert_eq!(front.page(400 + 255), vec![255; 4096]);
        // A frontend hands out its pages as a stack: backwards, or two runs that meet.
        let down: Vec<_> = back.iter().rev().copied().collect();
        assert_eq!(front.indirect(OP_READ, 0, &down), STATUS_OKAY);
        (0..256).for_each(|n| assert_eq!(front.page(400 + n), vec![(255 - n) as u8; 4096]));
        let meeting = [&down[..100], &pages[..156]].concat();
        assert_eq!(front.indirect(OP_READ, 0, &meeting), STATUS_OKAY);
        (0..100).for_each(|n| assert_eq!(front.page(655 - n), vec![n as u8; 4096]));
        (0..156).for_each(|n| assert_eq!(front.page(100 + n), vec![(100 + n) as u8; 4096]));
        assert_eq!(front.indirect(OP_READ, 0, &[(1, 0, 7); 257]), STATUS_ERROR);
        assert_eq!(front.indirect(OP_FLUSH_DISKCACHE, 0, &pages), STATUS_ERROR);
        front.disconnect();
        assert_eq!(front.grants_in_use(), 0);
    }
}

#[test]
fn what_is_wrong_is_refused_and_spoils_nothing_else() {
    for way in WAYS {
        let rig = Rig::new(64);
        let mut front = Front::connect_as(&rig, 1, terms(Abi::X86_64, way));
        assert_eq!(front.transfer(OP_READ, 64 * 8, &[(20, 0, 7)]), STATUS_ERROR);
        assert_eq!(front.transfer(OP_READ, u64::MAX, &[(20, 0, 7)]), STATUS_ERROR);
        assert_eq!(front.transfer(OP_READ, 0, &[(20, 5, 4)]), STATUS_ERROR);
        assert_eq!(front.transfer(OP_READ, 0, &[(20, 0, 8)]), STATUS_ERROR);
        assert_eq!(front.transfer(OP_READ, 0, &[(30_000, 0, 7)]), STATUS_ERROR, "never granted");
        assert_eq!(front.transfer(OP_READ, 0, &[(u32::MAX, 0, 7)]), STATUS_ERROR);
        assert_eq!(front.transfer(77, 0, &[]), STATUS_EOPNOTSUPP);
        // A bad page beside a good request of the same sweep.
        let answers = front.together(&[
            (OP_WRITE, 0, (20, 0, 7)),
            (OP_WRITE, 8, (30_000, 0, 7)),
            (OP_WRITE, 16, (21, 0, 7)),
        ]);
        assert_eq!(answers, [STATUS_OKAY, STATUS_ERROR, STATUS_OKAY]);
        assert_eq!(front.counters().refused, 8);
        front.disconnect();
        assert_eq!(front.grants_in_use(), 0);
    }
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let rig = Rig::new(64);
    let persistent = true;
    let mut front = Front::connect_as(&rig, 1, Terms { read_only: true, persistent, ..TERMS });
    front.fill(20, 0xee);
    assert_eq!(front.transfer(OP_WRITE, 0, &[(20, 0, 7)]), STATUS_ERROR);
    assert_eq!(front.transfer(OP_WRITE_BARRIER, 0, &[(20, 0, 7)]), STATUS_ERROR);
    assert_eq!(front.discard(0, 0, 8), STATUS_ERROR);
    assert_eq!(front.transfer(OP_READ, 0, &[(21, 0, 7)]), STATUS_OKAY);
    assert_eq!(rig.image()[..4096], [0; 4096]);
}

#[test]
fn a_discard_gives_whole_blocks_back_and_nothing_else() {
    for abi in ABIS {
        let rig = Rig::new(64);
        let mut front = Front::connect(&rig, abi, true, 1);
        (0..64).for_each(|n| {
            front.fill(20, 1 + n as u8);
            assert_eq!(front.transfer(OP_WRITE, n * 8, &[(20, 0, 7)]), STATUS_OKAY);
        });
        let before = rig.allocated_bytes();
        // From the middle of block 3 into block 10.
        assert_eq!(front.discard(0, 3 * 8 + 4, 7 * 8), STATUS_OKAY);
        for (n, block) in rig.image().chunks(4096).enumerate() {
            let expected = if (4..10).contains(&n) { 0 } else { 1 + n as u8 };
            assert_eq!(block, [expected; 4096], "block {n}");
        }
        assert_eq!(front.transfer(OP_READ, 32, &[(21, 0, 7)]), STATUS_OKAY);
        assert_eq!(front.page(21), [0; 4096]);
        assert!(rig.allocated_bytes() <= before - 6 * 4096, "the file has given space back");
        assert_eq!(front.discard(0, 1, 7), STATUS_OKAY, "less than a block: nothing to do");
        assert_eq!(front.discard(DISCARD_SECURE, 0, 8), STATUS_EOPNOTSUPP);
        assert_eq!(front.discard(0, 64 * 8 - 8, 9), STATUS_ERROR);
        assert_eq!(rig.image()[..4096], [1; 4096]);
        let counters = front.counters();
        assert_eq!((counters.discards, counters.discard_bytes), (2, 6 * 4096));
        assert_eq!((counters.refused, counters.io_errors), (2, 0));
        front.disconnect();
    }
}

#[test]
fn barriers_and_full_rings_of_every_order() {
    for order in 0..=4 {
        let rig = Rig::new(1024);
        let (ring_pages, way) = (1 << order, WAYS[order % WAYS.len()]);
        let front = Terms { ring_pages, ..terms(Abi::X86_64, way) };
        let mut front = Front::connect_as(&rig, 1, front);
        let entries = 32u32 << order;
        let mut requests: Vec<(u8, u64, (u32, u8, u8))> = Vec::new();
        for n in 0..entries {
            front.fill(1000 + n, n as u8);
            let operation = if n % 7 == 3 { OP_WRITE_BARRIER } else { OP_WRITE };
            requests.push((operation, u64::from(n) * 8, (1000 + n, 0, 7)));
        }
        let answers = front.together(&requests);
        assert_eq!(answers, vec![STATUS_OKAY; entries as usize]);
        for n in 0..entries as usize {
            assert_eq!(rig.image()[n * 4096], n as u8, "order {order}, request {n}");
        }
        front.disconnect();
        assert_eq!(front.grants_in_use(), 0);
    }
}

#[test]
fn misaligned_memory_is_copied() {
    for way in WAYS {
        let rig = Rig::with_memory_align(64, 4096);
        let mut front = Front::connect_as(&rig, 1, terms(Abi::X86_64, way));
        let mut writes = Vec::new();
        for n in 0..16u32 {
            front.fill(20 + n, 0x10 + n as u8);
            writes.push((OP_WRITE, u64::from(n) * 8, (20 + n, 3, 4)));
        }
        assert_eq!(front.together(&writes), [STATUS_OKAY; 16]);
        assert_eq!(rig.image()[4096..4096 + 1024], [0x11; 1024]);
        assert_eq!(front.transfer(OP_READ, 8, &[(50, 6, 7)]), STATUS_OKAY);
        assert_eq!(front.page(50)[3072..], [0x11; 1024]);
        assert_eq!(front.page(50)[..3072], [0; 3072], "nothing outside the segment");
        let counters = front.counters();
        let copied = (counters.copied_bytes, counters.grant_copied_bytes);
        // Out of what stands we copy ourselves, whatever else is for the hypervisor.
        assert_eq!(copied, if way == WAYS[0] { (17 * 1024, 0) } else { (0, 17 * 1024) });
        assert_eq!(counters.mapped_bytes, 0);
        front.disconnect();
        assert_eq!(front.grants_in_use(), 0);
    }
}

#[test]
fn copies_are_shared_and_a_bad_page_spoils_only_its_own_request() {
    let rig = Rig::new(64);
    let mut front = Front::connect_as(&rig, 1, terms(Abi::X86_64, (false, TransferRule::Copy)));
    front.forbid_writing(30);
    let requests: Vec<_> = (0..24u32)
        .map(|n| {
            front.fill(20 + n, 0x40 + n as u8);
            let page = if n % 5 == 4 { 30_000 + n } else { 20 + n };
            (OP_WRITE, u64::from(n) * 8, (page, 0, 7))
        })
        .collect();
    let answers = front.together(&requests);
    for (n, status) in answers.iter().enumerate() {
        let (good, image) = (n % 5 != 4, rig.image());
        assert_eq!(*status, if good { STATUS_OKAY } else { STATUS_ERROR }, "request {n}");
        assert_eq!(image[n * 4096], if good { 0x40 + n as u8 } else { 0 }, "request {n}");
    }
    assert!(front.counters().grant_copy_calls < 24, "a call serves several requests");
    // What the guest lets nobody write to cannot be read into; only that request fails.
    let reads: Vec<_> = (0..4).map(|n| (OP_READ, 0, (29 + n, 0, 7))).collect();
    let answers = front.together(&reads);
    assert_eq!(answers, [STATUS_OKAY, STATUS_ERROR, STATUS_OKAY, STATUS_OKAY]);
    assert_eq!(front.page(30), vec![0x4a; 4096], "it is as it was");
    let mixed = front.transfer(OP_READ, 0, &[(40, 0, 7), (30, 0, 7), (41, 0, 7)]);
    assert_eq!(mixed, STATUS_ERROR, "one page of a request is the request");
    assert_eq!(front.counters().refused, 4 + 2);
    front.disconnect();
    assert_eq!((front.grants_in_use(), front.counters().io_errors), (0, 0));
}

#[test]
fn requests_wait_for_room_to_be_copied() {
    for operation in [OP_WRITE, OP_READ] {
        let rig = Rig::new(4096);
        let mut front = Front::connect_as(&rig, 1, terms(Abi::X86_64, (false, TransferRule::Copy)));
        // Twelve times a mebibyte, where four have room; every third asks for pages that are not.
        let pages = |n: u32| (0..256).map(move |page| (200 + 100 * n + page, 0, 7));
        let requests: Vec<(u64, Vec<_>)> = (0..12)
            .map(|n| {
                let mut segments: Vec<(u32, u8, u8)> = pages(n).collect();
                if n % 3 == 2 {
                    segments[77].0 = 31_000;
                }
                (u64::from(n) * 2048, segments)
            })
            .collect();
        let answers = front.indirect_together(operation, &requests);
        for (n, status) in answers.iter().enumerate() {
            assert_eq!(*status == STATUS_OKAY, n % 3 != 2, "{operation}: request {n}");
        }
        assert_eq!(front.transfer(OP_WRITE_BARRIER, 0, &[(20, 0, 7)]), STATUS_OKAY);
        front.disconnect();
        assert_eq!(front.grants_in_use(), 0);
    }
}

#[test]
fn nothing_is_mapped_that_a_network_may_still_send() {
    for way in [(false, TransferRule::Auto), (false, TransferRule::Map), WAYS[0]] {
        let rig = Rig::networked(64);
        let mut front = Front::connect_as(&rig, 1, terms(Abi::X86_64, way));
        for n in 0..40 {
            assert_eq!(front.transfer(OP_WRITE, n % 64 * 8, &[(20, 0, 7)]), STATUS_OKAY);
        }
        let counters = front.counters();
        assert_eq!((counters.map_calls, counters.mapped_pages), (0, 0), "{way:?}");
        assert_eq!(counters.grant_copied_requests, 40, "{way:?}");
    }
}

#[test]
fn pages_that_go_unused_are_given_back_by_an_idle_worker() {
    let rig = Rig::forgetful(64, Duration::from_millis(20));
    let mut front = Front::connect(&rig, Abi::X86_64, true, 1);
    let ring_grants = front.grants_in_use();
    for round in 0..3 {
        front.fill(20, round);
        let requests: Vec<_> = (0..30u32).map(|n| (OP_WRITE, 0, (20 + n, 0, 7))).collect();
        assert_eq!(front.together(&requests), [STATUS_OKAY; 30]);
        let until = Instant::now() + Duration::from_secs(20);
        // Nobody asks for anything; counters are told without a look at the pages.
        while front.counters().persistent_pages > 0 {
            assert!(Instant::now() < until, "{:?}", front.counters());
            std::thread::yield_now();
        }
        assert_eq!(front.grants_in_use(), ring_grants);
        let counters = front.counters();
        let (stood, copied) = (counters.standing_requests, counters.grant_copied_requests);
        assert_eq!((stood, copied), (30 * (u64::from(round) + 1), 0), "they stand again at once");
    }
    front.disconnect();
    assert_eq!(front.grants_in_use(), 0);
}

/// What the kernel holds of this process's memory, KiB.
fn pinned_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn buffers_are_kept_at_hand_while_they_are_used() {
    let copies = terms(Abi::X86_64, (false, TransferRule::Copy));
    let write = |front: &mut Front| front.transfer(OP_WRITE, 8, &[(20, 0, 7)]);
    let busy = Rig::new(64);
    let mut front = Front::connect_as(&busy, 1, copies);
    assert_eq!(pinned_kib(), 0, "nothing is held for a guest that has copied nothing");
    assert_eq!(write(&mut front), STATUS_OKAY);
    let aio = std::env::var("ZEROTAP_TEST_ENGINE").is_ok_and(|name| name == "aio");
    assert_eq!(pinned_kib() > 0, !aio);
    front.disconnect();
    drop(busy);
    let idle = Rig::forgetful(64, Duration::from_millis(20));
    let mut front = Front::connect_as(&idle, 1, copies);
    for round in 0..3 {
        front.fill(20, round);
        assert_eq!(write(&mut front), STATUS_OKAY);
        assert_eq!(front.transfer(OP_READ, 8, &[(21, 0, 7)]), STATUS_OKAY);
        assert_eq!(front.page(21), front.page(20));
        let until = Instant::now() + Duration::from_secs(20);
        while pinned_kib() > 0 {
            assert!(Instant::now() < until, "{} KiB are held", pinned_kib());
            std::thread::yield_now();
        }
    }
    front.disconnect();
}

#[test]
fn what_the_host_cannot_spare_is_copied() {
    let place = tempfile::NamedTempFile::new().unwrap();
    place.as_file().set_len(1).unwrap();
    // Each worker opens it anew: what is locked is the open file's.
    let rig = || Rig::with_budget(64, place.reopen().unwrap().into());
    let (one, two) = (rig(), rig());
    let mut first = Front::connect_as(&one, 1, terms(Abi::X86_64, WAYS[0]));
    let requests: Vec<_> = (0..100u32).map(|n| (OP_WRITE, 0, (20 + n, 0, 7))).collect();
    for request in requests.chunks(20) {
        assert_eq!(first.together(request), [STATUS_OKAY; 20]);
    }
    let counters = first.counters();
    let (pages, requests) = (counters.persistent_pages, counters.standing_requests);
    assert!((20..=64).contains(&pages) && requests == u64::from(pages), "{counters:?}");
    assert_eq!(counters.grant_copied_requests, 100 - requests);
    let mapped = terms(Abi::X86_64, (false, TransferRule::Map));
    let mut second = Front::connect_as(&two, 2, mapped);
    assert_eq!(second.transfer(OP_READ, 0, &[(20, 0, 7)]), STATUS_OKAY);
    assert_eq!(second.counters().grant_copied_requests, 1, "the first has all of it");
    first.disconnect();
    let three = rig();
    let mut third = Front::connect_as(&three, 3, mapped);
    assert_eq!(third.transfer(OP_READ, 0, &[(20, 0, 7)]), STATUS_OKAY);
    assert_eq!(third.counters().mapped_requests, 1, "what was given back is free");
}

#[test]
fn both_ways_are_tried_and_their_calls_are_measured() {
    let rig = Rig::new(64);
    let mut front = Front::connect(&rig, Abi::X86_64, false, 1);
    for n in 0..200 {
        assert_eq!(front.transfer(OP_READ, n % 64 * 8, &[(20, 0, 7)]), STATUS_OKAY);
    }
    let counters = front.counters();
    let (mapped, copied) = (counters.mapped_requests, counters.grant_copied_requests);
    assert_eq!(mapped + copied, 200);
    assert!(mapped > 0 && copied > 0, "{counters:?}");
    assert!(counters.map_ns > 0 && counters.map_call_pages == mapped, "{counters:?}");
    assert!(counters.grant_copy_ns > 0 && counters.grant_copy_pieces >= copied, "{counters:?}");
}

#[test]
fn a_guest_that_lets_go_has_all_answered_that_it_asked() {
    let rig = Rig::new(64);
    let mut front = Front::connect(&rig, Abi::X86_64, true, 1);
    assert_eq!(front.transfer(OP_READ, 0, &[(20, 0, 7)]), STATUS_OKAY);
    front.produce_unnoticed(OP_READ, 30);
    front.disconnect();
    assert_eq!(front.answered(30), [STATUS_OKAY; 30]);
    assert_eq!(front.grants_in_use(), 0);
}

/// Answered as they are taken: nothing of them completes later and brings the rest on.
#[test]
fn a_guest_that_lets_go_has_all_answered_that_is_refused() {
    let rig = Rig::new(64);
    let mut front = Front::connect(&rig, Abi::X86_64, true, 1);
    assert_eq!(front.transfer(OP_READ, 0, &[(20, 0, 7)]), STATUS_OKAY);
    front.produce_unnoticed(77, 30);
    front.disconnect();
    assert_eq!(front.answered(30), [STATUS_EOPNOTSUPP; 30]);
}

#[test]
fn what_was_taken_when_a_ring_broke_is_let_go_of() {
    let rig = Rig::new(64);
    for domid in 1..=GUESTS_THAT_FLICKER {
        let mut front = Front::connect_as(&rig, domid, TERMS);
        front.produce_flickering();
        front.disconnect();
        assert_eq!(front.grants_in_use(), 0);
    }
}

#[test]
fn a_bogus_producer_breaks_its_ring_and_nothing_else() {
    let rig = Rig::new(64);
    let mut bad = Front::connect(&rig, Abi::X86_64, false, 1);
    let mut good = Front::connect_second(&rig);
    bad.produce_bogus();
    good.fill(20, 1);
    assert_eq!(good.transfer(OP_WRITE, 0, &[(20, 0, 7)]), STATUS_OKAY);
    assert!(bad.breaks());
    assert!(!good.broken());
    bad.disconnect();
    good.disconnect();
    assert_eq!((bad.grants_in_use(), good.grants_in_use()), (0, 0));
}

#[test]
fn an_image_that_shrank_fails_the_request_and_not_the_worker() {
    let rig = Rig::new(64);
    let mut front = Front::connect(&rig, Abi::X86_64, true, 1);
    rig.shrink_image(4096);
    assert_eq!(front.transfer(OP_READ, 16, &[(20, 0, 7)]), STATUS_ERROR);
    assert_eq!(front.transfer(OP_READ, 0, &[(20, 0, 7)]), STATUS_OKAY);
    assert_eq!(front.counters().io_errors, 1);
}
