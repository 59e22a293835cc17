//! A disk under verified I/O while its workers come and go: from boot to the last byte compared.
//!
//! Its functions panic: they are what scenarios assert.

use super::{Disk, Host, eventually};
use crate::blkfront::Options;
use crate::simguest::{Expect, Guest, Running};
use crate::workload::{Plan, Report};
use serde_json::json;
use std::time::{Duration, Instant};

/// How long a guest may take for a little progress.
const SOON: Duration = Duration::from_secs(60);

/// Starts a guest on a disk that was never written; returns once it is at work.
///
/// # Panics
/// When it does not get to work.
#[must_use]
pub fn boot(host: &Host, disk: &Disk, options: Options) -> Running {
    let plan = Plan { bytes_max: 256 * 1024, ..Plan::default() };
    let guest = Guest { options, plan, ..Guest::new(disk.domid) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&host.rpc()).unwrap();
    running.progresses(50, SOON).unwrap();
    running
}

/// Ends the only guest of this host, and compares every byte on the image with what it was told.
///
/// # Panics
/// When the guest saw an error, a byte is wrong, or anything is left of the disk.
pub fn finish(host: &Host, disk: &Disk, running: Running) {
    bury(host, disk, running);
    assert_eq!(host.rpc().raw("Worker.list", &json!({})).unwrap(), json!([]));
    let left = |dir| std::fs::read_dir(host.run_dir().join(dir)).unwrap().count();
    assert_eq!([left("worker"), left("nbd")], [0, 0], "sockets");
    eventually("journals go with their device", || Ok((left("journal") == 0).then_some(())))
        .unwrap();
}

/// The same for one guest of several.
///
/// # Panics
/// When the guest saw an error, or a byte is wrong.
pub fn bury(host: &Host, disk: &Disk, running: Running) {
    let report = end(host, disk, running);
    assert!(report.flushes > 0 && report.write_bytes > 0);
}

/// The same for a guest that may have done little; answers what it did.
///
/// # Panics
/// When the guest saw an error, or a byte is wrong.
pub fn end(host: &Host, disk: &Disk, running: Running) -> Report {
    let rpc = host.rpc();
    let mut ended = running.stop().unwrap();
    assert_eq!(ended.report.errors, 0);
    disk.unplug(&rpc, false).unwrap();
    let image = disk.vdi.image().unwrap();
    disk.deactivate(&rpc).unwrap();
    ended.model.check_image(&image).unwrap();
    disk.detach(&rpc).unwrap();
    disk.vdi.destroy(&rpc).unwrap();
    ended.report
}

/// Any moment will do: waits in nobody's step.
pub fn spin(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The worker that serves after this one: the dead are listed until their death was noticed.
///
/// # Panics
/// When none does.
pub fn successor(host: &Host, disk: &Disk, last: u32) -> u32 {
    let other = || Ok(disk.worker(&host.rpc()).ok().filter(|worker| worker.pid != last));
    eventually("another worker serves", other).unwrap().pid
}
