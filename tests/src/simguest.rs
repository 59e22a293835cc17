//! A simulated guest with one disk, on a thread of its own: connects, runs the verifying workload,
//! closes.

use crate::blkfront::{Blkfront, Options};
use crate::guest::Domain;
use crate::workload::{self, Model, Outcome, Plan, Progress, Report};
use anyhow::Context as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A guest to be.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Its number.
    pub domid: u16,
    /// Its memory.
    pub memory_bytes: u64,
    /// How its front end is.
    pub options: Options,
    /// What it does with its disk.
    pub plan: Plan,
}

impl Guest {
    /// A guest with the usual front end and workload.
    #[must_use]
    pub fn new(domid: u16) -> Guest {
        let (options, plan) = Default::default();
        Guest { domid, memory_bytes: 64 << 20, options, plan }
    }
}

/// What a guest leaves behind.
#[derive(Debug)]
pub struct Ended {
    /// How its workload ended.
    pub outcome: Outcome,
    /// What it did.
    pub report: Report,
    /// What the disk should hold now.
    pub model: Model,
}

/// A guest on its thread.
#[derive(Debug)]
pub struct Running {
    /// How it fares, and orders to it.
    pub progress: Arc<Progress>,
    thread: JoinHandle<anyhow::Result<Ended>>,
    created: Receiver<()>,
}

/// What a guest expects on its disk.
#[derive(Debug, Clone)]
pub enum Expect {
    /// Zeros.
    Fresh,
    /// Zeros, and what workloads of any seed wrote.
    Used,
    /// What this model says.
    Known(Model),
}

impl Running {
    /// Starts a guest on the host in `dir`; returns once the domain is there, so that a disk can be
    /// plugged. The guest waits for it.
    ///
    /// # Errors
    /// When the domain cannot be made.
    pub fn start(dir: &Path, guest: Guest, expect: Expect) -> anyhow::Result<Running> {
        let progress = Arc::new(Progress::default());
        let (tell, created) = sync_channel(1);
        let (dir, seen) = (dir.to_owned(), Arc::clone(&progress));
        let body = move || {
            let domain = Domain::create(&dir, guest.domid, guest.memory_bytes, true)?;
            tell.send(()).context("nobody waits for the guest")?;
            live(domain, &guest, expect, &seen)
        };
        let thread = std::thread::spawn(body);
        let running = Running { progress, thread, created };
        if running.created.recv().is_err() {
            // It ended before it was there: its error says why.
            running.join()?;
        } else {
            return Ok(running);
        }
        anyhow::bail!("the guest ended at once")
    }

    /// Waits for the guest's end.
    ///
    /// # Errors
    /// What the guest ran into.
    pub fn join(self) -> anyhow::Result<Ended> {
        self.thread.join().map_err(|_| anyhow::anyhow!("the guest panicked"))?
    }

    /// Orders an end and waits for it.
    ///
    /// # Errors
    /// What the guest ran into.
    pub fn stop(self) -> anyhow::Result<Ended> {
        self.progress.stop();
        self.join()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until `more` further requests were answered.
    ///
    /// # Errors
    /// When the guest ended, or they did not come within `limit`.
    pub fn progresses(&self, more: u64, limit: Duration) -> anyhow::Result<()> {
        let (from, started) = (self.progress.answered(), Instant::now());
        while self.progress.answered() < from + more {
            anyhow::ensure!(!self.is_finished(), "the guest has ended");
            let got = self.progress.answered() - from;
            anyhow::ensure!(started.elapsed() < limit, "{got} of {more} answers in {limit:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// A guest's life from its birth on, in this thread.
///
/// # Errors
/// What it ran into.
pub fn live(
    domain: Domain,
    guest: &Guest,
    expect: Expect,
    progress: &Progress,
) -> anyhow::Result<Ended> {
    let mut front = Blkfront::connect(domain, guest.options.clone()).context("connect")?;
    let sectors = front.disk().sectors;
    let mut model = match expect {
        Expect::Fresh => Model::fresh(guest.plan.seed, sectors),
        Expect::Used => Model::used(guest.plan.seed, sectors),
        Expect::Known(model) => model,
    };
    let started = Instant::now();
    let outcome = workload::run(&mut front, &mut model, &guest.plan, progress)?;
    let report = progress.report(started.elapsed(), true);
    if outcome != Outcome::Abandoned {
        front.close().context("close the device")?;
    }
    Ok(Ended { outcome, report, model })
}
