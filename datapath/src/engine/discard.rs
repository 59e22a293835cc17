//! Discards: what the image may forget. A hole in a file; on a block device BLKDISCARD, in a thread
//! beside.

use super::aside::Aside;
use super::{Allocation, Completion, Engine, Tag};
use rustix::fs::FileType;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Where discards go.
#[derive(Debug)]
pub(super) enum Discards {
    /// The image is a file.
    Holes,
    /// It is a block device, and nothing was discarded yet.
    Device(OwnedFd),
    /// The thread that discards.
    Aside(Aside),
}

impl Discards {
    pub(super) fn new(image: BorrowedFd<'_>) -> std::io::Result<Self> {
        match FileType::from_raw_mode(rustix::fs::fstat(image)?.st_mode) {
            FileType::BlockDevice => Ok(Discards::Device(image.try_clone_to_owned()?)),
            _ => Ok(Discards::Holes),
        }
    }
}

impl Engine {
    /// Has the image forget `bytes` from `offset` on.
    pub fn discard(&mut self, offset: u64, bytes: u64, tag: Tag) {
        if let Discards::Device(device) = &self.1
            && let Ok(aside) = device.try_clone().and_then(Aside::start)
        {
            self.1 = Discards::Aside(aside);
            self.watch_aside();
        }
        match &self.1 {
            Discards::Aside(aside) => aside.discard(offset, bytes, tag),
            // Without room for a thread a device is asked for zeroes instead.
            _ => self.allocate(Allocation::Hole, offset, bytes, tag),
        }
    }

    fn watch_aside(&mut self) {
        let Discards::Aside(aside) = &self.1 else { return };
        let wake = Arc::clone(aside.wake());
        self.wait_readable(wake.as_fd(), Tag::None);
    }

    /// Takes what the thread has done, if one of the completions from `first` on tells of it.
    pub(super) fn take_aside(&mut self, first: usize, completions: &mut Vec<Completion>) {
        let Discards::Aside(aside) = &self.1 else { return };
        if completions[first..].iter().any(|completion| completion.tag == Tag::None) {
            completions.extend(aside.completions());
            self.watch_aside();
        }
    }
}
