//! VDIs in use: which datapath holds which, and the worker that serves it.

mod id;

pub use id::VdiId;
