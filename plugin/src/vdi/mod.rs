//! VDIs in use: which datapath holds which, and the worker that serves it.
//!
//! `registry` is the door, `actor` the queue behind it, `automaton` the rules (pure), `datapath`,
//! `volume`, `resize`, `revert`, `service` and `replace` what the commands do, `epoch` disks that
//! forget, `recover` what a new daemon does first, `supervise` what becomes of dead workers,
//! `abandon` uses that nobody ends, `chores` what is tried again, `outgrown` what is watched,
//! `tasks` what lasts.

mod abandon;
pub mod actor;
pub mod automaton;
pub mod chores;
mod datapath;
mod epoch;
mod id;
pub mod outgrown;
pub mod recover;
pub mod registry;
mod replace;
mod resize;
mod revert;
mod service;
pub mod supervise;
mod tasks;
mod volume;

pub use id::VdiId;
pub use registry::{Holder, Registry};
pub use tasks::Task;

#[cfg(test)]
mod tests;
