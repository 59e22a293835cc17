//! A guest whose disk is plugged, taken from under it and given back, grown and unplugged, while
//! the daemon is killed, or xenstored goes away, at each step that xenstore sees.

use crate::life::Life;
use anyhow::ensure;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use zerotap_tests::harness::faults::Faults;
use zerotap_tests::harness::{Disk, Host, Rpc, eventually};
use zerotap_tests::simguest::{Expect, Guest, Running};

const MIB: i64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

/// What is done to the daemon or its neighbours at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// None.
    Nothing,
    /// kill -9 of the daemon.
    Killed,
    /// xenstored hangs up on it.
    XenstoredAway,
}

/// What happens to the guest's worker in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Midway {
    /// Nothing.
    Nothing,
    /// The disk is deactivated and activated.
    Pause,
    /// It is upgraded.
    Upgrade,
}

/// Calls until it is answered with success, as a toolstack does that was cut off.
fn insist(rpc: &Rpc, method: &str, params: &Value) -> anyhow::Result<Value> {
    eventually(method, || rpc.raw(method, params).map(Some))
}

/// From plug to unplug, also by way of another worker; every byte is compared by the guest,
/// and once more on the image.
fn live(disk: &Disk, rpc: &Rpc, sim_dir: &Path, midway: Midway) -> anyhow::Result<()> {
    let dp = serde_json::to_value(disk.params())?;
    let running = Running::start(sim_dir, Guest::new(disk.domid), Expect::Fresh)?;
    let (sr, vdi) = (&disk.vdi.sr, &disk.vdi.vdi);
    let device = json!({"domid": disk.domid, "device": "xvda"});
    let plug = json!({"domid": disk.domid, "device": "xvda", "sr": sr, "vdi": vdi});
    insist(rpc, "VBD.plug", &plug)?;
    running.progresses(30, SOON)?;
    match midway {
        Midway::Nothing => {}
        Midway::Pause => {
            insist(rpc, "VDI.deactivate", &dp)?;
            insist(rpc, "VDI.activate3", &dp)?;
            running.progresses(30, SOON)?;
        }
        Midway::Upgrade => {
            insist(rpc, "Worker.upgrade", &json!({"sr": sr, "vdi": vdi}))?;
            running.progresses(30, SOON)?;
        }
    }
    insist(rpc, "VDI.resize", &json!({"sr": sr, "vdi": vdi, "new_size": 8 * MIB}))?;
    eventually("the guest sees its disk grow", || {
        ensure!(!running.is_finished(), "the guest has ended");
        let sectors = running.progress.sectors.load(Ordering::Acquire);
        Ok((sectors == 8 * 2048).then_some(()))
    })?;
    running.progresses(30, SOON)?;
    let mut ended = running.stop()?;
    ensure!(ended.report.errors == 0, "{:?}", ended.report);
    insist(rpc, "VBD.unplug", &device)?;
    let image = disk.vdi.image()?;
    insist(rpc, "VDI.deactivate", &dp)?;
    ended.model.check_image(&image)?;
    insist(rpc, "VDI.detach", &dp)?;
    insist(rpc, "VDI.destroy", &json!({"sr": sr, "vdi": vdi})).map(drop)
}

/// A life with `fault` at point `number`; the points that were passed.
pub(crate) fn with(
    host: &mut Host,
    faults: &Faults,
    fault: Fault,
    number: usize,
    midway: Midway,
) -> Vec<String> {
    let disk = host.serve(u16::try_from(number).unwrap() + 1, 4 * MIB).unwrap();
    match fault {
        Fault::Nothing => faults.watch().unwrap(),
        Fault::Killed => faults.arm(number).unwrap(),
        Fault::XenstoredAway => faults.arm_hold(number).unwrap(),
    }
    let (rpc, sim_dir) = (host.rpc(), host.sim().dir().to_owned());
    let mut passed = Vec::new();
    std::thread::scope(|scope| {
        let life = scope.spawn(|| live(&disk, &rpc, &sim_dir, midway));
        while !life.is_finished() {
            if fault == Fault::Killed && host.daemon_has_ended().unwrap() {
                passed = faults.disarm().unwrap();
                host.start_daemon_over_faults(faults).unwrap();
            }
            if fault == Fault::XenstoredAway && faults.holds(number).unwrap() {
                host.sim().xenstored().pause();
                passed = faults.disarm().unwrap();
                eventually("the loss is noticed", || {
                    let status = rpc.raw("Host.status", &json!({}))?;
                    Ok((status["xenstore"] == json!(false)).then_some(()))
                })
                .unwrap();
                host.sim().xenstored().resume().unwrap();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let place = || format!("{fault:?} at point {number} of {passed:?}");
        life.join().unwrap().unwrap_or_else(|error| panic!("{}: {error:#}", place()));
    });
    if passed.is_empty() {
        passed = faults.disarm().unwrap();
        if fault == Fault::Killed && passed.len() >= number {
            host.start_daemon_over_faults(faults).unwrap();
        }
    }
    assert_eq!(host.rpc().raw("VBD.list", &json!({})).unwrap(), json!([]));
    let life = Life::of(&disk.vdi);
    life.end(host).unwrap_or_else(|e| panic!("{fault:?} at point {number} of {passed:?}: {e:#}"));
    passed
}

/// The numbers of the points that xenstore or a guest can tell apart.
fn seen_from_outside(passed: &[String]) -> Vec<usize> {
    let seen = |name: &String| name.contains("xenstore") || name.contains("rings");
    (1..).zip(passed).filter(|(_, name)| seen(name)).map(|(number, _)| number).collect()
}

fn guests_survive(fault: Fault, midway: Midway, at: impl Fn(&[String]) -> Vec<usize>) {
    let mut host = Host::start().unwrap();
    let faults = host.faults().unwrap();
    let passed = with(&mut host, &faults, Fault::Nothing, 0, midway);
    let numbers = at(&passed);
    assert!(numbers.len() >= 2, "{passed:?}");
    for number in numbers {
        let passed = with(&mut host, &faults, fault, number, midway);
        println!("{fault:?} at point {number} of {passed:?}");
    }
}

#[test]
fn guests_survive_every_death_of_the_daemon() {
    guests_survive(Fault::Killed, Midway::Nothing, seen_from_outside);
}

/// A daemon that is told to take the disk from a guest before it has found the guest. (One that is
/// killed while no worker has the ring forgets that it was let go of in good order.)
#[test]
fn guests_survive_a_death_before_a_pause() {
    guests_survive(Fault::Killed, Midway::Pause, |passed| {
        let pause = passed.iter().position(|name| name.contains("rings")).unwrap();
        seen_from_outside(&passed[..pause])
    });
}

/// From the intent to the answer: the guest's worker is the old one, the new one, or none.
#[test]
fn guests_survive_every_death_in_an_upgrade() {
    guests_survive(Fault::Killed, Midway::Upgrade, |passed| {
        let of_a_worker = |name: &String| name == "a worker's socket is made";
        let started = passed.iter().position(of_a_worker).unwrap();
        let before_a_commit = |name: &String| name == "before a commit";
        let begun = passed[..started].iter().rposition(before_a_commit).unwrap();
        let answered = |name: &String| name == "before a VDI's answer";
        let ended = started + passed[started..].iter().position(answered).unwrap();
        (begun + 1..=ended + 1).collect()
    });
}

#[test]
fn guests_survive_every_loss_of_xenstored() {
    guests_survive(Fault::XenstoredAway, Midway::Pause, seen_from_outside);
}

/// The methods that [`live`] calls and the table of operations does not have.
pub(crate) const METHODS: [&str; 3] = ["VBD.plug", "VBD.unplug", "Worker.upgrade"];
