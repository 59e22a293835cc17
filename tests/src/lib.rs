//! What the scenarios stand on: a simulated host, a guest that checks every byte, a harness that
//! starts the real binaries.

pub mod xenstore;
pub mod xenstored;
