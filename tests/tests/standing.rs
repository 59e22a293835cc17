//! Persistent grants where room is short: pages that a guest does not use any more make some, on
//! its own queue and for other guests.

use zerotap_rpc_schema::worker::Counters;
use zerotap_tests::blkfront::{Blkfront, Io, Op, Options, Piece};
use zerotap_tests::guest::Domain;
use zerotap_tests::harness::{Disk, Host, eventually};

const MIB: i64 = 1 << 20;
/// Pages of a request.
const PAGES: usize = 11;

/// A guest with one disk, and pages that it reads into.
struct Reader {
    disk: Disk,
    front: Blkfront,
}

impl Reader {
    fn new(host: &Host, domid: u16) -> Reader {
        let disk = host.serve(domid, 8 * MIB).unwrap();
        let domain = Domain::create(host.sim().dir(), domid, 64 << 20, true).unwrap();
        disk.plug(&host.rpc()).unwrap();
        let front = Blkfront::connect(domain, Options::default()).unwrap();
        Reader { disk, front }
    }

    /// Pages that it has not used before; it never gives them back.
    fn fresh(&mut self) -> Vec<u32> {
        (0..PAGES).map(|_| self.front.domain().frame().unwrap()).collect()
    }

    fn read(&mut self, frames: &[u32]) {
        let pieces = frames.iter().map(|&frame| Piece { frame, first: 0, last: 7 }).collect();
        self.front.submit(Io { op: Op::Read, sector: 0, pieces }).unwrap();
        self.front.push().unwrap();
        assert_eq!(eventually("an answer", || self.front.complete()).unwrap().status, 0);
    }

    fn counters(&self, host: &Host) -> Counters {
        self.disk.stat(&host.rpc()).unwrap().counters
    }

    fn end(mut self, host: &Host) {
        self.front.close().unwrap();
        let counters = self.counters(host);
        assert_eq!((counters.mapped_pages, counters.refused, counters.io_errors), (0, 0, 0));
    }
}

#[test]
fn pages_that_a_guest_gave_up_make_room_for_those_that_it_uses() {
    let host = Host::start().unwrap();
    let mut reader = Reader::new(&host, 5);
    let first = reader.fresh();
    reader.read(&first);
    // One after the other, so that they are mapped in small lots; more than a queue keeps.
    for _ in 0..400 {
        let pages = reader.fresh();
        reader.read(&pages);
        // These stay in use.
        reader.read(&first);
    }
    let last = reader.fresh();
    eventually("the last pages stand, too", || {
        let before = reader.counters(&host).standing_requests;
        reader.read(&last);
        reader.read(&first);
        Ok((reader.counters(&host).standing_requests == before + 2).then_some(()))
    })
    .unwrap_or_else(|e| panic!("{e:#}: {:?}", reader.counters(&host)));
    assert!(reader.counters(&host).purged_pages > 0);
    reader.end(&host);
}

#[test]
fn a_guest_that_never_uses_its_grants_again_does_not_keep_others_from_theirs() {
    // Two of a page.
    let host = Host::start_with("mapped_pages_max = 2048").unwrap();
    let (mut greedy, mut modest) = (Reader::new(&host, 5), Reader::new(&host, 6));
    for _ in 0..120 {
        let pages = greedy.fresh();
        greedy.read(&pages);
    }
    let few = modest.fresh();
    eventually("the modest guest's pages stand", || {
        let pages = greedy.fresh();
        greedy.read(&pages);
        modest.read(&few);
        Ok((modest.counters(&host).persistent_pages as usize == PAGES).then_some(()))
    })
    .unwrap();
    assert!(greedy.counters(&host).purged_pages > 0, "there was no other room");
    greedy.end(&host);
    modest.end(&host);
}
