//! The statistics files of tapdisk, for XenServer's tools that read them (xsiostat, xentop):
//! `vbd3-<domid>-<devid>/statistics` and `td3-<pid>/vbd-<domid>-<devid>` in `/dev/shm`.
//!
//! rrdp-iostat reads the second, by `kthread-pid` of kind `vbd3` alone and only for disks that
//! `tap-ctl list` names (xen-api `ocaml/xcp-rrdd/bin/rrdp-iostat/rrdp_iostat.ml`). `io_ring`, which
//! tapdisk has beside `statistics`, is read by xen-ringwatch alone and not written here.
//!
//! Readers map the files: they are written in place and never replaced, not even by the next
//! daemon. Directories of ours have a mark in them; what has none is tapdisk's and left alone.
//! Source: blktap `include/blktap3.h` (`struct blkback_stats`) and
//! `drivers/tapdisk-metrics-stats.h` (`struct stats`).

use super::look::{Look, VbdLook};
use crate::rpc::Core;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use zerotap_rpc_schema::worker::{VbdCounters, VbdId};

/// How often they are written; readers look every five seconds.
const PERIOD: Duration = Duration::from_secs(1);
/// The file that says that a directory is ours.
const MARK: &str = "zerotap";
const SECTOR_BYTES: u64 = 512;

/// Writes them until aborted. What is there then stays: the next daemon goes on with it.
pub async fn run(core: Arc<Core>, dir: PathBuf) {
    let mut files = Files { dir, open: BTreeMap::new() };
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // An adopted VBD's files must not go before it is known.
    if core.vbds.list().await.is_err() {
        tracing::debug!("VBDs are not listed yet");
    }
    loop {
        tick.tick().await;
        let look = Look::take(&core).await;
        let work = tokio::task::spawn_blocking(move || {
            files.update(&look);
            files
        });
        match work.await {
            Ok(back) => files = back,
            Err(error) => return tracing::error!("statistics files are not written: {error}"),
        }
    }
}

/// A VBD's two files, and the worker that they are of.
#[derive(Debug)]
struct Pair {
    pid: u32,
    statistics: File,
    stats: File,
}

/// All files in a directory.
#[derive(Debug)]
struct Files {
    dir: PathBuf,
    open: BTreeMap<VbdId, Pair>,
}

impl Files {
    fn update(&mut self, look: &Look) {
        let mut served = BTreeMap::new();
        for vbd in &look.vbds {
            if let Some((id, pid, counters)) = served_by(look, vbd) {
                served.insert(id, (pid, counters));
            }
        }
        self.open.retain(|id, pair| served.get(id).is_some_and(|(pid, _)| *pid == pair.pid));
        self.remove_others(&served.iter().map(|(id, (pid, _))| (*id, *pid)).collect());
        for (id, (pid, counters)) in served {
            if let Err(error) = self.write(id, pid, &counters) {
                tracing::debug!(vbd = %id, %error, "statistics file not written");
                self.open.remove(&id);
            }
        }
    }

    fn write(&mut self, id: VbdId, pid: u32, counters: &VbdCounters) -> io::Result<()> {
        if !self.open.contains_key(&id) {
            let statistics = open(&self.dir.join(root_name(id)), "statistics")?;
            let stats = open(&self.dir.join(process_name(pid)), &vbd_name(id))?;
            self.open.insert(id, Pair { pid, statistics, stats });
        }
        let pair = &self.open[&id];
        pair.statistics.write_all_at(&blkback_stats(counters), 0)?;
        pair.stats.write_all_at(&tapdisk_stats(counters), 0)
    }

    /// Removes what is ours and of no VBD that is served, an earlier daemon's too.
    fn remove_others(&self, served: &BTreeMap<VbdId, u32>) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let Some(name) = name.to_str() else { continue };
            if !is_ours(&path) {
                continue;
            }
            let wanted =
                |(id, pid): (&VbdId, &u32)| name == root_name(*id) || name == process_name(*pid);
            if !served.iter().any(wanted) {
                // A directory that cannot go now is tried again in a second.
                let _ = std::fs::remove_dir_all(&path);
                continue;
            }
            if name.starts_with("td3-") {
                remove_files(&path, |file| {
                    file == MARK
                        || served
                            .iter()
                            .any(|(id, pid)| name == process_name(*pid) && file == vbd_name(*id))
                });
            }
        }
    }
}

fn root_name(VbdId { domid, devid }: VbdId) -> String {
    format!("vbd3-{domid}-{devid}")
}

fn process_name(pid: u32) -> String {
    format!("td3-{pid}")
}

fn vbd_name(VbdId { domid, devid }: VbdId) -> String {
    format!("vbd-{domid}-{devid}")
}

fn remove_files(dir: &Path, stays: impl Fn(&str) -> bool) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| !stays(name)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn served_by(look: &Look, vbd: &VbdLook) -> Option<(VbdId, u32, VbdCounters)> {
    vbd.status.ring.as_ref()?;
    let id = vbd.status.worker.as_ref()?;
    let worker = look.workers.iter().find(|worker| worker.up && worker.row.id == *id)?;
    let counters = vbd.counters.as_ref()?.value.clone();
    Some((vbd.status.address.id, worker.row.pid, counters))
}

/// Opens a file in a directory of ours; makes both where they are missing.
fn open(dir: &Path, name: &str) -> io::Result<File> {
    let made = DirBuilder::new().mode(0o700).create(dir);
    let mark = || File::options().create(true).append(true).mode(0o600).open(dir.join(MARK));
    match made {
        Ok(()) => drop(mark()?),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !is_ours(dir) {
                return Err(io::Error::other(format!("{} is not ours", dir.display())));
            }
        }
        Err(error) => return Err(error),
    }
    File::options().create(true).truncate(false).write(true).mode(0o600).open(dir.join(name))
}

/// Whether we made a directory: everybody may make some in /dev/shm, with links in them.
fn is_ours(dir: &Path) -> bool {
    let ours = std::fs::symlink_metadata(dir)
        .is_ok_and(|it| it.is_dir() && it.uid() == rustix::process::geteuid().as_raw());
    ours && dir.join(MARK).exists()
}

/// Requests in flight count as reads: workers do not tell which they are.
fn reads_begun(told: &VbdCounters) -> u64 {
    told.counters.reads + u64::from(told.counters.in_flight)
}

/// `struct blkback_stats`: flushes as `st_f_req`, the rest by direction.
fn blkback_stats(told: &VbdCounters) -> [u8; 14 * 8] {
    let it = &told.counters;
    let (read, write) = (&told.read_latency, &told.write_latency);
    words([
        0,
        it.flushes,
        0,
        reads_begun(told),
        it.reads,
        it.read_bytes / SECTOR_BYTES,
        read.sum_us,
        read.max_us,
        it.writes,
        it.writes,
        it.write_bytes / SECTOR_BYTES,
        write.sum_us,
        write.max_us,
        0,
    ])
}

/// `struct stats`, version 1: a word of version and padding, then counts.
fn tapdisk_stats(told: &VbdCounters) -> [u8; 12 * 8] {
    let it = &told.counters;
    words([
        1,
        0,
        reads_begun(told),
        it.reads,
        it.read_bytes / SECTOR_BYTES,
        told.read_latency.sum_us,
        it.writes,
        it.writes,
        it.write_bytes / SECTOR_BYTES,
        told.write_latency.sum_us,
        it.io_errors,
        0,
    ])
}

fn words<const WORDS: usize, const BYTES: usize>(words: [u64; WORDS]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *to = word.to_ne_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerotap_rpc_schema::worker::Counters;

    /// Word for word as the structures have them, in the order of their members.
    #[test]
    fn the_files_are_tapdisks_structures() {
        let counters = Counters {
            reads: 3,
            writes: 4,
            flushes: 5,
            read_bytes: 6 * 512,
            write_bytes: 7 * 512,
            io_errors: 8,
            in_flight: 9,
            ..Counters::default()
        };
        let mut told = VbdCounters { counters, ..VbdCounters::new(VbdId { domid: 5, devid: 1 }) };
        (told.read_latency.sum_us, told.read_latency.max_us) = (10, 11);
        (told.write_latency.sum_us, told.write_latency.max_us) = (12, 13);
        let words = |bytes: &[u8]| -> Vec<u64> {
            bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect()
        };
        // st_ds_req, st_f_req, st_oo_req; st_rd_req, _cnt, _sect, _sum_usecs, _max_usecs; st_wr_
        // the same; flags.
        let blkback = [0, 5, 0, 12, 3, 6, 10, 11, 4, 4, 7, 12, 13, 0];
        assert_eq!(words(&blkback_stats(&told)), blkback);
        // version and padding, oo_reqs; read_reqs_submitted, _completed, read_sectors,
        // read_total_ticks; write_ the same; io_errors, flags.
        let stats = [1, 0, 12, 3, 6, 10, 4, 4, 7, 12, 8, 0];
        assert_eq!(words(&tapdisk_stats(&told)), stats);
    }
}
