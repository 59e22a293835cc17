//! The datapath worker: speaks blkif with the guests of one VDI and does direct I/O on its image,
//! straight between the guests' pages and the disk.
//!
//! It is given descriptors, not paths, and never opens anything itself. Its first thread is the
//! [`worker`]: it takes the daemon's orders ([`control`]) and serves the NBD clients ([`nbd`]).
//! Each [`queue`] of a [`vbd`] has a thread of its own, where a [`device`] serves one ring with
//! [`ring`] (blkif without I/O), [`xen`] (grants and events), [`image`] (where a virtual range
//! stands) and [`engine`] (the only place that submits I/O).

mod arena;
mod clock;
pub mod control;
pub mod copy;
pub mod device;
mod elder;
pub mod engine;
pub mod idle;
pub mod image;
pub mod inherit;
pub mod nbd;
pub mod patience;
pub mod queue;
#[cfg(test)]
mod random;
pub mod ring;
pub mod sandbox;
pub mod vbd;
pub mod worker;
pub mod xen;
