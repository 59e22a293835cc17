//! An upgrade whose daemon dies while the worker lets go of its guest: storage that has stopped
//! keeps the worker at it, and the next daemon has it take the guest back. Needs root.

use std::time::Duration;
use zerotap_tests::blkfront::Options;
use zerotap_tests::harness::busy::boot;
use zerotap_tests::harness::loop_device::LoopDevice;
use zerotap_tests::harness::small::Small;
use zerotap_tests::harness::{Host, eventually};
use zerotap_tests::installed::Installed;

const DOMID: u16 = 5;
/// In so many looks nothing was answered: then nothing will be.
const LOOKS: u32 = 50;

fn a_worker_takes_its_guest_back(before: &str, limit: Duration) {
    let installed = Installed::new("first").unwrap();
    installed.install("second", before).unwrap();
    let small = Small::new(80 << 20).unwrap();
    // A file there would not even open: of a device only the writes stop.
    let device = LoopDevice::new(&small.dir().join("backing"), 32 << 20, 512).unwrap();
    let mut host = Host::start_with(&installed.configuration()).unwrap();
    let disk = host.adopt(&device).unwrap().serve(&host.rpc(), DOMID, false).unwrap();
    let running = boot(&host, &disk, Options::default());
    let worker = disk.worker(&host.rpc()).unwrap().pid;

    small.freeze().unwrap();
    let mut still = (0, 0);
    eventually("all that the guest asks are writes that stand still", || {
        let (now, in_flight) =
            (running.progress.answered(), disk.stat(&host.rpc())?.counters.in_flight);
        still = if in_flight > 0 && now == still.0 { (now, still.1 + 1) } else { (now, 0) };
        Ok((still.1 == LOOKS).then_some(()))
    })
    .unwrap();
    let (rpc, params) = (host.rpc(), serde_json::to_value(disk.vdi.params()).unwrap());
    let upgrade = std::thread::spawn(move || rpc.raw("Worker.upgrade", &params));
    let told = || Ok(host.log().contains("action=Disconnect").then_some(()));
    eventually("the worker is told to let go", told).unwrap();
    host.kill_daemon().unwrap();
    upgrade.join().unwrap().expect_err("it is cut off");
    host.start_daemon().unwrap();
    assert_eq!(disk.worker(&host.rpc()).unwrap().pid, worker, "it is adopted");
    small.thaw().unwrap();
    running.progresses(100, limit).unwrap_or_else(|e| panic!("{e:#}\n{}", host.log()));
    assert_eq!(disk.worker(&host.rpc()).unwrap().pid, worker, "it lives, and serves again");
    let mut ended = running.stop().unwrap();
    assert_eq!(ended.report.errors, 0);
    disk.unplug(&host.rpc(), false).unwrap();
    disk.deactivate(&host.rpc()).unwrap();
    ended.model.check_image(device.path()).unwrap();
    disk.detach(&host.rpc()).unwrap();
    disk.vdi.destroy(&host.rpc()).unwrap();
}

#[test]
fn a_worker_that_was_letting_go_is_seen_to_at_once() {
    // Sooner than all rings are looked at.
    a_worker_takes_its_guest_back("", Duration::from_secs(20));
}

#[test]
fn an_older_worker_that_cannot_tell_is_found_to_have_let_go() {
    a_worker_takes_its_guest_back("ZEROTAP_WORKER_PROTOCOL=1", Duration::from_secs(90));
}
