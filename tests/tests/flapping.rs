//! What a hostile guest does to the daemon by way of xenstore: states that flap, directories that
//! are full, domains that vanish. Another guest's disk goes on, and nothing is left behind.

use anyhow::{Context as _, ensure};
use serde_json::json;
use std::time::Duration;
use zerotap_datapath::ring::abi::{Abi, OP_READ, Segment};
use zerotap_tests::blkfront::request::encode_direct;
use zerotap_tests::blkfront::{Blkfront, Options, state};
use zerotap_tests::footprint::{Footprint, holds_nothing_of};
use zerotap_tests::guest::{Domain, destroy};
use zerotap_tests::harness::{Disk, Host, eventually};
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::workload::random::Random;
use zerotap_tests::xenstore::errno;
use zerotap_tests::xenstored::wire::Errno;
use zerotap_tests::xenstored::{NODES_PER_DOMAIN_MAX, VALUE_BYTES_MAX};

const MIB: i64 = 1 << 20;
const GOOD: u16 = 6;
const HOSTILE: u16 = 5;
const DIR: &str = "device/vbd/51712";
const FLAPS: usize = 10_000;
const SOON: Duration = Duration::from_secs(30);
/// Lines that a guest may put into the log in a test, those for debugging left out.
const LOG_LINES_MAX: usize = 300;

/// A daemon, a good guest at work, and a disk for a hostile one.
struct Scene {
    host: Host,
    good: Running,
    good_disk: Disk,
    disk: Disk,
    worker: u32,
    before: [Footprint; 2],
    log_lines: usize,
}

impl Scene {
    fn set() -> anyhow::Result<Scene> {
        let host = Host::start()?;
        let good_disk = host.serve(GOOD, 8 * MIB)?;
        let good = Running::start(host.sim().dir(), Guest::new(GOOD), Expect::Fresh)?;
        good_disk.plug(&host.rpc())?;
        good.progresses(100, SOON)?;
        let disk = host.serve(HOSTILE, 8 * MIB)?;
        let worker = disk.worker(&host.rpc())?.pid;
        let mut scene = Scene {
            host,
            good,
            good_disk,
            disk,
            worker,
            before: [Footprint { descriptors: 0, threads: 0, anonymous_kib: 0 }; 2],
            log_lines: 0,
        };
        // An honest life first: what the daemon makes once and keeps is no leak.
        let mut front = scene.plug()?;
        front.close()?;
        drop(front);
        scene.is_rid_of_it()?;
        scene.before = scene.belongings()?;
        scene.log_lines = scene.lines();
        Ok(scene)
    }

    fn domain(&self) -> anyhow::Result<Domain> {
        Domain::create(self.host.sim().dir(), HOSTILE, 16 << 20, true)
    }

    /// A hostile guest, connected as it should be.
    fn plug(&self) -> anyhow::Result<Blkfront> {
        let domain = self.domain()?;
        self.disk.plug(&self.host.rpc())?;
        Blkfront::connect(domain, Options { checked: false, ..Options::default() })
    }

    /// The hostile domain is destroyed as a toolstack does it; the daemon notices by itself.
    fn is_rid_of_it(&self) -> anyhow::Result<()> {
        destroy(self.host.sim().dir(), HOSTILE)?;
        eventually("the VBD is forgotten", || {
            let list = self.host.rpc().raw("VBD.list", &json!({}))?;
            Ok((list.as_array().map(Vec::len) == Some(1)).then_some(()))
        })?;
        holds_nothing_of(self.worker, HOSTILE)
    }

    fn belongings(&self) -> anyhow::Result<[Footprint; 2]> {
        let daemon = self.host.daemon_pid().context("the daemon")?;
        Ok([Footprint::of(daemon)?, Footprint::of(self.worker)?])
    }

    fn lines(&self) -> usize {
        self.host.log().lines().filter(|line| !line.contains("DEBUG")).count()
    }

    /// Nothing is left of the hostile guest, and nobody noticed anything.
    fn strike(self) -> anyhow::Result<()> {
        self.good.progresses(100, SOON).context("the good guest")?;
        self.is_rid_of_it()?;
        eventually("the belongings", || {
            let now = self.belongings()?;
            now[0].is_no_more_than(&self.before[0]).context("the daemon")?;
            now[1].is_no_more_than(&self.before[1]).context("the worker")?;
            Ok(Some(()))
        })?;
        let lines = self.lines() - self.log_lines;
        ensure!(lines <= LOG_LINES_MAX, "{lines} lines of log");
        let rpc = self.host.rpc();
        self.good.stop()?;
        self.good_disk.unplug(&rpc, false)?;
        self.disk.remove(&rpc)
    }
}

#[test]
fn a_state_that_flaps_ten_thousand_times() {
    let scene = Scene::set().unwrap();
    let mut front = scene.plug().unwrap();
    let mut random = Random::new(11);
    let keys = ["ring-ref", "event-channel", "protocol", "ring-page-order", "feature-persistent"];
    let odd = ["", "x", "-1", "99", "4294967296", "8", "x86_64-abi", "1"];
    for _ in 0..FLAPS {
        let state = random.below(9);
        front.xenstore().write(&format!("{DIR}/state"), state).unwrap();
        if random.chance(10) {
            let key = format!("{DIR}/{}", keys[usize::try_from(random.below(5)).unwrap()]);
            let value = odd[usize::try_from(random.below(8)).unwrap()];
            front.xenstore().write(&key, value).unwrap();
        }
    }
    // Sane at last: the disk can still be had.
    front.set_state(state::CLOSING).unwrap();
    front.wait_backend(&[state::CLOSING, state::CLOSED]).unwrap();
    front.set_state(state::CLOSED).unwrap();
    front.wait_backend(&[state::CLOSED]).unwrap();
    drop(front);
    scene.is_rid_of_it().unwrap();
    let mut front = scene.plug().unwrap();
    front.close().unwrap();
    drop(front);
    scene.strike().unwrap();
}

#[test]
fn a_directory_that_is_full_to_the_quota() {
    let scene = Scene::set().unwrap();
    let mut front = scene.plug().unwrap();
    let value = "v".repeat(VALUE_BYTES_MAX - 64);
    let refused = (0..=NODES_PER_DOMAIN_MAX)
        .find_map(|n| front.xenstore().write(&format!("{DIR}/junk/{n}"), &value).err());
    let refused = refused.expect("the quota");
    assert_eq!(errno(&refused), Some(Errno::ENOSPC));
    let mut random = Random::new(12);
    for _ in 0..2000 {
        let node = random.below(500);
        front.xenstore().write(&format!("{DIR}/junk/{node}"), "w").unwrap();
    }
    front.close().unwrap();
    drop(front);
    scene.strike().unwrap();
}

#[test]
fn domains_that_vanish_at_any_moment() {
    let scene = Scene::set().unwrap();
    for round in 0..12 {
        match round % 4 {
            // Before it has said anything.
            0 => {
                let domain = scene.domain().unwrap();
                scene.disk.plug(&scene.host.rpc()).unwrap();
                drop(domain);
            }
            // In the middle of connecting.
            1 => {
                let domain = scene.domain().unwrap();
                scene.disk.plug(&scene.host.rpc()).unwrap();
                let mut front = Blkfront::announce(domain, Options::default()).unwrap();
                front.wait_backend(&[state::INIT_WAIT]).unwrap();
                front.publish().unwrap();
            }
            // In the middle of its I/O.
            2 => {
                let mut front = scene.plug().unwrap();
                let (domain, ring, port) = front.raw();
                let frame = domain.frame().unwrap();
                let gref = domain.grant(frame, false).unwrap();
                let segments = [Segment { gref, first: 0, last: 7 }; 11];
                for id in 0..u64::from(ring.entries()) {
                    let entry = encode_direct(Abi::X86_64, id, OP_READ, 11, 0, &segments);
                    ring.write(domain.memory(), &entry);
                }
                let _ = ring.push(domain.memory());
                port.notify().unwrap();
            }
            // Half closed.
            _ => scene.plug().unwrap().set_state(state::CLOSING).unwrap(),
        }
        scene.is_rid_of_it().with_context(|| format!("round {round}")).unwrap();
    }
    // Its last end is not to be waited for twice.
    let front = scene.plug().unwrap();
    drop(front);
    scene.strike().unwrap();
}
