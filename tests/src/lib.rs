//! What the scenarios stand on: a simulated host, a guest that checks every byte, a harness that
//! starts the real binaries.

pub mod bare_worker;
pub mod bench;
pub mod blkfront;
pub mod footprint;
pub mod genuine_xenstored;
pub mod guest;
pub mod harness;
pub mod installed;
pub mod load;
pub mod message_switch;
pub mod moment;
pub mod pause;
pub mod programs;
pub mod siege;
pub mod simguest;
pub mod simhost;
pub mod storage_script;
pub mod workload;
pub mod xenopsd;
pub mod xenstore;
pub mod xenstored;
