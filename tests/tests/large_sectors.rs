//! Storage with sectors of 4096 bytes under guests that are told of 512: parts of sectors are read,
//! changed and written back, and nothing beside them is lost.

use std::time::Duration;
use zerotap_tests::blkfront::{Blkfront, Io, Op, Options, Piece};
use zerotap_tests::guest::Domain;
use zerotap_tests::harness::busy::{spin, successor};
use zerotap_tests::harness::loop_device::LoopDevice;
use zerotap_tests::harness::{Host, eventually, kill_worker};
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::workload::Plan;

const DOMID: u16 = 5;
const SOON: Duration = Duration::from_secs(60);

/// Short requests on few sectors, so that most of those in flight share one with others.
fn crowded(options: Options) -> Guest {
    let plan = Plan { bytes_max: 2048, sectors: 1024, read_percent: 30, ..Plan::default() };
    Guest { options, plan, ..Guest::new(DOMID) }
}

fn guest_of(options: Options, kills: u32) {
    let place = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&place.path().join("disk"), 16 << 20, 4096).unwrap();
    let host = Host::start().unwrap();
    let disk = host.adopt(&device).unwrap().serve(&host.rpc(), DOMID, false).unwrap();
    let running = Running::start(host.sim().dir(), crowded(options), Expect::Fresh).unwrap();
    disk.plug(&host.rpc()).unwrap();
    running.progresses(2000, SOON).unwrap();
    let image = disk.stat(&host.rpc()).unwrap().image.unwrap();
    assert_eq!((image.sector_bytes, image.emulated_sector_bytes), (4096, Some(512)));
    let mut last = 0;
    for kill in 0..kills {
        last = successor(&host, &disk, last);
        // Longer than what counts as dying at once.
        spin(Duration::from_millis(1000 + u64::from(kill) * 7));
        kill_worker(last).unwrap();
        running.progresses(200, SOON).unwrap();
    }
    let mut ended = running.stop().unwrap();
    assert!(ended.report.errors == 0 && ended.report.flushes > 0, "{:?}", ended.report);
    disk.unplug(&host.rpc(), false).unwrap();
    disk.deactivate(&host.rpc()).unwrap();
    ended.model.check_image(device.path()).unwrap();
}

#[test]
fn parts_of_sectors_are_written_beside_each_other() {
    guest_of(Options::default(), 0);
}

#[test]
fn so_by_copies_and_through_several_queues() {
    guest_of(Options { persistent: false, queues: 4, ring_order: 1, ..Options::default() }, 0);
}

#[test]
fn a_guest_survives_its_workers_amid_parts_of_sectors() {
    guest_of(Options { queues: 2, ..Options::default() }, 5);
}

#[test]
fn an_administrator_may_have_guests_told_of_large_sectors() {
    let place = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&place.path().join("disk"), 16 << 20, 4096).unwrap();
    for (config, told) in [("", 512), ("[vbd]\nlarge_sectors = true", 4096)] {
        let host = Host::start_with(config).unwrap();
        let disk = host.adopt(&device).unwrap().serve(&host.rpc(), DOMID, false).unwrap();
        let domain = Domain::create(host.sim().dir(), DOMID, 16 << 20, true).unwrap();
        disk.plug(&host.rpc()).unwrap();
        let mut front = Blkfront::connect(domain, Options::default()).unwrap();
        let sectors = (front.disk().sector_bytes, front.disk().physical_sector_bytes);
        assert_eq!(sectors, (told, 4096));
        let frame = front.domain().frame().unwrap();
        // Whatever it was told, it harms nobody with less, and gets what it asked for.
        for (sector, first, last) in [(0, 0, 7), (1, 0, 7), (9, 2, 3), (15, 7, 7), (6, 0, 3)] {
            for op in [Op::Write, Op::Read] {
                let pieces = vec![Piece { frame, first, last }];
                front.submit(Io { op, sector, pieces }).unwrap();
                front.push().unwrap();
                let answer = eventually("an answer", || front.complete()).unwrap();
                assert_eq!(answer.status, 0, "{op:?} at {sector}, {first} to {last}");
            }
        }
        front.close().unwrap();
    }
}
