//! CD drives: a medium is ejected and another inserted under a guest that is connected, the way
//! xenopsd does it; whatever the guest was promised of the old one is kept.

use zerotap_tests::blkfront::{Blkfront, Io, Op, Options, Piece, state};
use zerotap_tests::guest::Domain;
use zerotap_tests::harness::{Host, Vdi, eventually};
use zerotap_tests::xenopsd::add_vbd;
use zerotap_tests::xenstore::Client;

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
const DEVID: u32 = 51712;

/// A CD of so many MiB, of one byte.
fn burn(host: &Host, mib: i64, byte: u8) -> Vdi {
    let vdi = host.create_vdi(mib * MIB).unwrap();
    let bytes = usize::try_from(mib * MIB).unwrap();
    std::fs::write(vdi.image().unwrap(), vec![byte; bytes]).unwrap();
    vdi
}

fn params(vdi: &Vdi) -> String {
    format!("zerotap:{}/{}", vdi.sr, vdi.vdi)
}

/// xenopsd's `qemu_media_change`.
fn media_change(dom0: &mut Client, backend: &str, ty: &str, params: &str) {
    let before = dom0.read(&format!("{backend}/params")).unwrap();
    let params = if before == params { format!("/{params}") } else { params.to_owned() };
    let written = dom0.transaction(|tx| {
        tx.write(&format!("{backend}/type"), ty)?;
        tx.write(&format!("{backend}/params"), &params)
    });
    written.unwrap();
}

/// Waits until the back end tells of a disk of so many sectors, and reads all of it.
fn medium_is(front: &mut Blkfront, sectors: u64, byte: u8) {
    sectors_are(front, sectors);
    let frame = front.domain().frame().unwrap();
    for sector in (0..sectors).step_by(8) {
        let pieces = vec![Piece { frame, first: 0, last: 7 }];
        front.submit(Io { op: Op::Read, sector, pieces }).unwrap();
        front.push().unwrap();
        assert_eq!(eventually("an answer", || front.complete()).unwrap().status, 0);
        let mut page = [0; 4096];
        front.domain().memory().copy_out(frame as usize * 4096, &mut page);
        assert_eq!(page, [byte; 4096], "sector {sector}");
    }
    front.domain().free_frame(frame);
}

fn sectors_are(front: &mut Blkfront, sectors: u64) {
    let key = format!("{}/sectors", front.backend());
    eventually("the medium has changed", || {
        let told = front.xenstore().read(&key)?;
        Ok((told == sectors.to_string()).then_some(()))
    })
    .unwrap();
    assert_eq!(front.backend_state().unwrap(), state::CONNECTED);
}

#[test]
fn media_change_under_a_connected_guest() {
    let mut host = Host::start().unwrap();
    let rpc = host.rpc();
    let (small, large) = (burn(&host, 1, 0x51), burn(&host, 3, 0x1a));
    let mut dom0 = host.sim().toolstack().unwrap();
    let domain = Domain::create(host.sim().dir(), DOMID, 16 << 20, true).unwrap();
    let disk = large.serve(&rpc, DOMID, true).unwrap();
    let first = params(&large);
    let keys = [("params", first.as_str()), ("qemu-params", &first)];
    let keys = [&keys[..], &[("device-type", "cdrom"), ("hotplug-status", "connected")]].concat();
    let backend = add_vbd(&mut dom0, (DOMID, DEVID), "qdisk", "r", &keys).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    assert!(front.disk().read_only);
    medium_is(&mut front, 3 << 11, 0x1a);

    // Ejected, as XAPI does it: xenstore first.
    media_change(&mut dom0, &backend, "", "");
    sectors_are(&mut front, 0);
    disk.deactivate(&rpc).unwrap();
    disk.detach(&rpc).unwrap();
    // A new daemon knows as much.
    host.kill_daemon().unwrap();
    host.start_daemon().unwrap();
    let rpc = host.rpc();
    // The same one comes back.
    disk.attach(&rpc).unwrap();
    disk.activate(&rpc).unwrap();
    media_change(&mut dom0, &backend, "qdisk", &first);
    medium_is(&mut front, 3 << 11, 0x1a);

    // A smaller one, without an ejection, then the first one again.
    let other = small.serve(&rpc, DOMID, true).unwrap();
    media_change(&mut dom0, &backend, "qdisk", &params(&small));
    medium_is(&mut front, 1 << 11, 0x51);
    assert_eq!(other.stat(&rpc).unwrap().vbd.vdi.as_ref(), Some(&small.vdi));
    media_change(&mut dom0, &backend, "qdisk", &first);
    medium_is(&mut front, 3 << 11, 0x1a);
    media_change(&mut dom0, &backend, "qdisk", &first);
    medium_is(&mut front, 3 << 11, 0x1a);
    other.deactivate(&rpc).unwrap();
    other.detach(&rpc).unwrap();

    // Closed while it is empty.
    media_change(&mut dom0, &backend, "", "");
    sectors_are(&mut front, 0);
    front.close().unwrap();
    disk.deactivate(&rpc).unwrap();
    disk.detach(&rpc).unwrap();
}
