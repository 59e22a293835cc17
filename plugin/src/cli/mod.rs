//! The command line: one file a command group, each a thin translation to JSON-RPC calls and back.
//!
//! It holds no state and knows no path but the socket's: whatever it does, any JSON-RPC client can
//! do.
//! `--json` prints a call's result as it is; without it, tables for people. Called by `main`.

mod call;
mod client;
mod context;
mod daemon;
mod duration;
mod failure;
mod locate;
mod pair;
mod progress;
mod size;
mod smapi;
mod sr;
mod table;
mod terminal;
mod vbd;
mod vdi;
mod watch;
mod worker;

use clap::{Parser, Subcommand};
use client::Client;
use context::Context;
use failure::Failure;
use std::{path::PathBuf, process::ExitCode};

/// A storage manager for Xen hosts: storage repositories (SR), virtual disks (VDI), and zero-copy
/// datapaths from a guest's blkfront to them.
#[derive(Debug, Parser)]
#[command(name = "zerotap", version, after_help = EXAMPLES)]
struct Cli {
    /// Print the result of the call as JSON instead of a table
    #[arg(long, global = true, help_heading = GLOBAL)]
    json: bool,
    /// The daemon's socket
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        value_name = "PATH",
        env = "ZEROTAP_SOCKET",
        default_value = "/run/zerotap/rpc.sock"
    )]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

/// Where `--help` lists the options that every command has.
const GLOBAL: &str = "Global options";

const EXAMPLES: &str = "\
A disk for domain 5, from nothing:
  SR=$(zerotap sr create --name local --device-config path=/srv/disks)
  VDI=$(zerotap vdi create --sr $SR --name root --size 10G)
  zerotap vdi attach $VDI --domid 5 --device xvda
  zerotap vdi activate $VDI --domid 5 --device xvda
  zerotap vbd plug --domid 5 --device xvda --vdi $VDI
  zerotap vbd show --domid 5 --device xvda

and away again:
  zerotap vbd unplug --domid 5 --device xvda
  zerotap vdi deactivate $VDI --domid 5 --device xvda
  zerotap vdi detach $VDI --domid 5 --device xvda

Sizes are powers of 1024: 64M = 64MiB, 10G = 10GiB.
Exit codes: 0 done, 1 the call failed, 2 the command line is wrong.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve(crate::daemon::ServeArgs),
    /// Storage repositories: where VDIs live
    #[command(subcommand)]
    Sr(sr::Verb),
    /// Virtual disks
    #[command(subcommand)]
    Vdi(vdi::Verb),
    /// Disks as domains see them
    #[command(subcommand)]
    Vbd(vbd::Verb),
    /// Datapath workers: the processes that serve VDIs
    #[command(subcommand)]
    Worker(worker::Verb),
    /// The SMAPIv3 executables, by which XAPI reaches the daemon
    #[command(subcommand)]
    Smapi(smapi::Verb),
    /// The daemon, its host, and what is degraded
    Status,
    /// Every change of state as it happens, a line each (with --json: an object each)
    Watch,
    /// A report for people: SRs, datapaths, workers, VBDs, foreign files
    Diagnostics,
    /// Send any JSON-RPC method
    Call(call::Args),
}

/// Parses the command line, does what it says and tells how it went.
pub(crate) async fn run() -> ExitCode {
    match obey(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code)
        }
    }
}

async fn obey(cli: Cli) -> Result<(), Failure> {
    let context = Context { client: Client::new(cli.socket), json: cli.json };
    match cli.command {
        Command::Serve(args) => serve(args).await,
        Command::Sr(verb) => sr::run(verb, &context).await,
        Command::Vdi(verb) => vdi::run(verb, &context).await,
        Command::Vbd(verb) => vbd::run(verb, &context).await,
        Command::Worker(verb) => worker::run(&verb, &context).await,
        Command::Smapi(verb) => smapi::run(&verb, &context),
        Command::Status => daemon::status(&context).await,
        Command::Watch => watch::run(&context).await,
        Command::Diagnostics => daemon::diagnostics(&context).await,
        Command::Call(args) => call::run(&args, &context).await,
    }
}

async fn serve(args: crate::daemon::ServeArgs) -> Result<(), Failure> {
    crate::daemon::serve(args).await.map_err(|error| Failure::plain(format!("{error:#}")))
}

#[cfg(test)]
mod tests;
