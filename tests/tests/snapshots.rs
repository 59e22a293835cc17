//! Snapshots and clones: what they hold, what they cost, and that nobody depends on anybody.

use serde_json::json;
use std::path::PathBuf;
use zerotap_rpc_schema::smapi2::{VdiCopyParams, VdiInfo};
use zerotap_rpc_schema::{StorageError, table};
use zerotap_tests::harness::loop_device::LoopDevice;
use zerotap_tests::harness::{Host, Rpc, Vdi, uuid};
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::workload::Plan;

const MIB: i64 = 1 << 20;

fn params(vdi: &Vdi) -> VdiCopyParams {
    let vdi_info = VdiInfo { vdi: vdi.vdi.clone(), ..VdiInfo::new("a copy", 0) };
    VdiCopyParams { dbg: String::new(), sr: vdi.sr.clone(), vdi_info }
}

fn as_vdi(source: &Vdi, made: &VdiInfo) -> Vdi {
    Vdi { vdi: made.vdi.clone(), ..source.clone() }
}

fn snapshot(rpc: &Rpc, vdi: &Vdi) -> Vdi {
    as_vdi(vdi, &rpc.call::<table::VdiSnapshot>(&params(vdi)).unwrap())
}

fn content(vdi: &Vdi) -> Vec<u8> {
    std::fs::read(vdi.image().unwrap()).unwrap()
}

/// A guest that writes and checks `requests` times.
fn run_guest(host: &Host, domid: u16, requests_max: u64, expect: Expect) -> Running {
    let plan = Plan { requests_max, ..Plan::default() };
    let guest = Guest { plan, ..Guest::new(domid) };
    Running::start(host.sim().dir(), guest, expect).unwrap()
}

#[test]
fn copies_tell_where_they_come_from_and_need_nobody() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let source = host.create_vdi(8 * MIB).unwrap();
    std::fs::write(source.image().unwrap(), vec![0x5a; 8 << 20]).unwrap();

    let told = rpc.call::<table::VdiSnapshot>(&params(&source)).unwrap();
    assert!(told.is_a_snapshot && told.snapshot_of == source.vdi, "{told:?}");
    assert!(told.snapshot_time > VdiInfo::new("", 0).snapshot_time, "{told:?}");
    assert_eq!((told.virtual_size, told.name_label.as_str()), (8 * MIB, "a copy"));
    let snapshot = as_vdi(&source, &told);
    assert_eq!(rpc.call::<table::VdiStat>(&snapshot.params()).unwrap(), told, "it is remembered");
    let told = rpc.call::<table::VdiClone>(&params(&snapshot)).unwrap();
    assert!(!told.is_a_snapshot && told.snapshot_of.is_empty() && !told.read_only, "{told:?}");
    let clone = as_vdi(&source, &told);

    // Each is written to, or goes, and the others stay as they were.
    std::fs::write(source.image().unwrap(), vec![1; 8 << 20]).unwrap();
    assert!(content(&snapshot).iter().all(|&byte| byte == 0x5a));
    snapshot.destroy(&rpc).unwrap();
    source.destroy(&rpc).unwrap();
    assert!(content(&clone).iter().all(|&byte| byte == 0x5a));
    clone.destroy(&rpc).unwrap();

    let error = rpc.fails("VDI.clone", &serde_json::to_value(params(&clone)).unwrap());
    assert_eq!(error.storage, Some(StorageError::VdiDoesNotExist(clone.vdi)));
}

#[test]
fn a_disk_in_use_is_not_copied_where_that_takes_time() {
    let place = tempfile::tempdir().unwrap();
    let mut ext4 = LoopDevice::new(&place.path().join("ext4"), 64 << 20, 512).unwrap();
    let dir = place.path().join("sr");
    ext4.mount(&dir).unwrap();
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = vdi_in(&host, &dir, 8 * MIB);
    let disk = vdi.serve(&rpc, 5, false).unwrap();
    let error = rpc.fails("VDI.snapshot", &serde_json::to_value(params(&vdi)).unwrap());
    let Some(StorageError::Backend((code, texts))) = error.storage else { panic!("{error}") };
    assert_eq!(code, "SR_BACKEND_FAILURE_82");
    assert!(texts[1].contains("Deactivate it first"), "{texts:?}");
    disk.deactivate(&rpc).unwrap();
    disk.detach(&rpc).unwrap();
    let names = || std::fs::read_dir(&dir).unwrap().count();
    let before = names();
    snapshot(&rpc, &vdi).destroy(&rpc).unwrap();
    assert_eq!(names(), before, "neither the refusal nor the snapshot has left anything");

    // What does not fit is refused, and leaves nothing.
    std::fs::write(vdi.image().unwrap(), vec![1; 8 << 20]).unwrap();
    let filler = dir.join("filler");
    let free = rustix::fs::statvfs(&dir).unwrap();
    let room = (free.f_bavail * free.f_frsize).saturating_sub(4 << 20);
    std::fs::write(&filler, vec![2; usize::try_from(room).unwrap()]).unwrap();
    let error = rpc.fails("VDI.clone", &serde_json::to_value(params(&vdi)).unwrap());
    let Some(StorageError::Backend((code, _))) = error.storage else { panic!("{error}") };
    assert_eq!(code, "SR_BACKEND_FAILURE_44");
    assert_eq!(names(), before + 1);
}

#[test]
fn a_disk_in_use_is_copied_at_once_where_extents_are_shared() {
    let place = tempfile::tempdir().unwrap();
    let mut xfs = LoopDevice::new(&place.path().join("xfs"), 512 << 20, 512).unwrap();
    let dir = place.path().join("sr");
    xfs.mount_xfs(&dir).unwrap();
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = vdi_in(&host, &dir, 32 * MIB);
    let disk = vdi.serve(&rpc, 5, false).unwrap();

    // What was answered before the call is in the snapshot.
    let first = run_guest(&host, 5, 500, Expect::Fresh);
    disk.plug(&rpc).unwrap();
    let mut ended = first.join().unwrap();
    let still = snapshot(&rpc, &vdi);
    ended.model.check_image(&still.image().unwrap()).expect("every byte of that moment");
    let then = content(&still);
    disk.unplug(&rpc, false).unwrap();

    // Under load: the guest sees neither an error nor a wrong byte, and each snapshot stays as it
    // was taken.
    let second = run_guest(&host, 6, 20_000, Expect::Known(ended.model));
    let plug = json!({ "domid": 6, "device": "xvda", "sr": vdi.sr, "vdi": vdi.vdi });
    rpc.raw("VBD.plug", &plug).unwrap();
    let mut taken = Vec::new();
    for _ in 0..20 {
        let one = snapshot(&rpc, &vdi);
        let bytes = content(&one);
        taken.push((one, bytes));
    }
    let ended = second.join().expect("verified to the end");
    assert_eq!(ended.report.errors, 0);
    println!("under 20 snapshots: {:?}", ended.report);
    assert!(content(&still) == then, "the first snapshot has not changed");
    for (one, bytes) in &taken {
        assert!(content(one) == *bytes, "{} has changed", one.vdi);
        one.destroy(&rpc).unwrap();
    }
}

fn vdi_in(host: &Host, dir: &std::path::Path, bytes: i64) -> Vdi {
    let sr = uuid().unwrap();
    host.create_sr_at(&sr, dir).unwrap();
    let vdi = host.create_vdi_in(&sr, bytes).unwrap().vdi;
    Vdi { sr, vdi, sr_dir: PathBuf::from(dir) }
}
