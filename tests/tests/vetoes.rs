//! What an administrator does not want guests to be offered (`[vbd]` in the configuration): what
//! stands in xenstore then, and what becomes of a guest that takes it all the same.

use zerotap_tests::blkfront::{Blkfront, Io, Op, Options, Piece, state};
use zerotap_tests::guest::Domain;
use zerotap_tests::harness::{Disk, Host, eventually};

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;

/// A host with one line in `[vbd]`, a disk on it and a guest that has not negotiated yet.
fn announced(line: &str, options: Options) -> (Host, Disk, Blkfront) {
    let host = Host::start_with(&format!("[vbd]\n{line}")).unwrap();
    let disk = host.serve(DOMID, 8 * MIB).unwrap();
    let domain = Domain::create(host.sim().dir(), DOMID, 64 << 20, true).unwrap();
    disk.plug(&host.rpc()).unwrap();
    let front = Blkfront::announce(domain, options).unwrap();
    (host, disk, front)
}

/// The status that a request is answered with.
fn status(front: &mut Blkfront, op: Op, pages: usize) -> i16 {
    let mut piece = || Piece { frame: front.domain().frame().unwrap(), first: 0, last: 7 };
    let pieces = (0..pages).map(|_| piece()).collect();
    front.submit(Io { op, sector: 0, pieces }).unwrap();
    front.push().unwrap();
    eventually("an answer", || front.complete()).unwrap().status
}

#[test]
fn each_veto_stands_in_xenstore_and_a_guest_that_heeds_it_is_served() {
    for (line, key, value) in [
        ("persistent_grants = false", "feature-persistent", Some("0")),
        ("barrier = false", "feature-barrier", Some("0")),
        ("discard = false", "feature-discard", Some("0")),
        ("queues_max = 1", "multi-queue-max-queues", Some("1")),
        ("ring_page_order_max = 1", "max-ring-page-order", Some("1")),
        ("indirect_segments_max = 32", "feature-max-indirect-segments", Some("32")),
        ("indirect_segments_max = 0", "feature-max-indirect-segments", None),
    ] {
        let options = Options { queues: 4, ring_order: 4, ..Options::default() };
        let (host, disk, mut front) = announced(line, options);
        front.negotiate().unwrap();
        let mut dom0 = host.sim().toolstack().unwrap();
        let told = dom0.read_optional(&format!("{}/{key}", front.backend())).unwrap();
        assert_eq!(told.as_deref(), value, "{line}");
        let segments = front.disk().segments_max;
        assert_eq!(status(&mut front, Op::Write, segments), 0, "{line}");
        let counters = disk.stat(&host.rpc()).unwrap().counters;
        assert_eq!((counters.writes, counters.refused), (1, 0), "{line}");
        front.close().unwrap();
    }
}

#[test]
fn a_guest_that_keeps_grants_unasked_has_none_kept() {
    let (host, disk, mut front) = announced("persistent_grants = false", Options::default());
    front.negotiate().unwrap();
    let mut dom0 = host.sim().toolstack().unwrap();
    let key = format!("/local/domain/{DOMID}/device/vbd/51712/feature-persistent");
    assert_eq!(dom0.read(&key).unwrap(), "1", "it says so all the same");
    for _ in 0..10 {
        assert_eq!(status(&mut front, Op::Read, 8), 0);
    }
    let counters = disk.stat(&host.rpc()).unwrap().counters;
    assert_eq!((counters.standing_requests, counters.persistent_pages), (0, 0));
    assert_eq!(counters.mapped_requests + counters.grant_copied_requests, 10);
    front.close().unwrap();
}

#[test]
fn requests_that_were_not_offered_are_refused() {
    const ERROR: i16 = -1;
    const EOPNOTSUPP: i16 = -2;
    let discard = Op::Discard { sectors: 64 };
    for (line, op, pages, answer) in [
        ("discard = false", discard, 0, EOPNOTSUPP),
        ("barrier = false", Op::Barrier, 1, EOPNOTSUPP),
        ("indirect_segments_max = 0", Op::Read, 12, EOPNOTSUPP),
        ("indirect_segments_max = 32", Op::Read, 33, ERROR),
    ] {
        let (host, disk, mut front) = announced(line, Options::default());
        front.negotiate().unwrap();
        assert_eq!(status(&mut front, op, pages), answer, "{line}");
        assert_eq!(disk.stat(&host.rpc()).unwrap().counters.refused, 1, "{line}");
        assert_eq!(status(&mut front, Op::Read, 11), 0, "{line}: and nothing else is");
        front.close().unwrap();
    }
}

#[test]
fn rings_beyond_what_was_offered_are_not_connected() {
    for (line, key, value, complaint) in [
        ("queues_max = 1", "multi-queue-num-queues", 2, "wants 2 queues; 1 to 1 were offered"),
        ("ring_page_order_max = 1", "ring-page-order", 2, "ring-page-order 2 is above the 1"),
    ] {
        let (host, _, mut front) = announced(line, Options::default());
        front.wait_backend(&[state::INIT_WAIT]).unwrap();
        front.xenstore().write(&format!("device/vbd/51712/{key}"), value).unwrap();
        front.set_state(state::INITIALISED).unwrap();
        let told = eventually("the daemon says why", || {
            let list = host.rpc().raw("VBD.list", &serde_json::json!({}))?;
            let trouble = list[0]["trouble"].as_str().unwrap_or_default();
            Ok(trouble.contains(complaint).then_some(()))
        });
        told.unwrap_or_else(|e| panic!("{line}: {e:#}"));
        assert_eq!(front.backend_state().unwrap(), state::INIT_WAIT, "{line}");
    }
}
