//! blkif without any I/O: layouts, the back end's half of a ring, and what a request may be.

pub mod abi;
pub mod back;
#[cfg(test)]
pub(crate) mod crash;
pub mod journal;
pub mod request;
pub mod shared;
pub mod token;
