//! kill -9 of the daemon, the worker, xenstored: the guest goes on where it can, and the next call
//! finds the truth.

use serde_json::json;
use std::time::{Duration, Instant};
use zerotap_rpc_schema::smapi2::{Mode, VdiState};
use zerotap_tests::harness::busy::end;
use zerotap_tests::harness::{Disk, Host, eventually};
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::workload::random::Random;

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
const SOON: Duration = Duration::from_secs(30);

fn boot(host: &Host, disk: &Disk) -> Running {
    let guest = Guest::new(disk.domid);
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&host.rpc()).unwrap();
    running.progresses(50, SOON).unwrap();
    running
}

/// Ends guest and disk in good order, and compares every byte on the image.
fn finish(host: &Host, disk: &Disk, running: Running) {
    end(host, disk, running);
    let rpc = host.rpc();
    assert_eq!(rpc.raw("Worker.list", &json!({})).unwrap(), json!([]));
    assert_eq!(rpc.raw("VBD.list", &json!({})).unwrap(), json!([]));
}

#[test]
fn guest_io_goes_on_while_the_daemon_is_dead() {
    let mut host = Host::start().unwrap();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let running = boot(&host, &disk);
    let worker = disk.worker(&host.rpc()).unwrap();
    for _ in 0..5 {
        host.kill_daemon().unwrap();
        running.progresses(200, SOON).unwrap();
        host.start_daemon().unwrap();
        let now = disk.worker(&host.rpc()).unwrap();
        assert_eq!((now.pid, &now.id), (worker.pid, &worker.id), "adopted, not replaced");
        let stat = disk.stat(&host.rpc()).unwrap();
        assert_eq!(stat.vbd.state, "connected");
        assert!(stat.ring.is_some() && stat.counters.reads > 0);
        running.progresses(50, SOON).unwrap();
    }
    finish(&host, &disk, running);
}

#[test]
fn guest_io_goes_on_over_an_orderly_restart() {
    let mut host = Host::start().unwrap();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let running = boot(&host, &disk);
    let worker = disk.worker(&host.rpc()).unwrap().pid;
    assert!(host.stop_daemon().unwrap().success());
    running.progresses(200, SOON).unwrap();
    host.start_daemon().unwrap();
    assert_eq!(disk.worker(&host.rpc()).unwrap().pid, worker);
    finish(&host, &disk, running);
}

#[test]
fn a_guest_that_closes_while_the_daemon_is_dead_is_noticed_after() {
    let mut host = Host::start().unwrap();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let running = boot(&host, &disk);
    host.kill_daemon().unwrap();
    running.progress.stop();
    host.start_daemon().unwrap();
    finish(&host, &disk, running);
}

/// What a caller may do in any order; each must succeed or say clearly why not.
fn any_call(random: &mut Random, disk: &Disk, host: &Host) -> anyhow::Result<()> {
    let rpc = host.rpc();
    match random.below(4) {
        0 => disk.attach(&rpc),
        1 => disk.attach(&rpc).and_then(|()| disk.activate(&rpc)),
        2 => disk.deactivate(&rpc),
        _ => disk.deactivate(&rpc).and_then(|()| disk.detach(&rpc)),
    }
}

/// State must be one that a caller can have ordered, and agree with the worker's being there.
fn assert_true_state(disk: &Disk, host: &Host) {
    let rpc = host.rpc();
    let stat = disk.vdi.stat(&rpc).unwrap();
    let of_dp = stat.dps.get(&disk.dp).copied().unwrap_or(VdiState::Detached);
    assert_eq!(stat.superstate, of_dp, "one datapath is the superstate");
    let served = disk.worker(&rpc).is_ok();
    assert_eq!(served, of_dp == VdiState::Activated(Mode::ReadWrite), "{of_dp} and a worker");
    let workers = rpc.raw("Worker.list", &json!({})).unwrap();
    assert_eq!(workers.as_array().unwrap().len(), usize::from(served), "{workers}");
}

#[test]
fn the_daemon_dies_in_the_middle_of_calls() {
    let mut host = Host::start().unwrap();
    let vdi = host.create_vdi(4 * MIB).unwrap();
    let disk = Disk { dp: "vbd/5/xvda".into(), domid: DOMID, read_only: false, vdi };
    let mut random = Random::new(7);
    for round in 0..25 {
        let delay = Duration::from_micros(random.below(30_000));
        let (caller, mut choices) = (disk.clone(), random.clone());
        std::thread::scope(|scope| {
            let shared = &host;
            let calls = scope.spawn(move || {
                let mut done = 0;
                while any_call(&mut choices, &caller, shared).is_ok() {
                    done += 1;
                }
                done
            });
            // The moment of death is the point of the test: any moment will do.
            let until = Instant::now() + delay;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            let pid = i32::try_from(shared.daemon_pid().unwrap()).unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            calls.join().unwrap();
        });
        random.bits();
        host.kill_daemon().unwrap();
        host.start_daemon().unwrap();
        assert_true_state(&disk, &host);
        // Whatever was cut short, the order given again is obeyed.
        disk.attach(&host.rpc()).unwrap_or_else(|e| panic!("round {round}: attach: {e:#}"));
        disk.activate(&host.rpc()).unwrap_or_else(|e| panic!("round {round}: activate: {e:#}"));
        assert_true_state(&disk, &host);
        disk.deactivate(&host.rpc()).unwrap();
        disk.detach(&host.rpc()).unwrap();
        assert_true_state(&disk, &host);
    }
}

#[test]
fn the_daemon_dies_while_volumes_are_made() {
    let mut host = Host::start().unwrap();
    let (sr, dir) = host.create_sr().unwrap();
    let mut random = Random::new(11);
    let mut known = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let delay = Duration::from_micros(2000 + random.below(20_000));
        let made = std::thread::scope(|scope| {
            let (shared, sr) = (&host, &sr);
            let calls = scope.spawn(move || {
                let mut made = Vec::new();
                while let Ok(info) = shared.create_vdi_in(sr, MIB) {
                    made.push(info.vdi);
                }
                made
            });
            let until = Instant::now() + delay;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            let pid = i32::try_from(shared.daemon_pid().unwrap()).unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            calls.join().unwrap()
        });
        known.extend(made);
        host.kill_daemon().unwrap();
        host.start_daemon().unwrap();
        let listed = host.rpc().raw("SR.scan2", &json!({"sr": sr})).unwrap();
        let listed: Vec<String> = listed[0]
            .as_array()
            .unwrap()
            .iter()
            .map(|info| info["vdi"].as_str().unwrap().to_owned())
            .collect();
        assert!(known.iter().all(|vdi| listed.contains(vdi)), "what was answered is there");
        // One more may be there, made and not answered; it is whole, or it is not listed.
        for vdi in listed {
            let stat = host.rpc().raw("VDI.stat", &json!({"sr": sr, "vdi": vdi})).unwrap();
            assert_eq!(stat["virtual_size"], json!(MIB));
            known.insert(vdi);
        }
    }
    for vdi in known {
        host.rpc().raw("VDI.destroy", &json!({"sr": sr, "vdi": vdi})).unwrap();
    }
    let images = std::fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|it| it.is_file() && it.len() >= 1 << 20));
    assert_eq!(images.count(), 0, "no image is left without a record");
}

#[test]
fn a_second_daemon_is_refused_and_harms_nothing() {
    let mut host = Host::start().unwrap();
    let disk = host.serve(DOMID, 4 * MIB).unwrap();
    let first = host.daemon_pid();
    let second = host.second_daemon().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("lock") || said.contains("already"), "{said}");
    assert_eq!(host.daemon_pid(), first);
    assert!(disk.worker(&host.rpc()).is_ok(), "the first serves on");
    host.kill_daemon().unwrap();
    host.start_daemon().expect("a dead daemon's locks are nobody's");
    disk.remove(&host.rpc()).unwrap();
}

#[test]
fn another_boot_id_voids_what_was_in_use() {
    let mut host = Host::start().unwrap();
    let disk = host.serve(DOMID, 4 * MIB).unwrap();
    let worker = disk.worker(&host.rpc()).unwrap();
    host.kill_daemon().unwrap();
    // A reboot takes the worker with it.
    let pid = rustix::process::Pid::from_raw(i32::try_from(worker.pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    host.write_boot_id("second").unwrap();
    host.start_daemon().unwrap();
    let rpc = host.rpc();
    assert_eq!(rpc.raw("Worker.list", &json!({})).unwrap(), json!([]));
    if rpc.raw("SR.list", &json!({})).unwrap() == json!([]) {
        let config = json!({"sr": disk.vdi.sr, "device_config": {"path": disk.vdi.sr_dir}});
        rpc.raw("SR.attach", &config).unwrap();
    }
    assert_eq!(disk.vdi.stat(&rpc).unwrap().superstate, VdiState::Detached);
    let disk = disk.vdi.serve(&rpc, 6, false).expect("it is free for another use");
    disk.remove(&rpc).unwrap();
}

#[test]
fn the_worker_dies_while_the_daemon_is_dead() {
    let mut host = Host::start().unwrap();
    let disk = host.serve(DOMID, 4 * MIB).unwrap();
    let worker = disk.worker(&host.rpc()).unwrap();
    host.kill_daemon().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(worker.pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    host.start_daemon().unwrap();
    let rpc = host.rpc();
    let next = eventually("another serves", || Ok(disk.worker(&rpc).ok())).unwrap();
    assert_ne!(next.pid, worker.pid);
    disk.activate(&rpc).expect("it is active");
    disk.remove(&rpc).unwrap();
}

#[test]
fn xenstored_goes_away_and_comes_back() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let running = boot(&host, &disk);
    for round in 0..2 {
        let degraded = |degraded: bool| {
            eventually(&format!("xenstore is away: {degraded}, round {round}"), || {
                let status = rpc.raw("Host.status", &json!({}))?;
                let away = status["xenstore"] == json!(false);
                Ok((away == degraded).then_some(()))
            })
            .unwrap();
        };
        host.sim().xenstored().pause();
        degraded(true);
        running.progresses(200, SOON).expect("the guest needs no xenstore");
        assert!(disk.worker(&rpc).is_ok());
        let other = host.create_vdi_in(&disk.vdi.sr, MIB).expect("volumes need no xenstore");
        rpc.raw("VDI.destroy", &json!({"sr": disk.vdi.sr, "vdi": other.vdi})).unwrap();
        let plug = json!({"domid": 6, "device": "xvdb", "sr": disk.vdi.sr, "vdi": disk.vdi.vdi});
        assert!(rpc.fails("VBD.plug", &plug).storage.is_some());
        host.sim().xenstored().resume().unwrap();
        degraded(false);
    }
    running.progresses(50, SOON).unwrap();
    finish(&host, &disk, running);
}
