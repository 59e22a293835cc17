//! A simulated guest: memory, grant table, event channels, as files that a back end can map.

mod domain;
mod port;

pub use domain::{Domain, FIRST_GREF, FRAME_BYTES, destroy};
pub use port::Port;
