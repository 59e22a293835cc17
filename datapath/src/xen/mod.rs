//! The guest's pages and events: the kernel's grant and event channel devices, or the simulated
//! host's files. Two small enums; whoever uses them need not know which host it is.

pub mod budget;
pub mod cost;
pub mod evtchn;
pub mod gntdev;
pub mod policy;
pub mod sim;
mod standing;
pub mod transfer;
mod window;

use crate::ring::shared::SharedMapping;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Pages that one map call takes at the most.
pub const GRANTS_PER_MAP_MAX: usize = 512;

/// Which host this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// Xen, by the kernel's devices.
    Xen,
    /// The simulated host.
    Sim,
}

/// What a mapping allows. A guest's write needs only [`Access::ReadOnly`]: its grant may forbid
/// more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The device reads the pages.
    ReadOnly,
    /// The device may write them.
    ReadWrite,
}

/// Bytes to copy from the start of a granted page.
#[derive(Debug)]
pub struct CopyOut<'a> {
    /// The page.
    pub gref: u32,
    /// Where to; at most a page long.
    pub to: &'a mut [u8],
}

/// Which way a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Towards {
    /// Into a granted page, which must allow it.
    Guest,
    /// Out of one.
    Us,
}

/// A piece of a granted page, and its place in a memory of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The page.
    pub gref: u32,
    /// Where it begins in the page.
    pub page_offset: u16,
    /// Its length; it ends within the page.
    pub bytes: u16,
    /// Where it stands in our memory.
    pub offset: usize,
    /// Whether it was copied.
    pub copied: bool,
}

/// One domain's grants.
#[derive(Debug)]
pub enum Grants {
    /// By `/dev/xen/gntdev`.
    Xen(gntdev::Gntdev),
    /// By the simulated host's files.
    Sim(sim::SimGrants),
}

/// Granted pages, mapped side by side; dropping it unmaps them. Fields drop in this order: the
/// grants are given back after nothing maps them any more.
#[derive(Debug)]
pub struct GrantMapping {
    memory: SharedMapping,
    held: Held,
}

/// What keeps grants mapped, beside the mapping itself: dropped after it.
#[derive(Debug)]
pub enum Held {
    /// The grant device's record.
    Xen(gntdev::MapRecord),
    /// The simulated grants' count.
    Sim(sim::SimUse),
}

impl GrantMapping {
    /// The pages.
    #[must_use]
    pub fn memory(&self) -> &SharedMapping {
        &self.memory
    }

    /// The pages, and what must be dropped after them.
    #[must_use]
    pub fn split(self) -> (SharedMapping, Held) {
        (self.memory, self.held)
    }
}

impl Grants {
    /// The grants of domain `domid`, through the `device` that the daemon handed over.
    ///
    /// # Errors
    /// When there is no such (simulated) guest.
    pub fn new(host: Host, device: &Arc<OwnedFd>, domid: u16) -> rustix::io::Result<Self> {
        Ok(match host {
            Host::Xen => Grants::Xen(gntdev::Gntdev::new(Arc::clone(device), domid)),
            Host::Sim => Grants::Sim(sim::SimGrants::open(device.as_fd(), domid)?),
        })
    }

    /// Maps `grefs` side by side: all of them, or none.
    ///
    /// # Errors
    /// When any of them cannot be mapped.
    ///
    /// # Panics
    /// When there are none, or more than [`GRANTS_PER_MAP_MAX`].
    pub fn map(&self, grefs: &[u32], access: Access) -> rustix::io::Result<GrantMapping> {
        assert!((1..=GRANTS_PER_MAP_MAX).contains(&grefs.len()), "{} pages", grefs.len());
        match self {
            Grants::Xen(gntdev) => {
                let (memory, record) = gntdev.map(grefs, access)?;
                Ok(GrantMapping { memory, held: Held::Xen(record) })
            }
            Grants::Sim(sim) => {
                let (memory, used) = sim.map(grefs, access)?;
                Ok(GrantMapping { memory, held: Held::Sim(used) })
            }
        }
    }

    /// Copies all pieces in one call, each for itself: it says whether it was `copied`.
    ///
    /// # Panics
    /// When a piece leaves `memory`.
    pub fn copy(&mut self, memory: &SharedMapping, pieces: &mut [Piece], towards: Towards) {
        match self {
            Grants::Xen(gntdev) => gntdev.copy(memory, pieces, towards),
            Grants::Sim(sim) => sim.copy(memory, pieces, towards),
        }
    }

    /// Copies out of granted pages in one call.
    ///
    /// # Errors
    /// When any of them cannot be copied.
    pub fn copy_out(&self, copies: &mut [CopyOut<'_>]) -> rustix::io::Result<()> {
        match self {
            Grants::Xen(gntdev) => gntdev.copy_out(copies),
            Grants::Sim(sim) => sim.copy_out(copies),
        }
    }
}

/// A bound event channel port; dropping it unbinds.
#[derive(Debug)]
pub enum Channel {
    /// By `/dev/xen/evtchn`.
    Xen(evtchn::Evtchn),
    /// By the simulated host's FIFOs.
    Sim(sim::SimChannel),
}

impl Channel {
    /// Binds the frontend's `port` of domain `domid` through `device`, which is this channel's own.
    ///
    /// # Errors
    /// When the port is not there, or bound already.
    pub fn bind(host: Host, device: OwnedFd, domid: u16, port: u32) -> rustix::io::Result<Self> {
        Ok(match host {
            Host::Xen => Channel::Xen(evtchn::Evtchn::bind(device, domid, port)?),
            Host::Sim => Channel::Sim(sim::SimChannel::bind(device.as_fd(), domid, port)?),
        })
    }

    /// What becomes readable with an event.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Channel::Xen(evtchn) => evtchn.descriptor().as_fd(),
            Channel::Sim(sim) => sim.descriptor().as_fd(),
        }
    }

    /// The word to write to the descriptor so that the next event comes through; none where events
    /// need no such leave.
    #[must_use]
    pub fn unmask_word(&self) -> Option<u32> {
        match self {
            Channel::Xen(evtchn) => Some(evtchn.local_port()),
            Channel::Sim(_) => None,
        }
    }

    /// Sends the guest an event.
    ///
    /// # Errors
    /// When its end is gone.
    pub fn notify(&self) -> rustix::io::Result<()> {
        match self {
            Channel::Xen(evtchn) => evtchn.notify(),
            Channel::Sim(sim) => sim.notify(),
        }
    }
}
