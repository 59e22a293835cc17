//! Real Xen: one boot, one RAM disk served by a peer and by zerotap to the same guest, in turn.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::PAIRS;
use super::figure::{
    Figure, LOOSE_4K_QD1, LOOSE_4K_QD32, LOOSE_128K, LOOSE_CPU_128K, LOOSE_CPU_QD1, LOOSE_CPU_QD32,
    QDISK_1M, QDISK_4K_QD1, QDISK_4K_QD32, QDISK_128K, QDISK_CPU_1M, QDISK_CPU_128K, QDISK_CPU_QD1,
    QDISK_CPU_QD32, Target, XEN_1M, XEN_4K_QD1, XEN_4K_QD32, XEN_128K, XEN_CPU_1M, XEN_CPU_128K,
    XEN_CPU_QD1, XEN_CPU_QD32, XEN_CPU_WRITE_4K, XEN_CPU_WRITE_128K, XEN_WRITE_4K, XEN_WRITE_128K,
    XEN1_1M, XEN1_4K_QD1, XEN1_4K_QD32, XEN1_128K, XEN1_CPU_1M, XEN1_CPU_128K, XEN1_CPU_QD1,
    XEN1_CPU_QD32,
};
use crate::xen::{Backend, Boot, Guest, Outcome};

/// Seconds of each run.
const RUN_SECONDS: u32 = 5;
const LIMIT: Duration = Duration::from_secs(1200);
/// The guest's names of its two disks.
const THEIRS: &str = "xvda";
const OURS: &str = "xvdb";

/// fio's pattern, KiB a request and depth.
type Pattern = (&'static str, u32, u32);

const READ_4K_QD32: Pattern = ("randread", 4, 32);
const READ_4K_QD1: Pattern = ("randread", 4, 1);
const READ_128K: Pattern = ("read", 128, 8);
const READ_1M: Pattern = ("read", 1024, 4);

/// A job, and what its report is good for.
struct Job {
    pattern: Pattern,
    speed: &'static Target,
    value: fn(&Run) -> f64,
    cpu: &'static Target,
}

const JOBS: &[Job] = &[
    iops(READ_4K_QD32, &XEN_4K_QD32, &XEN_CPU_QD32),
    iops(READ_4K_QD1, &XEN_4K_QD1, &XEN_CPU_QD1),
    iops(("randwrite", 4, 32), &XEN_WRITE_4K, &XEN_CPU_WRITE_4K),
    mib(READ_128K, &XEN_128K, &XEN_CPU_128K),
    mib(("write", 128, 8), &XEN_WRITE_128K, &XEN_CPU_WRITE_128K),
    mib(READ_1M, &XEN_1M, &XEN_CPU_1M),
];
const JOBS_ONE_CPU: &[Job] = &[
    iops(READ_4K_QD32, &XEN1_4K_QD32, &XEN1_CPU_QD32),
    iops(READ_4K_QD1, &XEN1_4K_QD1, &XEN1_CPU_QD1),
    mib(READ_128K, &XEN1_128K, &XEN1_CPU_128K),
    mib(READ_1M, &XEN1_1M, &XEN1_CPU_1M),
];
const JOBS_LOOSE: &[Job] = &[
    iops(READ_4K_QD32, &LOOSE_4K_QD32, &LOOSE_CPU_QD32),
    iops(READ_4K_QD1, &LOOSE_4K_QD1, &LOOSE_CPU_QD1),
    mib(READ_128K, &LOOSE_128K, &LOOSE_CPU_128K),
];
const JOBS_QDISK: &[Job] = &[
    iops(READ_4K_QD32, &QDISK_4K_QD32, &QDISK_CPU_QD32),
    iops(READ_4K_QD1, &QDISK_4K_QD1, &QDISK_CPU_QD1),
    mib(READ_128K, &QDISK_128K, &QDISK_CPU_128K),
    mib(READ_1M, &QDISK_1M, &QDISK_CPU_1M),
];

const fn iops(pattern: Pattern, speed: &'static Target, cpu: &'static Target) -> Job {
    Job { pattern, speed, value: |run| run.iops, cpu }
}

const fn mib(pattern: Pattern, speed: &'static Target, cpu: &'static Target) -> Job {
    Job { pattern, speed, value: |run| run.mib, cpu }
}

impl Job {
    /// One word, which the guest takes apart.
    fn name(&self) -> String {
        let (pattern, kib, depth) = self.pattern;
        format!("{pattern}:{kib}:{depth}")
    }
}

/// One run of one job on one disk.
#[derive(Debug)]
struct Run {
    job: String,
    disk: String,
    iops: f64,
    mib: f64,
    cpu_us: f64,
}

pub(crate) fn measure() -> Result<Vec<Figure>> {
    boot(JOBS, &Terms::default())
}

pub(crate) fn measure_one_cpu() -> Result<Vec<Figure>> {
    boot(JOBS_ONE_CPU, &Terms { vcpus: 1, ..Terms::default() })
}

pub(crate) fn measure_loose() -> Result<Vec<Figure>> {
    boot(JOBS_LOOSE, &Terms { keeps_grants: false, ..Terms::default() })
}

pub(crate) fn measure_qdisk() -> Result<Vec<Figure>> {
    boot(JOBS_QDISK, &Terms { qdisk: true, ..Terms::default() })
}

/// What kind of guest it is, and who is the peer.
struct Terms {
    vcpus: u8,
    keeps_grants: bool,
    /// QEMU's qdisk, not blkback.
    qdisk: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Terms { vcpus: 2, keeps_grants: true, qdisk: false }
    }
}

fn boot(jobs: &[Job], terms: &Terms) -> Result<Vec<Figure>> {
    let peer = if terms.qdisk { "qdisk" } else { "vbd" };
    let names: Vec<String> = jobs.iter().map(Job::name).collect();
    let boot = Boot {
        guest: Guest::Pv,
        backend: Backend::Zerotap,
        dom0_script: format!(
            "ROUNDS={PAIRS} JOBS={} PEER={peer}\n{}",
            jobs.len(),
            include_str!("../../xen/bench/bench.dom0.sh")
        ),
        guest_script: format!(
            "ROUNDS={PAIRS} SECONDS_EACH={RUN_SECONDS} JOBS='{}'\n{}",
            names.join(" "),
            include_str!("../../xen/bench/bench.guest.sh")
        ),
        vcpus: terms.vcpus,
        keeps_grants: terms.keeps_grants,
        qemu: terms.qdisk,
        limit: LIMIT,
    };
    let ended = boot.run()?;
    ensure!(ended.outcome == Outcome::Passed, "the benchmark's boot: {}", ended.outcome);
    let runs =
        ended.report.lines().filter_map(parse).collect::<Result<Vec<_>>>().context("the report")?;
    let mut figures = Vec::new();
    for job in jobs {
        let name = job.name();
        figures.push(Figure::from_pairs(job.speed, &pairs(&runs, &name, job.value)));
        figures.push(Figure::from_pairs(job.cpu, &pairs(&runs, &name, |run| run.cpu_us)));
    }
    Ok(figures)
}

/// (ours, theirs) of each round.
fn pairs(runs: &[Run], job: &str, value: fn(&Run) -> f64) -> Vec<(f64, f64)> {
    let of = |disk| {
        let mine = move |run: &&Run| run.job == job && run.disk == disk;
        runs.iter().filter(mine).map(value)
    };
    of(OURS).zip(of(THEIRS)).collect()
}

/// `bench JOB DISK IOPS KIB_PER_SECOND REQUESTS DOM0_BEFORE DOM0_AFTER`
fn parse(line: &str) -> Option<Result<Run>> {
    let words: Vec<&str> = line.strip_prefix("bench ")?.split_whitespace().collect();
    let run = || {
        let [job, disk, numbers @ ..] = words.as_slice() else { anyhow::bail!("{line:?}") };
        let numbers = numbers
            .iter()
            .map(|word| word.parse::<f64>().with_context(|| format!("{word:?} in {line:?}")))
            .collect::<Result<Vec<_>>>()?;
        let [iops, kib, requests, before, after] = numbers[..] else { anyhow::bail!("{line:?}") };
        Ok(Run {
            job: (*job).to_owned(),
            disk: (*disk).to_owned(),
            iops,
            mib: kib / 1024.0,
            cpu_us: (after - before) * 1e6 / requests,
        })
    };
    Some(run())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_becomes_pairs() {
        let lines = "noise\nbench 4k-qd1 xvda 800 3200 4000 10.0 12.0\n\
                     bench 4k-qd1 xvdb 400 1600 2000 12.0 14.0\n";
        let runs: Vec<Run> = lines.lines().filter_map(parse).map(Result::unwrap).collect();
        assert_eq!(pairs(&runs, "4k-qd1", |run| run.iops), [(400.0, 800.0)]);
        assert_eq!(pairs(&runs, "4k-qd1", |run| run.cpu_us), [(1000.0, 500.0)]);
        assert!(parse("bench 4k-qd1 xvda 800").unwrap().is_err());
    }
}
