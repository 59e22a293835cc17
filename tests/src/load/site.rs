//! The host, its disks and their guests: how they come to be, how they fare, and what must be left
//! of them.

use super::{Plan, Tally};
use crate::blkfront::Options;
use crate::footprint::Footprint;
use crate::guest::destroy;
use crate::harness::failing::Failing;
use crate::harness::small::Small;
use crate::harness::{Disk, Host, Vdi, eventually, uuid};
use crate::simguest::{Expect, Guest, Running};
use crate::workload::random::Random;
use crate::workload::{Plan as Work, Report};
use anyhow::{Context as _, ensure};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use zerotap_datapath::ring::abi::Abi;

const DOMID_FIRST: u16 = 5;
const DISK_BYTES: u64 = 8 << 20;
/// Of the SR's file system, beside its disks.
const SLACK_BYTES: u64 = 64 << 20;
/// One of so many disks is a device that fails now and then.
const FAILING_OF: u16 = 8;
const GUEST_MEMORY_BYTES: u64 = 16 << 20;
/// What a guest asks for: not as much as it can, which on a small host is the guests' own load.
const REQUESTS_PER_SECOND_MAX: u64 = 20;
/// How long a guest waits for an answer, or for its disk, before it counts as forgotten: far longer
/// than a busy host needs.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often it is asked how the workers are.
const LOOK: Duration = Duration::from_secs(5);
/// What the daemon may keep for each disk that it had, KiB: allocators give little back.
const KEPT_KIB_MAX: u64 = 256;
/// Threads that a worker starts when it first needs them: for discards of a block device, and for
/// `fallocate` beside AIO, each of up to four queues.
const LATER_THREADS_MAX: usize = 8;
/// Descriptors that these have: the device, and one that wakes the queue.
const LATER_DESCRIPTORS_MAX: usize = 2 * LATER_THREADS_MAX;
/// Threads that the daemon keeps for a while after it has waited for file systems.
const POOL_THREADS_MAX: usize = 32;
/// Tables that have a row for each disk, or use of one, or call that is not settled.
const TABLES: [&str; 3] = ["datapath", "worker", "intent"];

/// A disk with its guest.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) disk: Disk,
    running: Running,
    /// Its device fails now and then.
    fails: bool,
}

/// All of it. What is dropped last is below the others.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) places: Vec<Place>,
    pub(super) host: Host,
    pub(super) sr: String,
    pub(super) small: Small,
    pub(super) failing: Failing,
    disks: u64,
    before: Footprint,
    /// Of each worker when it was first seen at work.
    workers: BTreeMap<u32, Footprint>,
    looked: Instant,
    /// VBDs that wait for space, as they were last told of.
    waiting: u64,
}

impl Site {
    /// Everything is at work when it is there.
    pub(super) fn new(plan: &Plan) -> anyhow::Result<Site> {
        let failing_count = usize::from(plan.disks / FAILING_OF + 1);
        let failing = Failing::new(failing_count, DISK_BYTES)?;
        let small = Small::new(u64::from(plan.disks) * DISK_BYTES + SLACK_BYTES)?;
        let host = Host::start_with("")?;
        let sr = uuid()?;
        host.create_sr_at(&sr, small.dir())?;
        let daemon = host.daemon_pid().context("it runs")?;
        let (before, looked) = (Footprint::of(daemon)?, Instant::now());
        let (places, workers, disks) = (Vec::new(), BTreeMap::new(), plan.disks.into());
        let mut site =
            Site { places, host, sr, small, failing, disks, before, workers, looked, waiting: 0 };
        let mut random = Random::new(plan.seed);
        for number in 0..plan.disks {
            let place = site.place(number, &mut random)?;
            site.places.push(place);
        }
        let begun = |place: &Place| place.running.progress.answered() > 0;
        while !site.places.iter().all(begun) {
            // Who has met something wrong has ended, and says what.
            site.check_on_guests(&mut Tally::default())?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(site)
    }

    fn place(&self, number: u16, random: &mut Random) -> anyhow::Result<Place> {
        let (rpc, domid) = (self.host.rpc(), DOMID_FIRST + number);
        let fails = number % FAILING_OF == FAILING_OF - 1;
        let vdi = if fails {
            self.host.adopt(&self.failing.devices[usize::from(number / FAILING_OF)])?
        } else {
            let made = self.host.create_vdi_in(&self.sr, DISK_BYTES.try_into()?)?;
            Vdi { sr: self.sr.clone(), vdi: made.vdi, sr_dir: self.small.dir().to_owned() }
        };
        let disk = vdi.serve(&rpc, domid, false)?;
        let options = Options {
            persistent: random.chance(50),
            queues: if random.chance(30) { 2 } else { 1 },
            ring_order: u32::from(random.chance(30)),
            abi: if random.chance(80) { Abi::X86_64 } else { Abi::X86_32 },
            patience: PATIENCE,
            ..Options::default()
        };
        let plan = Work {
            seed: random.below(1 << 32),
            depth: 8,
            errors_fatal: !fails,
            rate_max: REQUESTS_PER_SECOND_MAX,
            stall_max: PATIENCE,
            ..Work::default()
        };
        let guest = Guest { memory_bytes: GUEST_MEMORY_BYTES, options, plan, ..Guest::new(domid) };
        let running = Running::start(self.host.sim().dir(), guest, Expect::Fresh)?;
        // A busy host may let the daemon's own deadline pass.
        while let Err(error) = disk.plug(&rpc) {
            if running.is_finished() {
                let lived = running.join().map(drop);
                return Err(lived.err().unwrap_or(error)).with_context(|| format!("plug {domid}"));
            }
        }
        Ok(Place { disk, running, fails })
    }

    /// Puts what daemon and workers have logged where it stays.
    pub(super) fn keep_log(&self) -> anyhow::Result<PathBuf> {
        let path = std::env::temp_dir().join(format!("zerotap-load-{}.log", std::process::id()));
        std::fs::write(&path, self.host.log())?;
        Ok(path)
    }

    /// Requests that guests got an answer to.
    pub(super) fn requests(&self) -> u64 {
        self.places.iter().map(|place| place.running.progress.answered()).sum()
    }

    /// VBDs that waited for space when that was last asked.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Guests that have seen something wrong have ended; workers that hold ever more are told of.
    pub(super) fn check_on_guests(&mut self, tally: &mut Tally) -> anyhow::Result<()> {
        if let Some(ended) = self.places.iter().position(|place| place.running.is_finished()) {
            let Place { running, disk, .. } = self.places.swap_remove(ended);
            let domid = disk.domid;
            running.join().with_context(|| format!("domain {domid}"))?;
            anyhow::bail!("the guest of domain {domid} has ended by itself");
        }
        if self.looked.elapsed() < LOOK {
            return Ok(());
        }
        self.looked = Instant::now();
        let workers = self.host.rpc().raw("Worker.list", &json!({}))?;
        for worker in workers.as_array().context("a list")? {
            let pid = u32::try_from(worker["pid"].as_u64().context("a pid")?)?;
            // It may die any moment.
            let Ok(now) = Footprint::of(pid) else { continue };
            let first = Footprint {
                threads: now.threads + LATER_THREADS_MAX,
                descriptors: now.descriptors + LATER_DESCRIPTORS_MAX,
                ..now
            };
            match self.workers.get(&pid) {
                Some(before) => now.is_no_more_than(before).with_context(|| format!("{worker}"))?,
                None if worker["vbds"] != json!([]) => _ = self.workers.insert(pid, first),
                None => {}
            }
        }
        let waits = |vbd: &serde_json::Value| vbd["trouble"].to_string().contains("wait for space");
        let vbds = self.host.rpc().raw("VBD.list", &json!({}))?;
        let waiting = vbds.as_array().context("a list")?.iter().filter(|vbd| waits(vbd)).count();
        self.waiting = waiting.try_into()?;
        tally.waited += self.waiting;
        Ok(())
    }

    /// Ends all guests and disks, compares every byte, and looks for what is left.
    pub(super) fn end(&mut self, tally: &mut Tally) -> anyhow::Result<()> {
        for place in &self.places {
            place.running.progress.stop();
        }
        for place in std::mem::take(&mut self.places) {
            let domid = place.disk.domid;
            let report = self.leave(place).with_context(|| format!("domain {domid}"))?;
            tally.requests += report.requests;
            tally.errors += report.errors;
            tally.read_bytes += report.read_bytes;
            tally.write_bytes += report.write_bytes;
        }
        self.sweep()?;
        eventually("nothing is left behind", || self.look().map(Some))?;
        // It is not asked anything meanwhile: that keeps threads busy.
        eventually("the daemon has what it had", || self.look_at_daemon().map(Some))
    }

    fn leave(&self, place: Place) -> anyhow::Result<Report> {
        let Place { disk, running, fails } = place;
        let rpc = self.host.rpc();
        let mut ended = running.join()?;
        ensure!(fails || ended.report.errors == 0, "{} errors", ended.report.errors);
        disk.unplug(&rpc, false)?;
        destroy(self.host.sim().dir(), disk.domid)?;
        let image = match fails {
            true => self.failing.devices[usize::from((disk.domid - DOMID_FIRST) / FAILING_OF)]
                .path()
                .to_owned(),
            false => disk.vdi.image()?,
        };
        disk.deactivate(&rpc)?;
        ended.model.check_image(&image)?;
        disk.detach(&rpc)?;
        disk.vdi.destroy(&rpc)?;
        Ok(ended.report)
    }

    /// What callers made and could not destroy, because the daemon died.
    fn sweep(&self) -> anyhow::Result<()> {
        let rpc = self.host.rpc();
        let left = rpc.raw("SR.scan2", &json!({"sr": self.sr}))?;
        for vdi in left[0].as_array().context("VDIs")? {
            ensure!(vdi["name_label"] == "passing", "nobody's: {vdi}");
            rpc.raw("VDI.destroy", &json!({"sr": self.sr, "vdi": vdi["vdi"]}))?;
        }
        Ok(())
    }

    fn look(&self) -> anyhow::Result<()> {
        let rpc = self.host.rpc();
        let (workers, vbds) =
            (rpc.raw("Worker.list", &json!({}))?, rpc.raw("VBD.list", &json!({}))?);
        ensure!((&workers, &vbds) == (&json!([]), &json!([])), "{workers} {vbds}");
        let trouble = rpc.raw("Host.status", &json!({}))?["trouble"].to_string();
        ensure!(trouble == "[]", "{trouble}");
        for dir in ["worker", "nbd", "journal"] {
            let left: Vec<_> =
                std::fs::read_dir(self.host.run_dir().join(dir))?.flatten().collect();
            ensure!(left.is_empty(), "in {dir}: {left:?}");
        }
        for table in TABLES {
            let rows = self.host.sqlite(&format!("SELECT count(*) FROM {table}"))?;
            ensure!(rows == "0", "{rows} rows in {table}");
        }
        let integrity = self.host.sqlite("PRAGMA integrity_check")?;
        ensure!(integrity == "ok", "SQLite: {integrity}");
        for entry in std::fs::read_dir(self.small.dir())? {
            let name = entry?.file_name();
            let known = ["zerotap-sr.json", ".zerotap-reserve", "lost+found"]
                .into_iter()
                .any(|known| name == known);
            ensure!(known, "{} is nobody's", name.display());
        }
        Ok(())
    }

    fn look_at_daemon(&self) -> anyhow::Result<()> {
        let mut before = self.before;
        before.threads += POOL_THREADS_MAX;
        before.anonymous_kib += KEPT_KIB_MAX * self.disks;
        let daemon = self.host.daemon_pid().context("it runs")?;
        Footprint::of(daemon)?.is_no_more_than(&before).context("the daemon")
    }
}

impl Drop for Site {
    /// Guests of a run that failed have nobody any more who answers them.
    fn drop(&mut self) {
        for place in &self.places {
            place.running.progress.abandon();
        }
    }
}
