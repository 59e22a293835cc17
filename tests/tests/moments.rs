//! Snapshots of a disk in use, where extents are shared: of one moment, whoever writes and whoever
//! dies meanwhile.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zerotap_tests::harness::loop_device::LoopDevice;
use zerotap_tests::harness::{Disk, Host, Vdi, eventually, uuid};
use zerotap_tests::installed::Installed;
use zerotap_tests::moment::{History, Writer};

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
const AT_ONCE: &str = "copied at once instead of by its worker";

/// An active disk on XFS.
struct Site {
    host: Host,
    disk: Disk,
    dir: PathBuf,
    _xfs: LoopDevice,
    _place: tempfile::TempDir,
}

/// A copy, and when the call that made it lasted from and to.
type Made = (PathBuf, Instant, Instant);

impl Site {
    fn new(lines: &str) -> Site {
        let place = tempfile::tempdir().unwrap();
        let mut xfs = LoopDevice::new(&place.path().join("xfs"), 1 << 30, 512).unwrap();
        let dir = place.path().join("sr");
        xfs.mount_xfs(&dir).unwrap();
        let host = Host::start_with(lines).unwrap();
        let sr = uuid().unwrap();
        host.create_sr_at(&sr, &dir).unwrap();
        let vdi = host.create_vdi_in(&sr, 32 * MIB).unwrap().vdi;
        let vdi = Vdi { sr, vdi, sr_dir: dir.clone() };
        std::fs::write(vdi.image().unwrap(), vec![0; 32 << 20]).unwrap();
        let disk = vdi.serve(&host.rpc(), DOMID, false).unwrap();
        Site { host, disk, dir, _xfs: xfs, _place: place }
    }

    fn guest(&self) -> Writer {
        let guest = Writer::guest(self.host.sim().dir(), DOMID).unwrap();
        self.disk.plug(&self.host.rpc()).unwrap();
        guest.progresses(200).unwrap();
        guest
    }

    fn copy(&self, method: &str) -> anyhow::Result<Made> {
        copy(&self.host, &self.disk, &self.dir, method)
    }

    fn keys(&self) -> Vec<String> {
        let scan = self.host.rpc().raw("SR.scan2", &json!({"sr": self.disk.vdi.sr})).unwrap();
        let key = |info: &Value| info["vdi"].as_str().unwrap().to_owned();
        scan[0].as_array().unwrap().iter().map(key).collect()
    }

    /// Judges and destroys all copies; nothing of any is left then.
    fn check(&self, history: &History, made: &[Made]) {
        for (copy, begun, ended) in made {
            history.check(copy, *begun, *ended).unwrap_or_else(|e| panic!("{copy:?}: {e:#}"));
        }
        for key in self.keys() {
            if key != self.disk.vdi.vdi {
                let gone = json!({"sr": self.disk.vdi.sr, "vdi": key});
                self.host.rpc().raw("VDI.destroy", &gone).unwrap();
            }
        }
        let left: Vec<_> = std::fs::read_dir(&self.dir).unwrap().map(|it| it.unwrap()).collect();
        assert_eq!(left.len(), 4, "the SR's record and reserve, the disk's and its data: {left:?}");
    }
}

fn copy(host: &Host, disk: &Disk, dir: &Path, method: &str) -> anyhow::Result<Made> {
    let info = json!({"vdi": disk.vdi.vdi, "name_label": "copy", "virtual_size": 0});
    let begun = Instant::now();
    let made = host.rpc().raw(method, &json!({"sr": disk.vdi.sr, "vdi_info": info}))?;
    let ended = Instant::now();
    Ok((dir.join(format!("{}.raw", made["vdi"].as_str().unwrap())), begun, ended))
}

#[test]
fn copies_under_a_guests_writes_are_of_one_moment() {
    let site = Site::new("");
    let guest = site.guest();
    let mut made = Vec::new();
    for number in 0..6 {
        guest.progresses(500).unwrap();
        made.push(site.copy(["VDI.snapshot", "VDI.clone"][number % 2]).unwrap());
    }
    let history = guest.stop().unwrap();
    site.check(&history, &made);
    assert!(!site.host.log().contains(AT_ONCE), "the worker makes them");
}

#[test]
fn copies_under_an_nbd_clients_writes_are_of_one_moment() {
    let site = Site::new("");
    let client = Writer::client(site.disk.nbd(&site.host.rpc()).unwrap());
    let mut made = Vec::new();
    for _ in 0..4 {
        client.progresses(300).unwrap();
        made.push(site.copy("VDI.snapshot").unwrap());
    }
    let history = client.stop().unwrap();
    site.check(&history, &made);
    assert!(!site.host.log().contains(AT_ONCE), "the worker makes them");
}

#[test]
fn a_worker_of_before_is_copied_at_once() {
    let installed = Installed::new("old").unwrap();
    installed.install("older", "ZEROTAP_WORKER_PROTOCOL=3").unwrap();
    let site = Site::new(&installed.configuration());
    let guest = site.guest();
    let made = [site.copy("VDI.snapshot").unwrap()];
    let history = guest.stop().unwrap();
    site.check(&history, &made);
}

#[test]
fn a_worker_that_dies_in_the_middle_spoils_no_copy() {
    let site = Site::new("");
    let guest = site.guest();
    let (mut made, mut replaced) = (Vec::new(), 0);
    for number in 0..6 {
        // One that dies right after its start is not replaced at once.
        guest.progresses(500).unwrap();
        let worker = site.disk.worker(&site.host.rpc()).unwrap().pid;
        let copied = std::thread::scope(|scope| {
            let call = scope.spawn(|| site.copy("VDI.snapshot"));
            std::thread::sleep(Duration::from_micros(700 * number));
            site.disk.kill_worker(&site.host.rpc()).unwrap();
            call.join().unwrap()
        });
        made.push(copied.expect("then it is copied at once"));
        eventually("another worker serves", || {
            let serving = site.disk.worker(&site.host.rpc());
            Ok(serving.is_ok_and(|it| it.pid != worker).then_some(()))
        })
        .unwrap();
        replaced = site.host.log().matches(AT_ONCE).count();
    }
    let history = guest.stop().unwrap();
    site.check(&history, &made);
    println!("{replaced} of {} deaths were in the middle", made.len());
}

#[test]
fn a_daemon_that_dies_in_the_middle_leaves_a_copy_or_none_and_the_guest_goes_on() {
    let mut site = Site::new("");
    let guest = site.guest();
    let mut made = Vec::new();
    for number in 0..6 {
        guest.progresses(500).unwrap();
        let before = site.keys();
        let begun = Instant::now();
        let Site { host, disk, dir, .. } = &mut site;
        let rpc = host.rpc();
        std::thread::scope(|scope| {
            let info = json!({"vdi": disk.vdi.vdi, "name_label": "copy", "virtual_size": 0});
            let params = json!({"sr": disk.vdi.sr, "vdi_info": info});
            let call = scope.spawn(move || rpc.raw("VDI.snapshot", &params));
            std::thread::sleep(Duration::from_micros(900 * number));
            host.kill_daemon().unwrap();
            drop(call.join().unwrap());
        });
        host.start_daemon().unwrap();
        let dir = dir.clone();
        let new = site.keys().into_iter().filter(|key| !before.contains(key));
        made.extend(new.map(|key| (dir.join(format!("{key}.raw")), begun, Instant::now())));
        made.push(site.copy("VDI.snapshot").expect("and the next one is made"));
    }
    let history = guest.stop().unwrap();
    site.check(&history, &made);
}
