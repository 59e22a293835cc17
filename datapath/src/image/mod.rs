//! The image: what it is, and where a virtual range stands in it.
//!
//! A raw image is its own map: byte n of the disk is byte n of the file or device.
//! The format comes from the daemon and is never probed: guests control content (XSA-459's class).

mod claims;

pub(crate) use claims::Claims;

use crate::engine::discard_device;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, OFlags, StatxFlags, fallocate, fcntl_getfl, fstat, statx,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use zerotap_rpc_schema::worker::{Discard, ImageInfo};

const SECTOR_BYTES: u64 = 512;
/// Sectors that a guest can be told of.
const SECTOR_SIZES: [u32; 2] = [512, 4096];
/// The sector that is emulated on larger ones.
const EMULATED_BYTES: u32 = 512;

/// Why an image cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ImageRefused {
    /// It was opened through the page cache, where a flush is all that stands between it and loss.
    #[error("the image is not open for direct I/O (O_DIRECT): its file system must support that")]
    NotDirect,
    /// A directory, a pipe.
    #[error("the image is neither a file nor a block device")]
    NotAnImage,
    /// A sector size that blkif's frontends do not know.
    #[error("direct I/O on the image needs {0}-byte alignment; only 512 and 4096 can be served")]
    Alignment(u32),
    /// Shorter than a sector.
    #[error("the image is empty")]
    Empty,
    /// What the kernel said.
    #[error("cannot inspect the image: {0}")]
    Inspect(#[from] Errno),
}

/// Why an image's capacity stays what it is.
#[derive(Debug, thiserror::Error)]
pub enum GrowRefused {
    /// What a guest was once offered it may use for ever.
    #[error("{0} sectors are offered already, and a disk in use only grows")]
    Shrinks(u64),
    /// The daemon grows the image before it says so.
    #[error("the image has {0} sectors")]
    TooShort(u64),
    /// A guest could not reach the last ones.
    #[error("that is not a whole number of sectors of {0} bytes")]
    Odd(u32),
    /// What the kernel said.
    #[error("cannot inspect the image: {0}")]
    Inspect(#[from] Errno),
}

/// How many sectors of 512 bytes an image has now, for all threads. It never shrinks.
#[derive(Debug, Clone)]
pub struct Capacity(Arc<AtomicU64>);

impl Capacity {
    /// As of now.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// An open image.
#[derive(Debug)]
pub struct Image {
    file: OwnedFd,
    info: ImageInfo,
    capacity: Capacity,
    /// Where guests may write less than a sector.
    claims: Option<Arc<Claims>>,
}

impl Image {
    /// Inspects an image that the daemon opened.
    ///
    /// # Errors
    /// When it cannot be served as it is.
    pub fn new(file: OwnedFd) -> Result<Self, ImageRefused> {
        if !fcntl_getfl(&file)?.contains(OFlags::DIRECT) {
            return Err(ImageRefused::NotDirect);
        }
        let stat = fstat(&file)?;
        let (bytes, sector_bytes, physical) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let sector = direct_align(&file)?.1.max(512);
                (u64::try_from(stat.st_size).unwrap_or(0), sector, sector.max(4096))
            }
            FileType::BlockDevice => {
                let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
                let sector = rustix::fs::ioctl_blksszget(&file)?;
                (end, sector, rustix::fs::ioctl_blkpbszget(&file)?)
            }
            _ => return Err(ImageRefused::NotAnImage),
        };
        if !SECTOR_SIZES.contains(&sector_bytes) {
            return Err(ImageRefused::Alignment(sector_bytes));
        }
        let sectors = bytes / u64::from(sector_bytes) * u64::from(sector_bytes) / SECTOR_BYTES;
        if sectors == 0 {
            return Err(ImageRefused::Empty);
        }
        let info = ImageInfo {
            sectors,
            sector_bytes,
            physical_sector_bytes: physical.max(sector_bytes),
            emulated_sector_bytes: (sector_bytes > EMULATED_BYTES).then_some(EMULATED_BYTES),
            memory_align_bytes: direct_align(&file)?.0,
            discard: None,
        };
        Ok(Image::known(file, info))
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> ImageInfo {
        ImageInfo { sectors: self.capacity.sectors(), ..self.info }
    }

    /// Its capacity, to be looked at again and again.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        self.capacity.clone()
    }

    /// Takes note that the image has grown to `sectors` sectors of 512 bytes, which it must have.
    ///
    /// # Errors
    /// When it has not, or was larger already; it then stays what it was.
    pub fn grow(&self, sectors: u64) -> Result<(), GrowRefused> {
        let offered = self.capacity.sectors();
        if sectors < offered {
            return Err(GrowRefused::Shrinks(offered));
        }
        let sector = u64::from(self.info.sector_bytes);
        let there = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))? / SECTOR_BYTES;
        if sectors > there {
            return Err(GrowRefused::TooShort(there));
        }
        if !sectors.is_multiple_of(sector / SECTOR_BYTES) {
            return Err(GrowRefused::Odd(self.info.sector_bytes));
        }
        self.capacity.0.store(sectors, Ordering::Release);
        Ok(())
    }

    /// Lets ranges be forgotten, in such units, if what holds the image can do that.
    #[must_use]
    pub fn allow_discard(mut self, units: Discard) -> Self {
        let sector = self.info.sector_bytes;
        let even = |bytes: u32| bytes.next_multiple_of(sector);
        let units = Discard {
            granularity_bytes: even(units.granularity_bytes.max(1)),
            alignment_bytes: even(units.alignment_bytes),
        };
        self.info.discard = discards(&self.file).then_some(units);
        self
    }

    /// An image of which all is known.
    pub(crate) fn known(file: OwnedFd, info: ImageInfo) -> Self {
        let capacity = Capacity(Arc::new(AtomicU64::new(info.sectors)));
        let claims = (info.sector_bytes > EMULATED_BYTES).then(Arc::default);
        Image { file, info, capacity, claims }
    }

    /// Where writes are under way, if guests may write less than a sector.
    pub(crate) fn claims(&self) -> Option<Arc<Claims>> {
        self.claims.clone()
    }

    /// Assumes that direct I/O wants memory aligned to `bytes`, for devices that tell less than
    /// they need.
    #[must_use]
    pub fn assume_memory_align(mut self, bytes: u32) -> Self {
        self.info.memory_align_bytes = bytes;
        self
    }

    /// Its descriptor.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Tries what does nothing: to punch a hole behind a file's end, to discard less than a sector.
fn discards(file: &OwnedFd) -> bool {
    let Ok(stat) = fstat(file) else { return false };
    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
        return discard_device(file, 1, 1) == Err(Errno::INVAL);
    }
    let end = u64::try_from(stat.st_size).unwrap_or(0);
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, hole, end, SECTOR_BYTES).is_ok()
}

/// What direct I/O wants: alignment of memory and of offsets, in bytes. A kernel before 6.1 does
/// not say; then a read of 512 bytes tells.
fn direct_align(file: &OwnedFd) -> Result<(u32, u32), Errno> {
    const STATX_DIOALIGN: StatxFlags = StatxFlags::from_bits_retain(0x2000);
    match statx(file, "", AtFlags::EMPTY_PATH, STATX_DIOALIGN) {
        Ok(told) if told.stx_dio_offset_align != 0 => {
            return Ok((told.stx_dio_mem_align, told.stx_dio_offset_align));
        }
        Ok(_) | Err(Errno::NOSYS) => {}
        Err(errno) => return Err(errno),
    }
    #[repr(C, align(4096))]
    struct Page([u8; 512]);
    let mut page = Box::new(Page([0; 512]));
    match rustix::io::pread(file, &mut page.0, 512) {
        Ok(_) => Ok((512, 512)),
        Err(Errno::INVAL) => Ok((4096, 4096)),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, open};

    #[test]
    fn a_direct_file_is_served_and_a_buffered_one_refused() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, vec![0; 8192 + 100]).unwrap();
        let direct = open(&path, OFlags::RDWR | OFlags::DIRECT, Mode::empty()).unwrap();
        let info = Image::new(direct).unwrap().info();
        assert!(info.sectors == 16, "a part of a sector is not part of the disk: {info:?}");
        let buffered = open(&path, OFlags::RDWR, Mode::empty()).unwrap();
        assert!(matches!(Image::new(buffered), Err(ImageRefused::NotDirect)));
    }
}
