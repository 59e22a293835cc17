//! What a worker counts of its NBD server.

use serde::{Deserialize, Serialize};

/// Counters of a worker's NBD server since the worker started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NbdCounters {
    /// Clients connected now.
    pub clients: u32,
    /// Clients that have ever connected.
    pub clients_total: u64,
    /// Clients turned away because there were too many.
    pub refused_clients: u64,
    /// Reads, writes and flushes answered with success.
    pub reads: u64,
    /// See `reads`.
    pub writes: u64,
    /// See `reads`.
    pub flushes: u64,
    /// TRIM and WRITE_ZEROES answered with success.
    pub discards: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Bytes trimmed or zeroed.
    pub discard_bytes: u64,
    /// Requests answered with an error because they were malformed, out of range or forbidden.
    pub refused: u64,
    /// Requests answered with an error because the image failed.
    pub io_errors: u64,
    /// Requests with the image now.
    pub in_flight: u32,
    /// Bytes of data that were copied on their way between socket and image.
    pub copied_bytes: u64,
}
