//! Snapshots and clones: a new volume with another one's content, and no tie between the two.
//!
//! Extents are shared where the file system can (FICLONE: XFS, btrfs); elsewhere what is not a hole
//! is copied. The kernel makes a shared copy of one moment: it waits for direct I/O that is under
//! way and holds back what comes (Linux `fs/xfs/xfs_reflink.c`, `xfs_reflink_remap_prep`), so a
//! disk may be in use meanwhile. A copy is of no one moment: a disk in use is refused one.
//!
//! What is held back waits long where there are many extents. So the worker of a disk in use makes
//! the copy, into a file made and finished here, and holds back less (`datapath/src/copy.rs`).

use crate::fault;
use crate::sr::catalog::failed;
use crate::sr::file::{FileSr, bytes};
use crate::sr::record::Record;
use rustix::fs::{FlockOperation, Mode, OFlags, SeekFrom, ioctl_ficlone};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi2::VdiInfo;

/// Bytes copied by one call.
const PIECE_BYTES_MAX: u64 = 64 << 20;
/// How often a copy that lasts tells how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// How far a copy is, in bytes of the source that are behind it; told while it is made.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    of: AtomicU64,
}

impl Progress {
    /// Bytes done, and of how many. Both are 0 until anything is copied; shared extents never are.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.of.load(Ordering::Relaxed))
    }

    fn tell(&self, done: u64, of: u64) {
        self.of.store(of, Ordering::Relaxed);
        self.done.store(done, Ordering::Relaxed);
    }
}

impl Record {
    /// Refuses what is no file: `verb` tells what was asked.
    ///
    /// # Errors
    /// SR_BACKEND_FAILURE_82.
    pub(super) fn check_copyable(&self, verb: &str) -> Result<(), StorageError> {
        let Some(device) = &self.device else { return Ok(()) };
        let text = format!(
            "cannot {verb} VDI {}: it is the block device {device}. Create a VDI of its size and \
             copy it with a tool such as dd",
            self.key
        );
        Err(StorageError::backend(number::VDI_SNAPSHOT, text))
    }
}

impl FileSr {
    /// What a copy of `source` as `wanted` would be: under `key`, of the source's size. Nothing is
    /// made yet.
    ///
    /// # Errors
    /// No such volume; a block device, which cannot be copied within its SR.
    pub fn plan_copy(
        &self,
        key: String,
        source: &str,
        wanted: VdiInfo,
    ) -> Result<Record, StorageError> {
        let from = self.volume(source)?;
        from.check_copyable("copy")?;
        let wanted = VdiInfo { sm_config: from.sm_config.clone(), ty: from.ty.clone(), ..wanted };
        Ok(Record::new(key, from.virtual_size, None, wanted))
    }

    /// Makes the planned volume with the content of `source`: data first, then the record.
    /// `in_use`: something may write to the source meanwhile.
    ///
    /// # Errors
    /// A full disk; the source is in use and extents cannot be shared. Nothing is left then.
    pub fn copy(
        &self,
        source: &str,
        record: &Record,
        in_use: bool,
        progress: &Progress,
    ) -> Result<VdiInfo, StorageError> {
        let from = self.volume_here(source)?;
        let target = self.dir().join(Record::data_file(&record.key));
        let copied = self.copy_data(&from, &target, in_use, progress);
        self.publish_copy(record, copied)
    }

    /// Makes the empty file that shall have the data of the planned copy, for who has the source in
    /// use.
    ///
    /// # Errors
    /// The file system's.
    pub fn begin_copy(&self, record: &Record) -> Result<OwnedFd, StorageError> {
        let made = create(&self.dir().join(Record::data_file(&record.key)))?;
        fault::point!("a copy is begun");
        Ok(made)
    }

    /// Makes the planned volume out of the file, which has its data now.
    ///
    /// # Errors
    /// A full disk. Nothing is left then.
    pub fn finish_copy(&self, record: &Record, data: &OwnedFd) -> Result<VdiInfo, StorageError> {
        fault::point!("a copy is filled");
        let target = self.dir().join(Record::data_file(&record.key));
        let synced = self.sync_copy(data).map_err(|error| failed("write", &target, &error.into()));
        self.publish_copy(record, synced)
    }

    /// With its data the volume gets its record; without, nothing is left.
    fn publish_copy(
        &self,
        record: &Record,
        data: Result<(), StorageError>,
    ) -> Result<VdiInfo, StorageError> {
        if let Err(error) = data.and_then(|()| self.catalog.write(record)) {
            self.discard_data(&record.key)?;
            return Err(error);
        }
        Ok(self.tell(record))
    }

    fn sync_copy(&self, data: &OwnedFd) -> Result<(), Errno> {
        rustix::fs::fsync(data)?;
        rustix::fs::fsync(rustix::fs::open(self.dir(), OFlags::RDONLY, Mode::empty())?)
    }

    /// Makes the file `target` with the data of `from`, durably. On an error it may be there.
    pub(super) fn copy_data(
        &self,
        from: &Record,
        target: &Path,
        in_use: bool,
        progress: &Progress,
    ) -> Result<(), StorageError> {
        let source = self.dir().join(Record::data_file(&from.key));
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let read = rustix::fs::open(&source, flags, Mode::empty())
            .map_err(|error| failed("open", &source, &error.into()))?;
        let write = create(target)?;
        fault::point!("a copy is begun");
        let written = match ioctl_ficlone(&write, &read) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV) => {
                self.check_copy(&from.key, &read, in_use)?;
                copy_extents(&from.key, &read, &write, progress)
            }
            Err(error) => Err(error),
        };
        fault::point!("a copy is filled");
        written
            .and_then(|()| self.sync_copy(&write))
            .map_err(|error| failed("write", target, &error.into()))
    }

    /// Whether the data may be copied, where its extents cannot be shared.
    fn check_copy(&self, key: &str, data: &OwnedFd, in_use: bool) -> Result<(), StorageError> {
        if in_use {
            let text = format!(
                "cannot copy VDI {key} while it is active: the file system of {} cannot share \
                 extents (FICLONE), and a plain copy of a disk in use would be of no one moment. \
                 Deactivate it first, or move the SR to XFS or btrfs",
                self.dir().display()
            );
            return Err(StorageError::backend(number::VDI_SNAPSHOT, text));
        }
        // Held until the copy is done: no host writes to the source meanwhile.
        if let Err(error) = rustix::fs::flock(data, FlockOperation::NonBlockingLockShared) {
            let text = format!(
                "cannot copy VDI {key}: its data cannot be locked ({error}). Another host or \
                 process uses it (lslocks names one of this host). Try again when that is over"
            );
            return Err(StorageError::backend(number::VDI_SNAPSHOT, text));
        }
        let size = std::fs::File::from(
            data.try_clone().map_err(|e| StorageError::Internal(e.to_string()))?,
        )
        .metadata()
        .map_or(0, |data| i64::try_from(data.blocks() * 512).unwrap_or(i64::MAX));
        let space = self.space()?;
        let free = bytes(space.f_bavail, space.f_frsize);
        if size > free {
            let text = format!(
                "cannot copy VDI {key}: it holds {size} bytes and the file system of {} has {free} \
                 free. Free some space first",
                self.dir().display()
            );
            return Err(StorageError::backend(number::SR_NO_SPACE, text));
        }
        Ok(())
    }
}

fn create(target: &Path) -> Result<OwnedFd, StorageError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::open(target, flags, Mode::from(0o600))
        .map_err(|error| failed("create", target, &error.into()))
}

/// Copies what is no hole; the copy is as long as the source.
fn copy_extents(key: &str, from: &OwnedFd, to: &OwnedFd, progress: &Progress) -> Result<(), Errno> {
    let end = rustix::fs::seek(from, SeekFrom::End(0))?;
    rustix::fs::ftruncate(to, end)?;
    let (mut at, mut told) = (0, Instant::now());
    while at < end {
        let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        let hole = rustix::fs::seek(from, SeekFrom::Hole(data))?;
        let (mut read, mut write) = (data, data);
        while read < hole {
            let piece = usize::try_from((hole - read).min(PIECE_BYTES_MAX)).unwrap_or(1 << 20);
            let copied =
                rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut write), piece)?;
            if copied == 0 {
                // The source was cut meanwhile; its length said otherwise.
                return Err(Errno::IO);
            }
            progress.tell(read, end);
            if told.elapsed() >= PROGRESS_INTERVAL {
                told = Instant::now();
                tracing::info!(vdi = key, done_bytes = read, of_bytes = end, "copying");
            }
        }
        at = hole;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const SR: &str = "8a6b0f4e-0d0c-4f0f-9a31-1f6d0b5a2c77";

    fn sr_with_a_volume() -> (tempfile::TempDir, FileSr, String) {
        let dir = tempfile::tempdir().expect("a directory");
        let sr = FileSr::new(SR.into(), dir.path().into(), false);
        sr.create("test", "").expect("an empty directory takes an SR");
        let planned = sr.plan(VdiInfo::new("disk", 8 << 20)).expect("room");
        let key = sr.make(&planned).expect("made").vdi;
        let data = std::fs::OpenOptions::new()
            .write(true)
            .open(dir.path().join(Record::data_file(&key)))
            .expect("data");
        data.write_all_at(&[7; 8192], 3 << 20).expect("room");
        data.sync_all().expect("durable");
        (dir, sr, key)
    }

    #[test]
    fn a_copy_has_the_content_and_a_life_of_its_own() {
        let (dir, sr, key) = sr_with_a_volume();
        let planned = sr.plan_copy("copy".into(), &key, VdiInfo::new("copy", 0)).expect("planned");
        let copy = sr.copy(&key, &planned, false, &Progress::default()).expect("copied");
        assert_eq!((copy.virtual_size, copy.name_label.as_str()), (8 << 20, "copy"));
        assert!(copy.physical_utilisation < 1 << 20, "holes stay holes: {copy:?}");
        let file = |key: &str| dir.path().join(Record::data_file(key));
        assert_eq!(std::fs::read(file(&key)).unwrap(), std::fs::read(file(&copy.vdi)).unwrap());
        sr.remove(&key).expect("the copy does not need it");
        let rest = std::fs::read(file(&copy.vdi)).unwrap();
        assert!(rest[3 << 20..][..8192].iter().all(|&byte| byte == 7));
    }

    #[test]
    fn holes_at_the_end_and_empty_files_are_copied() {
        let dir = tempfile::tempdir().expect("a directory");
        for (length, data) in [(0, None), (1 << 20, None), (1 << 20, Some(4096)), (5000, Some(0))] {
            let (from, to) = (dir.path().join("from"), dir.path().join("to"));
            let source = std::fs::File::create(&from).expect("room");
            source.set_len(length).expect("room");
            if let Some(at) = data {
                source.write_all_at(b"data", at).expect("room");
            }
            let target = std::fs::File::create(&to).expect("room");
            let read = std::fs::File::open(&from).expect("there");
            let progress = Progress::default();
            copy_extents("k", &read.into(), &target.into(), &progress).expect("copied");
            assert_eq!(progress.bytes(), data.map_or((0, 0), |at| (length.min(at + 4096), length)));
            assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        }
    }
}
