//! Block devices whose writes fail when they are told to: the kernel has a device turn read-only
//! under its users. Needs root.
//!
//! Not a loop device whose backing file has no space: Linux's loop driver takes a write that was
//! cut short for a whole one (drivers/block/loop.c, `lo_complete_rq`), and loses the rest.

use super::loop_device::LoopDevice;
use anyhow::ensure;
use std::process::Command;
use tempfile::TempDir;

/// Devices that fail together.
#[derive(Debug)]
pub struct Failing {
    /// The devices.
    pub devices: Vec<LoopDevice>,
    _room: TempDir,
}

impl Failing {
    /// So many devices of so many bytes each.
    ///
    /// # Errors
    /// When this is not root, or there are no loop devices to be had.
    pub fn new(devices: usize, bytes: u64) -> anyhow::Result<Failing> {
        let room = tempfile::tempdir()?;
        let one = |n: usize| LoopDevice::new(&room.path().join(n.to_string()), bytes, 512);
        let devices = (0..devices).map(one).collect::<anyhow::Result<_>>()?;
        Ok(Failing { devices, _room: room })
    }

    /// From now on no write succeeds, and who opens one to write is refused.
    ///
    /// # Errors
    /// When the kernel does not do it.
    pub fn fail(&self) -> anyhow::Result<()> {
        self.set("--setro")
    }

    /// All is well again.
    ///
    /// # Errors
    /// When the kernel does not do it.
    pub fn recover(&self) -> anyhow::Result<()> {
        self.set("--setrw")
    }

    fn set(&self, how: &str) -> anyhow::Result<()> {
        let mut blockdev = Command::new("blockdev");
        blockdev.arg(how).args(self.devices.iter().map(LoopDevice::path));
        ensure!(blockdev.status()?.success(), "{blockdev:?}");
        Ok(())
    }
}
