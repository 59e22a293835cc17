//! What happens to the disks: conditions that begin and pass, and deaths.

use super::callers::Callers;
use super::site::{Place, Site};
use super::{PAUSE_MS, Tally};
use crate::workload::random::Random;
use anyhow::Context as _;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What lasts for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// The SR's file system is full.
    Full,
    /// It takes no write: the storage below has stopped.
    Frozen,
    /// Devices answer writes with errors.
    Failing,
    /// dom0 has no xenstored.
    Xenstored,
}

impl Condition {
    const ALL: [Condition; 4] =
        [Condition::Full, Condition::Frozen, Condition::Failing, Condition::Xenstored];

    fn name(self) -> &'static str {
        match self {
            Condition::Full => "SR full",
            Condition::Frozen => "storage stopped",
            Condition::Failing => "devices failing",
            Condition::Xenstored => "xenstored away",
        }
    }

    /// The longest that it lasts, milliseconds. A guest must not wait for longer than it has
    /// patience, however many of them follow one another.
    fn lasts_ms_max(self) -> u64 {
        match self {
            Condition::Full => 6000,
            Condition::Frozen => 1500,
            Condition::Failing | Condition::Xenstored => 3000,
        }
    }

    fn begin(self, site: &Site) -> anyhow::Result<()> {
        match self {
            Condition::Full => site.small.fill_but(0),
            Condition::Frozen => site.small.freeze(),
            Condition::Failing => site.failing.fail(),
            Condition::Xenstored => {
                site.host.sim().xenstored().pause();
                Ok(())
            }
        }
    }

    fn pass(self, site: &Site) -> anyhow::Result<()> {
        match self {
            Condition::Full => site.small.free(),
            Condition::Frozen => site.small.thaw(),
            Condition::Failing => site.failing.recover(),
            Condition::Xenstored => site.host.sim().xenstored().resume(),
        }
    }
}

/// What is the case, and what comes next.
#[derive(Debug)]
pub(super) struct Faults {
    random: Random,
    /// And until when.
    conditions: Vec<(Condition, Instant)>,
    /// Those that come next: each comes once before one comes again.
    next: Vec<Condition>,
    /// Takes as long as the storage does: it is not waited for. Whether it was done.
    upgrade: Option<JoinHandle<bool>>,
}

impl Faults {
    pub(super) fn new(random: Random) -> Faults {
        let (conditions, next, upgrade) = Default::default();
        Faults { random, conditions, next, upgrade }
    }

    /// Something happens, and something may pass.
    pub(super) fn strike(
        &mut self,
        site: &mut Site,
        callers: &Callers,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        let (shortest, longest) = PAUSE_MS;
        std::thread::sleep(Duration::from_millis(shortest + self.random.below(longest - shortest)));
        self.pass_those_over(site)?;
        if let Some(upgrade) = self.upgrade.take_if(|upgrade| upgrade.is_finished()) {
            let done = upgrade.join().map_err(|_| anyhow::anyhow!("an upgrade panicked"))?;
            *tally.faults.entry("workers upgraded").or_default() += u64::from(done);
        }
        let mut note = |what: &'static str| *tally.faults.entry(what).or_default() += 1;
        match self.random.below(20) {
            0..8 => {
                for _ in 0..=self.random.below(4) {
                    // The last may not have a successor yet.
                    if let Ok(victim) = self.choose(site).disk.worker(&site.host.rpc()) {
                        note("workers killed");
                        kill(victim.pid)?;
                    }
                }
            }
            8 | 9 => {
                note("daemons killed");
                let victim = self.choose(site).disk.worker(&site.host.rpc()).ok();
                callers.daemon_dies();
                site.host.daemon_pid().map_or(Ok(()), kill)?;
                while !site.host.daemon_has_ended()? {
                    self.pass_those_over(site)?;
                    std::thread::yield_now();
                }
                site.host.kill_daemon()?;
                if let Some(victim) = victim.filter(|_| self.random.chance(50)) {
                    note("workers killed");
                    kill(victim.pid)?;
                }
                site.host.spawn_daemon()?;
                while !site.host.serves()? {
                    self.pass_those_over(site)?;
                }
                callers.daemon_is_back();
            }
            10..12 if self.upgrade.is_none() => {
                let params = serde_json::to_value(self.choose(site).disk.vdi.params())?;
                let rpc = site.host.rpc();
                // One that died this moment is not upgraded.
                let upgrade = move || rpc.raw("Worker.upgrade", &params).is_ok();
                self.upgrade = Some(std::thread::spawn(upgrade));
            }
            _ => {
                let condition = self.draw();
                // A file system that takes no write cannot be filled or freed.
                let frozen = self.is(Condition::Frozen);
                let full = [Condition::Full, Condition::Frozen].contains(&condition);
                if self.is(condition) || frozen && full {
                    self.next.insert(0, condition);
                } else {
                    note(condition.name());
                    condition.begin(site)?;
                    let lasts = 200 + self.random.below(condition.lasts_ms_max());
                    let until = Instant::now() + Duration::from_millis(lasts);
                    self.conditions.push((condition, until));
                }
            }
        }
        Ok(())
    }

    fn draw(&mut self) -> Condition {
        if self.next.is_empty() {
            let mut all = Condition::ALL.to_vec();
            while !all.is_empty() {
                let one = usize::try_from(self.random.below(all.len() as u64)).expect("few");
                self.next.push(all.swap_remove(one));
            }
        }
        self.next.pop().expect("filled just now")
    }

    fn pass_those_over(&mut self, site: &Site) -> anyhow::Result<()> {
        let now = Instant::now();
        self.pass(site, |until| until <= now)
    }

    fn is(&self, condition: Condition) -> bool {
        self.conditions.iter().any(|(is, _)| *is == condition)
    }

    fn choose<'a>(&mut self, site: &'a Site) -> &'a Place {
        &site.places[usize::try_from(self.random.below(site.places.len() as u64)).expect("few")]
    }

    fn pass(&mut self, site: &Site, over: impl Fn(Instant) -> bool) -> anyhow::Result<()> {
        let mut passing: Vec<_> =
            self.conditions.extract_if(.., |(_, until)| over(*until)).collect();
        // What takes no write is not freed either.
        passing.sort_by_key(|(condition, _)| *condition != Condition::Frozen);
        for (condition, until) in passing {
            if condition == Condition::Full && self.is(Condition::Frozen) {
                self.conditions.push((condition, until));
            } else {
                condition.pass(site)?;
            }
        }
        Ok(())
    }

    /// All passes.
    pub(super) fn end(mut self, site: &mut Site, callers: &Callers) -> anyhow::Result<()> {
        self.pass(site, |_| true)?;
        if let Some(upgrade) = self.upgrade.take() {
            upgrade.join().map_err(|_| anyhow::anyhow!("an upgrade panicked"))?;
        }
        if site.host.daemon_has_ended()? {
            callers.daemon_dies();
            anyhow::bail!("the daemon has ended by itself:\n{}", site.host.log());
        }
        Ok(())
    }
}

/// kill -9. That it is gone may take until the storage takes writes again, which is not waited for
/// here.
fn kill(pid: u32) -> anyhow::Result<()> {
    let pid = Pid::from_raw(pid.try_into()?).context("a process")?;
    match kill_process(pid, Signal::KILL) {
        // It has ended meanwhile.
        Err(Errno::SRCH) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
