//! The worker's NBD server: dom0's way to a disk that the worker serves.
//!
//! [`handshake`] and [`transmission`] are the protocol without I/O, as the NBD project's
//! `doc/proto.md` tells it (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>);
//! [`server`] has the listener and the connections, on the worker's own engine and image.
//! Everything that a client can cost is bounded by the constants here.

mod connection;
pub mod export;
mod flow;
mod gather;
pub mod handshake;
mod lend;
mod ranges;
pub mod server;
mod slot;
pub mod transmission;

/// Clients at a time.
pub const CLIENTS_MAX: usize = 16;
/// Requests of a client in flight; it is not read from while it has so many.
pub const REQUESTS_MAX: usize = 128;
/// The longest read or write, bytes; clients are told.
pub const REQUEST_BYTES_MAX: u32 = 2 << 20;
/// The longest write whose data is read over and refused; beyond it the client is hung up on.
pub const DISCARD_BYTES_MAX: u32 = 32 << 20;
/// The memory for data of one client's requests, bytes. Two of the longest fit.
pub const ARENA_BYTES: usize = 2 * REQUEST_BYTES_MAX as usize + (64 << 10);
/// Extents in one answer to BLOCK_STATUS: more would keep the guests of this worker waiting.
pub const EXTENTS_MAX: usize = 64;
