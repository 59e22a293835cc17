//! The zerotap daemon and its command line: a storage manager for Xen hosts.
#![forbid(unsafe_code)]

mod cli;
pub mod config;
pub mod daemon;
pub mod host;
pub mod message_switch;
pub mod rpc;
pub mod sr;
pub mod state;
pub mod vbd;
pub mod vdi;
pub mod worker;
pub mod xenstore;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    cli::run().await
}
