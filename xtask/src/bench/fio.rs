//! fio on the host itself: the peer of the simulated host's figures.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;

/// What one run did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Requests a second.
    pub(crate) iops: f64,
    /// MiB a second.
    pub(crate) mib: f64,
    /// Processor time of fio, microseconds a request.
    pub(crate) cpu_us: f64,
}

/// Reads or writes `image` for `seconds` by io_uring, direct.
pub(crate) fn run(
    image: &Path,
    pattern: &str,
    block: &str,
    depth: u32,
    seconds: u32,
) -> Result<Run> {
    let mut command = Command::new("fio");
    command
        .args(["--name=peer", "--direct=1", "--ioengine=io_uring", "--time_based"])
        .args(["--norandommap", "--randrepeat=0", "--output-format=json"])
        .arg(format!("--filename={}", image.display()))
        .arg(format!("--rw={pattern}"))
        .arg(format!("--bs={block}"))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--runtime={seconds}"));
    let report: Value = serde_json::from_str(&process::output(&mut command)?)?;
    let job = &report["jobs"][0];
    let number = |value: &Value| value.as_f64().context("fio's report lacks a number");
    let done = &job[if pattern.ends_with("write") { "write" } else { "read" }];
    let requests = number(&done["total_ios"])?;
    let busy = (number(&job["usr_cpu"])? + number(&job["sys_cpu"])?) / 100.0;
    let runtime_us = number(&done["runtime"])? * 1e3;
    Ok(Run {
        iops: number(&done["iops"])?,
        mib: number(&done["bw_bytes"])? / f64::from(1 << 20),
        cpu_us: busy * runtime_us / requests,
    })
}
