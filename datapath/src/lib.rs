//! The datapath worker: speaks blkif with the guests of one VDI and does direct I/O on its image,
//! straight between the guests' pages and the disk.
//!
//! A process of one thread. It is given descriptors, not paths, and never opens anything itself.
//! [`control`] takes the daemon's orders, [`worker`] is the loop, [`device`] serves a VBD with
//! [`ring`] (blkif without I/O), [`xen`] (grants and events), [`image`] (where a virtual range
//! stands) and [`engine`] (the only place that submits I/O).

pub mod control;
pub mod device;
pub mod engine;
pub mod image;
pub mod inherit;
pub mod nbd;
pub mod ring;
pub mod worker;
pub mod xen;
