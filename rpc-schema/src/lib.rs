//! Every message that crosses a process boundary in zerotap. Types and tables only: no I/O.
//!
//! * [`table`]: the JSON-RPC methods, one row each; server, client and OpenRPC are read off it.
//! * [`smapi2`], [`admin`]: what they carry. [`error`]: what they answer when they fail.
//! * [`worker`]: the control protocol between the daemon and a datapath worker.

pub mod admin;
pub mod error;
mod latency;
pub mod method;
#[cfg(feature = "schema")]
pub mod openrpc;
pub mod smapi2;
pub mod table;
mod variant;
pub mod worker;

pub use error::StorageError;
pub use latency::Histogram;
pub use method::Method;
