//! What a ring costs by itself: a guest that looks at its ring all the time, a worker without a
//! daemon, and an image in memory (tmpfs, O_DIRECT), so that nothing has to be waited for.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::figure::{
    FULL_RSS, FULL_RSS_LIMIT_MIB, Figure, RING, RING_CPU, RING_CPU_LIMIT_US, RING_LIMIT, TWO_QUEUES,
};
use super::{PAIRS, in_turn};
use crate::process;
use crate::sim_host::SimHost;

const SECONDS: u32 = 2;
const IMAGE_MIB: u32 = 64;
/// Four queues of order 4, each with as many requests as it has entries.
const FULL: [&str; 8] =
    ["--queues", "4", "--ring-order", "4", "--depth", "2048", "--spin-us", "1000"];
/// The largest requests there are.
const LARGEST: [&str; 3] = ["--block-bytes", "1048576", "--one-page"];

/// `disk`: an image that is not in memory, where requests pile up.
pub(super) fn measure(host: &SimHost, disk: &Path) -> Result<Vec<Figure>> {
    let image = host.sim_dir().join("image");
    fill(&image)?;
    let bench = |arguments: &[&str]| run(host, &image, arguments);
    let (mut rates, mut cpu, mut queues, mut memory) = (vec![], vec![], vec![], vec![]);
    for pair in 1..=PAIRS {
        println!("a ring by itself, pair {pair} of {PAIRS}");
        let one = bench(&["--pinned", "--spin-us", "1000"])?;
        rates.push((number(&one, "iops")?, RING_LIMIT));
        cpu.push((number(&one, "worker_cpu_ns")? / 1e3, RING_CPU_LIMIT_US));
        // A guest for each queue, for one is a single thread, and a CPU for both.
        let (two, one) = in_turn(
            pair,
            || number(&bench(&["--guests", "2"])?, "iops"),
            || number(&bench(&["--guests", "1"])?, "iops"),
        )?;
        queues.push((two, one));
        let full = run(host, disk, &[&FULL[..], &LARGEST].concat())?;
        memory.push((number(&full, "worker_kib")? / 1024.0, FULL_RSS_LIMIT_MIB));
    }
    std::fs::remove_file(&image)?;
    Ok(vec![
        Figure::from_pairs(&RING, &rates),
        Figure::from_pairs(&RING_CPU, &cpu),
        Figure::from_pairs(&TWO_QUEUES, &queues),
        Figure::from_pairs(&FULL_RSS, &memory),
    ])
}

fn run(host: &SimHost, image: &Path, arguments: &[&str]) -> Result<Value> {
    let mut command = host.program("zerotap-ringcost");
    command.arg("--image").arg(image).args(["--seconds", &SECONDS.to_string()]);
    command.arg("--journal").args(arguments);
    let said = process::output(&mut command)?;
    serde_json::from_str(said.trim()).with_context(|| said.clone())
}

fn fill(image: &Path) -> Result<()> {
    let mut fill = Command::new("dd");
    fill.args(["if=/dev/urandom", "bs=1M", "status=none", &format!("count={IMAGE_MIB}")]);
    process::run(fill.arg(format!("of={}", image.display())))
}

fn number(figures: &Value, key: &str) -> Result<f64> {
    figures[key].as_f64().with_context(|| format!("zerotap-ringcost's {key}"))
}
