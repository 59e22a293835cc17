//! The project's own commands, run as `cargo xtask <command>`.
//!
//! This crate compiles before everything else, so it leans on little: it starts other programs,
//! moves files and reads what they print. Nothing of the product lives here.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod asan;
mod bench;
mod campaign;
mod demo;
mod dist;
mod fuzz;
mod load;
mod packages;
mod process;
mod queries;
mod rpc;
mod sim_host;
mod stage;
mod test;
mod workspace;
mod xen;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show one disk's whole life: create, attach, serve verified I/O, detach, destroy.
    Demo(demo::Options),
    /// Check formatting, lints, queries and every test; then real Xen, unless --quick.
    Test(test::Options),
    /// Boot real Xen with a guest in QEMU, run one script in dom0 and one in the guest.
    Xen(xen::Options),
    /// Check the daemon's SQL against its migrations, or renew .sqlx after a change to either.
    Queries(queries::Options),
    /// Make static programs, a .deb and an .rpm, and try what is in the packages.
    Dist(dist::Options),
    /// Feed parsers inputs that libFuzzer thinks up, until one finds something.
    Fuzz(fuzz::Options),
    /// Run the tests, and the programs that they start, under the address sanitizer.
    Asan(asan::Options),
    /// Power cuts and deaths by the thousand, each history from a seed.
    Campaign(campaign::Options),
    /// Many disks under verified I/O, with faults all the while.
    Load(load::Options),
    /// Measure beside fio and beside the kernel's blkback.
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Xen(options) => xen::run(&options),
        Command::Queries(options) => queries::run(&options),
        Command::Dist(options) => dist::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Asan(options) => asan::run(&options),
        Command::Campaign(options) => campaign::run(&options),
        Command::Load(options) => load::run(&options),
        Command::Bench(options) => bench::run(&options),
    };
    exit_code(done)
}

/// `Ok(false)` is a command that ran and whose verdict is bad; it has said so itself already.
fn exit_code(done: Result<bool>) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
