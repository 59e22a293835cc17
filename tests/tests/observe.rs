//! What an operator sees while disks live: events as they happen, and who does most.

use serde_json::Value;
use std::time::Duration;
use zerotap_rpc_schema::event::Change;
use zerotap_rpc_schema::smapi2::VdiState;
use zerotap_tests::guest::destroy;
use zerotap_tests::harness::watch::Watch;
use zerotap_tests::harness::{DEVICE, Host};
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::workload::Plan;

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
const SOON: Duration = Duration::from_secs(30);

/// Changes in words.
fn in_words(heard: &[Change]) -> Vec<String> {
    let words = heard.iter().map(|change| match change {
        Change::Sr { state, .. } => format!("sr {state}"),
        Change::Datapath { from, to, .. } => format!("datapath {from} -> {to}"),
        Change::Vbd { state, .. } => format!("vbd {state}"),
        Change::Worker { state, .. } => format!("worker {state}"),
        Change::Lagged { missed } => panic!("{missed} were missed"),
    });
    words.collect()
}

fn boot(host: &Host, plan: Plan) -> (zerotap_tests::harness::Disk, Running) {
    let disk = host.serve(DOMID, 64 * MIB).unwrap();
    let guest = Guest { plan, ..Guest::new(DOMID) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&host.rpc()).unwrap();
    (disk, running)
}

/// `wanted` in this order, whatever else is between.
fn in_order(heard: &[String], wanted: &[&str]) {
    let mut rest = heard.iter();
    for one in wanted {
        assert!(rest.any(|it| it == one), "{one} is missing, or too early, in {heard:?}");
    }
}

#[test]
fn every_change_of_a_disks_life_is_told() {
    let mut host = Host::start().unwrap();
    let mut watch = Watch::start(&host);
    let plan = Plan { requests_max: 200, ..Plan::default() };
    let (disk, running) = boot(&host, plan);
    running.join().unwrap();
    let rpc = host.rpc();
    disk.unplug(&rpc, false).unwrap();
    destroy(host.sim().dir(), DOMID).unwrap();
    disk.remove(&rpc).unwrap();
    let detached = |change: &Change| match change {
        Change::Datapath { to, .. } => *to == VdiState::Detached,
        _ => false,
    };
    let heard = in_words(&watch.until(detached));
    let life = [
        "sr attached",
        "datapath detached -> attached RW",
        "worker started",
        "datapath attached RW -> activated RW",
        "vbd init-wait",
        "vbd connected",
        "vbd closed",
        "vbd gone",
        "datapath activated RW -> attached RW",
        "datapath attached RW -> detached",
    ];
    in_order(&heard, &life);
    assert!(heard.contains(&"worker stopped".to_owned()), "{heard:?}");

    let disk = host.serve(DOMID, MIB).unwrap();
    disk.kill_worker(&rpc).unwrap();
    let died = |change: &Change| matches!(change, Change::Worker { state, .. } if state == "died");
    in_order(&in_words(&watch.until(died)), &["worker started", "worker died"]);
    disk.activate(&rpc).unwrap();
    host.kill_daemon().unwrap();
    watch.fails();
}

#[test]
fn top_and_ls_show_what_a_disk_does_now() {
    let host = Host::start().unwrap();
    let (disk, running) = boot(&host, Plan::default());
    running.progresses(100, SOON).unwrap();
    let run = |args: &[&str]| {
        let output = host.zerotap(args).unwrap().output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let told: Value = serde_json::from_str(&run(&["vbd", "top", "--once", "--json"])).unwrap();
    let [one] = &told.as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!((&one["domid"], &one["device"]), (&DOMID.into(), &DEVICE.into()));
    let more = |key: &str| one[key].as_f64().unwrap() > 0.0;
    assert!(more("reads_per_second") && more("writes_per_second"), "{told}");
    assert!(more("read_bytes_per_second") && more("p50_us") && more("p99_us"), "{told}");
    assert_eq!(one["age_ms"], 0);
    let listed = run(&["vbd", "ls"]);
    let line = listed.lines().nth(1).unwrap();
    assert!(line.contains(" IOPS ") && line.contains(&disk.dp), "{listed}");
    let table = run(&["vbd", "top", "--once", "--sort", "latency"]);
    assert!(table.starts_with("DOMID") && table.contains(&disk.vdi.vdi), "{table}");
    running.progress.stop();
    running.join().unwrap();
    disk.unplug(&host.rpc(), false).unwrap();
}
