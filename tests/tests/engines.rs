//! Which I/O engine workers use, what the configuration has to say in it, and who is told.

use std::time::Duration;
use zerotap_rpc_schema::admin::HostStatus;
use zerotap_rpc_schema::engine::EngineKind;
use zerotap_rpc_schema::smapi2::NoParams;
use zerotap_rpc_schema::table;
use zerotap_tests::harness::{Host, Rpc, eventually};
use zerotap_tests::simguest::{Expect, Guest, Running};

const MIB: i64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

fn status(rpc: &Rpc) -> HostStatus {
    rpc.call::<table::HostStatusMethod>(&NoParams { dbg: String::new() }).unwrap()
}

#[test]
fn a_worker_takes_the_engine_that_the_configuration_names_and_says_so() {
    for (name, kind) in [("io_uring", EngineKind::IoUring), ("aio", EngineKind::Aio)] {
        let host = Host::start_with(&format!("engine = {name:?}")).unwrap();
        let rpc = host.rpc();
        let told = status(&rpc).engine;
        assert_eq!((told["engine"].as_str(), told["why"].contains("asks for it")), (name, true));
        let disk = host.serve(5, 16 * MIB).unwrap();
        let guest = Running::start(host.sim().dir(), Guest::new(5), Expect::Fresh).unwrap();
        disk.plug(&rpc).unwrap();
        guest.progresses(500, SOON).unwrap();
        assert_eq!(disk.worker(&rpc).unwrap().engine.unwrap().kind, kind);
        let list = host.zerotap(&["worker", "ls"]).unwrap().output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        assert!(list.contains("ENGINE") && list.contains(name), "{list}");
        assert_eq!(guest.stop().unwrap().report.errors, 0);
        let log = host.log();
        let ready = log.lines().find(|line| line.contains("ready")).expect("its first words");
        assert!(ready.contains(name) && ready.contains("asks for it"), "{ready}");
    }
}

#[test]
fn queues_look_before_they_sleep_unless_the_configuration_says_no() {
    for (line, polling) in [("", true), ("polling = true", true), ("polling = false", false)] {
        let host = Host::start_with(line).unwrap();
        let disk = host.serve(5, 16 * MIB).unwrap();
        let guest = Running::start(host.sim().dir(), Guest::new(5), Expect::Fresh).unwrap();
        disk.plug(&host.rpc()).unwrap();
        guest.progresses(500, SOON).unwrap();
        let held = format!("/proc/{}/fd", disk.worker(&host.rpc()).unwrap().pid);
        let held = std::fs::read_dir(held).unwrap().map(|it| it.unwrap().path().read_link());
        let told = held.flatten().filter(|file| file.ends_with("proc/stat")).count();
        assert_eq!(told, usize::from(polling), "how idle the host is");
        assert_eq!(guest.stop().unwrap().report.errors, 0);
        let log = host.log();
        let ready = log.lines().find(|line| line.contains("ready")).expect("its first words");
        assert!(ready.contains(&format!("polling={polling}")), "{ready}");
    }
}

#[test]
fn the_choice_is_io_uring_where_it_will_do() {
    let host = Host::start_with("engine = \"auto\"").unwrap();
    let told = status(&host.rpc()).engine;
    assert_eq!(told["engine"], "io_uring");
    assert!(told["why"].contains("has all of it"), "{told:?}");
    assert!(!told["kernel"].is_empty());
}

#[test]
fn a_host_whose_workers_cannot_start_says_so_before_it_is_asked_for_one() {
    let host = Host::start_with("engine = \"aio\"\nworker_program = \"/nowhere\"").unwrap();
    let status = status(&host.rpc());
    assert_eq!(status.engine["engine"], "none");
    let trouble = status.trouble.iter().find(|trouble| trouble.what == "I/O engine").unwrap();
    assert!(trouble.problem.contains("/nowhere"), "{trouble:?}");
    eventually("the log tells too", || {
        Ok(host.log().contains("no worker can start").then_some(()))
    })
    .unwrap();
}
