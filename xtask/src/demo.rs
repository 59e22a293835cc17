//! `cargo xtask demo`: one disk's whole life, told call by call.

use anyhow::{Result, bail};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// On real Xen with a Linux guest, instead of the simulated host.
    #[arg(long)]
    xen: bool,
    /// Leave the daemon up afterwards and say what to try next.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(options: &Options) -> Result<bool> {
    let _ = (options.xen, options.keep);
    bail!("the demo is not here yet")
}
