//! Every message that crosses a process boundary in zerotap. Types and tables only: no I/O.
//!
//! * [`table`]: the JSON-RPC methods, one row each; server, client and OpenRPC are read off it.
//! * [`smapi2`], [`admin`]: what they carry. [`error`]: what they answer when they fail.
//! * [`event`]: changes of state, as they are told to who subscribes.
//! * [`smapi3`]: SMAPIv3's types and its own table, which the executables follow.
//! * [`engine`]: how a worker does its I/O.
//! * [`worker`]: the control protocol between the daemon and a datapath worker.

pub mod admin;
mod counters;
mod deadline;
pub mod engine;
pub mod error;
pub mod event;
pub mod further;
mod latency;
pub mod method;
mod nbd;
#[cfg(feature = "schema")]
pub mod openrpc;
pub mod smapi2;
pub mod smapi3;
pub mod space;
pub mod table;
mod variant;
pub mod worker;

pub use deadline::deadline_of;
pub use error::StorageError;
pub use latency::Histogram;
pub use method::Method;

/// The wire name of every method that the daemon serves.
pub fn names() -> impl Iterator<Item = &'static str> {
    table::NAMES.iter().chain(smapi3::table::NAMES).copied()
}
