//! The JSON-RPC door: a unix socket, HTTP and WebSocket, the methods of the table.
//!
//! It translates and never decides. A handler may be dropped at any await, when its client hangs
//! up; whatever changes something is therefore done by an actor, or in a task of its own
//! ([`to_the_end`]).

mod admin;
pub mod diagnostics;
mod events;
mod further;
pub mod listen;
pub mod methods;
pub mod origin;
pub mod pages;
pub mod peer;
pub mod rate;
pub mod serve;
mod smapi2;
mod smapi3;
pub mod tcp;
mod tolerant;

pub use smapi3::about as about_smapi3;

use crate::events::Events;
use crate::metrics::calls::CallCounts;
use crate::metrics::look::Watched;
use crate::sr::Srs;
use crate::vbd::Vbds;
use crate::vdi::Registry;
use std::sync::Arc;
use tracing::Instrument;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::engine::EngineChoice;

/// What the handlers reach.
pub struct Core {
    /// The SRs.
    pub srs: Arc<Srs>,
    /// The VDIs.
    pub registry: Arc<Registry>,
    /// The VBDs.
    pub vbds: Arc<Vbds>,
    /// `xen` or `sim`.
    pub host: String,
    /// The host's boot id.
    pub boot_id: String,
    /// Which engine new workers take, or why none.
    pub engine: Result<EngineChoice, String>,
    /// Since when the daemon runs, RFC 3339.
    pub since: String,
    /// What was called, how often, how long it took.
    pub calls: CallCounts,
    /// What workers and SRs told last.
    pub watched: Watched,
    /// What changes.
    pub events: Events,
}

/// Does work that must not break off halfway when the caller hangs up.
///
/// # Errors
/// The work's own.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, StorageError>> + Send + 'static,
) -> Result<T, StorageError> {
    let work = tokio::spawn(work.in_current_span());
    let broke_off = |error| StorageError::Internal(format!("the operation broke off: {error}"));
    work.await.map_err(broke_off)?
}

#[cfg(test)]
mod tests;
