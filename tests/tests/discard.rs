//! Discards by a guest: what was discarded is zeroes and free space, whatever lies beside it stays,
//! and where nothing may be discarded nothing is.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use zerotap_rpc_schema::smapi2::{Pairs, VdiCreateParams, VdiInfo};
use zerotap_rpc_schema::table;
use zerotap_rpc_schema::worker::Discard;
use zerotap_tests::blkfront::{Blkfront, Io, Op, Options, Piece};
use zerotap_tests::guest::Domain;
use zerotap_tests::harness::loop_device::LoopDevice;
use zerotap_tests::harness::nbd::Client;
use zerotap_tests::harness::{Disk, Host, Vdi, eventually};
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::workload::Plan;
use zerotap_tests::xenopsd::add_vbd;

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
const DEVID: u32 = 51712;

fn domain(host: &Host) -> Domain {
    Domain::create(host.sim().dir(), DOMID, 16 << 20, true).unwrap()
}

/// One request; answers its status.
fn ask(front: &mut Blkfront, op: Op, sector: u64, pieces: Vec<Piece>) -> i16 {
    front.submit(Io { op, sector, pieces }).unwrap();
    front.push().unwrap();
    eventually("an answer", || front.complete()).unwrap().status
}

/// Fills the disk with a byte that is not zero.
fn fill(front: &mut Blkfront) {
    let frame = front.domain().frame().unwrap();
    front.domain().memory().copy_in(frame as usize * 4096, &[0x77; 4096]);
    // One page of the guest's may be written to many places.
    for sector in (0..front.disk().sectors).step_by(128) {
        let pieces = vec![Piece { frame, first: 0, last: 7 }; 16];
        assert_eq!(ask(front, Op::Write, sector, pieces), 0);
    }
    front.domain().free_frame(frame);
}

fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

/// A disk is filled, then ranges of it are discarded, with ragged ends. `holds` has its data,
/// `space` gives it back.
fn discard_ranges(host: &Host, disk: &Disk, holds: &Path, space: &Path) {
    let domain = domain(host);
    disk.plug(&host.rpc()).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    let units = front.disk().discard.expect("it is offered");
    let image = disk.stat(&host.rpc()).unwrap().image.unwrap();
    assert_eq!(image.discard, Some(units), "and VBD.stat tells");
    let block = u64::from(image.sector_bytes / 512);
    let sectors = front.disk().sectors;
    fill(&mut front);
    assert_eq!(ask(&mut front, Op::Flush, 0, vec![]), 0);
    let full = allocated(space);
    assert!(full >= sectors * 512, "{full}");

    let ranges = [(0, 2048), (4096 + block, 4096 + 3 * block), (16384, 8), (sectors - 100, 96)];
    let mut forgotten = Vec::new();
    for (sector, count) in ranges {
        let count = count / block * block;
        let sector = sector / block * block;
        assert_eq!(ask(&mut front, Op::Discard { sectors: count }, sector, vec![]), 0);
        forgotten.push(front.disk().forgets(&(sector..sector + count)));
    }
    assert_eq!(ask(&mut front, Op::Flush, 0, vec![]), 0);
    for refused in [(sectors - 8, 16), (u64::MAX - 7, 8), (0, 0), (0, !7)] {
        let (sector, sectors) = refused;
        assert_eq!(ask(&mut front, Op::Discard { sectors }, sector, vec![]), -1, "{refused:?}");
    }
    let counters = disk.stat(&host.rpc()).unwrap().counters;
    let forgotten_sectors: u64 = forgotten.iter().map(|range| range.end - range.start).sum();
    assert_eq!((counters.discards, counters.discard_bytes), (4, forgotten_sectors * 512));
    assert_eq!((counters.refused, counters.io_errors), (4, 0));
    front.close().unwrap();
    disk.unplug(&host.rpc(), false).unwrap();
    disk.deactivate(&host.rpc()).unwrap();

    let file = std::fs::File::open(holds).unwrap();
    let mut bytes = [0; 512];
    for sector in 0..sectors {
        file.read_exact_at(&mut bytes, sector * 512).unwrap();
        let expected = if forgotten.iter().any(|it| it.contains(&sector)) { 0 } else { 0x77 };
        assert_eq!(bytes, [expected; 512], "sector {sector}");
    }
    let freed = full - allocated(space);
    assert_eq!(freed, forgotten_sectors * 512, "space that was given back");
}

#[test]
fn a_file_gives_space_back() {
    let host = Host::start().unwrap();
    let disk = host.serve(DOMID, 16 * MIB).unwrap();
    let image = disk.vdi.image().unwrap();
    discard_ranges(&host, &disk, &image, &image);
}

#[test]
fn a_block_device_is_told() {
    let place = tempfile::tempdir().unwrap();
    for sector_bytes in [512, 4096] {
        let backing = place.path().join(sector_bytes.to_string());
        let device = LoopDevice::new(&backing, 16 << 20, sector_bytes).unwrap();
        let host = Host::start().unwrap();
        let disk = host.adopt(&device).unwrap().serve(&host.rpc(), DOMID, false).unwrap();
        let name = device.path().file_name().unwrap().to_string_lossy().into_owned();
        let told = std::fs::read_to_string(format!("/sys/block/{name}/queue/discard_granularity"));
        let units = disk_units(&host, &disk);
        assert_eq!(units.granularity_bytes.to_string(), told.unwrap().trim());
        discard_ranges(&host, &disk, device.path(), &backing);
    }
}

/// What the worker found.
fn disk_units(host: &Host, disk: &Disk) -> Discard {
    let domain = domain(host);
    disk.plug(&host.rpc()).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    front.close().unwrap();
    let units = disk.stat(&host.rpc()).unwrap().image.unwrap().discard.expect("it discards");
    disk.unplug(&host.rpc(), false).unwrap();
    zerotap_tests::guest::destroy(host.sim().dir(), DOMID).unwrap();
    units
}

#[test]
fn discards_among_all_else_forget_what_they_should() {
    let place = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&place.path().join("disk"), 16 << 20, 512).unwrap();
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    for vdi in [host.create_vdi(16 * MIB).unwrap(), host.adopt(&device).unwrap()] {
        let disk = vdi.serve(&rpc, DOMID, false).unwrap();
        let options = Options { queues: 2, ..Options::default() };
        let plan = Plan { requests_max: 5000, ..Plan::default() };
        let guest = Guest { options, plan, ..Guest::new(DOMID) };
        let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
        disk.plug(&rpc).unwrap();
        let mut ended = running.join().unwrap();
        let counters = disk.stat(&rpc).unwrap().counters;
        assert!(counters.discards > 20, "{counters:?}");
        assert_eq!(counters.discards, ended.report.discards);
        assert_eq!((counters.io_errors, counters.refused), (0, 0));
        disk.unplug(&rpc, false).unwrap();
        disk.deactivate(&rpc).unwrap();
        let image = vdi.image().unwrap_or_else(|_| device.path().to_owned());
        let holds =
            if image.extension().is_some_and(|it| it == "raw") { &*image } else { device.path() };
        ended.model.check_image(holds).unwrap();
        disk.detach(&rpc).unwrap();
        zerotap_tests::guest::destroy(host.sim().dir(), DOMID).unwrap();
    }
}

/// A front end that was offered no discard tries; the disk keeps all its bytes.
fn nothing_is_discarded(front: &mut Blkfront, backend: &str, status: i16) {
    assert_eq!(front.disk().discard, None);
    for key in ["discard-granularity", "discard-alignment", "discard-secure"] {
        let written = front.xenstore().read_optional(&format!("{backend}/{key}")).unwrap();
        assert_eq!(written, None, "{key}");
    }
    let op = Op::Discard { sectors: 2048 };
    assert_eq!(ask(front, op, 0, vec![]), status);
}

#[test]
fn an_administrator_can_forbid_it() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(DOMID, MIB).unwrap();
    let domain = domain(&host);
    let mut dom0 = host.sim().toolstack().unwrap();
    let params = format!("zerotap:{}/{}", disk.vdi.sr, disk.vdi.vdi);
    let keys = [("params", params.as_str()), ("discard-enable", "0")];
    let backend = add_vbd(&mut dom0, (DOMID, DEVID), "zerotap", "w", &keys).unwrap();
    let mut front =
        Blkfront::connect(domain, Options { devid: DEVID, ..Options::default() }).unwrap();
    fill(&mut front);
    nothing_is_discarded(&mut front, &backend, -2);
    front.close().unwrap();
    disk.unplug(&rpc, false).unwrap();
    disk.deactivate(&rpc).unwrap();
    assert!(std::fs::read(disk.vdi.image().unwrap()).unwrap() == vec![0x77; 1 << 20]);
}

#[test]
fn a_preallocated_volume_stays_allocated() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let (sr, sr_dir) = host.create_sr().unwrap();
    let mut vdi_info = VdiInfo::new("thick", 4 * MIB);
    vdi_info.sm_config = Pairs::from([("allocation".into(), "preallocated".into())]);
    let params = VdiCreateParams { dbg: String::new(), sr: sr.clone(), vdi_info };
    let vdi = Vdi { vdi: rpc.call::<table::VdiCreate>(&params).unwrap().vdi, sr, sr_dir };
    let image = vdi.image().unwrap();
    let disk = vdi.serve(&rpc, DOMID, false).unwrap();
    let domain = domain(&host);
    disk.plug(&rpc).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    let backend = front.backend().to_owned();
    fill(&mut front);
    nothing_is_discarded(&mut front, &backend, -2);
    // NBD's TRIM is an offer that is not taken up; its WRITE_ZEROES makes zeroes in place.
    let (mut client, _, _) = Client::open(&disk.nbd(&rpc).unwrap()).unwrap();
    client.ask(4, 1, 0, 1 << 20).unwrap();
    assert_eq!(client.reply().unwrap(), (0, 1));
    client.ask(6, 2, 2 << 20, 1 << 20).unwrap();
    assert_eq!(client.reply().unwrap(), (0, 2));
    assert!(allocated(&image) >= 4 << 20, "{}", allocated(&image));
    front.close().unwrap();
    disk.unplug(&rpc, false).unwrap();
    disk.deactivate(&rpc).unwrap();
    let bytes = std::fs::read(image).unwrap();
    assert!(bytes[..2 << 20] == vec![0x77; 2 << 20]);
    assert!(bytes[2 << 20..3 << 20] == vec![0; 1 << 20]);
    assert!(bytes[3 << 20..] == vec![0x77; 1 << 20]);
}

#[test]
fn a_read_only_disk_forgets_nothing() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.create_vdi(MIB).unwrap();
    std::fs::write(vdi.image().unwrap(), vec![0x77; 1 << 20]).unwrap();
    let disk = vdi.serve(&rpc, DOMID, true).unwrap();
    let domain = domain(&host);
    disk.plug(&rpc).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    let backend = front.backend().to_owned();
    nothing_is_discarded(&mut front, &backend, -1);
    front.close().unwrap();
    assert!(std::fs::read(vdi.image().unwrap()).unwrap() == vec![0x77; 1 << 20]);
}
