//! What is under the images: full file systems, block devices, sectors of 4096 bytes, flushes.

use anyhow::Context as _;
use serde_json::json;
use std::os::unix::fs::FileExt as _;
use zerotap_rpc_schema::smapi2::{Pairs, SrParams, VdiCreateParams, VdiInfo};
use zerotap_rpc_schema::{StorageError, table};
use zerotap_tests::blkfront::{Blkfront, Io, Op, Options, Piece};
use zerotap_tests::guest::Domain;
use zerotap_tests::harness::loop_device::LoopDevice;
use zerotap_tests::harness::{Host, Vdi, eventually, uuid};
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::workload::Plan;

const MIB: i64 = 1 << 20;

#[test]
fn a_full_disk_is_told_to_caller_and_guest() {
    // Declared before the host: it can only be taken down after the workers.
    let place = tempfile::tempdir().unwrap();
    let mut small = LoopDevice::new(&place.path().join("small"), 32 << 20, 512).unwrap();
    let dir = place.path().join("sr");
    small.mount(&dir).unwrap();
    let host = Host::start_with("overcommit = true\nno_space = \"error\"").unwrap();
    let rpc = host.rpc();
    let sr = uuid().unwrap();
    host.create_sr_at(&sr, &dir).unwrap();

    let mut info = VdiInfo::new("too large", 64 * MIB);
    info.sm_config = Pairs::from([("allocation".to_owned(), "preallocated".to_owned())]);
    let params = VdiCreateParams { dbg: String::new(), sr: sr.clone(), vdi_info: info };
    let error = rpc.fails("VDI.create", &serde_json::to_value(params).unwrap());
    let Some(StorageError::Backend((code, _))) = error.storage else { panic!("{error}") };
    assert_eq!(code, "SR_BACKEND_FAILURE_44", "no space");
    let listed = rpc.call::<table::SrScan2>(&SrParams { dbg: String::new(), sr: sr.clone() });
    assert!(listed.unwrap().0.is_empty(), "nothing is left of it");

    let sparse = host.create_vdi_in(&sr, 64 * MIB).expect("overcommitted");
    let vdi = Vdi { sr, vdi: sparse.vdi, sr_dir: dir };
    let disk = vdi.serve(&rpc, 5, false).unwrap();
    let plan =
        Plan { read_percent: 20, requests_max: 4000, errors_fatal: false, ..Plan::default() };
    let guest = Guest { plan, ..Guest::new(5) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&rpc).unwrap();
    let ended = running.join().expect("what was answered with success is right");
    assert!(ended.report.errors > 0, "64 MiB do not fit in 32");
    assert!(ended.report.write_bytes > 0);
    let counters = disk.stat(&rpc).unwrap().counters;
    assert_eq!((counters.io_errors, counters.refused), (ended.report.errors, 0));
    disk.unplug(&rpc, false).unwrap();
    disk.remove(&rpc).unwrap();
}

#[test]
fn block_devices_of_both_sector_sizes_are_served() {
    let place = tempfile::tempdir().unwrap();
    for (domid, sector_bytes) in [(5, 512), (6, 4096)] {
        let backing = place.path().join(sector_bytes.to_string());
        let device = LoopDevice::new(&backing, 16 << 20, sector_bytes).unwrap();
        let host = Host::start().unwrap();
        let rpc = host.rpc();
        let vdi = host.adopt(&device).unwrap();
        let disk = vdi.serve(&rpc, domid, false).unwrap();
        let guest =
            Guest { plan: Plan { requests_max: 1000, ..Plan::default() }, ..Guest::new(domid) };
        let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
        disk.plug(&rpc).unwrap();
        let mut ended = running.join().unwrap();
        let stat = disk.stat(&rpc).unwrap();
        assert_eq!(stat.image.unwrap().sector_bytes, sector_bytes);
        assert_eq!(stat.counters.copied_bytes == 0, sector_bytes == 512, "parts of sectors are");
        disk.unplug(&rpc, false).unwrap();
        disk.deactivate(&rpc).unwrap();
        disk.detach(&rpc).unwrap();
        ended.model.check_image(device.path()).unwrap();
        vdi.destroy(&rpc).unwrap();
        let file = std::fs::File::open(device.path()).unwrap();
        file.read_exact_at(&mut [0; 8], 0).expect("the device itself is left alone");
        ended.model.check_image(device.path()).expect("and its content");
    }
}

#[test]
fn a_guests_flush_reaches_the_device() {
    let place = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&place.path().join("disk"), 16 << 20, 512).unwrap();
    let host = Host::start().unwrap();
    let disk = host.adopt(&device).unwrap().serve(&host.rpc(), 5, false).unwrap();
    let domain = Domain::create(host.sim().dir(), 5, 16 << 20, true).unwrap();
    disk.plug(&host.rpc()).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    assert!(front.disk().flush && front.disk().barrier, "both are offered");
    let frame = front.domain().frame().unwrap();
    let whole = || vec![Piece { frame, first: 0, last: 7 }];
    // Each of these promises at least so many flushes of the device before its answer.
    let promises =
        [(Op::Flush, Vec::new(), 1), (Op::Barrier, Vec::new(), 1), (Op::Barrier, whole(), 2)];
    for (op, pieces, promised) in promises {
        for _ in 0..5 {
            front.submit(Io { op: Op::Write, sector: 64, pieces: whole() }).unwrap();
            front.push().unwrap();
            assert_eq!(eventually("an answer", || front.complete()).unwrap().status, 0);
            let before = device.flushes().unwrap();
            front.submit(Io { op, sector: 0, pieces: pieces.clone() }).unwrap();
            front.push().unwrap();
            assert_eq!(eventually("an answer", || front.complete()).unwrap().status, 0);
            let flushes = device.flushes().unwrap() - before;
            assert!(flushes >= promised, "{op:?}: {flushes} of {promised} flushes");
        }
    }
    assert!(disk.stat(&host.rpc()).unwrap().counters.flushes >= 10);
    front.close().unwrap();
}

#[test]
fn a_volume_grows_while_it_is_not_active() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.create_vdi(8 * MIB).unwrap();
    let mut expect = Expect::Fresh;
    for (domid, size) in [(5, 8 * MIB), (6, 20 * MIB)] {
        let grow = json!({"sr": vdi.sr, "vdi": vdi.vdi, "new_size": size});
        assert_eq!(rpc.raw("VDI.resize", &grow).unwrap(), json!(size));
        let disk = vdi.serve(&rpc, domid, false).unwrap();
        let sectors = u64::try_from(size).unwrap() / 512;
        if let Expect::Known(model) = &mut expect {
            model.grow(sectors);
        }
        let guest =
            Guest { plan: Plan { requests_max: 500, ..Plan::default() }, ..Guest::new(domid) };
        let running = Running::start(host.sim().dir(), guest, expect).unwrap();
        disk.plug(&rpc).unwrap();
        let ended = running.join().with_context(|| format!("{size} bytes")).unwrap();
        assert_eq!(ended.model.sectors(), sectors, "the guest sees the size");
        disk.unplug(&rpc, false).unwrap();
        disk.deactivate(&rpc).unwrap();
        disk.detach(&rpc).unwrap();
        expect = Expect::Known(ended.model);
    }
}
