//! The host that VDIs are served on: Xen, or the simulated one, which is a directory.
//!
//! Opens the devices that a worker is given; never reads or writes them. Called when a worker is
//! started and when it is given a ring.

use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where grants are mapped.
const GNTDEV: &str = "/dev/xen/gntdev";
/// Where event channels are bound.
const EVTCHN: &str = "/dev/xen/evtchn";

/// Which host this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// dom0 (or a driver domain) of a Xen host.
    Xen,
    /// The simulated host of the tests and the demo.
    Sim {
        /// Its directory.
        dir: PathBuf,
    },
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Host::Xen => "xen",
            Host::Sim { .. } => "sim",
        })
    }
}

impl Host {
    /// Whether this machine has Xen's grant device.
    #[must_use]
    pub fn xen_is_here() -> bool {
        Path::new(GNTDEV).exists()
    }

    /// The device on which a worker maps grants.
    ///
    /// # Errors
    /// A text for people: which device, and why not.
    pub fn open_grants(&self) -> Result<OwnedFd, String> {
        match self {
            Host::Xen => open(Path::new(GNTDEV), OFlags::RDWR),
            Host::Sim { dir } => open(dir, OFlags::RDONLY | OFlags::DIRECTORY),
        }
    }

    /// An event channel device of its own for one ring: closing it unbinds the ring's port.
    ///
    /// # Errors
    /// A text for people: which device, and why not.
    pub fn open_events(&self) -> Result<OwnedFd, String> {
        match self {
            Host::Xen => open(Path::new(EVTCHN), OFlags::RDWR | OFlags::NONBLOCK),
            Host::Sim { dir } => open(dir, OFlags::RDONLY | OFlags::DIRECTORY),
        }
    }
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, String> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("cannot open {}: {error}", path.display()))
}
