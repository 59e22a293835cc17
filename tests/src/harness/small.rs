//! A small file system for an SR, which can be filled and freed. Needs root.

use super::loop_device::LoopDevice;
use anyhow::Context as _;
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, open};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The largest and the smallest piece that is taken of it.
const PIECE_BYTES_MAX: u64 = 64 << 20;
const PIECE_BYTES_MIN: u64 = 4096;

/// The file system; taken down when dropped, after everything that has it open.
#[derive(Debug)]
pub struct Small {
    device: LoopDevice,
    dir: PathBuf,
    _room: TempDir,
}

impl Small {
    /// An empty ext4 of so many bytes.
    ///
    /// # Errors
    /// When this is not root, or something is not installed.
    pub fn new(bytes: u64) -> anyhow::Result<Small> {
        Small::made(bytes, LoopDevice::mount)
    }

    /// An empty XFS of so many bytes: 300 MiB or more.
    ///
    /// # Errors
    /// When this is not root, or something is not installed.
    pub fn xfs(bytes: u64) -> anyhow::Result<Small> {
        Small::made(bytes, LoopDevice::mount_xfs)
    }

    fn made(
        bytes: u64,
        mount: fn(&mut LoopDevice, &Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Small> {
        let room = tempfile::tempdir()?;
        let mut device = LoopDevice::new(&room.path().join("backing"), bytes, 512)?;
        let dir = room.path().join("sr");
        mount(&mut device, &dir)?;
        Ok(Small { device, dir, _room: room })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn filler(&self) -> PathBuf {
        self.dir.join("filler")
    }

    /// Takes all that is free of it but about so many bytes.
    ///
    /// # Errors
    /// The file system's.
    pub fn fill_but(&self, bytes: u64) -> anyhow::Result<()> {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = open(self.filler(), flags, Mode::RUSR | Mode::WUSR)?;
        let mut end = rustix::fs::fstat(&file)?.st_size.cast_unsigned();
        let mut piece = PIECE_BYTES_MAX;
        while piece >= PIECE_BYTES_MIN {
            match fallocate(&file, FallocateFlags::empty(), end, piece) {
                Ok(()) => end += piece,
                Err(Errno::NOSPC) => piece /= 2,
                Err(error) => return Err(error).context("fill it"),
            }
        }
        rustix::fs::ftruncate(&file, end.saturating_sub(bytes)).context("leave some")
    }

    /// Has it take no write, as when the storage below has stopped. Thawed when dropped.
    ///
    /// # Errors
    /// When it is frozen already.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.device.freeze()
    }

    /// Has it take writes again.
    ///
    /// # Errors
    /// When it was not frozen.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.device.thaw()
    }

    /// Gives back what was taken.
    ///
    /// # Errors
    /// When nothing was.
    pub fn free(&self) -> anyhow::Result<()> {
        std::fs::remove_file(self.filler()).context("free it")
    }
}
