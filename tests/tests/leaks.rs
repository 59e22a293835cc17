//! Uses of disks that nobody ends: those whose domain has gone, and those that could not be ended
//! when they should be.

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use zerotap_rpc_schema::smapi2::{Mode, VdiState};
use zerotap_tests::guest::{Domain, destroy};
use zerotap_tests::harness::{Disk, Host, Vdi, eventually};

const MIB: i64 = 1 << 20;
const ACTIVE: VdiState = VdiState::Activated(Mode::ReadWrite);

fn host() -> Host {
    Host::start_with("abandoned_after_seconds = 1\n").unwrap()
}

fn domain(host: &Host, domid: u16) -> Domain {
    Domain::create(host.sim().dir(), domid, 4 << 20, false).unwrap()
}

fn serve(host: &Host, domid: u16) -> Disk {
    host.serve(domid, MIB).unwrap()
}

fn state(host: &Host, vdi: &Vdi) -> VdiState {
    vdi.stat(&host.rpc()).unwrap().superstate
}

/// Waits until the daemon knows that the domains of so many uses live.
fn seen(host: &Host, uses: usize) {
    let query = "SELECT count(*) FROM datapath WHERE seen";
    eventually("domains are seen", || Ok((host.sqlite(query)? == uses.to_string()).then_some(())))
        .unwrap();
}

fn ends(host: &Host, vdi: &Vdi) {
    eventually("the use has ended", || Ok((state(host, vdi) == VdiState::Detached).then_some(())))
        .unwrap();
}

#[test]
fn a_use_ends_some_time_after_its_domain() {
    let host = host();
    let (_five, _six) = (domain(&host, 5), domain(&host, 6));
    let (gone, lives, shared) = (serve(&host, 5), serve(&host, 6), serve(&host, 5));
    // Of a domain that never was it is not known that it has gone.
    let (unborn, dom0) = (serve(&host, 7), host.create_vdi(MIB).unwrap());
    let attached = host.create_vdi(MIB).unwrap();
    let attach = |vdi: &Vdi, dp: &str, vm: &str| {
        let params = json!({"sr": vdi.sr, "vdi": vdi.vdi, "dp": dp, "vm": vm, "read_write": true});
        host.rpc().raw("VDI.attach3", &params).unwrap();
    };
    attach(&dom0, "import", "0");
    attach(&attached, "vbd/5/xvdb", "5");
    // Somebody has given domain 5's disk to domain 6, which is not asked for its number.
    Disk { domid: 6, ..shared.clone() }.plug(&host.rpc()).unwrap();
    seen(&host, 4);
    destroy(host.sim().dir(), 5).unwrap();
    ends(&host, &gone.vdi);
    ends(&host, &attached);
    assert!(host.log().contains("its domain has gone"));
    // Once more is looked at all, as another domain tells that was not there before.
    let _eight = domain(&host, 8);
    let fresh = serve(&host, 8);
    seen(&host, 3);
    assert_eq!(state(&host, &fresh.vdi), ACTIVE);
    for kept in [&lives, &unborn, &shared] {
        assert_eq!(state(&host, &kept.vdi), ACTIVE);
    }
    assert_eq!(state(&host, &dom0), VdiState::Attached(Mode::ReadWrite));
}

#[test]
fn a_domain_that_went_while_no_daemon_ran_has_gone() {
    let mut host = host();
    let guest = domain(&host, 5);
    let disk = serve(&host, 5);
    seen(&host, 1);
    host.kill_daemon().unwrap();
    drop(guest);
    destroy(host.sim().dir(), 5).unwrap();
    host.start_daemon().unwrap();
    ends(&host, &disk.vdi);
    // The next guest starts as if nothing had been.
    let next = disk.vdi.serve(&host.rpc(), 6, false).unwrap();
    next.remove(&host.rpc()).unwrap();
}

/// What the worker has locked, which keeps the lock after its death as I/O under way does.
fn hold(host: &Host, disk: &Disk) -> OwnedFd {
    let pid = disk.worker(&host.rpc()).unwrap().pid;
    let image = disk.vdi.image().unwrap();
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let fd = fds
        .filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == image))
        .find_map(|fd| fd.file_name().to_str()?.parse().ok())
        .expect("the worker has its image open");
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    pidfd_getfd(process, fd, PidfdGetfdFlags::empty()).unwrap()
}

/// A disk that is leaked, and what is in the way of its end.
fn leak(host: &Host) -> (Disk, OwnedFd) {
    let disk = serve(host, 5);
    let held = hold(host, &disk);
    disk.kill_worker(&host.rpc()).unwrap();
    let refused = destroy_dp(host, &disk).unwrap_err().to_string();
    assert!(refused.contains("locked"), "{refused}");
    assert_eq!(host.sqlite("SELECT count(*) FROM datapath WHERE leaked").unwrap(), "1");
    assert_eq!(state(host, &disk.vdi), ACTIVE, "it is not said to be free");
    (disk, held)
}

fn destroy_dp(host: &Host, disk: &Disk) -> anyhow::Result<Value> {
    let vdi = &disk.vdi;
    let params = json!({"dp": disk.dp, "sr": vdi.sr, "vdi": vdi.vdi, "vm": "5",
        "allow_leak": false});
    host.rpc().raw("DP.destroy2", &params)
}

#[test]
fn a_leaked_use_is_ended_in_the_background() {
    let host = Host::start().unwrap();
    let (disk, held) = leak(&host);
    drop(held);
    ends(&host, &disk.vdi);
    disk.vdi.destroy(&host.rpc()).unwrap();
}

#[test]
fn a_leaked_use_is_ended_before_the_next_call_of_its_disk_or_its_sr() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let (disk, held) = leak(&host);
    drop(held);
    let other = Disk { dp: "vbd/6/xvda".into(), domid: 6, ..disk.clone() };
    other.attach(&rpc).unwrap();
    other.activate(&rpc).expect("what leaked is not in its way");
    other.remove(&rpc).unwrap();
    let (disk, held) = leak(&host);
    let sr = json!({"sr": disk.vdi.sr});
    let refused = rpc.raw("SR.detach", &sr).unwrap_err().to_string();
    assert!(refused.contains("active"), "{refused}");
    drop(held);
    rpc.raw("SR.detach", &sr).expect("what leaked is not in its way");
}
