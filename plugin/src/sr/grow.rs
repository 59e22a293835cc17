//! Volumes that grow: the data, then the record.
//!
//! A worker may serve the volume meanwhile; it goes no further than it did until it is told to
//! (`vdi/resize.rs`). Blocking, as the rest of the SR.

use crate::fault;
use crate::sr::catalog::failed;
use crate::sr::file::FileSr;
use crate::sr::image;
use crate::sr::record::{Record, round_up};
use crate::sr::volume::{lay_out, too_large};
use rustix::fs::{Mode, OFlags};
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;

impl FileSr {
    /// Grows a volume, also one in use: data first, then the record; the answer is the new size in
    /// bytes. A block device is grown by others; asked again, the volume is all of it.
    ///
    /// # Errors
    /// SR_BACKEND_FAILURE_110: smaller, or larger than the block device; not enough space.
    pub fn resize(&self, key: &str, new_size: i64) -> Result<i64, StorageError> {
        let record = self.volume_here(key)?;
        let refuse = |problem: String| {
            let text = format!("cannot resize VDI {key} to {new_size} bytes: {problem}");
            Err(StorageError::backend(number::VDI_RESIZE, text))
        };
        let Some(size) = round_up(new_size) else {
            return refuse("new_size is a number of bytes above 0".into());
        };
        if size < record.virtual_size {
            return refuse(format!(
                "it has {} bytes, and a VDI only grows. Copy what is needed to a smaller one",
                record.virtual_size
            ));
        }
        if size == record.virtual_size {
            return Ok(size);
        }
        if let Some(device) = record.device.clone() {
            let there = image::inspect_device(&device)?.size;
            if there < new_size {
                return refuse(format!("{device} has {there}. Grow the device first"));
            }
            return self.set_size(key, there).map(|()| there);
        }
        self.check_space(size - record.virtual_size, "grow a VDI")?;
        let path = self.dir.join(Record::data_file(key));
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|error| failed("open", &path, &error.into()))?;
        let before = record.virtual_size;
        let grown = lay_out(&fd, before, size, record.is_preallocated())
            .and_then(|()| {
                fault::point!("data has grown");
                rustix::fs::fsync(&fd)
            })
            .map_err(|error| too_large(error, size, &path));
        if let Err(error) = grown.and_then(|()| self.set_size(key, size)) {
            // A worker serves what there is of data: none beyond what the record says.
            if let Err(error) = rustix::fs::ftruncate(&fd, before.cast_unsigned()) {
                tracing::error!("cannot cut {} back to {before} bytes: {error}", path.display());
            }
            return Err(error);
        }
        Ok(size)
    }

    /// The size in bytes of a volume's block device that has more than the volume.
    ///
    /// # Errors
    /// As [`FileSr::volume`]; the device cannot be looked at.
    pub fn outgrown(&self, key: &str) -> Result<Option<i64>, StorageError> {
        let record = self.volume(key)?;
        let Some(device) = &record.device else { return Ok(None) };
        let there = image::inspect_device(device)?.size;
        Ok((there > record.virtual_size).then_some(there))
    }

    /// After a crash: lets the record say `new_size` when the data has grown, and cuts data off
    /// that has grown in part. The answer is the size by then, bytes.
    ///
    /// # Errors
    /// As [`FileSr::volume`]; a full disk.
    pub fn finish_resize(&self, key: &str, new_size: i64) -> Result<i64, StorageError> {
        let record = self.volume(key)?;
        let grows = |size: &i64| *size > record.virtual_size && record.device.is_none();
        let Some(size) = round_up(new_size).filter(grows) else {
            return Ok(record.virtual_size);
        };
        let path = self.dir.join(Record::data_file(key));
        let file = std::fs::OpenOptions::new().write(true).open(&path);
        let file = file.map_err(|error| failed("open", &path, &error))?;
        let length = file.metadata().map_err(|error| failed("look at", &path, &error))?.len();
        if length < size.cast_unsigned() {
            let cut = file.set_len(record.virtual_size.cast_unsigned());
            return cut.map(|()| record.virtual_size).map_err(|e| failed("cut", &path, &e));
        }
        self.set_size(key, size).map(|()| size)
    }

    fn set_size(&self, key: &str, size: i64) -> Result<(), StorageError> {
        self.change_volume(key, |record| {
            record.virtual_size = size;
            Ok(())
        })
    }
}
