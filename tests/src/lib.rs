//! What the scenarios stand on: a simulated host, a guest that checks every byte, a harness that
//! starts the real binaries.

pub mod blkfront;
pub mod genuine_xenstored;
pub mod guest;
pub mod simhost;
pub mod xenstore;
pub mod xenstored;
