//! The datapath worker alone, with the daemon's part played by the test.

use anyhow::Context as _;
use std::time::Duration;
use zerotap_rpc_schema::worker::{Abi, Answer, Ask, Counters, QUEUES_MAX, VbdCounters, VbdId};
use zerotap_tests::bare_worker::{BareWorker, Control, HandBackend};
use zerotap_tests::blkfront::{Options, state};
use zerotap_tests::simguest::{Ended, Expect, Guest, Running};
use zerotap_tests::simhost::SimHost;
use zerotap_tests::workload::Plan;

const DOMID: u16 = 7;
const VBD: VbdId = VbdId { domid: DOMID, devid: 51712 };
const DISK_BYTES: u64 = 16 << 20;

/// Runs a guest's workload against a worker, from first offer to last page given back.
fn run(options: Options, plan: Plan) -> anyhow::Result<(Ended, Counters)> {
    let dir = tempfile::tempdir()?;
    let shm = tempfile::tempdir_in("/dev/shm")?;
    let host = SimHost::start(shm.path())?;
    let image = dir.path().join("image");
    std::fs::File::create(&image)?.set_len(DISK_BYTES)?;
    let mut worker = BareWorker::start(&host, dir.path(), &image, false)?;
    let mut control = worker.control()?;

    let persistent = options.persistent;
    let guest = Guest { options, plan, ..Guest::new(DOMID) };
    let running = Running::start(host.dir(), guest, Expect::Fresh)?;
    let served = serve(&host, &worker, &mut control);
    // A guest that ended by itself says more than the wait for it.
    let (counters, mut ended) = match served {
        Ok(counters) => (counters, running.join()?),
        Err(error) if running.is_finished() => return running.join().and(Err(error)),
        Err(error) => return Err(error),
    };

    time_is_accounted_for(&counters, persistent);
    let counters = counters.counters;
    assert_eq!(counters.copied_bytes, 0, "no byte is copied");
    assert_eq!(counters.read_bytes, ended.report.read_bytes);
    assert_eq!(counters.write_bytes, ended.report.write_bytes);
    assert_eq!(control.ask(Ask::Shutdown)?, Answer::Done);
    assert!(worker.wait()?, "the worker's exit status");
    ended.model.check_image(&image)?;
    Ok((ended, counters))
}

/// What requests waited for makes up their latencies, and nothing else does.
fn time_is_accounted_for(told: &VbdCounters, persistent: bool) {
    let it = &told.counters;
    let stages = it.held_us + it.reach_us + it.device_us + it.release_us;
    let kinds = [&told.read_latency, &told.write_latency, &told.flush_latency];
    let latencies = kinds.map(|kind| kind.sum_us).iter().sum::<u64>() + told.discard_latency.sum_us;
    assert_eq!(stages, latencies, "{it:?}");
    assert!(it.device_us > 0, "a disk takes time: {it:?}");
    assert!(it.ring_wait_us > 0, "64 requests are not taken at once: {it:?}");
    if !persistent {
        assert!(it.reach_us > 0 && it.release_us > 0, "mapping and unmapping take time: {it:?}");
    }
}

/// The daemon's part: offers the disk, connects the ring, takes it down when the guest closes.
fn serve(
    host: &SimHost,
    worker: &BareWorker,
    control: &mut Control,
) -> anyhow::Result<VbdCounters> {
    let info = control.image().context("the hello tells of the image")?;
    assert_eq!(info.sectors, DISK_BYTES / 512);
    let mut backend = HandBackend::offer(host, VBD, &info)?;
    backend.wait_front(state::INITIALISED)?;
    worker.connect(control, VBD, backend.ring()?, false)?;
    backend.set_state(state::CONNECTED)?;
    let closing = backend.wait_front(state::CLOSING);
    let counters = control.counters(VBD)?;
    closing.with_context(|| format!("the worker has counted {counters:?}"))?;
    backend.set_state(state::CLOSING)?;
    backend.wait_front(state::CLOSED)?;
    assert_eq!(control.ask(Ask::Disconnect { vbd: VBD, leave: false })?, Answer::Done);
    backend.set_state(state::CLOSED)?;
    Ok(counters)
}

#[test]
fn a_workload_is_served_with_every_ring() {
    let mut held_us = 0;
    for ring_order in 0..=4 {
        for abi in [Abi::X86_64, Abi::X86_32] {
            for (persistent, segments_max) in [(true, 11), (true, 256), (false, 11), (false, 256)] {
                let options = Options {
                    ring_order,
                    queues: 1 + ring_order as usize % QUEUES_MAX,
                    abi,
                    persistent,
                    segments_max,
                    ..Options::default()
                };
                let plan = Plan {
                    seed: u64::from(ring_order),
                    depth: 64,
                    bytes_max: if segments_max > 11 { 1 << 20 } else { 64 << 10 },
                    requests_max: 300,
                    time_max: Duration::from_secs(60),
                    ..Plan::default()
                };
                let ran = run(options.clone(), plan).with_context(|| format!("{options:?}"));
                let (ended, counters) = ran.unwrap();
                assert!(ended.report.requests >= 300);
                held_us += counters.held_us;
            }
        }
    }
    assert!(held_us > 0, "barriers hold requests back");
}
