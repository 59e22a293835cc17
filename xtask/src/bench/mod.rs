//! `cargo xtask bench`: what we do beside a peer, in one run. Machines are noisy: only ratios
//! within a run are worth anything, and each is the median of interleaved pairs.

mod figure;
mod fio;
mod nbd;
mod pause;
mod ring;
mod rpc;
mod sim;
mod xen;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use figure::Figure;

use crate::process;

/// Pairs of runs, ours and the peer's in turn, for each figure.
const PAIRS: usize = 5;

/// A pair's two runs; neither is always the first.
fn in_turn<T>(
    pair: usize,
    ours: impl FnOnce() -> Result<T>,
    theirs: impl FnOnce() -> Result<T>,
) -> Result<(T, T)> {
    if pair.is_multiple_of(2) {
        let first = ours()?;
        Ok((first, theirs()?))
    } else {
        let first = theirs()?;
        Ok((ours()?, first))
    }
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The simulated host, beside fio on the same file.
    Sim,
    /// Calls through a message switch, and scans.
    Rpc,
    /// The NBD server, beside qemu-nbd on the same file.
    Nbd,
    /// Real Xen, beside blkback on the same RAM disk.
    Xen,
    /// The same with a guest of one CPU.
    XenOneCpu,
    /// The same with a guest that keeps no grants.
    XenLoose,
    /// Beside QEMU's qdisk instead of blkback.
    XenQdisk,
}

type Measure = fn() -> Result<Vec<Figure>>;

/// Each part, and what measures it.
const PARTS: &[(Part, Measure)] = &[
    (Part::Sim, sim::measure),
    (Part::Rpc, rpc::measure),
    (Part::Nbd, nbd::measure),
    (Part::Xen, xen::measure),
    (Part::XenOneCpu, xen::measure_one_cpu),
    (Part::XenLoose, xen::measure_loose),
    (Part::XenQdisk, xen::measure_qdisk),
];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Also write the table to this file, as a JSON array.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only this part.
    #[arg(long, value_enum)]
    only: Option<Part>,
}

/// The command. False when a target was missed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    println!("machine: {}", machine()?);
    let mut figures: Vec<Figure> = Vec::new();
    let mut failed = Vec::new();
    for (part, measure) in PARTS {
        if options.only.is_some_and(|only| only != *part) {
            continue;
        }
        match measure() {
            Ok(measured) => figures.extend(measured),
            Err(problem) => failed.push(format!("{part:?}: {problem:#}")),
        }
    }
    println!("\n{}", figure::heading());
    for figure in &figures {
        println!("{}", figure.row());
    }
    if let Some(file) = &options.json {
        let rows: Vec<serde_json::Value> = figures.iter().map(Figure::json).collect();
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    // The other parts took minutes, and are worth their table all the same.
    ensure!(failed.is_empty(), "not measured: {}", failed.join("; "));
    Ok(!figures.is_empty() && figures.iter().all(Figure::met))
}

/// What the figures were taken on.
fn machine() -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("?");
    let cpus = std::thread::available_parallelism()?;
    let kernel = process::output(std::process::Command::new("uname").arg("-r"))?;
    Ok(format!("{cpus} x {model}, Linux {}", kernel.trim()))
}
