//! A guest and its disk, from SR.create to VDI.destroy, over the real daemon and worker.

use anyhow::Context as _;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::smapi2::{Mode, VdiState};
use zerotap_rpc_schema::worker::Abi;
use zerotap_tests::blkfront::{Blkfront, Options, Reconnect, state};
use zerotap_tests::guest::{Domain, destroy};
use zerotap_tests::harness::{Disk, Host, eventually};
use zerotap_tests::simguest::{Ended, Expect, Guest, Running};
use zerotap_tests::workload::{self, Model, Outcome, Plan, Progress};

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;
/// How long a guest may take for a little progress.
const SOON: Duration = Duration::from_secs(30);

fn requests(requests_max: u64) -> Plan {
    Plan { requests_max, ..Plan::default() }
}

/// Starts a guest and gives it its disk.
fn boot(host: &Host, disk: &Disk, guest: Guest, expect: Expect) -> anyhow::Result<Running> {
    let running = Running::start(host.sim().dir(), guest, expect)?;
    disk.plug(&host.rpc()).context("plug")?;
    Ok(running)
}

/// Waits until the guest has closed its disk, and takes the domain away.
fn bury(host: &Host, disk: &Disk, running: Running) -> anyhow::Result<Ended> {
    let ended = running.join()?;
    disk.unplug(&host.rpc(), false)?;
    destroy(host.sim().dir(), disk.domid)?;
    Ok(ended)
}

#[test]
fn one_disk_end_to_end() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(DOMID, 64 * MIB).unwrap();
    let guest = Guest { plan: requests(3000), ..Guest::new(DOMID) };
    let running = boot(&host, &disk, guest, Expect::Fresh).unwrap();
    running.progresses(500, SOON).unwrap();
    let stat = disk.stat(&rpc).unwrap();
    assert_eq!((stat.vbd.state.as_str(), stat.vbd.mode), ("connected", Mode::ReadWrite));
    assert_eq!(stat.vbd.held_by, std::slice::from_ref(&disk.dp));
    assert_eq!(stat.vbd.worker, Some(disk.worker(&rpc).unwrap().id));
    assert!(stat.ring.unwrap().persistent);

    let mut ended = running.join().unwrap();
    assert_eq!((ended.outcome, ended.report.requests), (Outcome::Finished, 3000));
    let stat = disk.stat(&rpc).unwrap();
    let counters = stat.counters;
    assert_eq!(counters.copied_bytes, 0, "no byte is copied");
    assert_eq!(counters.mapped_bytes, ended.report.read_bytes + ended.report.write_bytes);
    assert_eq!((counters.refused, counters.io_errors, counters.in_flight), (0, 0, 0));
    let answered = counters.reads + counters.writes + counters.flushes + counters.discards;
    assert_eq!(answered, 3000);
    assert_eq!((counters.mapped_pages, counters.persistent_pages), (0, 0), "all is given back");

    disk.unplug(&rpc, false).unwrap();
    disk.unplug(&rpc, false).expect("what is gone is unplugged already");
    let image = disk.vdi.image().unwrap();
    disk.deactivate(&rpc).unwrap();
    disk.detach(&rpc).unwrap();
    ended.model.check_image(&image).unwrap();
    assert_eq!(disk.vdi.stat(&rpc).unwrap().superstate, VdiState::Detached);
    assert_eq!(rpc.raw("Worker.list", &json!({})).unwrap(), json!([]));
    disk.vdi.destroy(&rpc).unwrap();
    assert!(!image.exists());
    let sockets = std::fs::read_dir(host.run_dir().join("worker")).unwrap().flatten();
    assert_eq!(sockets.map(|entry| entry.path()).collect::<Vec<_>>(), [""; 0].map(PathBuf::from));
    // xenstore holds nothing of it any more.
    let mut dom0 = host.sim().toolstack().unwrap();
    let backend = format!("/local/domain/0/backend/zerotap/{DOMID}");
    assert!(dom0.list(&backend).map_or(true, |left| left.is_empty()));
    assert_eq!(dom0.list(&format!("/local/domain/{DOMID}/device/vbd")).unwrap(), [""; 0]);
}

#[test]
fn every_ring_is_negotiated() {
    let host = Host::start().unwrap();
    // No more are offered than the host has CPUs.
    let cpus = std::thread::available_parallelism().unwrap().get();
    for (ring_order, queues) in [(0, 1), (0, 4), (1, 2), (4, 1)] {
        for (abi, persistent) in [(Abi::X86_64, true), (Abi::X86_32, false)] {
            let disk = host.serve(DOMID, 8 * MIB).unwrap();
            let options = Options { ring_order, queues, abi, persistent, ..Options::default() };
            let plan = Plan { bytes_max: 1 << 20, depth: 64, ..requests(300) };
            let guest = Guest { options: options.clone(), plan, ..Guest::new(DOMID) };
            let running = boot(&host, &disk, guest, Expect::Fresh).unwrap();
            running.progresses(10, SOON).unwrap();
            let ring = disk.stat(&host.rpc()).unwrap().ring.expect("connected");
            assert_eq!(ring.queues.len(), queues.min(cpus));
            assert!(ring.queues.iter().all(|queue| queue.ring_refs.len() == 1 << ring_order));
            assert_eq!((ring.protocol, ring.persistent), (abi, persistent));
            bury(&host, &disk, running).with_context(|| format!("{options:?}")).unwrap();
            disk.remove(&host.rpc()).unwrap();
        }
    }
}

#[test]
fn a_front_end_that_comes_back_loses_nothing() {
    let host = Host::start().unwrap();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let options = Options { queues: 2, ..Options::default() };
    let guest = Guest { options, ..Guest::new(DOMID) };
    let running = boot(&host, &disk, guest, Expect::Fresh).unwrap();
    for (n, how) in (1..).zip([Reconnect::Orderly, Reconnect::Abrupt].repeat(5)) {
        running.progresses(50, SOON).unwrap();
        running.progress.reconnect(how);
        let done = &running.progress.reconnects;
        eventually(&format!("reconnect {n}, {how:?}"), || {
            anyhow::ensure!(!running.is_finished(), "the guest has ended");
            Ok((done.load(std::sync::atomic::Ordering::Acquire) == n).then_some(()))
        })
        .unwrap();
    }
    running.progress.stop();
    let mut ended = bury(&host, &disk, running).unwrap();
    disk.deactivate(&host.rpc()).unwrap();
    ended.model.check_image(&disk.vdi.image().unwrap()).unwrap();
}

#[test]
fn data_outlives_a_reboot_of_the_guest() {
    let host = Host::start().unwrap();
    let vdi = host.create_vdi(32 * MIB).unwrap();
    let mut expect = Expect::Fresh;
    for domid in [5, 6, 7] {
        let disk = vdi.serve(&host.rpc(), domid, false).unwrap();
        let guest = Guest { plan: requests(500), ..Guest::new(domid) };
        let running = boot(&host, &disk, guest, expect).unwrap();
        expect = Expect::Known(bury(&host, &disk, running).unwrap().model);
        disk.deactivate(&host.rpc()).unwrap();
        disk.detach(&host.rpc()).unwrap();
    }
}

#[test]
fn unplug_and_plug_again_under_io() {
    let host = Host::start().unwrap();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let mut expect = Expect::Fresh;
    for _ in 0..3 {
        let running = boot(&host, &disk, Guest::new(DOMID), expect).unwrap();
        running.progresses(200, SOON).unwrap();
        disk.unplug(&host.rpc(), false).unwrap();
        let ended = running.join().unwrap();
        assert_eq!(ended.outcome, Outcome::BackendClosing);
        expect = Expect::Known(ended.model);
        destroy(host.sim().dir(), DOMID).unwrap();
    }
}

#[test]
fn a_forced_unplug_does_not_wait_for_the_guest() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    // A guest that does not react: it connects, and nobody looks at xenstore after.
    let domain = Domain::create(host.sim().dir(), DOMID, 16 << 20, true).unwrap();
    disk.plug(&rpc).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    let error =
        rpc.fails("VBD.unplug", &json!({"domid": DOMID, "device": "xvda", "timeout_seconds": 1}));
    assert!(error.storage.is_some(), "{error}");
    disk.unplug(&rpc, true).unwrap();
    assert_eq!(front.domain().uses_in_all(), 0, "nothing of the guest is held");
    disk.remove(&rpc).unwrap();
}

#[test]
fn a_forced_unplug_under_io_loses_no_answered_write() {
    let host = Host::start().unwrap();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let running = boot(&host, &disk, Guest::new(DOMID), Expect::Fresh).unwrap();
    running.progresses(300, SOON).unwrap();
    disk.unplug(&host.rpc(), true).unwrap();
    let mut model = running.join().unwrap().model;
    disk.deactivate(&host.rpc()).unwrap();
    model.check_image(&disk.vdi.image().unwrap()).unwrap();
}

#[test]
fn a_read_only_disk_refuses_writes_in_the_datapath() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.create_vdi(8 * MIB).unwrap();
    let disk = vdi.serve(&rpc, DOMID, true).unwrap();
    let domain = Domain::create(host.sim().dir(), DOMID, 64 << 20, true).unwrap();
    disk.plug(&rpc).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    assert!(front.disk().read_only, "the back end says so");
    // A front end that does not care, and writes: the test's own model sends no writes otherwise.
    let frame = front.domain().frame().unwrap();
    let piece = zerotap_tests::blkfront::Piece { frame, first: 0, last: 7 };
    use zerotap_tests::blkfront::{Io, Op};
    for op in [Op::Write, Op::Barrier, Op::Flush] {
        front.submit(Io { op, sector: 0, pieces: vec![piece] }).unwrap();
        front.push().unwrap();
        let answer = eventually("an answer", || front.complete()).unwrap();
        assert_ne!(answer.status, 0, "{op:?} of data");
    }
    front.submit(Io { op: Op::Read, sector: 0, pieces: vec![piece] }).unwrap();
    front.push().unwrap();
    assert_eq!(eventually("an answer", || front.complete()).unwrap().status, 0);
    front.close().unwrap();
    assert!(disk.stat(&rpc).unwrap().counters.refused >= 3);
    disk.unplug(&rpc, false).unwrap();
    disk.deactivate(&rpc).unwrap();
    Model::fresh(1, 8 << 11).check_image(&vdi.image().unwrap()).unwrap();
}

#[test]
fn two_domains_share_a_vdi_read_only() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.create_vdi(8 * MIB).unwrap();
    let disks = [5, 6].map(|domid| vdi.serve(&rpc, domid, true).unwrap());
    let guests = disks.each_ref().map(|disk| {
        let guest = Guest { plan: requests(500), ..Guest::new(disk.domid) };
        boot(&host, disk, guest, Expect::Fresh).unwrap()
    });
    for (disk, running) in disks.iter().zip(guests) {
        bury(&host, disk, running).unwrap();
        disk.deactivate(&rpc).unwrap();
    }
}

#[test]
fn a_second_writer_is_refused() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(DOMID, 8 * MIB).unwrap();
    let other = Disk { dp: "vbd/6/xvda".into(), domid: 6, ..disk.clone() };
    other.attach(&rpc).expect("as when a guest migrates within its host");
    let error = other.activate(&rpc).expect_err("it is active already");
    let error = error.downcast_ref::<zerotap_tests::harness::RpcError>().expect("an answer");
    let Some(StorageError::Backend((code, texts))) = &error.storage else { panic!("{error}") };
    assert_eq!(code, "SR_BACKEND_FAILURE_24");
    assert!(texts[1].contains(&disk.dp) && texts[1].contains("VDI.deactivate"), "{texts:?}");
    other.detach(&rpc).unwrap();
    disk.attach(&rpc).expect("the same again is no second one");
    disk.activate(&rpc).expect("nor is this");
    assert_eq!(disk.vdi.stat(&rpc).unwrap().dps.len(), 1);
    disk.remove(&rpc).unwrap();
}

/// A guest migrates within its host: what it leaves behind has a ring, too, and must not write any
/// more.
#[test]
fn what_a_guest_leaves_behind_is_not_served() {
    use zerotap_tests::blkfront::{Io, Op, Piece};
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let source = host.serve(DOMID, 8 * MIB).unwrap();
    let domain = Domain::create(host.sim().dir(), DOMID, 64 << 20, true).unwrap();
    source.plug(&rpc).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    let mut model = Model::fresh(1, front.disk().sectors);
    workload::run(&mut front, &mut model, &requests(200), &Progress::default()).unwrap();

    let next = Disk { dp: "vbd/6/xvda".into(), domid: 6, ..source.clone() };
    next.attach(&rpc).unwrap();
    source.deactivate(&rpc).unwrap();
    let frame = front.domain().frame().unwrap();
    let pieces = vec![Piece { frame, first: 0, last: 7 }];
    front.submit(Io { op: Op::Write, sector: 0, pieces }).unwrap();
    front.push().unwrap();
    next.activate(&rpc).unwrap();
    let guest = Guest { plan: requests(500), ..Guest::new(6) };
    let running = boot(&host, &next, guest, Expect::Known(model)).unwrap();
    let mut ended = bury(&host, &next, running).unwrap();
    assert!(front.complete().unwrap().is_none(), "the source's ring is left alone");
    let trouble = source.stat(&rpc).unwrap().vbd.trouble.expect("its guest waits");
    assert!(trouble.contains(&source.dp) && trouble.contains("VDI.activate3"), "{trouble}");

    // The migration fails after all, and the source goes on.
    next.deactivate(&rpc).unwrap();
    next.detach(&rpc).unwrap();
    ended.model.check_image(&source.vdi.image().unwrap()).unwrap();
    source.activate(&rpc).unwrap();
    assert_eq!(eventually("an answer", || front.complete()).unwrap().status, 0);
    source.unplug(&rpc, true).unwrap();
    source.remove(&rpc).unwrap();
}

/// Those that only read share a worker: who is deactivated is let go of, and the others go on.
#[test]
fn a_reader_that_is_deactivated_is_served_no_more() {
    use zerotap_tests::blkfront::{Io, Op, Piece};
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.create_vdi(8 * MIB).unwrap();
    let disks = [DOMID, 6].map(|domid| vdi.serve(&rpc, domid, true).unwrap());
    let [mut leaves, mut stays] = [0, 1].map(|n| {
        let domain = Domain::create(host.sim().dir(), disks[n].domid, 64 << 20, true).unwrap();
        disks[n].plug(&rpc).unwrap();
        Blkfront::connect(domain, Options::default()).unwrap()
    });
    let read = |front: &mut Blkfront| {
        let frame = front.domain().frame().unwrap();
        let pieces = vec![Piece { frame, first: 0, last: 7 }];
        front.submit(Io { op: Op::Read, sector: 0, pieces }).unwrap();
        front.push().unwrap();
    };
    for front in [&mut leaves, &mut stays] {
        read(front);
        assert_eq!(eventually("an answer", || front.complete()).unwrap().status, 0);
    }

    disks[0].deactivate(&rpc).unwrap();
    assert_eq!(leaves.domain().uses_in_all(), 0, "no page of the guest is mapped any more");
    read(&mut leaves);
    for _ in 0..3 {
        read(&mut stays);
        assert_eq!(eventually("an answer", || stays.complete()).unwrap().status, 0);
    }
    assert!(leaves.complete().unwrap().is_none(), "its ring is left alone");
    let trouble = disks[0].stat(&rpc).unwrap().vbd.trouble.expect("its guest waits");
    assert!(trouble.contains(&disks[0].dp) && trouble.contains("VDI.activate3"), "{trouble}");

    disks[0].activate(&rpc).unwrap();
    assert_eq!(eventually("an answer", || leaves.complete()).unwrap().status, 0);
    for disk in &disks {
        disk.unplug(&rpc, true).unwrap();
        disk.deactivate(&rpc).unwrap();
        disk.detach(&rpc).unwrap();
    }
}

#[test]
fn a_dead_domain_leaves_nothing_behind() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(DOMID, 32 * MIB).unwrap();
    let running = boot(&host, &disk, Guest::new(DOMID), Expect::Fresh).unwrap();
    running.progresses(300, SOON).unwrap();
    running.progress.abandon();
    let mut ended = running.join().unwrap();
    assert_eq!(ended.outcome, Outcome::Abandoned);
    destroy(host.sim().dir(), DOMID).unwrap();
    eventually("the worker lets go of a dead domain", || {
        let stat = disk.stat(&rpc);
        Ok(stat.map_or(true, |it| it.ring.is_none()).then_some(()))
    })
    .unwrap();
    disk.unplug(&rpc, true).unwrap();
    disk.deactivate(&rpc).unwrap();
    disk.detach(&rpc).unwrap();
    ended.model.check_image(&disk.vdi.image().unwrap()).unwrap();

    // The same number, another domain: it gets a disk like any other.
    let disk = disk.vdi.serve(&rpc, DOMID, false).unwrap();
    let guest = Guest { plan: requests(300), ..Guest::new(DOMID) };
    let running = boot(&host, &disk, guest, Expect::Known(ended.model)).unwrap();
    bury(&host, &disk, running).unwrap();
}

#[test]
fn a_disk_that_is_activated_late_is_waited_for() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.create_vdi(8 * MIB).unwrap();
    let disk = Disk { dp: "vbd/5/xvda".into(), domid: DOMID, read_only: false, vdi };
    disk.attach(&rpc).unwrap();
    let error = disk.plug(&rpc).expect_err("plug asks for an activated VDI");
    let error = error.downcast_ref::<zerotap_tests::harness::RpcError>().expect("an answer");
    assert!(error.storage.is_some(), "{error}");
    disk.activate(&rpc).unwrap();
    let guest = Guest { plan: requests(100), ..Guest::new(DOMID) };
    let running = boot(&host, &disk, guest, Expect::Fresh).unwrap();
    bury(&host, &disk, running).unwrap();
}

#[test]
fn deactivate_with_a_guest_on_it_closes_the_ring_first() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let disk = host.serve(DOMID, 8 * MIB).unwrap();
    let domain = Domain::create(host.sim().dir(), DOMID, 64 << 20, true).unwrap();
    disk.plug(&rpc).unwrap();
    let mut front = Blkfront::connect(domain, Options::default()).unwrap();
    let mut model = Model::fresh(1, front.disk().sectors);
    workload::run(&mut front, &mut model, &requests(200), &Progress::default()).unwrap();
    disk.deactivate(&rpc).unwrap();
    assert_eq!(front.domain().uses_in_all(), 0, "no page of the guest is mapped any more");
    assert_eq!(disk.vdi.stat(&rpc).unwrap().superstate, VdiState::Attached(Mode::ReadWrite));
    model.check_image(&disk.vdi.image().unwrap()).unwrap();
    disk.unplug(&rpc, true).unwrap();
    assert!(front.backend_state().unwrap() >= state::CLOSING);
}
