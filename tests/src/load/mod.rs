//! Many disks of one host under verified I/O, with faults all the while; and at the end, whether
//! anything was lost or left behind.
//!
//! `cargo xtask load` runs it long, a test runs it short. Who is struck when follows from a seed;
//! what each is doing then does not. Needs root, for its file systems.

mod callers;
mod faults;
mod site;

use crate::workload::random::Random;
use callers::Callers;
use faults::Faults;
use site::Site;
use std::time::{Duration, Instant};

/// How often it is told how far it is.
const TELL: Duration = Duration::from_secs(10);
/// The shortest and the longest time between two faults, milliseconds.
const PAUSE_MS: (u64, u64) = (50, 800);

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Disks, each of a domain of its own.
    pub disks: u16,
    /// How long their guests are at work.
    pub time: Duration,
    /// Of who is struck when.
    pub seed: u64,
}

/// What came to pass.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests of guests, all answered.
    pub requests: u64,
    /// Of those, answered with an error, by disks whose device failed.
    pub errors: u64,
    /// Bytes that guests read, and compared.
    pub read_bytes: u64,
    /// Bytes that they wrote.
    pub write_bytes: u64,
    /// Calls that the daemon answered.
    pub calls: u64,
    /// Calls that were cut off by its death.
    pub cut_off: u64,
    /// What was done to them, by name.
    pub faults: std::collections::BTreeMap<&'static str, u64>,
    /// VBDs that were seen to wait for space.
    pub waited: u64,
}

/// Lets the disks live, and ends them in good order.
///
/// # Errors
/// A wrong byte, an error that no fault explains, a guest or a call without an answer, anything
/// that is left behind.
pub fn run(plan: &Plan, say: impl Fn(&str)) -> anyhow::Result<Tally> {
    let mut site = Site::new(plan)?;
    live(plan, &mut site, &say).map_err(|error| match site.keep_log() {
        Ok(log) => error.context(format!("daemon and workers have logged to {}", log.display())),
        Err(_) => error,
    })
}

fn live(plan: &Plan, site: &mut Site, say: &impl Fn(&str)) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    say(&format!("{} disks are at work", plan.disks));
    let mut faults = Faults::new(Random::new(plan.seed));
    let callers = Callers::start(site)?;
    let (started, mut told) = (Instant::now(), Instant::now());
    while started.elapsed() < plan.time {
        faults.strike(site, &callers, &mut tally)?;
        site.check_on_guests(&mut tally)?;
        callers.check()?;
        if told.elapsed() >= TELL {
            told = Instant::now();
            let (done, all) = (started.elapsed().as_secs(), plan.time.as_secs());
            let (requests, waiting) = (site.requests(), site.waiting());
            say(&format!("{done} of {all} s: {requests} requests, {waiting} disks wait for space"));
        }
    }
    faults.end(site, &callers)?;
    (tally.calls, tally.cut_off) = callers.end()?;
    say("the faults are over; all is ended and compared");
    site.end(&mut tally)?;
    Ok(tally)
}
