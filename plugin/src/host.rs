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

/// The host's uuid as XAPI knows it, out of its inventory (lines of `KEY='value'`); `None` where
/// there is no XAPI.
#[must_use]
pub fn installation_uuid(inventory: &Path) -> Option<String> {
    let text = match std::fs::read_to_string(inventory) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!("cannot read {}: {error}", inventory.display());
            return None;
        }
    };
    let line = text.lines().find_map(|line| line.trim().strip_prefix("INSTALLATION_UUID="));
    let uuid = line.map(|value| value.trim().trim_matches(['\'', '"']));
    let uuid = uuid.filter(|uuid| uuid::Uuid::try_parse(uuid).is_ok());
    if uuid.is_none() {
        tracing::warn!("{} has no INSTALLATION_UUID", inventory.display());
    }
    uuid.map(str::to_ascii_lowercase)
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, String> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("cannot open {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_is_xapis_where_xapi_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("xensource-inventory");
        assert_eq!(installation_uuid(&path), None);
        let uuid = "4b0c7e3a-2f1d-4c8e-9a55-0d6c2f7b8e91";
        for line in [format!("INSTALLATION_UUID='{uuid}'"), format!("INSTALLATION_UUID={uuid} ")] {
            let text = format!("PRODUCT_BRAND='XCP-ng'\n{line}\nCONTROL_DOMAIN_UUID='x'\n");
            std::fs::write(&path, text).expect("writable");
            assert_eq!(installation_uuid(&path).as_deref(), Some(uuid));
        }
        std::fs::write(&path, "INSTALLATION_UUID='cut sho").expect("writable");
        assert_eq!(installation_uuid(&path), None);
    }
}
