//! `Host.status` says what is degraded and what to do.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::io::Write as _;
use std::time::Duration;
use zerotap_tests::blkfront::Options;
use zerotap_tests::harness::busy::{boot, finish, successor};
use zerotap_tests::harness::loop_device::LoopDevice;
use zerotap_tests::harness::{Host, eventually, kill_worker, uuid};

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
const SOON: Duration = Duration::from_secs(60);

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// Waits until exactly one thing is wrong, and that is told in these words.
fn told(host: &Host, words: &[&str]) {
    eventually("what is wrong is told", || {
        let status = host.rpc().raw("Host.status", &json!({}))?;
        let text = status["trouble"].to_string();
        let one = status["trouble"].as_array().is_some_and(|all| all.len() == 1);
        anyhow::ensure!(one && words.iter().all(|word| text.contains(word)), "{text}");
        Ok(Some(()))
    })
    .unwrap();
}

fn all_is_well(host: &Host) {
    eventually("all is well", || {
        let status = host.rpc().raw("Host.status", &json!({}))?;
        anyhow::ensure!(status["trouble"] == json!([]), "{status}");
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn a_silent_worker_is_told_of_until_it_answers_or_another_takes_its_place() {
    let host = Host::start().unwrap();
    let disk = host.serve(DOMID, 16 * MIB).unwrap();
    let running = boot(&host, &disk, Options::default());
    all_is_well(&host);
    let pid = disk.worker(&host.rpc()).unwrap().pid;
    send(pid, Signal::STOP);
    let kill = format!("kill -9 {pid}");
    told(&host, &[&disk.vdi.vdi, "has not answered", &kill, "its guests go on"]);
    send(pid, Signal::CONT);
    all_is_well(&host);
    running.progresses(50, SOON).unwrap();
    // What is said to help, helps.
    send(pid, Signal::STOP);
    told(&host, &[&kill]);
    kill_worker(pid).unwrap();
    successor(&host, &disk, pid);
    running.progresses(50, SOON).unwrap();
    all_is_well(&host);
    finish(&host, &disk, running);
}

#[test]
fn a_worker_that_a_new_daemon_finds_silent_is_ended_by_an_activation() {
    let mut host = Host::start().unwrap();
    let disk = host.serve(DOMID, 16 * MIB).unwrap();
    let running = boot(&host, &disk, Options::default());
    let pid = disk.worker(&host.rpc()).unwrap().pid;
    host.kill_daemon().unwrap();
    send(pid, Signal::STOP);
    host.start_daemon().unwrap();
    eventually("it is told of", || {
        let text = host.rpc().raw("Host.status", &json!({}))?["trouble"].to_string();
        let words = ["runs and does not answer", "VDI.activate3 kills it", &pid.to_string()];
        anyhow::ensure!(words.iter().all(|word| text.contains(word)), "{text}");
        Ok(Some(()))
    })
    .unwrap();
    disk.activate(&host.rpc()).unwrap();
    successor(&host, &disk, pid);
    running.progresses(50, SOON).expect("the next worker takes the ring up");
    all_is_well(&host);
    finish(&host, &disk, running);
}

#[test]
fn an_sr_that_is_nearly_full_is_told_of_while_it_is() {
    let host = Host::start().unwrap();
    let room = tempfile::tempdir().unwrap();
    let mut device = LoopDevice::new(&room.path().join("backing"), 64 << 20, 512).unwrap();
    let mounted = room.path().join("sr");
    device.mount(&mounted).unwrap();
    let sr = uuid().unwrap();
    host.create_sr_at(&sr, &mounted).unwrap();
    all_is_well(&host);
    let filler = mounted.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 1 << 16]).is_ok() {}
    file.sync_all().unwrap();
    drop(file);
    told(&host, &[&sr, "MiB are free", "remove VDIs or snapshots"]);
    std::fs::remove_file(&filler).unwrap();
    all_is_well(&host);
    host.rpc().raw("SR.detach", &json!({"sr": sr})).unwrap();
}
