//! The figures to reach: each name with its unit, its peer and its target, in this one place.

use serde_json::{Value, json};

/// Which side of the ratio is good.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// Ours divided by theirs is at least this.
    AtLeast(f64),
    /// Ours divided by theirs is at most this.
    AtMost(f64),
    /// Neither: shown beside one that has a target, to tell what it is made of.
    Shown,
}

/// What is measured.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) peer: &'static str,
    pub(crate) bound: Bound,
}

const fn target(
    name: &'static str,
    unit: &'static str,
    peer: &'static str,
    bound: Bound,
) -> Target {
    Target { name, unit, peer, bound }
}

const FIO: &str = "fio io_uring";
const BLKBACK: &str = "blkback";
const QDISK: &str = "qdisk";
const QEMU_NBD: &str = "qemu-nbd";
/// The peer of a figure that has none: a limit of its own.
const LIMIT: &str = "limit";

pub(crate) const SIM_READ_4K: Target =
    target("sim randread 4k QD32", "IOPS", FIO, Bound::AtLeast(0.97));
/// The same with a guest that sleeps: two threads are woken where fio's one is.
pub(crate) const SIM_READ_4K_WOKEN: Target =
    target("sim randread 4k QD32, guest sleeps", "IOPS", FIO, Bound::Shown);
pub(crate) const SIM_CPU_4K: Target =
    target("sim randread 4k QD32 CPU", "us/IO", FIO, Bound::AtMost(1.25));
pub(crate) const SIM_WRITE_4K: Target =
    target("sim randwrite 4k QD32", "IOPS", FIO, Bound::AtLeast(0.97));
/// The mean, of a guest that looks at its ring.
pub(crate) const SIM_LATENCY: Target =
    target("sim randread 4k QD1 latency", "us", FIO, Bound::AtMost(1.10));
/// Of a worker on one core, with a guest on the other.
pub(crate) const RING: Target =
    target("ring 4k QD32, image in memory, one core", "IOPS", LIMIT, Bound::AtLeast(1.0));
pub(crate) const RING_LIMIT: f64 = 500_000.0;
/// What the guest does not limit.
pub(crate) const RING_CPU: Target =
    target("ring 4k QD32, image in memory, CPU", "us/IO", LIMIT, Bound::AtMost(1.0));
pub(crate) const RING_CPU_LIMIT_US: f64 = 2.0;
/// Each with a CPU that it shares with its guest.
pub(crate) const TWO_QUEUES: Target =
    target("ring 4k QD32, image in memory, two queues", "IOPS", "one queue", Bound::AtLeast(1.8));
/// Guests' pages left out.
pub(crate) const FULL_RSS: Target =
    target("worker's memory, 4 x 512 x 1m in flight", "MiB", LIMIT, Bound::AtMost(1.0));
pub(crate) const FULL_RSS_LIMIT_MIB: f64 = 24.0;
pub(crate) const SIM_READ_1M: Target =
    target("sim read 1m QD8", "MiB/s", FIO, Bound::AtLeast(0.98));
/// As the guest sees it: the longest that a request took.
pub(crate) const KILL_PAUSE: Target =
    target("pause, worker killed under load", "ms", LIMIT, Bound::AtMost(1.0));
pub(crate) const KILL_PAUSE_LIMIT_MS: f64 = 300.0;
/// The same.
pub(crate) const UPGRADE_PAUSE: Target =
    target("pause, worker upgraded under load", "ms", LIMIT, Bound::AtMost(1.0));
pub(crate) const UPGRADE_PAUSE_LIMIT_MS: f64 = 50.0;
pub(crate) const JOURNAL: Target =
    target("sim randread 4k QD32, journaled", "IOPS", "no journal", Bound::AtLeast(0.98));
pub(crate) const XEN_4K_QD32: Target =
    target("xen randread 4k QD32", "IOPS", BLKBACK, Bound::AtLeast(0.95));
pub(crate) const XEN_4K_QD1: Target =
    target("xen randread 4k QD1", "IOPS", BLKBACK, Bound::AtLeast(0.8));
pub(crate) const XEN_128K: Target =
    target("xen read 128k QD8", "MiB/s", BLKBACK, Bound::AtLeast(1.0));
pub(crate) const XEN_1M: Target = target("xen read 1m QD4", "MiB/s", BLKBACK, Bound::AtLeast(1.0));
pub(crate) const XEN_CPU_QD32: Target =
    target("xen randread 4k QD32 dom0 CPU", "us/IO", BLKBACK, Bound::AtMost(1.3));
pub(crate) const XEN_CPU_QD1: Target =
    target("xen randread 4k QD1 dom0 CPU", "us/IO", BLKBACK, Bound::AtMost(2.0));
pub(crate) const XEN_CPU_128K: Target =
    target("xen read 128k QD8 dom0 CPU", "us/IO", BLKBACK, Bound::AtMost(1.3));
pub(crate) const XEN_CPU_1M: Target =
    target("xen read 1m QD4 dom0 CPU", "us/IO", BLKBACK, Bound::AtMost(1.3));
pub(crate) const XEN_WRITE_4K: Target =
    target("xen randwrite 4k QD32", "IOPS", BLKBACK, Bound::AtLeast(0.95));
pub(crate) const XEN_CPU_WRITE_4K: Target =
    target("xen randwrite 4k QD32 dom0 CPU", "us/IO", BLKBACK, Bound::AtMost(1.3));
pub(crate) const XEN_WRITE_128K: Target =
    target("xen write 128k QD8", "MiB/s", BLKBACK, Bound::AtLeast(1.0));
pub(crate) const XEN_CPU_WRITE_128K: Target =
    target("xen write 128k QD8 dom0 CPU", "us/IO", BLKBACK, Bound::AtMost(1.3));
pub(crate) const XEN1_4K_QD32: Target =
    target("xen 1 CPU randread 4k QD32", "IOPS", BLKBACK, Bound::AtLeast(0.95));
pub(crate) const XEN1_CPU_QD32: Target =
    target("xen 1 CPU randread 4k QD32 dom0 CPU", "us/IO", BLKBACK, Bound::AtMost(1.3));
pub(crate) const XEN1_4K_QD1: Target =
    target("xen 1 CPU randread 4k QD1", "IOPS", BLKBACK, Bound::AtLeast(0.8));
pub(crate) const XEN1_CPU_QD1: Target =
    target("xen 1 CPU randread 4k QD1 dom0 CPU", "us/IO", BLKBACK, Bound::AtMost(2.0));
pub(crate) const XEN1_128K: Target =
    target("xen 1 CPU read 128k QD8", "MiB/s", BLKBACK, Bound::AtLeast(1.0));
pub(crate) const XEN1_CPU_128K: Target =
    target("xen 1 CPU read 128k QD8 dom0 CPU", "us/IO", BLKBACK, Bound::AtMost(1.3));
pub(crate) const XEN1_1M: Target =
    target("xen 1 CPU read 1m QD4", "MiB/s", BLKBACK, Bound::AtLeast(1.0));
pub(crate) const XEN1_CPU_1M: Target =
    target("xen 1 CPU read 1m QD4 dom0 CPU", "us/IO", BLKBACK, Bound::AtMost(1.3));
pub(crate) const QDISK_4K_QD32: Target =
    target("xen randread 4k QD32", "IOPS", QDISK, Bound::AtLeast(1.4));
pub(crate) const QDISK_CPU_QD32: Target =
    target("xen randread 4k QD32 dom0 CPU", "us/IO", QDISK, Bound::AtMost(0.5));
pub(crate) const QDISK_4K_QD1: Target =
    target("xen randread 4k QD1", "IOPS", QDISK, Bound::AtLeast(1.4));
pub(crate) const QDISK_CPU_QD1: Target =
    target("xen randread 4k QD1 dom0 CPU", "us/IO", QDISK, Bound::AtMost(0.5));
pub(crate) const QDISK_128K: Target =
    target("xen read 128k QD8", "MiB/s", QDISK, Bound::AtLeast(2.0));
pub(crate) const QDISK_CPU_128K: Target =
    target("xen read 128k QD8 dom0 CPU", "us/IO", QDISK, Bound::AtMost(0.5));
pub(crate) const QDISK_1M: Target = target("xen read 1m QD4", "MiB/s", QDISK, Bound::AtLeast(4.0));
pub(crate) const QDISK_CPU_1M: Target =
    target("xen read 1m QD4 dom0 CPU", "us/IO", QDISK, Bound::AtMost(0.5));
/// Of a guest that keeps no grants: each request's pages are copied or mapped.
pub(crate) const LOOSE_4K_QD32: Target =
    target("xen loose randread 4k QD32", "IOPS", BLKBACK, Bound::AtLeast(0.9));
pub(crate) const LOOSE_CPU_QD32: Target =
    target("xen loose randread 4k QD32 dom0 CPU", "us/IO", BLKBACK, Bound::Shown);
pub(crate) const LOOSE_4K_QD1: Target =
    target("xen loose randread 4k QD1", "IOPS", BLKBACK, Bound::AtLeast(0.9));
pub(crate) const LOOSE_CPU_QD1: Target =
    target("xen loose randread 4k QD1 dom0 CPU", "us/IO", BLKBACK, Bound::Shown);
pub(crate) const LOOSE_128K: Target =
    target("xen loose read 128k QD8", "MiB/s", BLKBACK, Bound::AtLeast(0.9));
pub(crate) const LOOSE_CPU_128K: Target =
    target("xen loose read 128k QD8 dom0 CPU", "us/IO", BLKBACK, Bound::Shown);
pub(crate) const NBD_4K: Target = target("nbd read 4k QD32", "IOPS", QEMU_NBD, Bound::AtLeast(2.0));
pub(crate) const NBD_COPY: Target =
    target("nbdcopy of the whole disk", "MiB/s", QEMU_NBD, Bound::AtLeast(1.0));
pub(crate) const ATTACH: Target =
    target("attach3 + activate3 to a ready worker", "ms", LIMIT, Bound::AtMost(1.0));
pub(crate) const ATTACH_LIMIT_MS: f64 = 25.0;
pub(crate) const IDLE_RSS: Target =
    target("idle worker resident memory", "MiB", LIMIT, Bound::AtMost(1.0));
pub(crate) const IDLE_RSS_LIMIT_MIB: f64 = 4.0;
pub(crate) const ATTACH_QUEUE: Target =
    target("queue attach3", "ms", "1.5 commits+1", Bound::AtMost(1.0));
pub(crate) const ATTACH_ACTIVATE_QUEUE: Target =
    target("queue attach3 + activate3 to a worker", "ms", "4 commits+8", Bound::AtMost(1.0));
/// Of calls that overlap.
pub(crate) const COMMITS_PER_ATTACH: Target =
    target("commits a call, 256 attach3 at once", "", LIMIT, Bound::AtMost(1.0));
pub(crate) const COMMITS_PER_ATTACH_LIMIT: f64 = 0.5;
pub(crate) const SCAN: Target =
    target("SR.scan2 of 10 000 volumes, warm", "ms", LIMIT, Bound::AtMost(1.0));
pub(crate) const SCAN_LIMIT_MS: f64 = 100.0;
/// Under load, of requests that are under way while the call lasts.
pub(crate) const PAUSE: Target =
    target("guest's wait in snapshot, clone (XFS)", "ms", LIMIT, Bound::AtMost(1.0));
pub(crate) const PAUSE_LIMIT_MS: f64 = 20.0;
pub(crate) const PARALLEL_ACTIVATE: Target =
    target("256 attach3 + activate3 at once", "s", LIMIT, Bound::AtMost(1.0));
pub(crate) const PARALLEL_LIMIT_SECONDS: f64 = 4.0;
pub(crate) const DAEMON_RSS: Target =
    target("daemon resident memory, 256 active", "MiB", LIMIT, Bound::AtMost(1.0));
pub(crate) const DAEMON_RSS_LIMIT_MIB: f64 = 64.0;
/// Of one processor, all workers together. A timer tick's share of five seconds is 0.2.
pub(crate) const IDLE_CPU: Target = target("256 idle workers", "% CPU", LIMIT, Bound::AtMost(1.0));
pub(crate) const IDLE_CPU_LIMIT_PERCENT: f64 = 0.1;

/// A target and what was measured.
#[derive(Debug)]
pub(crate) struct Figure {
    target: &'static Target,
    ours: f64,
    theirs: f64,
    ratio: f64,
}

impl Figure {
    /// From interleaved pairs (ours, theirs): medians, and the median of the pairs' own ratios,
    /// which a disturbance that lasts longer than a pair does not move.
    pub(crate) fn from_pairs(target: &'static Target, pairs: &[(f64, f64)]) -> Self {
        Figure {
            target,
            ours: median(pairs.iter().map(|pair| pair.0)),
            theirs: median(pairs.iter().map(|pair| pair.1)),
            ratio: median(pairs.iter().map(|pair| pair.0 / pair.1)),
        }
    }

    pub(crate) fn met(&self) -> bool {
        match self.target.bound {
            Bound::AtLeast(least) => self.ratio >= least,
            Bound::AtMost(most) => self.ratio <= most,
            Bound::Shown => self.ratio.is_finite(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "name": self.target.name,
            "unit": self.target.unit,
            "ours": self.ours,
            "peer": self.target.peer,
            "theirs": self.theirs,
            "ratio": self.ratio,
            "target": self.bound(),
            "met": self.met(),
        })
    }

    pub(crate) fn row(&self) -> String {
        format!(
            "{:<40} {:>10.2} {:>10.2} {:<6} {:>6.2} {:>8}  {:<13} {}",
            self.target.name,
            self.ours,
            self.theirs,
            self.target.unit,
            self.ratio,
            self.bound(),
            self.target.peer,
            match self.target.bound {
                Bound::Shown => "",
                _ if self.met() => "met",
                _ => "MISSED",
            },
        )
    }

    fn bound(&self) -> String {
        match self.target.bound {
            Bound::AtLeast(least) => format!(">= {least:.2}"),
            Bound::AtMost(most) => format!("<= {most:.2}"),
            Bound::Shown => String::new(),
        }
    }
}

/// The heading of the rows.
pub(crate) fn heading() -> String {
    format!(
        "{:<40} {:>10} {:>10} {:<6} {:>6} {:>8}  {:<13} {}",
        "figure", "ours", "theirs", "unit", "ratio", "target", "peer", "met"
    )
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_that_of_the_middle_pair() {
        let pairs = [(97.0, 100.0), (50.0, 100.0), (10.0, 10.0)];
        let figure = Figure::from_pairs(&SIM_READ_4K, &pairs);
        assert!((figure.ratio - 0.97).abs() < 1e-9 && figure.met());
        assert!(!Figure::from_pairs(&SIM_READ_4K, &[(96.0, 100.0)]).met());
        assert!(!Figure::from_pairs(&SIM_CPU_4K, &[(1.6, 1.0)]).met());
        assert!(!Figure::from_pairs(&SIM_READ_4K, &[]).met(), "nothing measured meets nothing");
    }
}
