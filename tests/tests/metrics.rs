//! `GET /metrics`: what Prometheus would make of it, judged by its own parser.

use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use zerotap_tests::guest::destroy;
use zerotap_tests::harness::openmetrics::{Metrics, parse};
use zerotap_tests::harness::{DEVICE, Disk, Host, eventually};
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::workload::Plan;

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
const REQUESTS: u64 = 1000;

/// A disk whose guest has done its work and closed it; the VBD is still there.
fn worked(host: &Host) -> Disk {
    let disk = host.serve(DOMID, 64 * MIB).unwrap();
    let plan = Plan { requests_max: REQUESTS, ..Plan::default() };
    let guest = Guest { plan, ..Guest::new(DOMID) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&host.rpc()).unwrap();
    running.progresses(1, Duration::from_secs(30)).unwrap();
    let connected = host.metrics().unwrap().value("zerotap_vbd_connected", &[]).unwrap();
    running.join().unwrap();
    assert_eq!(connected, 1.0);
    disk
}

fn take_away(host: &Host, disk: &Disk) {
    disk.unplug(&host.rpc(), false).unwrap();
    destroy(host.sim().dir(), DOMID).unwrap();
    disk.deactivate(&host.rpc()).unwrap();
    disk.detach(&host.rpc()).unwrap();
}

/// Names in the tables of the document, in backquotes at the start of a line.
fn documented() -> BTreeSet<String> {
    let text = include_str!("../../docs/observability.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `zerotap_")?.split('`').next());
    rows.map(|name| format!("zerotap_{name}")).collect()
}

#[test]
fn the_parser_is_a_judge() {
    assert!(parse("# TYPE a counter\na_total 1\n# EOF\n").is_ok());
    for wrong in ["# TYPE a counter\na_total 1\n", "# TYPE a counter\na 1\n# EOF\n"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn each_disk_has_its_series_as_long_as_it_is_there() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = worked(&host);
    let stat = disk.stat(&rpc).unwrap();
    let metrics = host.metrics().unwrap();
    let (sr, vdi) = (disk.vdi.sr.as_str(), disk.vdi.vdi.as_str());
    let labels = [("domid", "5"), ("device", DEVICE), ("sr", sr), ("vdi", vdi)];
    let counters = &stat.counters;
    for (name, wanted) in [
        ("zerotap_vbd_reads_total", counters.reads),
        ("zerotap_vbd_writes_total", counters.writes),
        ("zerotap_vbd_flushes_total", counters.flushes),
        ("zerotap_vbd_read_bytes_total", counters.read_bytes),
        ("zerotap_vbd_written_bytes_total", counters.write_bytes),
        ("zerotap_vbd_mapped_bytes_total", counters.mapped_bytes),
        ("zerotap_vbd_copied_bytes_total", 0),
        ("zerotap_vbd_refused_total", 0),
        ("zerotap_vbd_connected", 0),
        ("zerotap_vbd_trouble", 0),
        ("zerotap_vbd_mapped_pages", 0),
    ] {
        #[expect(clippy::cast_precision_loss, reason = "a test's disk is small")]
        let wanted = wanted as f64;
        assert_eq!(metrics.value(name, &labels).unwrap(), wanted, "{name}");
    }
    let answered = counters.reads + counters.writes + counters.flushes + counters.discards;
    assert_eq!(answered, REQUESTS);
    let kind = |operation| {
        let name = "zerotap_vbd_request_duration_seconds";
        let labels = [("operation", operation), ("vdi", vdi)];
        let last = [("operation", operation), ("vdi", vdi), ("le", "+Inf")];
        let count = metrics.value(&format!("{name}_count"), &labels).unwrap();
        assert_eq!(metrics.value(&format!("{name}_bucket"), &last).unwrap(), count);
        assert!(metrics.value(&format!("{name}_sum"), &labels).unwrap() > 0.0);
        count
    };
    #[expect(clippy::cast_precision_loss, reason = "a test's disk is small")]
    let wanted = [counters.reads, counters.writes, counters.flushes].map(|count| count as f64);
    assert_eq!([kind("read"), kind("write"), kind("flush")], wanted);
    let stage = |stage| {
        let labels = [("stage", stage), ("vdi", vdi)];
        metrics.value("zerotap_vbd_stage_seconds_total", &labels).unwrap()
    };
    let stages = ["held", "pages", "device", "release"].map(stage);
    let latency: f64 = ["read", "write", "flush", "discard"]
        .map(|operation| {
            let labels = [("operation", operation), ("vdi", vdi)];
            metrics.value("zerotap_vbd_request_duration_seconds_sum", &labels).unwrap()
        })
        .iter()
        .sum();
    assert!(stages[2] > 0.0, "the device takes time: {stages:?}");
    let all: f64 = stages.iter().sum();
    assert!((all - latency).abs() < latency * 1e-6, "{stages:?} make up {latency}");
    assert!(metrics.value("zerotap_worker_resident_bytes", &[("vdi", vdi)]).unwrap() > 1e5);
    assert_eq!(metrics.value("zerotap_worker_stale", &[("vdi", vdi)]).unwrap(), 0.0);
    assert!(metrics.value("zerotap_sr_free_bytes", &[("sr", sr)]).unwrap() > 0.0);
    assert!(metrics.value("zerotap_state_writes_total", &[]).unwrap() > 0.0);
    let plugged = [("method", "VBD.plug"), ("outcome", "ok")];
    assert_eq!(metrics.value("zerotap_rpc_calls_total", &plugged).unwrap(), 1.0);
    let names: BTreeSet<String> = metrics.0.keys().cloned().collect();
    assert_eq!(names, documented(), "served on the left, docs/observability.md on the right");

    take_away(&host, &disk);
    let metrics = host.metrics().unwrap();
    assert_eq!(metrics.values_of("vdi"), BTreeSet::new(), "its series are gone");
    assert_eq!(metrics.values_of("sr"), BTreeSet::from([sr.to_owned()]));
    disk.vdi.destroy(&rpc).unwrap();
    rpc.raw("SR.detach", &serde_json::json!({"sr": sr})).unwrap();
    assert_eq!(host.metrics().unwrap().values_of("sr"), BTreeSet::new());
}

#[test]
fn a_worker_that_does_not_answer_holds_nothing_up() {
    let host = Host::start().unwrap();
    let disk = worked(&host);
    let vdi = [("vdi", disk.vdi.vdi.as_str())];
    let reads = |metrics: &Metrics| metrics.value("zerotap_vbd_reads_total", &vdi).unwrap();
    let before = host.metrics().unwrap();
    let pid = disk.worker(&host.rpc()).unwrap().pid;
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    for _ in 0..5 {
        let started = Instant::now();
        let stopped = host.metrics().unwrap();
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        assert_eq!(stopped.value("zerotap_worker_stale", &vdi).unwrap(), 1.0);
        assert!(stopped.value("zerotap_worker_figures_age_seconds", &vdi).unwrap() > 0.0);
        assert_eq!(reads(&stopped), reads(&before), "what it told last");
    }
    kill_process(pid, Signal::CONT).unwrap();
    eventually("it answers again", || {
        Ok((host.metrics()?.value("zerotap_worker_stale", &vdi)? == 0.0).then_some(()))
    })
    .unwrap();
    take_away(&host, &disk);
}

#[test]
fn a_worker_that_dies_is_counted() {
    let host = Host::start().unwrap();
    let disk = host.serve(DOMID, MIB).unwrap();
    let vdi = [("vdi", disk.vdi.vdi.as_str())];
    let before = host.metrics().unwrap();
    assert_eq!(before.value("zerotap_worker_up", &vdi).unwrap(), 1.0);
    assert_eq!(before.value("zerotap_worker_starts_total", &vdi).unwrap(), 1.0);
    assert_eq!(before.value("zerotap_worker_deaths_total", &vdi).unwrap(), 0.0);
    disk.kill_worker(&host.rpc()).unwrap();
    eventually("its death is counted", || {
        Ok((host.metrics()?.value("zerotap_worker_deaths_total", &vdi)? == 1.0).then_some(()))
    })
    .unwrap();
    disk.activate(&host.rpc()).unwrap();
    let after = host.metrics().unwrap();
    assert_eq!(after.value("zerotap_worker_up", &vdi).unwrap(), 1.0);
    assert_eq!(after.value("zerotap_worker_starts_total", &vdi).unwrap(), 2.0);
}
