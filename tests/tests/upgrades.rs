//! `zerotap worker upgrade` under verified I/O: guests see a pause, no error, and every byte,
//! whoever dies meanwhile.

use serde_json::{Value, json};
use std::time::Duration;
use zerotap_tests::blkfront::Options;
use zerotap_tests::harness::busy::{boot, bury, finish, spin, successor};
use zerotap_tests::harness::nbd::Client;
use zerotap_tests::harness::{Disk, Host, eventually, kill_worker};
use zerotap_tests::installed::{Installed, installation};
use zerotap_tests::simguest::Running;
use zerotap_tests::workload::random::Random;

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
const SOON: Duration = Duration::from_secs(60);
const UPGRADES: usize = 20;

struct Site {
    installed: Installed,
    host: Host,
    disk: Disk,
    running: Running,
}

/// A guest at work, by a worker of the installation `upgrade-0`.
fn site(options: Options) -> Site {
    let installed = Installed::new("upgrade-0").unwrap();
    let host = Host::start_with(&installed.configuration()).unwrap();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let running = boot(&host, &disk, options);
    Site { installed, host, disk, running }
}

impl Site {
    fn pid(&self) -> u32 {
        self.disk.worker(&self.host.rpc()).unwrap().pid
    }

    fn params(&self) -> Value {
        serde_json::to_value(self.disk.vdi.params()).unwrap()
    }

    fn finish(self) {
        finish(&self.host, &self.disk, self.running);
    }
}

/// `zerotap worker upgrade`, which must succeed: what it says.
fn upgrade(host: &Host, which: &str) -> Vec<Value> {
    let output = host.zerotap(&["--json", "worker", "upgrade", which]).unwrap().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn upgraded_often(options: Options) {
    let site = site(options);
    for n in 1..=UPGRADES {
        let (name, former) = (format!("upgrade-{n}"), site.pid());
        site.installed.install(&name, "").unwrap();
        let told = upgrade(&site.host, &site.disk.vdi.vdi);
        let now = site.pid();
        assert_eq!((told.len(), &told[0]["pid"]), (1, &now.into()));
        assert_eq!(told[0]["state"], "serving");
        assert_eq!(installation(now), Some(name));
        assert_ne!(now, former);
        let gone = installation(former).is_none_or(|it| it != format!("upgrade-{}", n - 1));
        assert!(gone, "the former worker has ended when the call is answered");
        site.running.progresses(20, SOON).unwrap();
    }
    let stat = site.disk.stat(&site.host.rpc()).unwrap();
    assert_eq!((stat.vbd.state.as_str(), stat.vbd.trouble), ("connected", None));
    assert!(!site.host.log().contains("panicked"), "{}", site.host.log());
    site.finish();
}

#[test]
fn a_guest_with_persistent_grants_goes_on_through_upgrades() {
    upgraded_often(Options::default());
}

#[test]
fn a_guest_without_persistent_grants_goes_on_through_upgrades() {
    upgraded_often(Options { persistent: false, ..Options::default() });
}

#[test]
fn a_guest_with_many_queues_and_large_rings_goes_on_through_upgrades() {
    upgraded_often(Options { queues: 4, ring_order: 2, ..Options::default() });
}

#[test]
fn all_workers_are_upgraded_one_after_the_other() {
    let installed = Installed::new("first").unwrap();
    let host = Host::start_with(&installed.configuration()).unwrap();
    let disks = [DOMID, DOMID + 1].map(|domid| host.serve(domid, 16 * MIB).unwrap());
    let guests = disks.each_ref().map(|disk| boot(&host, disk, Options::default()));
    // One that has no guest, and readers that share one.
    let idle = host.serve(DOMID + 2, MIB).unwrap();
    let shared = host.create_vdi(MIB).unwrap();
    let readers = [7, 8].map(|domid| shared.serve(&host.rpc(), domid, true).unwrap());
    installed.install("second", "").unwrap();
    let told = upgrade(&host, "--all");
    assert_eq!(told.len(), 4, "{told:?}");
    for disk in disks.iter().chain([&idle, &readers[0]]) {
        let worker = disk.worker(&host.rpc()).unwrap();
        assert_eq!(installation(worker.pid).as_deref(), Some("second"), "{worker:?}");
    }
    for running in &guests {
        running.progresses(50, SOON).unwrap();
    }
    for (disk, running) in disks.iter().zip(guests) {
        bury(&host, disk, running);
    }
    idle.remove(&host.rpc()).unwrap();
    assert_eq!(upgrade(&host, "--all").len(), 1, "the readers' is left");
    for disk in &readers {
        disk.deactivate(&host.rpc()).unwrap();
    }
    assert_eq!(upgrade(&host, "--all"), [Value::Null; 0], "nothing to do is no failure");
}

/// What the command says, which must fail.
fn refused(host: &Host, which: &[&str]) -> String {
    let output = host.zerotap(&["worker", "upgrade"]).unwrap().args(which).output().unwrap();
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_cannot_be_upgraded_is_refused_and_goes_on_as_it_was() {
    let site = site(Options::default());
    let (host, vdi, before) = (&site.host, site.disk.vdi.vdi.as_str(), site.pid());
    for (script, words) in [
        ("exit 7", ["cannot replace the worker of VDI", vdi, "exited with status 7"]),
        ("exec sleep 100", ["cannot replace the worker of VDI", vdi, "has not answered hello"]),
    ] {
        site.installed.install_script(script).unwrap();
        let said = refused(host, &[vdi]);
        assert!(words.iter().all(|word| said.contains(word)), "{script}: {said}");
        assert_eq!(site.pid(), before);
        site.running.progresses(50, SOON).unwrap();
    }
    std::fs::remove_file(site.installed.program()).unwrap();
    let said = refused(host, &[vdi]);
    let program = site.installed.program().display().to_string();
    assert!(said.contains(&format!("cannot start {program}: No such file")), "{said}");
    assert_eq!(site.pid(), before);
    let rows = host.rpc().raw("Worker.list", &json!({})).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");

    let idle = host.create_vdi(MIB).unwrap();
    for (which, words) in [
        (vec![idle.vdi.as_str()], "none serves it. Activate the VDI (VDI.activate3)"),
        (vec!["no-such-vdi"], "no-such-vdi"),
        (vec![], "--all"),
        (vec![vdi, "--all"], "cannot be used with"),
    ] {
        let said = refused(host, &which);
        assert!(said.contains(words), "{which:?}: {said}");
    }
    site.installed.install("second", "").unwrap();
    upgrade(host, vdi);
    site.running.progresses(50, SOON).unwrap();
    site.finish();
}

#[test]
fn the_daemon_dies_at_every_step_of_an_upgrade() {
    let mut site = site(Options::default());
    let faults = site.host.faults().unwrap();
    for number in 1.. {
        let params = site.params();
        faults.arm(number).unwrap();
        let answer = site.host.rpc().raw("Worker.upgrade", &params);
        let passed = faults.disarm().unwrap();
        let killed = passed.len() >= number;
        println!("point {number} of {passed:?}");
        if killed {
            site.host.kill_daemon().unwrap();
            site.host.start_daemon().unwrap();
        } else {
            answer.unwrap();
        }
        site.running.progresses(50, SOON).unwrap_or_else(|e| panic!("{passed:?}: {e:#}"));
        let worker = successor(&site.host, &site.disk, 0);
        let rows = site.host.rpc().raw("Worker.list", &json!({})).unwrap();
        assert_eq!(rows.as_array().unwrap().len(), 1, "{worker} alone, {passed:?}: {rows}");
        let place = site.disk.nbd(&site.host.rpc()).unwrap();
        Client::open(&place).unwrap_or_else(|e| panic!("NBD clients, {passed:?}: {e:#}"));
        if !killed {
            assert!(number > 5, "an upgrade passes few fault points: {passed:?}");
            break;
        }
    }
    site.finish();
}

#[test]
fn a_worker_dies_in_the_middle_of_an_upgrade() {
    let site = site(Options::default());
    let mut random = Random::new(5);
    let (mut cut_short, mut killed_new) = (0, 0);
    for round in 0..12 {
        // Longer than what counts as dying at once, which is made up for ever more seldom.
        spin(Duration::from_secs(1));
        let former = successor(&site.host, &site.disk, 0);
        let before = site.installed.last_started().unwrap();
        let (rpc, params) = (site.host.rpc(), site.params());
        let upgrade = std::thread::spawn(move || rpc.raw("Worker.upgrade", &params));
        if round % 2 == 0 {
            spin(Duration::from_micros(random.below(40_000)));
            // It may have ended by itself.
            kill_worker(former).unwrap();
        } else {
            let new = eventually("another is started", || {
                let last = site.installed.last_started()?;
                Ok((last != before).then_some(last))
            });
            spin(Duration::from_micros(random.below(20_000)));
            kill_worker(new.unwrap()).unwrap();
            killed_new += 1;
        }
        if let Err(error) = upgrade.join().unwrap() {
            let said = format!("{error:#}");
            let known = ["cannot replace the worker", "cannot upgrade the worker", "meanwhile"];
            assert!(known.iter().any(|words| said.contains(words)), "{said}");
            cut_short += 1;
        }
        site.running.progresses(20, SOON).unwrap_or_else(|e| panic!("round {round}: {e:#}"));
    }
    // A death is made up for so well that an upgrade seldom notices.
    println!("{cut_short} upgrades were cut short");
    assert!(killed_new > 0);
    eventually("all is well", || {
        let status = site.host.rpc().raw("Host.status", &json!({}))?;
        Ok((status["trouble"] == json!([])).then_some(()))
    })
    .unwrap();
    site.finish();
}
