//! What it costs that a guest goes on through the end of its worker: the pause that it sees when
//! the worker is killed or upgraded, and the journal all the time.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::figure::{
    Figure, JOURNAL, KILL_PAUSE, KILL_PAUSE_LIMIT_MS, UPGRADE_PAUSE, UPGRADE_PAUSE_LIMIT_MS,
};
use super::sim::{Bench, Load, READ_4K};
use super::{PAIRS, in_turn};
use crate::process;

/// Pauses whose median counts.
const PAUSES: usize = 11;
/// Seconds of load around each.
const LOAD_SECONDS: u32 = 3;
/// When it happens. A worker that dies within a second of its start may be replaced later.
const AT: Duration = Duration::from_millis(1500);
const LOAD: Load = Load { seconds: LOAD_SECONDS, ..READ_4K };

/// The pauses: as long as the longest request took.
pub(super) fn pauses(bench: &mut Bench<'_>) -> Result<Vec<Figure>> {
    bench.attach_and_activate()?;
    let (mut killed, mut upgraded) = (Vec::new(), Vec::new());
    for number in 1..=PAUSES {
        println!("simulated host, pause {number} of {PAUSES}");
        let report = bench.load(&LOAD, |bench| {
            std::thread::sleep(AT);
            let pid = bench.worker()?["pid"].to_string();
            process::run(Command::new("kill").args(["-9", &pid]))
        })?;
        killed.push((longest_ms(&report)?, KILL_PAUSE_LIMIT_MS));
        let report = bench.load(&LOAD, |bench| {
            std::thread::sleep(AT);
            let vdi = bench.vdi();
            bench.client.call("Worker.upgrade", &vdi).map(drop)
        })?;
        upgraded.push((longest_ms(&report)?, UPGRADE_PAUSE_LIMIT_MS));
    }
    bench.release()?;
    Ok(vec![
        Figure::from_pairs(&KILL_PAUSE, &killed),
        Figure::from_pairs(&UPGRADE_PAUSE, &upgraded),
    ])
}

fn longest_ms(report: &Value) -> Result<f64> {
    Ok(report["latency_max_us"].as_f64().context("the guest's longest latency")? / 1e3)
}

/// The journal: the same worker and guest with one and without, in turn.
pub(super) fn journal(bench: &Bench<'_>) -> Result<Figure> {
    let mut pairs = Vec::new();
    for pair in 1..=PAIRS {
        println!("journal, pair {pair} of {PAIRS}");
        pairs.push(in_turn(pair, || bench.journaled(true), || bench.journaled(false))?);
    }
    Ok(Figure::from_pairs(&JOURNAL, &pairs))
}
