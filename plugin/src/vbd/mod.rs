//! VBDs: what domains see of VDIs, over xenstore.
//!
//! Writes the backend's side of XenBus and plays the toolstack for `VBD.plug`; it never touches a
//! ring or an image, which are a worker's. Called by the RPC's admin methods and by the VDI side.

pub mod backend;
pub mod device;
pub mod frontend;
pub mod xenbus;
