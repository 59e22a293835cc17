//! The load campaign: many disks under verified I/O, with faults all the while. `cargo xtask load`
//! starts it, and has the defaults. Takes root.

use clap::Parser;
use std::time::Duration;
use zerotap_tests::load::{Plan, run};

/// Lets disks live through faults, and compares every byte.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Disks, each of a domain of its own.
    #[arg(long)]
    disks: u16,
    /// How long their guests are at work.
    #[arg(long)]
    minutes: u64,
    /// Of who is struck when.
    #[arg(long)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let Args { disks, minutes, seed } = Args::parse();
    let plan = Plan { disks, time: Duration::from_secs(60 * minutes), seed };
    let tally = run(&plan, |line| println!("{line}"))?;
    println!("nothing is wrong and nothing is left behind: {tally:#?}");
    Ok(())
}
