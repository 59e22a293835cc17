//! A volume goes back to the content of another, its snapshot.
//!
//! The content is made beside the volume's data and takes its name by a rename: at whatever instant
//! of a crash one looks, there is the old content or the new one, whole. Meanwhile this host owns
//! the volume and has its old data locked, so that nobody, here or elsewhere, writes to either.
//! Blocking, as the rest of the SR.

use crate::fault;
use crate::sr::catalog::failed;
use crate::sr::copy::Progress;
use crate::sr::file::FileSr;
use crate::sr::publish;
use crate::sr::record::Record;
use rustix::fs::{Mode, OFlags};
use std::path::PathBuf;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;

/// What a volume is to become.
#[derive(Debug)]
pub struct Reversion {
    /// The volume's key.
    pub key: String,
    /// The key of the volume whose content it gets.
    pub snapshot: String,
    /// That one's size, bytes.
    pub size: i64,
    /// Something may write to the snapshot meanwhile.
    pub in_use: bool,
    /// Now, RFC 3339.
    pub since: String,
}

impl FileSr {
    /// Gives a volume the content and size of another one.
    ///
    /// # Errors
    /// Either is missing, a block device, or in use; a full disk. The volume is as it was then.
    pub fn revert(&self, wanted: &Reversion, progress: &Progress) -> Result<(), StorageError> {
        let Reversion { key, snapshot, .. } = wanted;
        let (record, from) = (self.volume_here(key)?, self.volume_here(snapshot)?);
        for one in [&record, &from] {
            one.check_copyable("revert")?;
        }
        let old = self.open_image(&record, false)?;
        if !old.try_fence()? {
            let text = format!(
                "cannot revert VDI {key}: {} is locked, so something uses it (lslocks names who, \
                 on this host). End that use first",
                old.path().display()
            );
            return Err(StorageError::backend(number::VDI_IN_USE, text));
        }
        self.change_volume(key, |record| {
            record.own(&self.us, wanted.since.clone())?;
            // Until it is done nobody can say which content it is.
            record.content_id.clear();
            Ok(())
        })?;
        let reverted = self.take_content(wanted, &from, progress);
        let (size, content_id) = match &reverted {
            Ok(()) => (wanted.size, from.content_id),
            Err(_) => (record.virtual_size, record.content_id),
        };
        let told = self.change_volume(key, |record| {
            (record.virtual_size, record.content_id) = (size, content_id);
            record.disown(&self.us.host);
            Ok(())
        });
        // The lock on the old data ends here: who waited for it finds that it is no longer there.
        drop(old);
        reverted.and(told)
    }

    /// All or nothing: an error means that the data is the old one.
    fn take_content(
        &self,
        wanted: &Reversion,
        from: &Record,
        progress: &Progress,
    ) -> Result<(), StorageError> {
        let fresh = self.fresh(&wanted.key);
        publish::remove(&self.dir, &fresh).map_err(|e| failed("remove", &self.path(&fresh), &e))?;
        let data = self.dir.join(Record::data_file(&wanted.key));
        let made =
            self.copy_data(from, &self.path(&fresh), wanted.in_use, progress).and_then(|()| {
                let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                rustix::fs::open(self.path(&fresh), flags, Mode::empty())
                    .and_then(|file| {
                        rustix::fs::ftruncate(&file, wanted.size.cast_unsigned())?;
                        rustix::fs::fsync(&file)
                    })
                    .and_then(|()| rustix::fs::rename(self.path(&fresh), &data))
                    .inspect(|()| {
                        fault::point!("a copy has taken its place");
                    })
                    .map_err(|error| failed("replace", &data, &error.into()))
            });
        if let Err(error) = made {
            // What stays is found, and removed, by the next attempt.
            let _ = publish::remove(&self.dir, &fresh);
            return Err(error);
        }
        let dir = rustix::fs::open(&self.dir, OFlags::RDONLY, Mode::empty());
        let synced = dir.and_then(rustix::fs::fsync);
        synced.map_err(|error| failed("sync", &self.dir, &error.into()))
    }

    /// After a crash: lets the record tell the size of the content that there is.
    ///
    /// # Errors
    /// As [`FileSr::volume`]; a full disk.
    pub fn finish_revert(&self, key: &str, size: i64) -> Result<(), StorageError> {
        let fresh = self.fresh(key);
        let begun = self.path(&fresh).exists();
        publish::remove(&self.dir, &fresh).map_err(|e| failed("remove", &self.path(&fresh), &e))?;
        let record = match self.volume(key) {
            Err(StorageError::VdiDoesNotExist(_)) => return Ok(()),
            other => other?,
        };
        let data = self.dir.join(Record::data_file(key));
        let length = std::fs::metadata(&data).map_or(0, |data| data.len());
        // With its name taken, it was the rename that was last.
        if begun || length != size.cast_unsigned() || record.virtual_size == size {
            return Ok(());
        }
        self.change_volume(key, |record| {
            record.virtual_size = size;
            Ok(())
        })
    }

    /// The name under which a volume's new data is made: should nobody be left to finish it, an
    /// orphan.
    fn fresh(&self, key: &str) -> String {
        Record::data_file(&format!("{key}.new"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}
