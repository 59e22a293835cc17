//! A worker with a good guest at work, and a hostile front end beside it.
//!
//! The good one verifies every byte. The hostile one may come back as often as it likes, each time
//! as another domain; whenever it has gone, nothing of it may be left: pages, ports, descriptors,
//! threads, memory, more than a few lines of log.

use crate::bare_worker::{BareWorker, Control, HandBackend};
use crate::blkfront::ring::Response;
use crate::blkfront::{Blkfront, Options, state};
use crate::footprint::{self, Footprint};
use crate::guest::{self, Domain};
use crate::harness::eventually;
use crate::simguest::{Expect, Guest, Running};
use crate::simhost::SimHost;
use crate::workload::Plan;
use anyhow::{Context as _, ensure};
use std::path::PathBuf;
use std::time::Duration;
use zerotap_rpc_schema::worker::{Answer, Ask, VbdId};

/// The good guest.
pub const GOOD: VbdId = VbdId { domid: 5, devid: 51712 };
/// The disk's size.
pub const DISK_BYTES: u64 = 16 << 20;
/// The part of the disk that is the good guest's; the rest is anybody's.
pub const GOOD_SECTORS: u64 = DISK_BYTES / 512 / 2;
/// The hostile guest's first number; each life has the next.
const HOSTILE_DOMID: u16 = 6;
const HOSTILE_DEVID: u32 = 51712;
const HOSTILE_MEMORY_BYTES: u64 = 16 << 20;
const SOON: Duration = Duration::from_secs(30);
/// What a hostile guest's life may add to the log, in lines: a refusal or an error is told of the
/// first time, and then at each power of two.
const LOG_LINES_MAX: usize = 64;

/// The lot.
#[derive(Debug)]
pub struct Siege {
    /// The hostile front end.
    pub hostile: Blkfront,
    /// The daemon's connection to the worker.
    pub control: Control,
    /// The worker.
    pub worker: BareWorker,
    /// The good guest.
    pub good: Running,
    /// The host.
    pub host: SimHost,
    good_backend: HandBackend,
    hostile_backend: HandBackend,
    read_only: bool,
    image: PathBuf,
    before: Footprint,
    log_lines: usize,
    _dirs: [tempfile::TempDir; 2],
}

impl Siege {
    /// Starts it all; the hostile guest may only read.
    ///
    /// # Errors
    /// When something does not start.
    pub fn lay(options: Options) -> anyhow::Result<Siege> {
        Siege::lay_for(options, true)
    }

    /// Starts it all. A hostile guest that may write has to keep to the disk's second half.
    ///
    /// # Errors
    /// When something does not start.
    pub fn lay_for(options: Options, read_only: bool) -> anyhow::Result<Siege> {
        let dirs = [tempfile::tempdir()?, tempfile::tempdir_in("/dev/shm")?];
        let host = SimHost::start(dirs[1].path())?;
        let image = dirs[0].path().join("image");
        std::fs::File::create(&image)?.set_len(DISK_BYTES)?;
        let worker = BareWorker::start(&host, dirs[0].path(), &image, false)?;
        let mut control = worker.control()?;
        let info = control.image().context("the image")?;

        let plan = Plan { sectors: GOOD_SECTORS, ..Plan::default() };
        let guest = Guest { plan, ..Guest::new(GOOD.domid) };
        let good = Running::start(host.dir(), guest, Expect::Fresh)?;
        let mut good_backend = HandBackend::offer(&host, GOOD, &info)?;
        good_backend.wait_front(state::INITIALISED)?;
        worker.connect(&mut control, GOOD, good_backend.ring()?, false)?;
        good_backend.set_state(state::CONNECTED)?;
        good.progresses(100, SOON)?;

        let before = Footprint::of(worker.pid())?;
        let log_lines = footprint::lines(worker.log())?;
        let domain = Domain::create(host.dir(), HOSTILE_DOMID, HOSTILE_MEMORY_BYTES, true)?;
        let (hostile, hostile_backend) =
            worker.connect_front(&host, &mut control, domain, options, read_only)?;
        let _dirs = dirs;
        Ok(Siege {
            hostile,
            control,
            worker,
            good,
            host,
            good_backend,
            hostile_backend,
            read_only,
            image,
            before,
            log_lines,
            _dirs,
        })
    }

    /// The hostile guest's VBD.
    pub fn vbd(&mut self) -> VbdId {
        VbdId { domid: self.hostile.domain().domid(), devid: HOSTILE_DEVID }
    }

    /// Puts one entry into the ring and answers what the back end says to it.
    ///
    /// # Errors
    /// When it says nothing in time.
    pub fn send(&mut self, entry: &[u8; 112]) -> anyhow::Result<Response> {
        let (domain, ring, port) = self.hostile.raw();
        ring.write(domain.memory(), entry);
        if ring.push(domain.memory()) {
            port.notify()?;
        }
        eventually("an answer", || ring.take(domain.memory()))
    }

    /// Whether the worker serves the hostile ring no more.
    ///
    /// # Errors
    /// When the worker does not say.
    pub fn is_broken(&mut self) -> anyhow::Result<bool> {
        let vbd = self.vbd();
        Ok(self.control.counters(vbd)?.broken)
    }

    /// The hostile guest comes again, as another domain; the one that it was dies. `orderly`: the
    /// daemon lets go of it first, and not only when it is dead.
    ///
    /// # Errors
    /// When something is left of it, or the worker does not take the new one.
    pub fn comes_again(
        &mut self,
        options: Options,
        read_only: bool,
        orderly: bool,
    ) -> anyhow::Result<()> {
        let vbd = self.vbd();
        if orderly {
            self.let_go()?;
        }
        let domid = vbd.domid + 1;
        let domain = Domain::create(self.host.dir(), domid, HOSTILE_MEMORY_BYTES, true)?;
        let (front, backend) =
            self.worker.connect_front(&self.host, &mut self.control, domain, options, read_only)?;
        drop(std::mem::replace(&mut self.hostile, front));
        (self.hostile_backend, self.read_only) = (backend, read_only);
        guest::destroy(self.host.dir(), vbd.domid)?;
        let gone = self.control.ask(Ask::Disconnect { vbd, leave: false })?;
        ensure!(gone == Answer::Done, "{gone:?}");
        footprint::holds_nothing_of(self.worker.pid(), vbd.domid)
    }

    /// The worker lets go of the hostile ring and takes it up again as it is, whatever is in it.
    ///
    /// # Errors
    /// When the worker does not.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        let vbd = self.vbd();
        self.let_go()?;
        let ring = self.hostile_backend.ring()?;
        self.worker.connect(&mut self.control, vbd, ring, self.read_only)
    }

    /// The worker lets go of the hostile guest.
    fn let_go(&mut self) -> anyhow::Result<()> {
        let vbd = self.vbd();
        let pid = self.worker.pid();
        ensure!(footprint::holds_nothing_of(pid, vbd.domid).is_err(), "its ring is not seen");
        let gone = self.control.ask(Ask::Disconnect { vbd, leave: false })?;
        ensure!(gone == Answer::Done, "{gone:?}");
        let kept = self.hostile.domain().uses_in_all();
        ensure!(kept == 0, "{kept} pages of the hostile guest are still mapped");
        footprint::holds_nothing_of(pid, vbd.domid)
    }

    /// The good guest still gets answers, and in the end every byte of its disk is right; the
    /// hostile one is got rid of, and nothing of it is left.
    ///
    /// # Errors
    /// When one of that is not so.
    pub fn lift(mut self) -> anyhow::Result<()> {
        self.good.progresses(100, SOON).context("the good guest")?;
        self.let_go()?;
        let lives = usize::from(self.vbd().domid - HOSTILE_DOMID) + 1;
        let pid = self.worker.pid();
        // A thread that has ended is seen for a moment longer.
        eventually("the worker's belongings", || {
            Footprint::of(pid)?.is_no_more_than(&self.before).map(Some)
        })?;
        let lines = footprint::lines(self.worker.log())? - self.log_lines;
        ensure!(lines <= lives * LOG_LINES_MAX, "{lines} lines of log in {lives} lives");
        self.good.progress.stop();
        self.good_backend.wait_front(state::CLOSING)?;
        self.good_backend.set_state(state::CLOSING)?;
        self.good_backend.wait_front(state::CLOSED)?;
        self.control.ask(Ask::Disconnect { vbd: GOOD, leave: false })?;
        self.good_backend.set_state(state::CLOSED)?;
        let mut ended = self.good.join()?;
        ensure!(self.control.ask(Ask::Shutdown)? == Answer::Done, "shutdown");
        ensure!(self.worker.wait()?, "the worker's exit status");
        ended.model.check_image_below(&self.image, GOOD_SECTORS)
    }
}
