//! Runs a simulated host until SIGTERM, or until the end of standard input.

use anyhow::Context as _;
use clap::Parser;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use zerotap_tests::simhost::SimHost;

/// A simulated Xen host: a xenstored, and a directory for guests' memory. No Xen, no root.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The host's directory; best on a tmpfs such as /dev/shm.
    #[arg(long)]
    dir: PathBuf,
    /// End with standard input, so that the host does not outlive who started it.
    #[arg(long)]
    until_eof: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let _host = SimHost::start(&args.dir)?;
    println!("ready");
    std::io::stdout().flush().context("say that the host is ready")?;
    if args.until_eof {
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    // SIGTERM's default action ends the process; the next start replaces sockets left behind.
    loop {
        std::thread::park();
    }
}
