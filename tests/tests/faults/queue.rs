//! A disk's life through XAPI's message switch, while the daemon or the switch is killed at each
//! step of it.

use crate::life::Life;
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use zerotap_tests::harness::faults::Faults;
use zerotap_tests::harness::{Host, Vdi, eventually};
use zerotap_tests::message_switch::{Caller, Switch};

/// Who is killed at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nobody.
    Nothing,
    /// The daemon.
    Daemon,
    /// The switch, which keeps its persistent queues.
    Switch,
    /// The switch, which loses them.
    SwitchWithQueues,
}

/// A host whose daemon serves the queue of a switch.
pub(crate) struct Site {
    pub(crate) switch: Switch,
    pub(crate) host: Host,
}

impl Site {
    pub(crate) fn start() -> Site {
        let room = tempfile::tempdir().unwrap().keep();
        let switch = Switch::start(&room.join("switch")).unwrap();
        let text = format!(
            "[message_switch]\nenabled = true\nsocket = {:?}\nstorage_scripts = {room:?}\n",
            switch.socket()
        );
        let host = Host::start_with(&text).unwrap();
        Site { switch, host }
    }
}

/// A caller that comes back after its switch has gone, and asks again.
pub(crate) struct Stubborn<'a> {
    switch: &'a std::path::Path,
    caller: Option<Caller>,
}

impl Stubborn<'_> {
    pub(crate) fn new(switch: &std::path::Path) -> Stubborn<'_> {
        Stubborn { switch, caller: None }
    }

    pub(crate) fn ask(&mut self, method: &str, params: &Value) -> anyhow::Result<Value> {
        eventually(method, || {
            let mut caller = match self.caller.take() {
                Some(caller) => caller,
                None => Caller::connect(self.switch)?,
            };
            let answer = caller.call(method, params)?;
            self.caller = Some(caller);
            Ok(Some(answer))
        })?
        .map_err(|error| anyhow::anyhow!("{method} {params}: {error}"))
    }
}

/// The keys of an SR's volumes.
fn keys(xapi: &mut Stubborn<'_>, sr: &str) -> anyhow::Result<Vec<String>> {
    let scan = xapi.ask("SR.scan2", &json!({"dbg": "t", "sr": sr}))?;
    let volumes = scan[0].as_array().context("volumes")?;
    volumes.iter().map(|it| Ok(it["vdi"].as_str().context("a key")?.to_owned())).collect()
}

/// From create to destroy. `once`: the switch keeps what it was told, so that each call is done
/// once, whatever becomes of the daemon.
fn live(switch: &std::path::Path, sr: &str, once: bool) -> anyhow::Result<()> {
    let mut xapi = Stubborn::new(switch);
    let info = json!({"vdi": "", "name_label": "queue", "virtual_size": 1 << 20});
    let made = xapi.ask("VDI.create", &json!({"dbg": "t", "sr": sr, "vdi_info": info}))?;
    let vdi = made["vdi"].as_str().context("a key")?;
    let dp = json!({"dbg": "t", "dp": "vbd/5/xvda", "sr": sr, "vdi": vdi, "vm": "5"});
    let mut attach = dp.clone();
    attach["read_write"] = json!(true);
    xapi.ask("VDI.attach3", &attach)?;
    xapi.ask("VDI.activate3", &dp)?;
    let stat = xapi.ask("VDI.stat", &json!({"dbg": "t", "sr": sr, "vdi": vdi}))?;
    ensure!(stat["vdi"] == vdi, "{stat}");
    xapi.ask("VDI.deactivate", &dp)?;
    xapi.ask("VDI.detach", &dp)?;
    for method in ["VDI.snapshot", "VDI.clone"] {
        let info = json!({"vdi": vdi, "name_label": "copy", "virtual_size": 0, "uuid": vdi});
        xapi.ask(method, &json!({"dbg": "t", "sr": sr, "vdi_info": info}))?;
    }
    let keys = keys(&mut xapi, sr)?;
    ensure!(keys.len() == 3 || !once, "a disk, a snapshot and a clone, and not {keys:?}");
    for vdi in keys {
        xapi.ask("VDI.destroy", &json!({"dbg": "t", "sr": sr, "vdi": vdi}))?;
    }
    Ok(())
}

/// A life with `fault` at point `number`; the points that were passed.
pub(crate) fn with(site: &mut Site, faults: &Faults, fault: Fault, number: usize) -> Vec<String> {
    let Site { switch, host } = site;
    let (sr, sr_dir) = host.create_sr().unwrap();
    match fault {
        Fault::Nothing => faults.watch().unwrap(),
        Fault::Daemon => faults.arm(number).unwrap(),
        Fault::Switch | Fault::SwitchWithQueues => faults.arm_hold(number).unwrap(),
    }
    let (socket, once) = (switch.socket().to_owned(), fault == Fault::Daemon);
    let mut passed = Vec::new();
    std::thread::scope(|scope| {
        let life = scope.spawn(|| live(&socket, &sr, once));
        while !life.is_finished() {
            if fault == Fault::Daemon && host.daemon_has_ended().unwrap() {
                passed = faults.disarm().unwrap();
                host.start_daemon_over_faults(faults).unwrap();
            }
            if faults.holds(number).unwrap() {
                switch.restart(fault == Fault::Switch).unwrap();
                passed = faults.disarm().unwrap();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let place = || format!("{fault:?} at point {number} of {passed:?}");
        life.join().unwrap().unwrap_or_else(|error| panic!("{}: {error:#}", place()));
    });
    if passed.is_empty() {
        passed = faults.disarm().unwrap();
        if fault == Fault::Daemon && passed.len() >= number {
            host.start_daemon_over_faults(faults).unwrap();
        }
    }
    eventually("every message is acknowledged", || Ok((switch.waiting() == 0).then_some(())))
        .unwrap();
    let place = || format!("{fault:?} at point {number} of {passed:?}");
    switch.check().unwrap_or_else(|error| panic!("{}: {error:#}", place()));
    let life = Life::of(&Vdi { sr, sr_dir, vdi: "none".into() });
    life.end(host).unwrap_or_else(|error| panic!("{}: {error:#}", place()));
    passed
}

fn queues_survive(fault: Fault) {
    let mut site = Site::start();
    let faults = site.host.faults().unwrap();
    let passed = with(&mut site, &faults, Fault::Nothing, 0);
    let about_messages = |name: &String| name.contains("message") || name.contains("commit");
    let numbers = (1..).zip(&passed).filter(|(_, name)| about_messages(name));
    let numbers: Vec<usize> = numbers.map(|(number, _)| number).collect();
    assert!(numbers.len() >= 20, "{passed:?}");
    for number in numbers {
        let passed = with(&mut site, &faults, fault, number);
        println!("{fault:?} at point {number} of {passed:?}");
    }
}

#[test]
fn calls_survive_every_death_of_the_daemon() {
    queues_survive(Fault::Daemon);
}

#[test]
fn calls_survive_every_death_of_the_switch() {
    queues_survive(Fault::Switch);
}

#[test]
fn calls_survive_every_death_of_the_switch_with_its_queues() {
    queues_survive(Fault::SwitchWithQueues);
}
