//! kill -9 of the daemon between every two steps of every operation, and of its own recovery: every
//! state is true afterwards, the call may be repeated, every byte is in place, nothing is left.
//!
//! Points are counted, not listed: each operation is repeated, killed one point later each time,
//! until it survives.

mod crowd;
mod full;
mod guests;
mod life;
mod operations;
mod queue;

use guests::Midway;
use life::{Life, Stage};
use operations::{OPERATIONS, Operation, READ_ONLY};
use std::collections::BTreeSet;
use std::path::Path;
use zerotap_rpc_schema::table;
use zerotap_tests::harness::Host;
use zerotap_tests::harness::faults::Faults;

/// Passed when a worker of an older protocol is upgraded: `older_workers.rs` dies at each of them.
const OF_OLDER_WORKERS: [&str; 2] = [
    "a worker without journals has answered all that it took",
    "journals are made in which nothing was taken",
];

/// Kills the daemon at each point of an operation in turn.
fn survives(host: &mut Host, faults: &Faults, operation: &Operation) {
    let rpc = host.rpc();
    for number in 1.. {
        let life = Life::at(host, operation.before);
        faults.arm(number).unwrap();
        let answer = rpc.raw(operation.method, &(operation.params)(&life));
        let passed = faults.disarm().unwrap();
        let killed = passed.len() >= number;
        let place = format!("{}, killed at point {number} of {passed:?}", operation.method);
        if killed {
            let deaths = host.start_daemon_over_faults(faults).unwrap();
            println!("{place}, and {deaths} times more when started again");
            life.check(host).unwrap_or_else(|e| panic!("{place}: {e:#}"));
            let again = rpc.raw(operation.method, &(operation.params)(&life));
            if let Err(error) = again {
                let excused = operation.repeated_may_fail_with;
                let text = format!("{error:#}");
                assert!(!excused.is_empty() && text.contains(excused), "{place}: {text}");
            }
        } else {
            answer.unwrap_or_else(|error| panic!("{place}: {error:#}"));
        }
        (operation.holds)(&life, &rpc).unwrap_or_else(|e| panic!("{place}: {e:#}"));
        life.check(host).unwrap_or_else(|e| panic!("{place}, repeated: {e:#}"));
        life.end(host).unwrap_or_else(|e| panic!("{place}, at the end: {e:#}"));
        if !killed {
            assert!(number > 1, "{place}: an operation passes no fault point");
            return;
        }
    }
}

/// Every operation of which `which` is true.
fn all_survive(which: impl Fn(&Operation) -> bool) {
    let mut host = Host::start().unwrap();
    let faults = host.faults().unwrap();
    let chosen: Vec<_> = OPERATIONS.iter().filter(|operation| which(operation)).collect();
    assert!(!chosen.is_empty());
    for operation in chosen {
        survives(&mut host, &faults, operation);
    }
}

#[test]
fn srs_survive_every_fault() {
    all_survive(|operation| operation.method.starts_with("SR."));
}

/// Where another boot left an SR with a disk in use.
#[test]
fn starts_survive_every_fault() {
    let mut host = Host::start().unwrap();
    let faults = host.faults().unwrap();
    for (boot, stage) in [("second", Stage::Attached), ("third", Stage::Active)] {
        let life = Life::at(&host, stage);
        host.kill_daemon().unwrap();
        life.kill_workers().unwrap();
        host.write_boot_id(boot).unwrap();
        let deaths = host.start_daemon_over_faults_from(&faults, 1).unwrap();
        assert!(deaths > 0, "a start passes no fault point");
        life.check(&host).unwrap();
        life.end(&host).unwrap();
    }
}

#[test]
fn volumes_survive_every_fault() {
    all_survive(|operation| !operation.method.starts_with("SR.") && !operation.serves());
}

#[test]
fn datapaths_survive_every_fault() {
    all_survive(Operation::serves);
}

#[test]
fn every_method_that_changes_something_is_among_the_operations() {
    let operations = OPERATIONS.iter().map(|operation| operation.method);
    let known: BTreeSet<&str> = operations.chain(READ_ONLY).chain(guests::METHODS).collect();
    let table: BTreeSet<&str> = table::NAMES.iter().copied().collect();
    assert_eq!(known, table, "operations and READ_ONLY on the left, the method table on the right");
}

/// The names of all fault points in the daemon's source.
fn points_in(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            points_in(&path, found);
        } else {
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text.split("fault::point!(\"").skip(1);
            found.extend(names.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
        }
    }
}

#[test]
fn every_fault_point_is_passed() {
    let mut host = Host::start().unwrap();
    let faults = host.faults().unwrap();
    let mut passed = BTreeSet::new();
    for operation in OPERATIONS {
        let life = Life::at(&host, operation.before);
        faults.watch().unwrap();
        host.rpc().raw(operation.method, &(operation.params)(&life)).unwrap();
        passed.extend(faults.disarm().unwrap());
        life.end(&host).unwrap();
    }
    passed.extend(guests::with(&mut host, &faults, guests::Fault::Nothing, 0, Midway::Pause));
    let mut site = queue::Site::start();
    let faults = site.host.faults().unwrap();
    passed.extend(queue::with(&mut site, &faults, queue::Fault::Nothing, 0));
    passed.extend(OF_OLDER_WORKERS.map(str::to_owned));
    let mut named = BTreeSet::new();
    points_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin/src"), &mut named);
    assert_eq!(named, passed, "points in the source on the left, passed on the right");
}
