//! The registry with a real database and real files, and workers that fail to start or have died.
//! Workers that serve are the scenarios' business (`tests/`).

use super::automaton::superstate;
use super::*;
use crate::events::Events;
use crate::host::Host;
use crate::sr::Srs;
use crate::state::{Datapath, Operation, State, WorkerRow, now};
use crate::worker::journals::Journals;
use crate::worker::{Launcher, Workers};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::engine::EngineSetting;
use zerotap_rpc_schema::smapi2::{Mode, Pairs, VdiInfo, VdiState};
use zerotap_rpc_schema::space::NoSpace;
use zerotap_rpc_schema::worker::TransferRule;

const SR: &str = "8a6b0f4e-0d0c-4f0f-9a31-1f6d0b5a2c77";
const RW: Mode = Mode::ReadWrite;
const RO: Mode = Mode::ReadOnly;

struct Bench {
    dir: tempfile::TempDir,
    registry: Arc<Registry>,
    vdi: VdiId,
}

/// A daemon's core on a directory, as it is after a start, or after one more.
async fn start(dir: &Path) -> Arc<Registry> {
    let state = State::open(&dir.join("state.db"), "boot").await.expect("a database");
    let srs = Srs::restore(state.clone(), false, Events::default()).await.expect("readable");
    let (news, _) = mpsc::channel(1);
    let launcher = Launcher {
        program: dir.join("worker"),
        engine: EngineSetting::Auto,
        dir: dir.join("run"),
        nbd_dir: dir.join("run"),
        journals: Journals { dir: dir.join("run") },
        host: Host::Sim { dir: dir.into() },
        budget: dir.join("budget"),
        mapped_pages_max: 0,
        transfer: TransferRule::Auto,
        no_space: NoSpace::Pause,
        polling: false,
    };
    let workers = Workers::new(news, Events::default());
    let registry = Registry::new(state, Arc::new(srs), workers, launcher, "qdisk".into());
    recover::recover(&registry).await.expect("recovered");
    registry
}

/// With an SR and a VDI in it.
async fn bench() -> Bench {
    let dir = tempfile::tempdir().expect("a directory");
    for part in ["run", "sr"] {
        std::fs::create_dir(dir.path().join(part)).expect("writable");
    }
    let registry = start(dir.path()).await;
    let path = dir.path().join("sr").to_string_lossy().into_owned();
    let config = Pairs::from([("path".into(), path)]);
    let made = registry.srs.create(SR, &config, "sr".into(), String::new());
    made.await.expect("an empty directory");
    let made = registry.create(SR, VdiInfo::new("disk", 1 << 20)).await.expect("room");
    let vdi = VdiId::new(SR, made.vdi);
    Bench { dir, registry, vdi }
}

impl Bench {
    async fn attach(&self, dp: &str, mode: Mode) -> Result<(), StorageError> {
        self.registry.attach(&self.vdi, dp.into(), "5".into(), mode).await.map(|_| ())
    }

    async fn superstate(&self) -> VdiState {
        let stat = self.registry.stat(&self.vdi).await.expect("an attached SR");
        assert_eq!(stat.superstate, superstate(stat.dps.values().copied()));
        stat.superstate
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("sr").join(format!("{}.raw", self.vdi.vdi))
    }

    /// As if `dp` had it active, served by the process of `pid`.
    async fn pretend_active(&self, dp: &str, pid: u32) {
        let activated = Datapath {
            dp: dp.into(),
            domain: "5".into(),
            state: VdiState::Activated(RW),
            since: now(),
            leaked: false,
        };
        let row = WorkerRow {
            id: "0123456789ab".into(),
            vdi: self.vdi.clone(),
            pid,
            start_time: 1,
            socket: self.dir.path().join("run/0123456789ab.sock").to_string_lossy().into_owned(),
            version: "1".into(),
            read_only: false,
            since: now(),
        };
        let operation = Operation::Activate { worker: row.id.clone() };
        let intent = self.registry.state.begin(&self.vdi, &operation).await.expect("begun");
        let settled = self.registry.state.settle_with_worker(intent, &row, &activated).await;
        settled.expect("settled");
    }
}

#[tokio::test]
async fn calls_are_idempotent_and_the_unknown_is_gone_already() {
    let bench = bench().await;
    let Bench { registry, vdi, .. } = &bench;
    for _ in 0..2 {
        bench.attach("dp", RW).await.expect("free");
        assert_eq!(bench.superstate().await, VdiState::Attached(RW));
    }
    bench.attach("dp", RO).await.expect("who may write may read");
    assert_eq!(bench.superstate().await, VdiState::Attached(RW));
    registry.attach_info(vdi, "dp").await.expect("attached");
    for _ in 0..2 {
        registry.deactivate(vdi, "dp".into()).await.expect("not active");
        registry.detach(vdi, "dp".into()).await.expect("attached only");
        registry.destroy_datapath(vdi, "dp".into(), false).await.expect("gone");
        assert_eq!(bench.superstate().await, VdiState::Detached);
    }
    assert!(registry.attach_info(vdi, "dp").await.is_err());
    for _ in 0..2 {
        registry.destroy(vdi).await.expect("unused");
    }
    let nowhere = VdiId::new("nowhere", "vdi");
    registry.deactivate(&nowhere, "dp".into()).await.expect("unknown");
    registry.detach(&nowhere, "dp".into()).await.expect("unknown");
    registry.destroy_datapath(&nowhere, "dp".into(), false).await.expect("unknown");
    let unattached = Err(StorageError::SrNotAttached("nowhere".into()));
    assert_eq!(registry.destroy(&nowhere).await, unattached);
    assert_eq!(bench.attach("dp", RW).await, Err(StorageError::VdiDoesNotExist(vdi.vdi.clone())));
}

#[tokio::test]
async fn names_and_numbers_of_datapaths_are_bounded() {
    let bench = bench().await;
    for name in ["", "a\nb", &"x".repeat(257)] {
        let error = bench.attach(name, RO).await.expect_err("no name");
        assert_eq!(error.code(), 143, "{error}");
    }
    for n in 0..64 {
        bench.attach(&format!("dp{n}"), RO).await.expect("readers share");
    }
    bench.attach("dp0", RO).await.expect("it is one of them");
    assert!(bench.attach("dp64", RO).await.is_err());
    assert_eq!(bench.superstate().await, VdiState::Attached(RO));
    let error = bench.attach("writer", RW).await.expect_err("readers are in the way");
    assert_eq!(error.code(), 24);
}

#[tokio::test]
async fn many_are_attached_to_write_and_one_is_active() {
    let bench = bench().await;
    let attempts = (0..20).map(|n| {
        let (registry, vdi) = (Arc::clone(&bench.registry), bench.vdi.clone());
        tokio::spawn(async move { registry.attach(&vdi, format!("dp{n}"), "5".into(), RW).await })
    });
    for attempt in attempts.collect::<Vec<_>>() {
        attempt.await.expect("no panic").expect("attached is not active");
    }
    bench.pretend_active("dp0", std::process::id()).await;
    let second = bench.registry.activate(&bench.vdi, "dp1".into(), false).await;
    let second = second.expect_err("dp0 writes");
    assert!(second.code() == 24 && second.to_string().contains("datapath dp0"), "{second}");
    let destroyed = bench.registry.destroy(&bench.vdi).await.expect_err("in use").to_string();
    assert!(destroyed.contains("of domain 5"), "{destroyed}");
}

#[tokio::test]
async fn a_worker_that_does_not_start_leaves_nothing_behind() {
    let bench = bench().await;
    let Bench { registry, vdi, dir } = &bench;
    bench.attach("dp", RW).await.expect("free");
    let error = registry.activate(vdi, "dp".into(), false).await.expect_err("no program");
    assert!(error.to_string().contains("cannot start"), "{error}");
    std::os::unix::fs::symlink("/bin/false", dir.path().join("worker")).expect("writable");
    let error = registry.activate(vdi, "dp".into(), false).await.expect_err("it ends");
    assert!(error.to_string().contains("exited with status 1"), "{error}");
    assert_eq!(bench.superstate().await, VdiState::Attached(RW));
    assert_eq!(registry.state.intents().await.expect("readable"), []);
    assert_eq!(std::fs::read_dir(dir.path().join("run")).expect("a directory").count(), 0);
    // Nobody holds the fence.
    let data = File::open(bench.data()).expect("there");
    rustix::fs::flock(&data, FlockOperation::NonBlockingLockExclusive).expect("free");
    let illegal = registry.activate(vdi, "dp".into(), true).await;
    assert!(matches!(illegal, Err(StorageError::IllegalTransition(_))), "{illegal:?}");
    let illegal = registry.activate(vdi, "stranger".into(), false).await;
    assert!(matches!(illegal, Err(StorageError::IllegalTransition(_))), "{illegal:?}");
}

#[tokio::test]
async fn an_image_that_is_not_as_its_record_says_is_not_activated() {
    let bench = bench().await;
    bench.attach("dp", RW).await.expect("free");
    let data = File::options().write(true).open(bench.data()).expect("there");
    data.set_len(4096).expect("writable");
    let error = bench.registry.activate(&bench.vdi, "dp".into(), false).await.expect_err("short");
    assert!(error.to_string().contains("shrunk"), "{error}");
    std::fs::remove_file(bench.data()).expect("removable");
    let error = bench.registry.activate(&bench.vdi, "dp".into(), false).await.expect_err("gone");
    assert!(error.to_string().contains("vanished"), "{error}");
    // Another VDI of the same SR is none the worse for it.
    let other = bench.registry.create(SR, VdiInfo::new("other", 4096)).await.expect("room");
    bench.registry.destroy(&VdiId::new(SR, other.vdi)).await.expect("unused");
}

#[tokio::test]
async fn a_dead_worker_is_found_at_the_next_start() {
    let bench = bench().await;
    bench.pretend_active("dp", u32::MAX / 2).await;
    let registry = start(bench.dir.path()).await;
    assert!(registry.worker(&bench.vdi).is_none());
    let entries = registry.all_workers();
    assert!(entries[0].trouble().is_some_and(|why| why.contains("daemon was away")));
    assert!(registry.srs.detach(SR).await.expect_err("active").to_string().contains("dp"));
    // Ours has a pid, and another start time: it is not that worker, and lives on.
    for _ in 0..2 {
        registry.deactivate(&bench.vdi, "dp".into()).await.expect("dead already");
    }
    assert_eq!(registry.state.workers().await.expect("readable"), []);
    assert_eq!(bench.superstate().await, VdiState::Attached(RW));
    registry.srs.detach(SR).await.expect("attached datapaths go with it");
    assert_eq!(registry.state.all_datapaths().await.expect("readable"), []);
}

#[tokio::test]
async fn another_process_with_the_workers_pid_is_left_alone() {
    let bench = bench().await;
    bench.pretend_active("dp", std::process::id()).await;
    let registry = start(bench.dir.path()).await;
    registry.destroy_datapath(&bench.vdi, "dp".into(), false).await.expect("we are still here");
    assert_eq!(bench.superstate().await, VdiState::Detached);
}

#[tokio::test]
async fn what_was_begun_is_settled_at_the_next_start() {
    let bench = bench().await;
    let Bench { registry, vdi, dir } = &bench;
    let sr = dir.path().join("sr");
    let state = &registry.state;
    // Killed between data and record of a new volume.
    let half = VdiId::new(SR, "half");
    state.begin(&half, &Operation::CreateVdi).await.expect("begun");
    std::fs::write(sr.join("half.raw"), "").expect("writable");
    // Killed between record and data of one that goes.
    let rest = VdiId::new(SR, "rest");
    state.begin(&rest, &Operation::DestroyVdi).await.expect("begun");
    std::fs::write(sr.join("rest.raw"), "").expect("writable");
    // Killed between data and record of one that grows.
    state.begin(vdi, &Operation::ResizeVdi { size: 2 << 20 }).await.expect("begun");
    File::options()
        .write(true)
        .open(bench.data())
        .and_then(|data| data.set_len(2 << 20))
        .expect("grown");
    // Killed while a worker was started, and the record of a finished volume is no leftover.
    state.begin(vdi, &Operation::Activate { worker: "w".into() }).await.expect("begun");
    state.begin(vdi, &Operation::CreateVdi).await.expect("begun");
    std::fs::write(dir.path().join("run/w.sock"), "").expect("writable");
    // Killed while one was stopped.
    bench.pretend_active("dp", u32::MAX / 2).await;
    state.begin(vdi, &Operation::Deactivate { dp: "dp".into() }).await.expect("begun");

    let registry = start(dir.path()).await;
    registry.tidy(vdi).await.expect("nothing keeps it from being given back");
    assert_eq!(registry.state.intents().await.expect("readable"), []);
    let place = registry.srs.get(SR).expect("attached");
    let (volumes, _) = place.run(|file| file.scan()).await.expect("complete");
    assert_eq!(volumes.len(), 1);
    assert_eq!(volumes[0].virtual_size, 2 << 20);
    let contents = place.run(|file| file.contents()).await.expect("readable");
    assert!(contents.orphans.is_empty(), "{contents:?}");
    assert_eq!(std::fs::read_dir(dir.path().join("run")).expect("a directory").count(), 0);
    assert_eq!(bench.superstate().await, VdiState::Attached(RW));
}

#[tokio::test]
async fn a_datapath_that_leaks_is_cleaned_up_once_it_can_be() {
    let bench = bench().await;
    bench.pretend_active("dp", u32::MAX / 2).await;
    let registry = start(bench.dir.path()).await;
    // I/O of the dead worker that does not come back, as the kernel shows it: the fence stays.
    let io = File::open(bench.data()).expect("there");
    rustix::fs::flock(&io, FlockOperation::NonBlockingLockExclusive).expect("free");
    let vdi = &bench.vdi;
    let error = registry.destroy_datapath(vdi, "dp".into(), false).await.expect_err("fenced");
    assert!(error.to_string().contains("still under way"), "{error}");
    let held = registry.state.datapaths(vdi).await.expect("readable");
    assert!(held[0].leaked && held[0].state == VdiState::Activated(RW));
    drop(io);
    let attached = registry.attach(vdi, "next".into(), "6".into(), RW).await;
    attached.expect("the leaked datapath was in the way, and went");
    let holders = registry.holders(vdi).await.expect("readable");
    assert_eq!(holders.iter().map(|held| held.dp.as_str()).collect::<Vec<_>>(), ["next"]);
}

#[tokio::test]
async fn what_cannot_be_given_back_now_is_owed() {
    let bench = bench().await;
    let Bench { registry, vdi, dir } = &bench;
    let sr = registry.srs.get(SR).expect("attached");
    let key = vdi.vdi.clone();
    sr.run(move |file| file.own(&key, now())).await.expect("free");
    bench.pretend_active("dp", u32::MAX / 2).await;
    let registry = start(dir.path()).await;
    let record = dir.path().join("sr").join(format!("{}.vdi.json", vdi.vdi));
    let text = std::fs::read(&record).expect("there");
    std::fs::write(&record, "{").expect("writable");
    registry.deactivate(vdi, "dp".into()).await.expect("the guest is not kept waiting");
    assert_eq!(bench.superstate().await, VdiState::Attached(RW));
    registry.tidy(vdi).await.expect_err("damaged yet");
    std::fs::write(&record, &text).expect("writable");
    let owner = |text: &[u8]| {
        serde_json::from_slice::<serde_json::Value>(text).expect("JSON").get("owner").cloned()
    };
    assert!(owner(&text).is_some());
    for _ in 0..2 {
        registry.tidy(vdi).await.expect("whole again");
        assert_eq!(owner(&std::fs::read(&record).expect("there")), None);
        assert_eq!(registry.state.intents().await.expect("readable"), []);
    }
}
