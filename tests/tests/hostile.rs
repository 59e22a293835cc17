//! A hostile front end on the same worker as a good one: it gets errors, or loses its own ring; the
//! good guest's bytes stay right and its requests answered.

use anyhow::Context as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use zerotap_datapath::ring::abi::{
    Abi, OP_DISCARD, OP_INDIRECT, OP_READ, OP_WRITE, STATUS_EOPNOTSUPP, STATUS_ERROR, Segment,
};
use zerotap_datapath::ring::shared::SharedMapping;
use zerotap_datapath::xen::sim;
use zerotap_rpc_schema::worker::{Answer, Ask, PROTOCOL, QueueParameters, RingParameters, VbdId};
use zerotap_tests::bare_worker::Control;
use zerotap_tests::blkfront::Options;
use zerotap_tests::blkfront::request::{encode_direct, encode_indirect, encode_segment};
use zerotap_tests::blkfront::ring::Response;
use zerotap_tests::guest::FRAME_BYTES;
use zerotap_tests::harness::eventually;
use zerotap_tests::siege::{DISK_BYTES, Siege};
use zerotap_tests::workload::random::Random;

const HOSTILE: VbdId = VbdId { domid: 6, devid: 51712 };
/// A grant reference that no guest here ever makes.
const NO_GREF: u32 = 20_000;

fn checked_off() -> Options {
    Options { checked: false, ..Options::default() }
}

#[test]
fn every_lie_in_a_request_is_refused() {
    for abi in [Abi::X86_64, Abi::X86_32] {
        let mut siege = Siege::lay(Options { abi, ..Options::default() }).unwrap();
        let frame = siege.hostile.domain().frame().unwrap();
        let gref = siege.hostile.domain().grant(frame, false).unwrap();
        let whole = Segment { gref, first: 0, last: 7 };
        let end = DISK_BYTES / 512;
        let mut id = 0;
        let mut direct = |operation, count, sector, segments: &[Segment]| {
            id += 1;
            encode_direct(abi, id, operation, count, sector, segments)
        };
        let wrong = [
            ("too many segments", direct(OP_READ, 12, 0, &[whole; 11]), STATUS_ERROR),
            ("255 segments", direct(OP_READ, 255, 0, &[whole; 11]), STATUS_ERROR),
            ("no segment", direct(OP_READ, 0, 0, &[]), STATUS_ERROR),
            (
                "the page's end",
                direct(OP_READ, 1, 0, &[Segment { last: 8, ..whole }]),
                STATUS_ERROR,
            ),
            ("far out", direct(OP_READ, 1, 0, &[Segment { last: 255, ..whole }]), STATUS_ERROR),
            (
                "backwards",
                direct(OP_READ, 1, 0, &[Segment { first: 5, last: 4, ..whole }]),
                STATUS_ERROR,
            ),
            ("the disk's end", direct(OP_READ, 1, end - 7, &[whole]), STATUS_ERROR),
            ("a wrap", direct(OP_READ, 1, u64::MAX - 3, &[whole]), STATUS_ERROR),
            ("a write", direct(OP_WRITE, 1, 0, &[whole]), STATUS_ERROR),
            (
                "no such grant",
                direct(OP_READ, 1, 0, &[Segment { gref: NO_GREF, ..whole }]),
                STATUS_ERROR,
            ),
            (
                "a grant out of the table",
                direct(OP_READ, 1, 0, &[Segment { gref: u32::MAX, ..whole }]),
                STATUS_ERROR,
            ),
            (
                "one bad grant among good ones",
                direct(OP_READ, 3, 0, &[whole, Segment { gref: NO_GREF, ..whole }, whole]),
                STATUS_ERROR,
            ),
            ("a discard", direct(OP_DISCARD, 0, 0, &[]), STATUS_ERROR),
            ("an unknown operation", direct(200, 1, 0, &[whole]), STATUS_EOPNOTSUPP),
            ("indirect of none", encode_indirect(abi, 100, OP_READ, 0, 0, &[gref]), STATUS_ERROR),
            (
                "indirect of too many",
                encode_indirect(abi, 101, OP_READ, 257, 0, &[gref]),
                STATUS_ERROR,
            ),
            (
                "indirect of 65535",
                encode_indirect(abi, 102, OP_READ, u16::MAX, 0, &[gref; 8]),
                STATUS_ERROR,
            ),
            (
                "indirect of indirect",
                encode_indirect(abi, 103, OP_INDIRECT, 1, 0, &[gref]),
                STATUS_ERROR,
            ),
            (
                "indirect without the page",
                encode_indirect(abi, 104, OP_READ, 20, 0, &[NO_GREF]),
                STATUS_ERROR,
            ),
        ];
        for (what, entry, status) in &wrong {
            let response = siege.send(entry).with_context(|| (*what).to_owned()).unwrap();
            assert_eq!(response.status, *status, "{what}");
        }
        let right = encode_direct(abi, 7777, OP_READ, 1, 0, &[whole]);
        assert_eq!(siege.send(&right).unwrap(), Response { id: 7777, operation: 0, status: 0 });
        assert!(!siege.is_broken().unwrap(), "lies cost no ring");
        siege.lift().unwrap();
    }
}

#[test]
fn a_bogus_producer_costs_its_own_ring() {
    for claim in [33, 1 << 31, u32::MAX, 1000] {
        let mut siege = Siege::lay(checked_off()).unwrap();
        let (domain, ring, port) = siege.hostile.raw();
        ring.claim(domain.memory(), claim);
        port.notify().unwrap();
        eventually("the ring is broken", || Ok(siege.is_broken()?.then_some(()))).unwrap();
        let hello = siege.worker.control().unwrap();
        drop(hello);
        siege.lift().unwrap();
    }
}

#[test]
fn garbage_in_every_slot_is_answered() {
    for abi in [Abi::X86_64, Abi::X86_32] {
        let mut siege = Siege::lay(Options { abi, ..checked_off() }).unwrap();
        let mut random = Random::new(3);
        for round in 0..200 {
            let (domain, ring, port) = siege.hostile.raw();
            for _ in 0..ring.entries() {
                let mut entry = [0; 112];
                for word in entry.chunks_exact_mut(8) {
                    word.copy_from_slice(&random.bits().to_le_bytes());
                }
                entry[0] = u8::try_from(random.below(8)).unwrap();
                entry[1] = u8::try_from(random.below(14)).unwrap();
                ring.write(domain.memory(), &entry);
            }
            let _ = ring.push(domain.memory());
            port.notify().unwrap();
            let mut answered = 0;
            eventually(&format!("all answers of round {round}"), || {
                while ring.take(domain.memory())?.is_some() {
                    answered += 1;
                }
                Ok((answered == ring.entries()).then_some(()))
            })
            .unwrap();
        }
        siege.lift().unwrap();
    }
}

/// Changes words of a frame of a guest's memory until told to stop, as another CPU of it could.
fn scribble(dir: &std::path::Path, frame: u32, from: usize, stop: &AtomicBool, values: &[u32]) {
    let name = dir.join(sim::memory_name(HOSTILE.domid));
    let file = std::fs::File::options().read(true).write(true).open(name);
    let offset = u64::from(frame) * FRAME_BYTES as u64;
    let page = SharedMapping::map(file.unwrap(), offset, FRAME_BYTES, true).unwrap();
    let mut random = Random::new(9);
    while !stop.load(Ordering::Relaxed) {
        let at =
            from + usize::try_from(random.below(((FRAME_BYTES - from) / 4) as u64)).unwrap() * 4;
        let value = values[usize::try_from(random.below(values.len() as u64)).unwrap()];
        page.store(at, value);
    }
}

#[test]
fn descriptors_that_change_while_they_are_read_do_no_harm() {
    let mut siege = Siege::lay(checked_off()).unwrap();
    let frame = siege.hostile.domain().frame().unwrap();
    let gref = siege.hostile.domain().grant(frame, false).unwrap();
    let segments_frame = siege.hostile.domain().frame().unwrap();
    let segments_gref = siege.hostile.domain().grant(segments_frame, true).unwrap();
    let good = encode_segment(&Segment { gref, first: 0, last: 7 });
    for n in 0..FRAME_BYTES / 8 {
        let at = segments_frame as usize * FRAME_BYTES + n * 8;
        siege.hostile.domain().memory().copy_in(at, &good);
    }
    let ring_frame = siege.hostile.raw().1.frames()[0];
    let dir = siege.host.dir().to_owned();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (dir, stop) = (&dir, &stop);
        // The ring's entries, not its indices; and the page with the indirect segments.
        let ring_values = [0, gref, NO_GREF, 0x0700, 0xffff_ffff, 6, 0x0100_0006, 1];
        let values = [gref, NO_GREF, 0x0700, 0xff00, 0];
        scope.spawn(move || scribble(dir, ring_frame, 64, stop, &ring_values));
        scope.spawn(move || scribble(dir, segments_frame, 0, stop, &values));
        for round in 0..300u64 {
            let (domain, ring, port) = siege.hostile.raw();
            for n in 0..ring.entries() {
                let id = round << 8 | u64::from(n);
                let entry = match n % 2 {
                    0 => encode_indirect(Abi::X86_64, id, OP_READ, 256, 0, &[segments_gref]),
                    _ => {
                        let segment = Segment { gref, first: 0, last: 7 };
                        encode_direct(Abi::X86_64, id, OP_READ, 11, 0, &[segment; 11])
                    }
                };
                ring.write(domain.memory(), &entry);
            }
            let _ = ring.push(domain.memory());
            port.notify().unwrap();
            let mut answered = 0;
            let all = eventually("all answers", || {
                // Answers are scribbled over as well: only their number is to be relied on.
                while !matches!(ring.take(domain.memory()), Ok(None)) {
                    answered += 1;
                }
                Ok((answered == ring.entries()).then_some(()))
            });
            if let Err(error) = all {
                stop.store(true, Ordering::Relaxed);
                panic!("round {round}: {error:#}");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    siege.lift().unwrap();
}

#[test]
fn a_storm_of_events_starves_nobody() {
    let mut siege = Siege::lay(checked_off()).unwrap();
    let before = siege.good.progress.answered();
    let until = std::time::Instant::now() + Duration::from_millis(500);
    let (_, _, port) = siege.hostile.raw();
    while std::time::Instant::now() < until {
        port.notify().unwrap();
    }
    assert!(siege.good.progress.answered() > before, "the good guest got answers meanwhile");
    siege.lift().unwrap();
}

#[test]
fn a_flooded_queue_leaves_the_other_its_share() {
    let mut siege = Siege::lay(Options { queues: 2, ring_order: 2, ..Options::default() }).unwrap();
    let frame = siege.hostile.domain().frame().unwrap();
    let gref = siege.hostile.domain().grant(frame, false).unwrap();
    let whole = Segment { gref, first: 0, last: 7 };
    let read = |id| encode_direct(Abi::X86_64, id, OP_READ, 1, 0, &[whole]);
    let (mut flooded, mut refilled) = (0, 0);
    for id in 0..500 {
        let mut asked = false;
        eventually("an answer on the other queue", || {
            let (domain, flood, port) = siege.hostile.raw_queue(0);
            while flood.take(domain.memory())?.is_some() {
                flooded += 1;
            }
            while flood.unanswered() < flood.entries() {
                refilled += 1;
                flood.write(domain.memory(), &read(refilled));
            }
            if flood.push(domain.memory()) {
                port.notify()?;
            }
            let (domain, other, port) = siege.hostile.raw_queue(1);
            if !std::mem::replace(&mut asked, true) {
                other.write(domain.memory(), &read(id));
                if other.push(domain.memory()) {
                    port.notify()?;
                }
            }
            other.take(domain.memory())
        })
        .unwrap();
    }
    assert!(flooded > 500, "the flood went on: {flooded}");
    siege.lift().unwrap();
}

#[test]
fn rings_that_cannot_be_are_refused_by_the_worker() {
    let mut siege = Siege::lay(Options::default()).unwrap();
    let frame = siege.hostile.domain().frame().unwrap();
    let gref = siege.hostile.domain().grant(frame, false).unwrap();
    let read_only = siege.hostile.domain().grant(frame, true).unwrap();
    let free = siege.hostile.domain().port().unwrap();
    let bound = siege.hostile.raw().2.number();
    let vbd = VbdId { domid: HOSTILE.domid, devid: 51728 };
    let unknown = VbdId { domid: 99, devid: 51728 };
    let with = |queues: &[(u32, Vec<u32>)]| RingParameters {
        queues: queues
            .iter()
            .map(|(port, refs)| QueueParameters { ring_refs: refs.clone(), port: *port })
            .collect(),
        protocol: Abi::X86_64,
        persistent: true,
    };
    let port = free.number();
    let ring = with(&[(port, vec![gref])]);
    let good = (port, vec![gref]);
    let wrong = [
        ("no page", vbd, with(&[(port, Vec::new())])),
        ("no queue", vbd, with(&[])),
        ("five queues", vbd, with(&[0; 5].map(|_| good.clone()))),
        ("a bad second queue", vbd, with(&[good.clone(), (4000, vec![gref])])),
        ("three pages", vbd, with(&[(port, vec![gref; 3])])),
        ("32 pages", vbd, with(&[(port, vec![gref; 32])])),
        ("no grant", vbd, with(&[(port, vec![NO_GREF])])),
        ("a read-only grant", vbd, with(&[(port, vec![read_only])])),
        ("no such port", vbd, with(&[(4000, vec![gref])])),
        ("a bound port", vbd, with(&[(bound, vec![gref])])),
        ("no such domain", unknown, ring.clone()),
        ("connected already", HOSTILE, ring.clone()),
    ];
    for (what, vbd, ring) in wrong {
        let refused = siege.worker.connect(&mut siege.control, vbd, ring, true);
        let text = format!("{:#}", refused.expect_err(what));
        assert!(text.contains("Error"), "{what}: {text}");
    }
    siege.worker.connect(&mut siege.control, vbd, ring, true).expect("the right one");
    assert_eq!(siege.control.ask(Ask::Disconnect { vbd, leave: false }).unwrap(), Answer::Done);
    siege.lift().unwrap();
}

#[test]
fn a_control_client_that_misbehaves_is_hung_up_on() {
    let siege = Siege::lay(Options::default()).unwrap();
    for bytes in [&b"no json\n"[..], b"{\"id\":1}\n", b"{\"id\":1,\"ask\":{\"op\":\"dance\"}}\n"] {
        let mut control = Control::connect(siege.worker.socket()).unwrap();
        control.send(bytes, &[]).unwrap();
        assert_eq!(control.answer().unwrap(), None, "{bytes:?}");
    }
    let mut endless = Control::connect(siege.worker.socket()).unwrap();
    let piece = vec![b'x'; 32 * 1024];
    // Somewhere on the way to a megabyte without a newline it is hung up on.
    let sent = (0..32).map(|_| endless.send(&piece, &[])).find(Result::is_err);
    assert!(sent.is_some() || endless.answer().unwrap().is_none());
    let wrong = siege.worker.control().unwrap().ask(Ask::Hello { protocol: 0 }).unwrap();
    assert!(matches!(wrong, Answer::Error { .. }), "{wrong:?}");
    let newer = siege.worker.control().unwrap().ask(Ask::Hello { protocol: 999 }).unwrap();
    assert!(matches!(newer, Answer::Hello { protocol: PROTOCOL, .. }), "{newer:?}");
    siege.lift().unwrap();
}
