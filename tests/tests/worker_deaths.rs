//! kill -9 of workers under verified I/O: their guests see a pause, no error, and every byte.
//!
//! `ZEROTAP_KILLS` kills so many workers in the long scenario; without it, a few.

use serde_json::json;
use std::time::Duration;
use zerotap_tests::blkfront::Options;
use zerotap_tests::guest::destroy;
use zerotap_tests::harness::busy::{boot, finish, spin, successor};
use zerotap_tests::harness::{Disk, Host, eventually, kill_worker};
use zerotap_tests::simguest::Running;
use zerotap_tests::workload::random::Random;

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
const SOON: Duration = Duration::from_secs(60);
const KILLS: u64 = 20;

fn kills() -> u64 {
    std::env::var("ZEROTAP_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS)
}

/// Kills workers at random moments, now and then the next one while it takes up what there is.
fn kill_often(host: &Host, disk: &Disk, running: &Running, kills: u64) {
    let mut random = Random::new(kills);
    let (mut killed, mut last) = (0, 0);
    while killed < kills {
        // Longer than what counts as dying at once.
        spin(Duration::from_micros(1_000_000 + random.below(100_000)));
        for _ in 0..=random.below(4) / 3 {
            last = successor(host, disk, last);
            kill_worker(last).unwrap();
            killed += 1;
        }
        running.progresses(1, SOON).unwrap_or_else(|e| panic!("after kill {killed}: {e:#}"));
    }
    running.progresses(200, SOON).unwrap();
    let stat = disk.stat(&host.rpc()).unwrap();
    assert_eq!((stat.vbd.state.as_str(), stat.vbd.trouble), ("connected", None));
    assert!(!host.log().contains("panicked"), "{}", host.log());
}

fn guest_survives(options: Options, kills: u64) {
    let host = Host::start().unwrap();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let running = boot(&host, &disk, options);
    kill_often(&host, &disk, &running, kills);
    finish(&host, &disk, running);
}

#[test]
fn a_guest_with_persistent_grants_survives_its_workers() {
    guest_survives(Options::default(), kills());
}

#[test]
fn a_guest_without_persistent_grants_survives_its_workers() {
    guest_survives(Options { persistent: false, ..Options::default() }, kills());
}

#[test]
fn a_guest_with_many_queues_and_large_rings_survives_its_workers() {
    guest_survives(Options { queues: 4, ring_order: 2, ..Options::default() }, kills() / 2);
}

#[test]
fn a_guest_survives_daemon_and_worker_together() {
    let mut host = Host::start().unwrap();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let running = boot(&host, &disk, Options::default());
    for round in 0..5 {
        let worker = disk.worker(&host.rpc()).unwrap().pid;
        if round % 2 == 0 {
            kill_worker(worker).unwrap();
            host.kill_daemon().unwrap();
        } else {
            host.kill_daemon().unwrap();
            kill_worker(worker).unwrap();
        }
        host.start_daemon().unwrap();
        successor(&host, &disk, worker);
        running.progresses(100, SOON).unwrap();
    }
    finish(&host, &disk, running);
}

#[test]
fn the_daemon_dies_while_it_replaces_a_worker() {
    let mut host = Host::start().unwrap();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let running = boot(&host, &disk, Options::default());
    let mut random = Random::new(3);
    let mut last = 0;
    for _ in 0..8 {
        last = successor(&host, &disk, last);
        kill_worker(last).unwrap();
        spin(Duration::from_micros(random.below(60_000)));
        host.kill_daemon().unwrap();
        host.start_daemon().unwrap();
        successor(&host, &disk, last);
        running.progresses(20, SOON).unwrap();
        let workers = host.rpc().raw("Worker.list", &json!({})).unwrap();
        assert_eq!(workers.as_array().unwrap().len(), 1, "{workers}");
    }
    finish(&host, &disk, running);
}

#[test]
fn journals_of_devices_that_went_unseen_are_swept() {
    let mut host = Host::start().unwrap();
    let [goes, stays] = [DOMID, DOMID + 1].map(|domid| host.serve(domid, 16 * MIB).unwrap());
    let [gone, running] = [&goes, &stays].map(|disk| boot(&host, disk, Options::default()));
    host.kill_daemon().unwrap();
    gone.progress.abandon();
    gone.join().unwrap();
    destroy(host.sim().dir(), DOMID).unwrap();
    let mut dom0 = host.sim().toolstack().unwrap();
    dom0.remove(&format!("/local/domain/0/backend/zerotap/{DOMID}")).unwrap();
    let dir = host.run_dir().join("journal");
    std::fs::write(dir.join("77-51712-3"), "").unwrap();
    host.start_daemon().unwrap();
    eventually("only journals of devices are left", || {
        let left = std::fs::read_dir(&dir)?.flatten().map(|entry| entry.file_name());
        Ok((left.collect::<Vec<_>>() == ["6-51712-0"]).then_some(()))
    })
    .unwrap();
    goes.remove(&host.rpc()).unwrap();
    let killed = stays.kill_worker(&host.rpc()).unwrap();
    successor(&host, &stays, killed);
    running.progresses(50, SOON).expect("its journal was left alone");
    finish(&host, &stays, running);
}

#[test]
fn a_worker_that_dies_at_once_is_tried_ever_more_seldom_and_people_are_told() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let running = boot(&host, &disk, Options::default());
    // Its image is gone: no worker can start.
    let image = disk.vdi.image().unwrap();
    let hidden = image.with_extension("hidden");
    std::fs::rename(&image, &hidden).unwrap();
    disk.kill_worker(&rpc).unwrap();
    let told = |words: &[&str]| {
        let vbd = rpc.raw("VBD.list", &json!({}))?[0]["trouble"].to_string();
        let status = rpc.raw("Host.status", &json!({}))?["trouble"].to_string();
        let all = words.iter().all(|word| vbd.contains(word) && status.contains(word));
        Ok(all.then_some(()))
    };
    let words = ["signal 9", "no other could be started", "has vanished", "tried again in 0.8 s"];
    eventually("people are told", || told(&words)).unwrap();
    std::fs::rename(&hidden, &image).unwrap();
    running.progresses(100, SOON).expect("it is tried again, and the guest goes on");
    eventually("all is well", || {
        let status = rpc.raw("Host.status", &json!({}))?;
        Ok((status["trouble"] == json!([])).then_some(()))
    })
    .unwrap();
    // Workers that die as soon as they are seen. One that has not taken the disk over yet counts as
    // none, one that was seen late as steady: the next one is killed as well.
    let mut last = 0;
    eventually("people are told", || {
        if let Some(worker) = disk.worker(&rpc).ok().filter(|worker| worker.pid != last) {
            last = worker.pid;
            kill_worker(last)?;
        }
        told(&["died at once", "times in a row", "is started in"])
    })
    .unwrap();
    running.progresses(100, SOON).unwrap();
    finish(&host, &disk, running);
}

#[test]
fn a_vdi_whose_worker_died_is_deactivated_and_its_guest_waits() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let running = boot(&host, &disk, Options::default());
    let image = disk.vdi.image().unwrap();
    std::fs::rename(&image, image.with_extension("hidden")).unwrap();
    disk.kill_worker(&rpc).unwrap();
    disk.deactivate(&rpc).unwrap();
    eventually("nothing is owed", || {
        let vbd = rpc.raw("VBD.list", &json!({}))?[0]["trouble"].to_string();
        Ok(vbd.contains("activate it").then_some(()))
    })
    .unwrap();
    assert_eq!(rpc.raw("Worker.list", &json!({})).unwrap(), json!([]));
    std::fs::rename(image.with_extension("hidden"), &image).unwrap();
    disk.activate(&rpc).unwrap();
    running.progresses(100, SOON).expect("the next activation takes the ring up");
    finish(&host, &disk, running);
}
