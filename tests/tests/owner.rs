//! Two hosts, one SR: who has a VDI active, who is refused, and what a crash leaves.

use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::smapi2::{Mode, VdiState};
use zerotap_tests::harness::{Disk, Host, Rpc, RpcError, Vdi, eventually};
use zerotap_tests::workload::random::Random;

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;

/// A host's uuid.
fn uuid_of(host: &Host) -> String {
    let status = host.rpc().raw("Host.status", &json!({})).unwrap();
    let uuid = status["host_uuid"].as_str().unwrap();
    assert_eq!(uuid.len(), 36, "{uuid}");
    uuid.to_owned()
}

fn attach_sr(host: &Host, vdi: &Vdi) {
    let config = json!({"sr": vdi.sr, "device_config": {"path": vdi.sr_dir}});
    host.rpc().raw("SR.attach", &config).unwrap();
}

/// Two hosts, and a VDI in an SR that both have attached.
fn two_hosts() -> (Host, Host, Disk) {
    let (one, two) = (Host::start().unwrap(), Host::start().unwrap());
    let vdi = one.create_vdi(4 * MIB).unwrap();
    attach_sr(&two, &vdi);
    assert_ne!(uuid_of(&one), uuid_of(&two));
    let disk = Disk { vdi, dp: "vbd/5/xvda".into(), domid: DOMID, read_only: false };
    (one, two, disk)
}

fn record(disk: &Disk) -> (PathBuf, Value) {
    let path = disk.vdi.sr_dir.join(format!("{}.vdi.json", disk.vdi.vdi));
    let text = std::fs::read(&path).unwrap();
    (path, serde_json::from_slice(&text).expect("a record is whole at any moment"))
}

fn owner(disk: &Disk) -> Option<String> {
    record(disk).1["owner"]["host"].as_str().map(str::to_owned)
}

fn refusal(result: anyhow::Result<()>) -> StorageError {
    let error = result.expect_err("refused").downcast::<RpcError>().expect("an answer");
    error.storage.expect("SMAPIv2's error")
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// The host loses power, and starts again.
fn reboot(host: &mut Host, disk: &Disk, boot: &str) {
    let worker = disk.worker(&host.rpc()).unwrap();
    host.kill_daemon().unwrap();
    kill(worker.pid);
    host.write_boot_id(boot).unwrap();
    host.start_daemon().unwrap();
}

#[test]
fn a_disk_that_is_active_elsewhere_is_left_alone() {
    let (one, two, disk) = two_hosts();
    let (here, there) = (one.rpc(), two.rpc());
    disk.attach(&here).unwrap();
    disk.attach(&there).expect("attached on two hosts at once");
    disk.activate(&here).unwrap();
    assert_eq!(owner(&disk), Some(uuid_of(&one)));

    let elsewhere = json!(["Activated_on_another_host", uuid_of(&one)]);
    let (sr, vdi) = (&disk.vdi.sr, &disk.vdi.vdi);
    let calls = [
        ("VDI.activate3", json!({"dp": disk.dp, "sr": sr, "vdi": vdi, "vm": "5"})),
        ("VDI.resize", json!({"sr": sr, "vdi": vdi, "new_size": 8 * MIB})),
        ("VDI.snapshot", json!({"sr": sr, "vdi_info": {"vdi": vdi, "name_label": "s"}})),
        ("VDI.clone", json!({"sr": sr, "vdi_info": {"vdi": vdi, "name_label": "c"}})),
        ("SMAPIv3.Volume.snapshot", json!({"sr": sr, "key": vdi})),
    ];
    for (method, params) in calls {
        let error = there.fails(method, &params);
        let told = serde_json::to_value(error.storage.expect("SMAPIv2's error")).unwrap();
        assert_eq!(told, elsewhere, "{method}");
    }
    disk.detach(&there).unwrap();
    let error = refusal(disk.vdi.destroy(&there));
    assert_eq!(error, StorageError::ActivatedOnAnotherHost(uuid_of(&one)));
    // What only the record holds may be changed, and the owner stays.
    let name = json!({"sr": sr, "vdi": vdi, "new_name_label": "renamed there"});
    there.raw("VDI.set_name_label", &name).unwrap();
    assert_eq!(owner(&disk), Some(uuid_of(&one)));
    // Readers elsewhere are kept out as well.
    let reader = Disk { read_only: true, ..disk.clone() };
    reader.attach(&there).unwrap();
    assert_eq!(refusal(reader.activate(&there)), error);
    reader.detach(&there).unwrap();

    // A live migration: it goes from one to the other.
    disk.attach(&there).unwrap();
    disk.deactivate(&here).unwrap();
    assert_eq!(owner(&disk), None);
    disk.activate(&there).unwrap();
    disk.detach(&here).unwrap();
    let told = record(&disk).1;
    assert_eq!((owner(&disk), &told["epoch"]), (Some(uuid_of(&two)), &json!(2)));
    disk.remove(&there).unwrap();
}

#[test]
fn readers_on_several_hosts_keep_a_writer_out() {
    let (one, two, disk) = two_hosts();
    let (here, there) = (one.rpc(), two.rpc());
    let reader = Disk { read_only: true, ..disk.clone() };
    for rpc in [&here, &there] {
        reader.attach(rpc).unwrap();
        reader.activate(rpc).expect("readers share");
    }
    assert_eq!(owner(&disk), None);
    reader.deactivate(&here).unwrap();
    reader.detach(&here).unwrap();
    disk.attach(&here).unwrap();
    let StorageError::Backend((code, texts)) = refusal(disk.activate(&here)) else { panic!() };
    assert_eq!(code, "SR_BACKEND_FAILURE_46");
    assert!(texts[1].contains("locked"), "{texts:?}");
    assert_eq!(owner(&disk), None, "who does not get it does not own it");
    reader.deactivate(&there).unwrap();
    disk.activate(&here).unwrap();
    disk.remove(&here).unwrap();
}

#[test]
fn a_host_that_rebooted_gives_back_what_it_had() {
    let (mut one, two, disk) = two_hosts();
    disk.attach(&one.rpc()).unwrap();
    disk.activate(&one.rpc()).unwrap();
    disk.attach(&two.rpc()).unwrap();
    reboot(&mut one, &disk, "second");
    assert_eq!(
        refusal(disk.activate(&two.rpc())),
        StorageError::ActivatedOnAnotherHost(uuid_of(&one)),
        "it may be alive, as far as anybody can see"
    );
    // XAPI plugs its PBDs when the host is up.
    attach_sr(&one, &disk.vdi);
    assert_eq!(owner(&disk), None);
    disk.activate(&two.rpc()).unwrap();
    disk.remove(&two.rpc()).unwrap();
}

#[test]
fn a_host_without_xapi_gives_back_what_it_had_by_itself() {
    let mut one = Host::start_with("reattach_srs_at_boot = true").unwrap();
    let disk = one.serve(DOMID, 4 * MIB).unwrap();
    let (dir, away) = (disk.vdi.sr_dir.clone(), disk.vdi.sr_dir.with_extension("away"));
    reboot(&mut one, &disk, "second");
    eventually("given back", || Ok(owner(&disk).is_none().then_some(()))).unwrap();
    // Once more, with the SR's file system away at first.
    let disk = disk.vdi.serve(&one.rpc(), DOMID, false).unwrap();
    std::fs::rename(&dir, &away).unwrap();
    reboot(&mut one, &disk, "third");
    eventually("it is tried", || Ok(one.log().contains("still to be cleaned up").then_some(())))
        .unwrap();
    std::fs::rename(&away, &dir).unwrap();
    assert_eq!(record(&disk).1["owner"]["boot_id"], json!("second"));
    eventually("given back", || Ok(owner(&disk).is_none().then_some(()))).unwrap();
}

#[test]
fn an_earlier_boot_of_this_host_is_taken_over_at_once() {
    let (one, _two, disk) = two_hosts();
    let (path, mut told) = record(&disk);
    told["owner"] = json!({"host": uuid_of(&one), "boot_id": "long ago", "epoch": 7,
        "since": "2026-01-01T00:00:00Z"});
    told["epoch"] = json!(7);
    std::fs::write(path, told.to_string()).unwrap();
    disk.attach(&one.rpc()).unwrap();
    disk.activate(&one.rpc()).unwrap();
    let told = record(&disk).1;
    assert_eq!((&told["owner"]["boot_id"], &told["epoch"]), (&json!("first"), &json!(8)));
    disk.remove(&one.rpc()).unwrap();
}

fn unlock(rpc: &Rpc, disk: &Disk, from: &str, reason: &str) -> anyhow::Result<Value> {
    let (sr, vdi) = (&disk.vdi.sr, &disk.vdi.vdi);
    rpc.raw("VDI.unlock", &json!({"sr": sr, "vdi": vdi, "force_from": from, "reason": reason}))
}

#[test]
fn a_dead_hosts_disk_is_had_by_force_and_only_that() {
    let (mut one, two, disk) = two_hosts();
    let (first, there) = (uuid_of(&one), two.rpc());
    let refused = |from: &str, reason: &str, why: &str| {
        let error = refusal(unlock(&there, &disk, from, reason).map(drop)).to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(&first, "test", "no host has it");
    disk.attach(&one.rpc()).unwrap();
    disk.activate(&one.rpc()).unwrap();
    let told = record(&disk).1["owner"].clone();
    refused(&uuid_of(&two), "test", &first);
    refused(&first, "", "reason");
    refused(&first, "test", "is locked");
    let mine = refusal(unlock(&one.rpc(), &disk, &first, "test").map(drop)).to_string();
    assert!(mine.contains("this host has it"), "{mine}");
    assert_eq!(record(&disk).1["owner"], told, "nobody was told that it went");

    // The host is gone, and with it the lock on the data.
    let worker = disk.worker(&one.rpc()).unwrap();
    one.kill_daemon().unwrap();
    kill(worker.pid);
    disk.attach(&there).unwrap();
    assert_eq!(refusal(disk.activate(&there)), StorageError::ActivatedOnAnotherHost(first.clone()));
    let seen = eventually("the kernel has ended the worker", || {
        Ok(unlock(&there, &disk, &first, "it burnt down").ok())
    });
    let seen = seen.unwrap();
    for key in ["host", "boot_id", "epoch", "since"] {
        assert_eq!(seen[key], told[key], "{key}");
    }
    assert_eq!(owner(&disk), None);
    let log = two.log();
    let line = log.lines().find(|line| line.contains("taken by force")).expect("it is logged");
    for part in [first.as_str(), "it burnt down", "uid=", "pid="] {
        assert!(line.contains(part), "{part}: {line}");
    }
    disk.activate(&there).unwrap();

    // It was not dead after all, and learns that the disk is another's now.
    one.start_daemon().unwrap();
    disk.deactivate(&one.rpc()).unwrap();
    assert_eq!(owner(&disk), Some(uuid_of(&two)));
    let elsewhere = StorageError::ActivatedOnAnotherHost(uuid_of(&two));
    assert_eq!(refusal(disk.activate(&one.rpc())), elsewhere);
    disk.detach(&one.rpc()).unwrap();
    disk.remove(&there).unwrap();
}

#[test]
fn a_dead_hosts_disk_whose_data_has_vanished_can_be_given_up() {
    let (mut one, two, disk) = two_hosts();
    disk.attach(&one.rpc()).unwrap();
    disk.activate(&one.rpc()).unwrap();
    let worker = disk.worker(&one.rpc()).unwrap();
    one.kill_daemon().unwrap();
    kill(worker.pid);
    std::fs::remove_file(disk.vdi.image().unwrap()).unwrap();
    assert!(disk.vdi.destroy(&two.rpc()).is_err(), "it is the other host's");
    let (from, vdi) = (owner(&disk).unwrap(), disk.vdi.vdi.as_str());
    let args = ["vdi", "unlock", vdi, "--force-from", &from, "--reason", "flood"];
    let output = two.zerotap(&args).unwrap().output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains(&from) && text.contains("vanished"), "{text}");
    disk.vdi.destroy(&two.rpc()).unwrap();
}

/// Several callers of a host ask for the disk at once; what they were told.
fn attempt(host: &Host, disk: &Disk, start: &Barrier) -> Vec<anyhow::Result<()>> {
    std::thread::scope(|scope| {
        let callers = (0..4).map(|_| {
            scope.spawn(|| {
                start.wait();
                disk.activate(&host.rpc())
            })
        });
        let callers: Vec<_> = callers.collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    })
}

fn is_active(host: &Host, disk: &Disk) -> bool {
    let state = disk.vdi.stat(&host.rpc()).unwrap().superstate;
    let active = state == VdiState::Activated(Mode::ReadWrite);
    assert_eq!(disk.worker(&host.rpc()).is_ok(), active, "{state} and a worker");
    active
}

#[test]
fn of_two_hosts_one_wins_each_time() {
    let (one, two, disk) = two_hosts();
    for round in 0..12 {
        for host in [&one, &two] {
            disk.attach(&host.rpc()).unwrap();
        }
        let start = Barrier::new(8);
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| attempt(&one, &disk, &start));
            (attempt(&two, &disk, &start), first.join().unwrap())
        });
        let won = [&second, &first].map(|told| told.iter().any(Result::is_ok));
        assert!(won[0] != won[1], "round {round}: {first:?} {second:?}");
        let (winner, loser, told) = if won[0] { (&one, &two, first) } else { (&two, &one, second) };
        for answer in told {
            let elsewhere = StorageError::ActivatedOnAnotherHost(uuid_of(winner));
            assert_eq!(refusal(answer), elsewhere, "round {round}");
        }
        assert!(is_active(winner, &disk) && !is_active(loser, &disk));
        assert_eq!(owner(&disk), Some(uuid_of(winner)));
        disk.deactivate(&winner.rpc()).unwrap();
    }
    assert_eq!(record(&disk).1["epoch"], json!(12), "an epoch for each activation");
    disk.detach(&two.rpc()).unwrap();
    disk.remove(&one.rpc()).unwrap();
}

/// One of two hosts that fight for a disk loses its daemon; what is true is told by all, and the
/// disk can be had by either.
#[test]
fn a_daemon_dies_in_the_fight_for_a_disk() {
    let (mut one, two, disk) = two_hosts();
    let mut random = Random::new(3);
    for round in 0..20 {
        for host in [&one, &two] {
            disk.attach(&host.rpc()).unwrap();
        }
        let delay = Duration::from_micros(random.below(25_000));
        let start = Barrier::new(9);
        std::thread::scope(|scope| {
            scope.spawn(|| attempt(&one, &disk, &start));
            scope.spawn(|| attempt(&two, &disk, &start));
            start.wait();
            // The moment of death is the point of the test: any moment will do.
            let until = Instant::now() + delay;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            kill(one.daemon_pid().unwrap());
        });
        one.kill_daemon().unwrap();
        one.start_daemon().unwrap();
        let active = [&one, &two].map(|host| is_active(host, &disk));
        assert!(active != [true, true], "round {round}: active on both");
        let expected = match active {
            [true, _] => Some(uuid_of(&one)),
            [_, true] => Some(uuid_of(&two)),
            _ => None,
        };
        eventually("the record says who has it", || Ok((owner(&disk) == expected).then_some(())))
            .unwrap_or_else(|error| panic!("round {round}: {:?}: {error:#}", owner(&disk)));
        for host in [&one, &two] {
            disk.deactivate(&host.rpc()).unwrap();
        }
        for host in [&one, &two] {
            disk.activate(&host.rpc()).unwrap_or_else(|e| panic!("round {round}: {e:#}"));
            disk.deactivate(&host.rpc()).unwrap();
        }
    }
    disk.detach(&two.rpc()).unwrap();
    disk.remove(&one.rpc()).unwrap();
}
