//! VDIs in use: which datapath holds which, and the worker that serves it.

pub mod automaton;
mod id;

pub use id::VdiId;
