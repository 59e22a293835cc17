//! The zerotap daemon, its command line and, by the name it is called by, SMAPIv3's executables: a
//! storage manager for Xen hosts.
#![forbid(unsafe_code)]

mod cli;
pub mod config;
pub mod daemon;
pub mod events;
mod fault;
pub mod host;
pub mod message_switch;
pub mod metrics;
pub mod rpc;
pub mod script;
pub mod sr;
pub mod state;
pub mod vbd;
pub mod vdi;
pub mod worker;
pub mod xenstore;

use std::process::ExitCode;

fn main() -> ExitCode {
    // XAPI waits for each of these: they do without a runtime.
    if let Some(script) = script::called() {
        return script::run(script);
    }
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(cli::run()),
        Err(error) => {
            eprintln!("zerotap: cannot start threads: {error}");
            ExitCode::FAILURE
        }
    }
}
