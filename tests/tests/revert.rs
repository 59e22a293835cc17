//! VDI.revert: what a VDI holds afterwards, when it is refused, and what a kill in between leaves.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use zerotap_rpc_schema::smapi2::{VdiCopyParams, VdiInfo, VdiRevertParams};
use zerotap_rpc_schema::{StorageError, table};
use zerotap_tests::harness::loop_device::LoopDevice;
use zerotap_tests::harness::{Host, Rpc, RpcError, Vdi, eventually, uuid};
use zerotap_tests::workload::random::Random;

const MIB: i64 = 1 << 20;

fn snapshot(rpc: &Rpc, vdi: &Vdi) -> VdiInfo {
    let vdi_info = VdiInfo { vdi: vdi.vdi.clone(), ..VdiInfo::new("then", 0) };
    let params = VdiCopyParams { dbg: String::new(), sr: vdi.sr.clone(), vdi_info };
    rpc.call::<table::VdiSnapshot>(&params).unwrap()
}

fn revert(rpc: &Rpc, sr: &str, snapshot_info: &VdiInfo) -> anyhow::Result<()> {
    let (dbg, sr, snapshot_info) = (String::new(), sr.to_owned(), snapshot_info.clone());
    rpc.call::<table::VdiRevert>(&VdiRevertParams { dbg, sr, snapshot_info })
}

fn stat(rpc: &Rpc, vdi: &Vdi) -> VdiInfo {
    rpc.call::<table::VdiStat>(&vdi.params()).unwrap()
}

fn data(vdi: &Vdi) -> PathBuf {
    vdi.sr_dir.join(format!("{}.raw", vdi.vdi))
}

/// The disk's size and the one byte that fills it.
fn content(rpc: &Rpc, vdi: &Vdi) -> (i64, u8) {
    let bytes = std::fs::read(data(vdi)).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "it is of one piece");
    let size = stat(rpc, vdi).virtual_size;
    assert_eq!(i64::try_from(bytes.len()).unwrap(), size, "the record tells of this content");
    (size, bytes[0])
}

fn fill(vdi: &Vdi, byte: u8, bytes: usize) {
    std::fs::write(data(vdi), vec![byte; bytes]).unwrap();
}

fn grow(rpc: &Rpc, vdi: &Vdi, size: i64) {
    rpc.raw("VDI.resize", &json!({"sr": vdi.sr, "vdi": vdi.vdi, "new_size": size})).unwrap();
}

fn refusal(result: anyhow::Result<()>) -> (i32, String) {
    let error = result.expect_err("refused").downcast::<RpcError>().expect("an answer");
    let error = error.storage.expect("SMAPIv2's error");
    (error.code(), error.to_string())
}

/// Files of the SR; a record half-written goes at the next SR.attach.
fn names(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.starts_with(".zerotap-"));
    names.sort();
    names
}

fn a_life_with(host: &Host, vdi: &Vdi) {
    let rpc = host.rpc();
    fill(vdi, 1, 4 << 20);
    let then = snapshot(&rpc, vdi);
    grow(&rpc, vdi, 6 * MIB);
    fill(vdi, 2, 6 << 20);
    let files = names(&vdi.sr_dir);

    let disk = vdi.serve(&rpc, 5, false).unwrap();
    let (code, text) = refusal(revert(&rpc, &vdi.sr, &then));
    assert!(code == 24 && text.contains("vbd/5/"), "it names who uses it: {text}");
    assert_eq!(content(&rpc, vdi), (6 * MIB, 2));
    disk.deactivate(&rpc).unwrap();

    // Whoever has it locked is not known to any daemon.
    let foreign = std::fs::File::open(data(vdi)).unwrap();
    rustix::fs::flock(&foreign, rustix::fs::FlockOperation::LockShared).unwrap();
    let (code, text) = refusal(revert(&rpc, &vdi.sr, &then));
    assert!(code == 24 && text.contains("lslocks"), "{text}");
    drop(foreign);

    for _ in 0..2 {
        revert(&rpc, &vdi.sr, &then).expect("attached is not in use; and it may be repeated");
        assert_eq!(content(&rpc, vdi), (4 * MIB, 1));
    }
    let now = stat(&rpc, vdi);
    assert!(!now.is_a_snapshot && now.vdi == vdi.vdi, "{now:?}");
    assert_eq!(stat(&rpc, &Vdi { vdi: then.vdi.clone(), ..vdi.clone() }), then);
    assert_eq!(names(&vdi.sr_dir), files);
    disk.activate(&rpc).expect("its size is that of its data");
    disk.deactivate(&rpc).unwrap();
    disk.detach(&rpc).unwrap();

    // The snapshot has a life of its own.
    fill(vdi, 3, 4 << 20);
    revert(&rpc, &vdi.sr, &VdiInfo { snapshot_of: String::new(), ..then.clone() }).unwrap();
    assert_eq!(content(&rpc, vdi), (4 * MIB, 1));
    let nobodys = snapshot(&rpc, vdi);
    vdi.destroy(&rpc).unwrap();
    let (_, text) = refusal(revert(&rpc, &vdi.sr, &nobodys));
    assert!(text.contains(&vdi.vdi), "{text}");
}

#[test]
fn a_disk_goes_back_where_data_is_copied() {
    let host = Host::start().unwrap();
    let vdi = host.create_vdi(4 * MIB).unwrap();
    a_life_with(&host, &vdi);
}

#[test]
fn a_disk_goes_back_where_extents_are_shared() {
    let place = tempfile::tempdir().unwrap();
    let mut xfs = LoopDevice::new(&place.path().join("xfs"), 512 << 20, 512).unwrap();
    let dir = place.path().join("sr");
    xfs.mount_xfs(&dir).unwrap();
    let host = Host::start().unwrap();
    let sr = uuid().unwrap();
    host.create_sr_at(&sr, &dir).unwrap();
    let vdi = host.create_vdi_in(&sr, 4 * MIB).unwrap().vdi;
    a_life_with(&host, &Vdi { sr, vdi, sr_dir: dir });
}

#[test]
fn what_is_no_snapshot_or_no_file_is_refused() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.create_vdi(MIB).unwrap();
    let info = stat(&rpc, &vdi);
    let (code, text) = refusal(revert(&rpc, &vdi.sr, &info));
    assert!(code == 143 && text.contains("snapshot of no VDI"), "{text}");
    let missing = VdiInfo { snapshot_of: vdi.vdi.clone(), vdi: uuid().unwrap(), ..info };
    let error = revert(&rpc, &vdi.sr, &missing).unwrap_err().downcast::<RpcError>().unwrap();
    assert_eq!(error.storage, Some(StorageError::VdiDoesNotExist(missing.vdi)));
}

/// The daemon is killed at any moment of a revert: the disk holds the old content or the new.
#[test]
fn a_kill_leaves_the_old_content_or_the_new() {
    let mut host = Host::start().unwrap();
    let vdi = host.create_vdi(4 * MIB).unwrap();
    fill(&vdi, 1, 4 << 20);
    let then = snapshot(&host.rpc(), &vdi);
    let files = names(&vdi.sr_dir);
    let (mut random, mut seen) = (Random::new(11), [0, 0]);
    for round in 0..20 {
        grow(&host.rpc(), &vdi, 6 * MIB);
        fill(&vdi, 2, 6 << 20);
        let (rpc, delay) = (host.rpc(), Duration::from_micros(random.below(25_000)));
        std::thread::scope(|scope| {
            scope.spawn(|| revert(&rpc, &vdi.sr, &then));
            // The moment of death is the point of the test: any moment will do.
            let until = Instant::now() + delay;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            host.kill_daemon().unwrap();
        });
        host.start_daemon().unwrap();
        match content(&host.rpc(), &vdi) {
            (size, 2) if size == 6 * MIB => seen[0] += 1,
            (size, 1) if size == 4 * MIB => seen[1] += 1,
            other => panic!("round {round}: {other:?}"),
        }
        assert_eq!(names(&vdi.sr_dir), files, "round {round}");
        let record = vdi.sr_dir.join(format!("{}.vdi.json", vdi.vdi));
        eventually("no host owns it", || {
            let record: Value = serde_json::from_slice(&std::fs::read(&record)?)?;
            Ok(record.get("owner").is_none().then_some(()))
        })
        .unwrap();
        let disk = vdi.serve(&host.rpc(), 5, false).unwrap();
        disk.deactivate(&host.rpc()).unwrap();
        disk.detach(&host.rpc()).unwrap();
    }
    println!("{} times the old content, {} times the new", seen[0], seen[1]);
}

/// A file system that writes nothing for as long as this lives.
struct Frozen(PathBuf);

impl Frozen {
    fn new(dir: &Path) -> Frozen {
        assert!(Command::new("fsfreeze").arg("-f").arg(dir).status().unwrap().success());
        Frozen(dir.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
    }
}

#[test]
fn who_waits_for_a_copy_is_told_of_it() {
    let place = tempfile::tempdir().unwrap();
    let mut ext4 = LoopDevice::new(&place.path().join("ext4"), 64 << 20, 512).unwrap();
    let dir = place.path().join("sr");
    ext4.mount(&dir).unwrap();
    let host = Host::start().unwrap();
    let sr = uuid().unwrap();
    host.create_sr_at(&sr, &dir).unwrap();
    let vdi = host.create_vdi_in(&sr, 4 * MIB).unwrap().vdi;
    let frozen = Frozen::new(&dir);
    let mut snapshot = host.zerotap(&["vdi", "snapshot", &vdi, "--sr", &sr]).unwrap();
    let snapshot = snapshot.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let tasks = || host.rpc().raw("Task.list", &json!({}));
    let task = eventually("the copy is at work", || Ok(tasks()?.get(0).cloned())).unwrap();
    assert_eq!((&task["operation"], &task["vdi"]), (&json!("copy"), &json!(vdi)));
    let begun = Instant::now();
    eventually("past the person's patience", || {
        Ok((begun.elapsed() > Duration::from_millis(3500)).then_some(()))
    })
    .unwrap();
    drop(frozen);
    let output = snapshot.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && told.starts_with("copy: "), "{told}");
    let made = String::from_utf8(output.stdout).unwrap();
    assert!(dir.join(format!("{}.raw", made.trim())).exists());
    assert_eq!(tasks().unwrap(), json!([]));
}
