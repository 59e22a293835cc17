//! RPC clients that go away, race each other, or ask the same again.

use serde_json::json;
use std::io::Write as _;
use std::time::{Duration, Instant};
use zerotap_rpc_schema::smapi2::{Mode, VdiState};
use zerotap_tests::harness::{Disk, Host, Rpc, RpcError, eventually, http};

const MIB: i64 = 1 << 20;

fn of(vdi: zerotap_tests::harness::Vdi) -> Disk {
    Disk { dp: "vbd/5/xvda".into(), domid: 5, read_only: false, vdi }
}

/// Sends a call and hangs up before the answer.
fn call_and_go(rpc: &Rpc, method: &str, params: &serde_json::Value) {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    let mut stream = http::connect(rpc.socket()).unwrap();
    let length = body.len();
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}").unwrap();
}

#[test]
fn what_a_client_ordered_is_done_though_it_hung_up() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    for _ in 0..10 {
        let disk = of(host.create_vdi(MIB).unwrap());
        disk.attach(&rpc).unwrap();
        let params = serde_json::to_value(disk.params()).unwrap();
        call_and_go(&rpc, "VDI.activate3", &params);
        // It may have gone before its call was read at all: then nothing was ordered. A second,
        // patient one finds the first's work done or does it.
        disk.activate(&rpc).unwrap();
        let worker = disk.worker(&rpc).unwrap();
        assert_eq!(rpc.raw("Worker.list", &json!({})).unwrap().as_array().unwrap().len(), 1);
        call_and_go(&rpc, "VDI.deactivate", &params);
        disk.deactivate(&rpc).unwrap();
        eventually("the worker is gone", || {
            let gone = !std::path::Path::new(&format!("/proc/{}/exe", worker.pid)).exists();
            Ok(gone.then_some(()))
        })
        .unwrap();
        disk.detach(&rpc).unwrap();
    }
}

#[test]
fn a_hundred_clients_at_once_leave_one_true_state() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disks: Vec<Disk> = (0..4).map(|_| of(host.create_vdi(MIB).unwrap())).collect();
    std::thread::scope(|scope| {
        for n in 0..100 {
            let (rpc, disk) = (&rpc, &disks[n % disks.len()]);
            scope.spawn(move || {
                let result = match n % 5 {
                    0 => disk.attach(rpc),
                    1 => disk.attach(rpc).and_then(|()| disk.activate(rpc)),
                    2 => disk.deactivate(rpc),
                    3 => disk.detach(rpc),
                    _ => disk.vdi.stat(rpc).map(drop),
                };
                if let Err(error) = result {
                    // An order that came too early or too late is refused, never a fault.
                    let error = error.downcast::<RpcError>().expect("an answer");
                    assert!(error.storage.is_some(), "{error}");
                    assert!(!error.message.contains("internal"), "{error}");
                }
            });
        }
    });
    for disk in &disks {
        disk.attach(&rpc).unwrap();
        disk.activate(&rpc).unwrap();
        let active = VdiState::Activated(Mode::ReadWrite);
        assert_eq!(disk.vdi.stat(&rpc).unwrap().superstate, active);
    }
    let workers = rpc.raw("Worker.list", &json!({})).unwrap();
    assert_eq!(workers.as_array().unwrap().len(), disks.len(), "{workers}");
    disks.iter().for_each(|disk| disk.remove(&rpc).unwrap());
    assert_eq!(rpc.raw("Worker.list", &json!({})).unwrap(), json!([]));
}

#[test]
fn every_order_may_be_given_twice() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = of(host.create_vdi(MIB).unwrap());
    for _ in 0..2 {
        disk.attach(&rpc).unwrap();
    }
    for _ in 0..2 {
        disk.activate(&rpc).unwrap();
    }
    let pid = disk.worker(&rpc).unwrap().pid;
    disk.activate(&rpc).unwrap();
    assert_eq!(disk.worker(&rpc).unwrap().pid, pid, "no second worker");
    for _ in 0..2 {
        disk.deactivate(&rpc).unwrap();
    }
    for _ in 0..2 {
        disk.detach(&rpc).unwrap();
    }
    disk.attach(&rpc).unwrap();
    disk.activate(&rpc).unwrap();
    let p = disk.params();
    let params = json!({
        "dp": p.dp, "sr": p.sr, "vdi": p.vdi, "vm": p.vm, "allow_leak": false
    });
    for _ in 0..2 {
        rpc.raw("DP.destroy2", &params).unwrap();
    }
    assert_eq!(disk.vdi.stat(&rpc).unwrap().superstate, VdiState::Detached);
    for _ in 0..2 {
        disk.vdi.destroy(&rpc).unwrap();
    }
}

#[test]
fn what_is_in_use_is_not_taken_away() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = of(host.create_vdi(MIB).unwrap());
    disk.attach(&rpc).unwrap();
    disk.activate(&rpc).unwrap();
    let (sr, vdi) = (&disk.vdi.sr, &disk.vdi.vdi);
    for (method, params) in [
        ("VDI.destroy", json!({"sr": sr, "vdi": vdi})),
        ("SR.detach", json!({"sr": sr})),
        ("SR.destroy", json!({"sr": sr})),
    ] {
        let error = rpc.fails(method, &params);
        assert!(error.storage.is_some(), "{method}: {error}");
    }
    assert!(disk.worker(&rpc).is_ok(), "it is still served");
    disk.remove(&rpc).unwrap();
}

#[test]
fn slow_work_on_one_vdi_holds_up_no_other() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let (sr, _) = host.create_sr().unwrap();
    // A stopped worker answers nothing: what is asked of its VDI waits.
    let stuck = of(host.create_vdi(MIB).unwrap());
    stuck.attach(&rpc).unwrap();
    stuck.activate(&rpc).unwrap();
    let pid = i32::try_from(stuck.worker(&rpc).unwrap().pid).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| stuck.deactivate(&rpc));
        let started = Instant::now();
        for _ in 0..5 {
            let made = host.create_vdi_in(&sr, MIB).unwrap();
            rpc.raw("VDI.destroy", &json!({"sr": sr, "vdi": made.vdi})).unwrap();
            rpc.raw("SR.list", &json!({})).unwrap();
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        waiting.join().unwrap().unwrap();
    });
    stuck.remove(&rpc).unwrap();
}
