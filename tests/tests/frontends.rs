//! What front ends and other toolstacks write into xenstore: XAPI's kind of disk, garbage, floods.

use anyhow::Context as _;
use serde_json::json;
use std::time::{Duration, Instant};
use zerotap_rpc_schema::smapi2::{Backend, Implementation, VdiAttachParams};
use zerotap_rpc_schema::table;
use zerotap_tests::blkfront::{Blkfront, Options, state};
use zerotap_tests::guest::Domain;
use zerotap_tests::harness::{Disk, Host, eventually};
use zerotap_tests::simguest::{Expect, Guest, Running, live};
use zerotap_tests::workload::{Plan, Progress};
use zerotap_tests::xenopsd::add_vbd;

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
const DEVID: u32 = 51712;
const SOON: Duration = Duration::from_secs(30);

fn requests(requests_max: u64) -> Plan {
    Plan { requests_max, ..Plan::default() }
}

/// What `VDI.attach3` says a toolstack should write.
fn attach(host: &Host, disk: &Disk) -> (String, String) {
    let p = disk.params();
    let params =
        VdiAttachParams { dbg: p.dbg, dp: p.dp, sr: p.sr, vdi: p.vdi, vm: p.vm, read_write: true };
    let Backend { implementations } = host.rpc().call::<table::VdiAttach>(&params).unwrap();
    let xen_disk = implementations.into_iter().find_map(|implementation| match implementation {
        Implementation::XenDisk(xen_disk) => Some(xen_disk),
        _ => None,
    });
    let xen_disk = xen_disk.expect("a XenDisk");
    (xen_disk.backend_type, xen_disk.params)
}

#[test]
fn xapis_kind_of_disk_waits_for_the_hotplug_script() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    for (domid_key, params_key) in [("qemu", "qemu-params"), ("plain", "params")] {
        let vdi = host.create_vdi(8 * MIB).unwrap();
        let disk = Disk { dp: format!("vbd/5/{domid_key}"), domid: DOMID, read_only: false, vdi };
        let (kind, params) = attach(&host, &disk);
        assert_eq!(kind, "qdisk");
        disk.activate(&rpc).unwrap();
        let domain = Domain::create(host.sim().dir(), DOMID, 64 << 20, true).unwrap();
        let mut dom0 = host.sim().toolstack().unwrap();
        let backend =
            add_vbd(&mut dom0, (DOMID, DEVID), &kind, "w", &[(params_key, &params)]).unwrap();
        eventually("the VBD is listed", || {
            let list = rpc.raw("VBD.list", &json!({}))?;
            Ok((list.as_array().map(Vec::len) == Some(1)).then_some(()))
        })
        .unwrap();
        assert_eq!(dom0.read(&format!("{backend}/state")).unwrap(), "1", "not before the script");
        dom0.write(&format!("{backend}/hotplug-status"), "connected").unwrap();
        let guest = Guest { plan: requests(300), ..Guest::new(DOMID) };
        let ended = live(domain, &guest, Expect::Fresh, &Progress::default()).unwrap();
        assert_eq!(ended.report.errors, 0);
        // The toolstack takes it away.
        dom0.write(&format!("{backend}/online"), "0").unwrap();
        eventually("closed", || Ok((dom0.read(&format!("{backend}/state"))? == "6").then_some(())))
            .unwrap();
        dom0.remove(&backend).unwrap();
        eventually("the VBD is forgotten", || {
            Ok((rpc.raw("VBD.list", &json!({}))? == json!([])).then_some(()))
        })
        .unwrap();
        disk.remove(&rpc).unwrap();
        zerotap_tests::guest::destroy(host.sim().dir(), DOMID).unwrap();
    }
}

#[test]
fn a_backend_directory_that_names_no_vdi_is_told_of_and_harms_nobody() {
    let host = Host::start().unwrap();
    let mut dom0 = host.sim().toolstack().unwrap();
    let _domain = Domain::create(host.sim().dir(), DOMID, 1 << 20, true).unwrap();
    add_vbd(&mut dom0, (DOMID, DEVID), "zerotap", "w", &[("params", "zerotap:no/such")]).unwrap();
    let list = eventually("the VBD is listed with its trouble", || {
        let list = host.rpc().raw("VBD.list", &json!({}))?;
        Ok(list[0]["trouble"].is_string().then_some(list))
    });
    let list = list.unwrap();
    assert_eq!(list[0]["domid"], json!(DOMID));
    serves_another(&host, 6);
}

/// Proves that the daemon and its other disks are well.
fn serves_another(host: &Host, domid: u16) {
    let disk = host.serve(domid, 4 * MIB).unwrap();
    let guest = Guest { plan: requests(100), ..Guest::new(domid) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&host.rpc()).unwrap();
    running.join().unwrap();
    disk.unplug(&host.rpc(), false).unwrap();
    disk.remove(&host.rpc()).unwrap();
    zerotap_tests::guest::destroy(host.sim().dir(), domid).unwrap();
}

#[test]
fn garbage_in_the_frontends_directory_connects_nothing() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(DOMID, 8 * MIB).unwrap();
    let domain = Domain::create(host.sim().dir(), DOMID, 64 << 20, true).unwrap();
    disk.plug(&rpc).unwrap();
    let mut front = Blkfront::announce(domain, Options::default()).unwrap();
    front.wait_backend(&[state::INIT_WAIT]).unwrap();
    front.publish().unwrap();
    // What publish wrote is right: state 3 makes the back end connect. Undo, and lie instead.
    front.wait_backend(&[state::CONNECTED]).unwrap();
    let dir = format!("device/vbd/{DEVID}");
    let right: Vec<(&str, Option<String>)> =
        ["ring-ref", "ring-page-order", "event-channel", "protocol", "feature-persistent"]
            .into_iter()
            .map(|key| (key, front.xenstore().read_optional(&format!("{dir}/{key}")).unwrap()))
            .collect();
    let huge = "9".repeat(300);
    let lies: [(&str, &str); 17] = [
        ("ring-ref", ""),
        ("ring-ref", "x"),
        ("ring-ref", "-1"),
        ("ring-ref", "4294967296"),
        ("ring-ref", " 8"),
        ("ring-ref", "8\0\0"),
        ("ring-ref", &huge),
        ("ring-ref", "31000"),
        ("ring-page-order", "5"),
        ("ring-page-order", "4294967295"),
        ("ring-page-order", "two"),
        ("event-channel", "0"),
        ("event-channel", "70000"),
        ("event-channel", "\u{1}\u{2}"),
        ("protocol", "x86_128-abi"),
        ("protocol", &huge),
        ("feature-persistent", "perhaps"),
    ];
    for (key, lie) in lies {
        front.set_state(state::INITIALISING).unwrap();
        front.wait_backend(&[state::INIT_WAIT]).unwrap();
        for (key, value) in &right {
            let path = format!("{dir}/{key}");
            match value {
                Some(value) => front.xenstore().write(&path, value).unwrap(),
                None => front.xenstore().remove(&path).unwrap(),
            }
        }
        front.xenstore().write(&format!("{dir}/{key}"), lie).unwrap();
        front.set_state(state::INITIALISED).unwrap();
        let what = format!("{key} = {:?}", lie.get(..20).unwrap_or(lie));
        let seen = eventually(&format!("{what} is told of or ignored"), || {
            let stat = disk.stat(&rpc)?;
            let told = stat.vbd.trouble.is_some();
            Ok((told || stat.vbd.state == "connected").then_some(stat.vbd))
        });
        let vbd = seen.unwrap();
        // Only this one can be taken for a plain «no».
        let harmless = key == "feature-persistent";
        assert!(vbd.state != "connected" || harmless, "{what}: {vbd:?}");
    }
    // Told the truth at last, it connects.
    front.set_state(state::INITIALISING).unwrap();
    front.wait_backend(&[state::INIT_WAIT]).unwrap();
    for (key, value) in &right {
        let path = format!("{dir}/{key}");
        match value {
            Some(value) => front.xenstore().write(&path, value).unwrap(),
            None => front.xenstore().remove(&path).unwrap(),
        }
    }
    front.set_state(state::INITIALISED).unwrap();
    front.wait_backend(&[state::CONNECTED]).unwrap();
    assert_eq!(disk.stat(&rpc).unwrap().vbd.trouble, None);
    front.set_state(state::CONNECTED).unwrap();
    front.close().unwrap();
    disk.unplug(&rpc, false).unwrap();
    disk.remove(&rpc).unwrap();
}

#[test]
fn states_that_make_no_sense_disturb_nobody() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(DOMID, 8 * MIB).unwrap();
    let domain = Domain::create(host.sim().dir(), DOMID, 64 << 20, true).unwrap();
    disk.plug(&rpc).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    let path = format!("device/vbd/{DEVID}/state");
    for odd in ["", "x", "-4", "99", "4294967300", "7", "8", "4.0", "\0", "4 "] {
        front.xenstore().write(&path, odd).unwrap();
    }
    front.xenstore().write(&path, 4).unwrap();
    // A round trip through the daemon after all of these: it is still serving this very ring.
    serves_another(&host, 6);
    let stat = disk.stat(&rpc).unwrap();
    assert_eq!(stat.vbd.state, "connected", "{stat:?}");
    front.close().unwrap();
    disk.unplug(&rpc, false).unwrap();
}

#[test]
fn a_flood_of_writes_to_its_own_state_keeps_nobody_waiting() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(DOMID, 8 * MIB).unwrap();
    let domain = Domain::create(host.sim().dir(), DOMID, 64 << 20, true).unwrap();
    disk.plug(&rpc).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    let rss = || -> anyhow::Result<u64> {
        let pid = host.daemon_pid().context("the daemon")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
    };
    let before = rss().unwrap();
    let mut longest = Duration::ZERO;
    for n in 0..20_000 {
        front.xenstore().write(&format!("device/vbd/{DEVID}/state"), 4).unwrap();
        if n % 2000 == 0 {
            let asked = Instant::now();
            disk.stat(&rpc).unwrap();
            longest = longest.max(asked.elapsed());
        }
    }
    assert!(longest < SOON / 10, "a call took {longest:?} meanwhile");
    let grown = rss().unwrap().saturating_sub(before);
    assert!(grown < 64 * 1024, "the daemon grew by {grown} KiB");
    serves_another(&host, 6);
    front.close().unwrap();
}

#[test]
fn quick_toggling_ends_in_a_working_disk() {
    let host = Host::start().unwrap();
    let disk = host.serve(DOMID, 8 * MIB).unwrap();
    let domain = Domain::create(host.sim().dir(), DOMID, 64 << 20, true).unwrap();
    disk.plug(&host.rpc()).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    for n in 0..500u32 {
        front.set_state([1, 3, 4, 5, 6][n as usize % 5]).unwrap();
    }
    front.set_state(state::CLOSING).unwrap();
    front.wait_backend(&[state::CLOSING, state::CLOSED]).unwrap();
    front.close().unwrap();
    front.set_state(state::INITIALISING).unwrap();
    front.negotiate().unwrap();
    let mut model = zerotap_tests::workload::Model::fresh(1, front.disk().sectors);
    let progress = Progress::default();
    zerotap_tests::workload::run(&mut front, &mut model, &requests(200), &progress).unwrap();
    front.close().unwrap();
    disk.unplug(&host.rpc(), false).unwrap();
}
