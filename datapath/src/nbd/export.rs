//! What is exported: the worker's image under its VDI's key, and which parts of it are holes.

use super::{EXTENTS_MAX, REQUEST_BYTES_MAX};
use crate::image::Image;
use rustix::fs::{FileType, SeekFrom, fstat, seek};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

const SECTOR_BYTES: u64 = 512;
/// What clients should align to, at least: a page.
const PREFERRED_BYTES_MIN: u32 = 4096;

const HAS_FLAGS: u16 = 1;
const READ_ONLY: u16 = 1 << 1;
const SEND_FLUSH: u16 = 1 << 2;
const SEND_FUA: u16 = 1 << 3;
const SEND_TRIM: u16 = 1 << 5;
const SEND_WRITE_ZEROES: u16 = 1 << 6;
const SEND_DF: u16 = 1 << 7;
const CAN_MULTI_CONN: u16 = 1 << 8;
const SEND_CACHE: u16 = 1 << 10;
const SEND_FAST_ZERO: u16 = 1 << 11;

const STATE_HOLE: u32 = 1;
const STATE_ZERO: u32 = 2;

/// The export.
#[derive(Debug)]
pub struct Export {
    name: String,
    bytes: u64,
    sector_bytes: u32,
    physical_sector_bytes: u32,
    read_only: bool,
    /// A file: it has holes, and makes zeroes without writing them.
    sparse: bool,
    discards: bool,
    file: OwnedFd,
}

impl Export {
    /// An image under a name.
    ///
    /// # Errors
    /// When its descriptor cannot be inspected or doubled.
    pub fn new(name: String, image: &Image, read_only: bool) -> std::io::Result<Export> {
        let file = image.file().try_clone_to_owned()?;
        let kind = FileType::from_raw_mode(fstat(&file)?.st_mode);
        let info = image.info();
        Ok(Export {
            name,
            bytes: info.sectors * SECTOR_BYTES,
            sector_bytes: info.sector_bytes,
            physical_sector_bytes: info.physical_sector_bytes,
            read_only,
            sparse: kind == FileType::RegularFile,
            discards: info.discard.is_some(),
            file,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.name.as_bytes()
    }

    /// Whether `name` means it: the empty name is the default export.
    #[must_use]
    pub fn is_named(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The image has grown.
    pub fn grow(&mut self, sectors: u64) {
        self.bytes = self.bytes.max(sectors * SECTOR_BYTES);
    }

    /// The unit of direct I/O, bytes.
    #[must_use]
    pub fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether ranges may be forgotten: what was allocated beforehand stays so.
    #[must_use]
    pub fn discards(&self) -> bool {
        self.discards
    }

    /// The transmission flags.
    #[must_use]
    pub fn flags(&self, structured: bool) -> u16 {
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
        if self.read_only {
            flags |= READ_ONLY;
        } else {
            flags |= SEND_TRIM | SEND_WRITE_ZEROES;
            // A block device may well write them one by one.
            if self.sparse {
                flags |= SEND_FAST_ZERO;
            }
        }
        if structured {
            flags |= SEND_DF;
        }
        flags
    }

    /// Minimum, preferred and maximum length of a request, bytes. The minimum is one: what is not
    /// whole sectors is read, changed and written.
    #[must_use]
    pub fn block_sizes(&self) -> [u32; 3] {
        [1, self.physical_sector_bytes.max(PREFERRED_BYTES_MIN), REQUEST_BYTES_MAX]
    }

    /// The whole sectors that hold a range.
    #[must_use]
    pub fn widen(&self, offset: u64, length: u64) -> (u64, u64) {
        let sector = u64::from(self.sector_bytes);
        (offset / sector * sector, (offset + length).next_multiple_of(sector))
    }

    /// The extents of a range, as BLOCK_STATUS tells them: pairs of length and state.
    #[must_use]
    pub fn extents(&self, offset: u64, length: u32, count_max: usize) -> Vec<(u32, u32)> {
        let end = offset + u64::from(length);
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < count_max.min(EXTENTS_MAX) {
            let (data, hole) = self.data_from(at);
            let (until, state) =
                if data > at { (data, STATE_HOLE | STATE_ZERO) } else { (hole, 0) };
            let until = until.clamp(at + 1, end);
            extents.push((u32::try_from(until - at).expect("within a request"), state));
            at = until;
        }
        extents
    }

    /// The first data at or behind `at`, and for data right there, where it ends.
    fn data_from(&self, at: u64) -> (u64, u64) {
        match seek(self.file.as_fd(), SeekFrom::Data(at)) {
            Ok(data) if data > at => (data, data),
            Ok(data) => match seek(self.file.as_fd(), SeekFrom::Hole(at)) {
                Ok(hole) => (data, hole),
                Err(_) => (data, u64::MAX),
            },
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => (u64::MAX, u64::MAX),
            // A block device does not tell.
            Err(_) => (at, u64::MAX),
        }
    }
}

#[cfg(test)]
impl Export {
    /// One without an image behind it.
    pub(super) fn pretended(name: &str, bytes: u64, read_only: bool) -> Export {
        Export {
            name: name.into(),
            bytes,
            sector_bytes: 512,
            physical_sector_bytes: 4096,
            read_only,
            sparse: true,
            discards: true,
            file: std::fs::File::open("/dev/null").expect("there is always one").into(),
        }
    }
}
