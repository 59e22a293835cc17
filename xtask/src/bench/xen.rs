//! Real Xen: one boot, one RAM disk served by blkback and by zerotap to the same guest, in turn.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::PAIRS;
use super::figure::{
    Figure, Target, XEN_1M, XEN_4K_QD1, XEN_4K_QD32, XEN_128K, XEN_CPU_1M, XEN_CPU_128K,
    XEN_CPU_QD1, XEN_CPU_QD32, XEN_CPU_WRITE_4K, XEN_CPU_WRITE_128K, XEN_WRITE_4K, XEN_WRITE_128K,
};
use crate::xen::{Backend, Boot, Guest, Outcome};

/// Seconds of each run.
const RUN_SECONDS: u32 = 5;
const LIMIT: Duration = Duration::from_secs(1200);
/// The guest's names of its two disks.
const THEIRS: &str = "xvda";
const OURS: &str = "xvdb";

/// What a job's report is good for.
struct Job {
    name: &'static str,
    speed: &'static Target,
    value: fn(&Run) -> f64,
    cpu: &'static Target,
}

const JOBS: &[Job] = &[
    iops("4k-qd32", &XEN_4K_QD32, &XEN_CPU_QD32),
    iops("4k-qd1", &XEN_4K_QD1, &XEN_CPU_QD1),
    iops("w4k-qd32", &XEN_WRITE_4K, &XEN_CPU_WRITE_4K),
    mib("128k-qd8", &XEN_128K, &XEN_CPU_128K),
    mib("w128k-qd8", &XEN_WRITE_128K, &XEN_CPU_WRITE_128K),
    mib("1m-qd4", &XEN_1M, &XEN_CPU_1M),
];

const fn iops(name: &'static str, speed: &'static Target, cpu: &'static Target) -> Job {
    Job { name, speed, value: |run| run.iops, cpu }
}

const fn mib(name: &'static str, speed: &'static Target, cpu: &'static Target) -> Job {
    Job { name, speed, value: |run| run.mib, cpu }
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
    let boot = Boot {
        guest: Guest::Pv,
        backend: Backend::Zerotap,
        dom0_script: format!(
            "ROUNDS={PAIRS} JOBS={}\n{}",
            JOBS.len(),
            include_str!("../../xen/bench/bench.dom0.sh")
        ),
        guest_script: format!(
            "ROUNDS={PAIRS} SECONDS_EACH={RUN_SECONDS}\n{}",
            include_str!("../../xen/bench/bench.guest.sh")
        ),
        vcpus: 2,
        limit: LIMIT,
    };
    let ended = boot.run()?;
    ensure!(ended.outcome == Outcome::Passed, "the benchmark's boot: {}", ended.outcome);
    let runs =
        ended.report.lines().filter_map(parse).collect::<Result<Vec<_>>>().context("the report")?;
    let mut figures = Vec::new();
    for job in JOBS {
        figures.push(Figure::from_pairs(job.speed, &pairs(&runs, job.name, job.value)));
        figures.push(Figure::from_pairs(job.cpu, &pairs(&runs, job.name, |run| run.cpu_us)));
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
