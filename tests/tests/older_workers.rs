//! Workers of an earlier protocol under a daemon of this one, as they are there after an upgrade of
//! the package: served as before, upgraded under their guests' I/O.
//!
//! A debug build of the worker plays one (`datapath/src/elder.rs`).

use serde_json::json;
use std::time::Duration;
use zerotap_tests::blkfront::Options;
use zerotap_tests::guest::destroy;
use zerotap_tests::harness::busy::{boot, finish, successor};
use zerotap_tests::harness::nbd::Client;
use zerotap_tests::harness::{Disk, Host, eventually};
use zerotap_tests::installed::{Installed, installation};

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
const SOON: Duration = Duration::from_secs(60);
/// What a shell sets for a worker of the protocol before journals.
const BEFORE_JOURNALS: &str = "ZEROTAP_WORKER_PROTOCOL=1";

/// A host whose daemon is new and whose disk's worker is old.
fn host() -> (Installed, Host, Disk) {
    let installed = Installed::new("old").unwrap();
    installed.install("older", BEFORE_JOURNALS).unwrap();
    let host = Host::start_with(&installed.configuration()).unwrap();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    (installed, host, disk)
}

fn journals(host: &Host) -> usize {
    std::fs::read_dir(host.run_dir().join("journal")).unwrap().count()
}

fn upgrade(host: &Host, disk: &Disk) {
    let params = serde_json::to_value(disk.vdi.params()).unwrap();
    host.rpc().raw("Worker.upgrade", &params).unwrap();
}

#[test]
fn an_older_worker_is_adopted_served_and_upgraded_under_its_guest() {
    let (installed, mut host, disk) = host();
    let running = boot(&host, &disk, Options { queues: 2, ..Options::default() });
    let pid = disk.worker(&host.rpc()).unwrap().pid;
    for _ in 0..2 {
        host.kill_daemon().unwrap();
        host.start_daemon().unwrap();
        let worker = disk.worker(&host.rpc()).unwrap();
        assert_eq!(worker.pid, pid, "it is adopted");
        assert_eq!(worker.vbds, [format!("{DOMID}/51712")]);
        running.progresses(50, SOON).unwrap();
    }
    let stat = disk.stat(&host.rpc()).unwrap();
    assert!(stat.counters.writes > 0 && stat.vbd.trouble.is_none(), "{stat:?}");
    Client::open(&disk.nbd(&host.rpc()).unwrap()).expect("NBD clients");
    let size = json!({"sr": disk.vdi.sr, "vdi": disk.vdi.vdi, "new_size": 40 * MIB});
    host.rpc().raw("VDI.resize", &size).unwrap();
    assert_eq!((journals(&host), installation(pid).as_deref()), (0, Some("older")));

    installed.install("newer", "").unwrap();
    upgrade(&host, &disk);
    let newer = disk.worker(&host.rpc()).unwrap().pid;
    assert_eq!(installation(newer).as_deref(), Some("newer"));
    running.progresses(50, SOON).unwrap();
    assert_eq!(journals(&host), stat.ring.unwrap().queues.len(), "one a queue");
    // What the newer one can, it can for this guest, too.
    disk.kill_worker(&host.rpc()).unwrap();
    successor(&host, &disk, newer);
    running.progresses(50, SOON).unwrap();
    finish(&host, &disk, running);
}

#[test]
fn an_older_worker_lets_go_of_guests_and_of_its_disk() {
    let (_installed, host, disk) = host();
    let rpc = host.rpc();
    let running = boot(&host, &disk, Options::default());
    let ended = running.stop().unwrap();
    disk.unplug(&rpc, false).unwrap();
    destroy(host.sim().dir(), DOMID).unwrap();
    let mut model = ended.model;
    model.check_image(&disk.vdi.image().unwrap()).unwrap();
    disk.remove(&rpc).unwrap();
    assert_eq!(rpc.raw("Worker.list", &json!({})).unwrap(), json!([]));
}

#[test]
fn a_worker_can_go_back_to_an_older_one() {
    let installed = Installed::new("newer").unwrap();
    let host = Host::start_with(&installed.configuration()).unwrap();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let running = boot(&host, &disk, Options::default());
    assert_eq!(journals(&host), 1);
    installed.install("older", BEFORE_JOURNALS).unwrap();
    upgrade(&host, &disk);
    running.progresses(50, SOON).unwrap();
    assert_eq!(journals(&host), 0, "nobody writes it any more");
    finish(&host, &disk, running);
}

#[test]
fn the_daemon_dies_at_every_step_of_an_older_workers_upgrade() {
    let (installed, mut host, disk) = host();
    let running = boot(&host, &disk, Options::default());
    let faults = host.faults().unwrap();
    for number in 1.. {
        installed.install(&format!("newer-{number}"), "").unwrap();
        let params = serde_json::to_value(disk.vdi.params()).unwrap();
        faults.arm(number).unwrap();
        let answer = host.rpc().raw("Worker.upgrade", &params);
        let passed = faults.disarm().unwrap();
        let killed = passed.len() >= number;
        println!("point {number} of {passed:?}");
        if killed {
            host.kill_daemon().unwrap();
            host.start_daemon().unwrap();
        } else {
            answer.unwrap();
        }
        running.progresses(50, SOON).unwrap_or_else(|e| panic!("{passed:?}: {e:#}"));
        if !killed {
            assert!(passed.iter().any(|point| point.contains("nothing was taken")), "{passed:?}");
            break;
        }
        // Not where it was that old still.
        successor(&host, &disk, 0);
        installed.install(&format!("older-{number}"), BEFORE_JOURNALS).unwrap();
        upgrade(&host, &disk);
        running.progresses(50, SOON).unwrap();
        assert_eq!(journals(&host), 0, "an older worker's guest has none: {passed:?}");
    }
    finish(&host, &disk, running);
}

#[test]
fn a_guest_whose_older_worker_died_waits_and_people_are_told() {
    let (_installed, host, disk) = host();
    let running = boot(&host, &disk, Options::default());
    let older = disk.kill_worker(&host.rpc()).unwrap();
    successor(&host, &disk, older);
    eventually("people are told", || {
        let status = host.rpc().raw("Host.status", &json!({}))?["trouble"].to_string();
        let words = ["cannot be known", "restarted", "VBD.unplug with force", "knows no journals"];
        Ok(words.iter().all(|word| status.contains(word)).then_some(()))
    })
    .unwrap();
    running.progress.abandon();
    running.join().unwrap();
    disk.unplug(&host.rpc(), true).unwrap();
    destroy(host.sim().dir(), DOMID).unwrap();
    disk.remove(&host.rpc()).unwrap();
}
