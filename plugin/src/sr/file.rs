//! An SR that is a directory of any file system: its record, its space. Its volumes: `volume.rs`.
//!
//! Blocking; [`crate::sr::Sr`] puts it on other threads and bounds the time. Before it says that
//! something is not there it makes sure that the SR itself is: an empty mount point is no empty SR.

use crate::sr::catalog::{Catalog, Contents, SR_RECORD, failed};
use crate::sr::owner::Identity;
use crate::sr::publish;
use crate::sr::record::{Record, is_boot_key};
use crate::sr::reserve;
use crate::sr::rules::Rules;
use crate::sr::volume::tell;
use rustix::fs::{Mode, OFlags, StatVfs};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi2::{Health, SrInfo, VdiInfo};

/// The version of the SR record's layout.
const VERSION: u32 = 1;

/// What the SR says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SrRecord {
    version: u32,
    uuid: String,
    name_label: String,
    name_description: String,
}

/// What may be changed of an SR.
#[derive(Debug, Clone)]
pub enum SrEdit {
    /// Its name.
    NameLabel(String),
    /// Its description.
    NameDescription(String),
}

/// A file SR.
#[derive(Debug)]
pub struct FileSr {
    pub(super) uuid: String,
    pub(super) dir: PathBuf,
    pub(super) catalog: Catalog,
    pub(super) overcommit: bool,
    pub(super) us: Identity,
    pub(super) rules: Rules,
}

impl FileSr {
    /// The SR `uuid` in `dir`; looks at nothing yet. `overcommit` lets volumes exceed free space.
    #[must_use]
    pub fn new(uuid: String, dir: PathBuf, overcommit: bool) -> FileSr {
        let us = Identity::default();
        let rules = Rules::default();
        FileSr { uuid, catalog: Catalog::new(dir.clone()), dir, overcommit, us, rules }
    }

    /// The same for a host that has volumes active.
    #[must_use]
    pub fn on(self, us: Identity) -> FileSr {
        FileSr { us, ..self }
    }

    /// The same with rules for all its VDIs.
    #[must_use]
    pub fn ruled(self, rules: Rules) -> FileSr {
        FileSr { rules, ..self }
    }

    /// Where it lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the SR. Succeeds when this very SR is there already.
    ///
    /// # Errors
    /// No directory, another SR in it, no direct I/O, no permission, no space.
    pub fn create(&self, name_label: &str, name_description: &str) -> Result<(), StorageError> {
        self.check_dir(number::CONFIG_INVALID, "create")?;
        match self.record() {
            Ok(record) if record.uuid == self.uuid => return Ok(()),
            Ok(record) => {
                let text = format!(
                    "cannot create SR {}: {} holds SR {} ({}) already. Attach that one with \
                     SR.attach, or give another directory",
                    self.uuid,
                    self.dir.display(),
                    record.uuid,
                    record.name_label
                );
                return Err(StorageError::backend(number::SR_EXISTS, text));
            }
            Err(Missing::NotThere) => {}
            Err(Missing::Damaged(problem)) => return Err(self.unavailable(&problem)),
        }
        self.check_direct_io()?;
        self.write_record(&SrRecord {
            version: VERSION,
            uuid: self.uuid.clone(),
            name_label: name_label.into(),
            name_description: name_description.into(),
        })
    }

    /// Makes sure that the directory holds this SR, and sweeps up after a crash.
    ///
    /// # Errors
    /// SR_BACKEND_FAILURE_47 with what is there instead.
    pub fn attach(&self) -> Result<(), StorageError> {
        self.check_dir(number::SR_UNAVAILABLE, "attach")?;
        self.check()?;
        // Alone: another host's half-written record is not a leftover.
        let _steady = self.catalog.steady(true)?;
        for name in self.catalog.contents_while_steady()?.temporaries {
            let path = self.dir.join(&name);
            publish::remove(&self.dir, &name).map_err(|error| failed("remove", &path, &error))?;
        }
        Ok(())
    }

    /// Removes the SR's record. Succeeds when it is gone.
    ///
    /// # Errors
    /// SR_BACKEND_FAILURE_39 while there are volumes.
    pub fn destroy(&self) -> Result<(), StorageError> {
        let keys = self.catalog.contents()?.keys;
        if !keys.is_empty() {
            let text = format!(
                "cannot destroy SR {}: it has {} VDIs. Destroy them first (VDI.destroy), or detach \
                 it with SR.detach, which keeps them",
                self.uuid,
                keys.len()
            );
            return Err(StorageError::backend(number::SR_NOT_EMPTY, text));
        }
        for name in [reserve::NAME, SR_RECORD] {
            let path = self.dir.join(name);
            publish::remove(&self.dir, name).map_err(|error| failed("remove", &path, &error))?;
        }
        Ok(())
    }

    /// Name and space. Sizes in bytes.
    ///
    /// # Errors
    /// SR_BACKEND_FAILURE_47.
    pub fn stat(&self) -> Result<SrInfo, StorageError> {
        let record = self.check()?;
        let space = self.space()?;
        Ok(SrInfo {
            sr_uuid: Some(self.uuid.clone()),
            name_label: record.name_label,
            name_description: record.name_description,
            total_space: bytes(space.f_blocks, space.f_frsize),
            free_space: bytes(space.f_bavail, space.f_frsize),
            clustered: false,
            health: Health::Healthy,
        })
    }

    /// Changes the SR's record.
    ///
    /// # Errors
    /// SR_BACKEND_FAILURE_47; a full disk.
    pub fn edit(&self, edit: SrEdit) -> Result<(), StorageError> {
        let _steady = self.catalog.steady(true)?;
        let mut record = self.check()?;
        match edit {
            SrEdit::NameLabel(name) => record.name_label = name,
            SrEdit::NameDescription(text) => record.name_description = text,
        }
        self.write_record(&record)
    }

    /// All volumes, and the SR.
    ///
    /// # Errors
    /// Anything that keeps the list from being complete.
    pub fn scan(&self) -> Result<(Vec<VdiInfo>, SrInfo), StorageError> {
        let info = self.stat()?;
        let tell = |dir: &OwnedFd, record: Record| {
            (!is_boot_key(&record.key)).then(|| tell(dir, Path::new(""), &record))
        };
        Ok((self.catalog.map(tell)?.into_iter().flatten().collect(), info))
    }

    /// What lies in the directory.
    ///
    /// # Errors
    /// SR_BACKEND_FAILURE_47.
    pub fn contents(&self) -> Result<Contents, StorageError> {
        self.check()?;
        self.catalog.contents()
    }

    pub(super) fn space(&self) -> Result<StatVfs, StorageError> {
        rustix::fs::statvfs(&self.dir)
            .map_err(|error| failed("tell the space of", &self.dir, &error.into()))
    }

    fn check_dir(&self, number: u16, verb: &str) -> Result<(), StorageError> {
        if self.dir.is_dir() {
            return Ok(());
        }
        let problem = if self.dir.exists() { "is not a directory" } else { "does not exist" };
        let text = format!(
            "cannot {verb} SR {}: {} {problem}. Make the directory (or mount it), or correct \
             device_config.path",
            self.uuid,
            self.dir.display()
        );
        Err(StorageError::backend(number, text))
    }

    /// The directory holds this SR: not another, and not the empty mount point below it.
    pub(super) fn check(&self) -> Result<SrRecord, StorageError> {
        match self.record() {
            Ok(record) if record.uuid == self.uuid => Ok(record),
            Ok(record) => Err(self.unavailable(&format!("it holds SR {}", record.uuid))),
            Err(Missing::NotThere) => {
                Err(self.unavailable(&format!("it has no {SR_RECORD}; is it mounted?")))
            }
            Err(Missing::Damaged(problem)) => Err(self.unavailable(&problem)),
        }
    }

    fn unavailable(&self, problem: &str) -> StorageError {
        let text =
            format!("SR {} is not available in {}: {problem}", self.uuid, self.dir.display());
        StorageError::backend(number::SR_UNAVAILABLE, text)
    }

    fn record(&self) -> Result<SrRecord, Missing> {
        let record: SrRecord =
            publish::read(&self.dir, SR_RECORD).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Missing::NotThere,
                _ => Missing::Damaged(format!("its {SR_RECORD} cannot be read: {error}")),
            })?;
        if record.version != VERSION {
            let problem = format!("its {SR_RECORD} has layout version {}", record.version);
            return Err(Missing::Damaged(problem));
        }
        Ok(record)
    }

    fn write_record(&self, record: &SrRecord) -> Result<(), StorageError> {
        let path = self.dir.join(SR_RECORD);
        publish::publish(&self.dir, SR_RECORD, record)
            .map_err(|error| failed("write", &path, &error))
    }

    /// Direct I/O is what the workers do: better refused now than at the first activation.
    fn check_direct_io(&self) -> Result<(), StorageError> {
        let path = self.dir.join(format!(".zerotap-{}.tmp", self.uuid));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::DIRECT | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&path, flags, Mode::from(0o600));
        // A file that can't be opened O_DIRECT has been created all the same.
        let _ = std::fs::remove_file(&path);
        match opened {
            Ok(_) => Ok(()),
            Err(Errno::INVAL) => {
                let text = format!(
                    "cannot create SR {}: the file system of {} cannot do direct I/O (O_DIRECT). \
                     Give a directory on one that can: ext4, xfs, btrfs, NFS",
                    self.uuid,
                    self.dir.display()
                );
                Err(StorageError::backend(number::CONFIG_INVALID, text))
            }
            Err(error) => Err(failed("write in", &self.dir, &error.into())),
        }
    }
}

/// Why there is no SR record.
enum Missing {
    NotThere,
    Damaged(String),
}

/// The name of the SR in `dir`, for SR.probe; none where there is none.
///
/// # Errors
/// SR_BACKEND_FAILURE_47: there is one, and its record cannot be read.
pub fn uuid_in(dir: &Path) -> Result<Option<String>, StorageError> {
    match publish::read::<SrRecord>(dir, SR_RECORD) {
        Ok(record) => Ok(Some(record.uuid)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let path = dir.join(SR_RECORD);
            let text = format!(
                "cannot tell which SR is in {}: {} cannot be read: {error}. Put it back from a \
                 backup",
                dir.display(),
                path.display()
            );
            Err(StorageError::backend(number::SR_UNAVAILABLE, text))
        }
    }
}

/// Blocks as bytes, in SMAPIv2's kind of number.
pub(super) fn bytes(blocks: u64, block_size: u64) -> i64 {
    i64::try_from(blocks.saturating_mul(block_size)).unwrap_or(i64::MAX)
}
