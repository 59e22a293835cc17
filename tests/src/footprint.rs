//! What a process holds of the host: descriptors, threads, memory, and a guest's pages and ports.
//!
//! Read from `/proc`. Taken before a guest does its worst and after it is gone, it shows what was
//! left behind.

use anyhow::{Context as _, ensure};
use std::path::Path;
use zerotap_datapath::xen::sim;

/// What memory may have grown by, KiB: allocators keep what they had once.
pub const GROWTH_KIB_MAX: u64 = 16 * 1024;

/// A process's belongings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads, the kernel's own left out.
    pub threads: usize,
    /// Resident memory that is not shared, KiB: a guest's pages are not ours.
    pub anonymous_kib: u64,
}

impl Footprint {
    /// Of a process that lives.
    ///
    /// # Errors
    /// When it does not.
    pub fn of(pid: u32) -> anyhow::Result<Footprint> {
        let list = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}"));
        // io_uring's helpers in the kernel come and go as it likes.
        let is_own = |task: &std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("comm"))
                .is_ok_and(|name| !name.starts_with("iou-"))
        };
        let threads = list("task")?.flatten().filter(is_own).count();
        let anonymous_kib = status_kib(pid, "RssAnon:")?;
        Ok(Footprint { descriptors: list("fd")?.count(), threads, anonymous_kib })
    }

    /// Says what `self` has that `before` had not.
    ///
    /// # Errors
    /// When there is something.
    pub fn is_no_more_than(&self, before: &Footprint) -> anyhow::Result<()> {
        ensure!(
            self.descriptors <= before.descriptors
                && self.threads <= before.threads
                && self.anonymous_kib <= before.anonymous_kib + GROWTH_KIB_MAX,
            "left behind: {self:?} after {before:?}"
        );
        Ok(())
    }
}

/// Resident memory of a process, KiB, but for what it shares: a guest's pages are not its own.
///
/// # Errors
/// When it does not live.
pub fn own_kib(pid: u32) -> anyhow::Result<u64> {
    Ok(status_kib(pid, "RssAnon:")? + status_kib(pid, "RssFile:")?)
}

/// Processor time that the threads of a process, which all live, have had so far.
///
/// # Errors
/// When it does not live.
pub fn cpu_ns(pid: u32) -> anyhow::Result<u64> {
    let mut ns = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let times = std::fs::read_to_string(task?.path().join("schedstat"))?;
        ns += times.split(' ').next().context("schedstat")?.parse::<u64>()?;
    }
    Ok(ns)
}

fn status_kib(pid: u32, key: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(key)).with_context(|| key.to_owned())?;
    Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
}

/// Says what of a guest on the simulated host a process still has: mappings of its memory, ends of
/// its event channels.
///
/// # Errors
/// When it has something.
pub fn holds_nothing_of(pid: u32, domid: u16) -> anyhow::Result<()> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let ours = [sim::memory_name(domid), sim::grants_name(domid)];
    let is_its = |name: &str| {
        let name = name.trim_end_matches(" (deleted)").rsplit('/').next().unwrap_or_default();
        ours.iter().any(|its| its == name) || name.starts_with(&format!("evt.{domid}."))
    };
    let mapped: Vec<&str> = maps.lines().filter(|line| is_its(line)).collect();
    ensure!(mapped.is_empty(), "mapped of guest {domid}:\n{}", mapped.join("\n"));
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(name) = std::fs::read_link(entry?.path()) else { continue };
        let name = name.display().to_string();
        ensure!(!is_its(&name), "open of guest {domid}: {name}");
    }
    Ok(())
}

/// Lines in a log.
///
/// # Errors
/// When there is no such log.
pub fn lines(log: &Path) -> anyhow::Result<usize> {
    let log = std::fs::read_to_string(log).with_context(|| log.display().to_string())?;
    Ok(log.lines().count())
}
