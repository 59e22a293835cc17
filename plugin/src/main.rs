//! The zerotap daemon and its command line: a storage manager for Xen hosts.
#![forbid(unsafe_code)]

pub mod config;
pub mod daemon;
pub mod host;
pub mod state;
pub mod vdi;

fn main() {}
