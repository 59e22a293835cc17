//! VDIs in use: which datapath holds which, and the worker that serves it.
//!
//! `registry` is the door, `actor` the queue behind it, `automaton` the rules (pure), `datapath`,
//! `volume`, `resize` and `service` what the commands do, `recover` what a new daemon does first,
//! `chores` what is tried again.

pub mod actor;
pub mod automaton;
pub mod chores;
mod datapath;
mod id;
pub mod recover;
pub mod registry;
mod resize;
mod service;
mod volume;

pub use id::VdiId;
pub use registry::{Holder, Registry};

#[cfg(test)]
mod tests;
