//! `cargo xtask load`: many disks of one host under verified I/O, with faults all the while. The
//! same, short, is among the tests; docs/reliability.md says what it is and what it found.

use anyhow::Result;

use crate::{process, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Disks, each of a domain of its own.
    #[arg(long, default_value_t = 128)]
    disks: u16,
    /// How long their guests are at work.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Of who is struck when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Takes root, for its file systems and loop devices.
pub(crate) fn run(options: &Options) -> Result<bool> {
    process::run(&mut workspace::cargo(&["build", "--workspace", "--bins"]))?;
    let mut load = workspace::cargo(&["run", "-q", "-p", "zerotap-tests", "--bin", "zerotap-load"]);
    load.args(["--", "--disks", &options.disks.to_string()]);
    load.args(["--minutes", &options.minutes.to_string()]);
    process::run(load.args(["--seed", &options.seed.to_string()]))?;
    Ok(true)
}
