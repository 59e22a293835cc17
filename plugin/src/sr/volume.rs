//! The volumes of a file SR: made, changed, removed, opened.
//!
//! Blocking, as the rest of the SR. Order is its business: data before record when a volume is
//! made, record before data when it goes, so that a crash leaves no record without data. Who may do
//! what to a volume in use is decided above.

use crate::fault;
use crate::sr::catalog::failed;
use crate::sr::file::{FileSr, bytes};
use crate::sr::image::{self, Image};
use crate::sr::publish;
use crate::sr::record::{Record, is_boot_key, is_key, round_up};
use crate::sr::rules::{ALLOCATION, PREALLOCATED, TRANSFER, preallocates};
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, statat};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi2::{Pairs, VdiInfo};
use zerotap_rpc_schema::worker::TransferRule;

impl FileSr {
    /// One volume's record.
    ///
    /// # Errors
    /// `Vdi_does_not_exist`; a damaged record; SR_BACKEND_FAILURE_47.
    pub fn volume(&self, key: &str) -> Result<Record, StorageError> {
        let record = self.catalog.read(key);
        if record.is_err() {
            // Without its SR, "there is no such VDI" would be a guess that someone acts upon.
            self.check()?;
        }
        record
    }

    /// One volume, as SMAPIv2 tells of it.
    ///
    /// # Errors
    /// As [`FileSr::volume`].
    pub fn volume_info(&self, key: &str) -> Result<VdiInfo, StorageError> {
        self.volume(key).map(|record| self.tell(&record))
    }

    /// The same, with the keys that SMAPIv3 keeps with it.
    ///
    /// # Errors
    /// As [`FileSr::volume`].
    pub fn volume_and_keys(&self, key: &str) -> Result<(VdiInfo, Pairs), StorageError> {
        self.volume(key).map(|record| (self.tell(&record), record.keys()))
    }

    /// All volumes, with their keys.
    ///
    /// # Errors
    /// Anything that keeps the list from being complete.
    pub fn volumes_and_keys(&self) -> Result<Vec<(VdiInfo, Pairs)>, StorageError> {
        self.check()?;
        let records = self.catalog.list()?;
        let told = records.iter().filter(|record| !is_boot_key(&record.key));
        Ok(told.map(|record| (self.tell(record), record.keys())).collect())
    }

    /// A volume, as SMAPIv2 tells of it.
    pub(super) fn tell(&self, record: &Record) -> VdiInfo {
        tell(rustix::fs::CWD, &self.dir, record)
    }

    /// What a volume as `wanted` would be: key, size and place decided, nothing made yet.
    ///
    /// # Errors
    /// A size or an sm-config that makes no sense, not enough space.
    pub fn plan(&self, mut wanted: VdiInfo) -> Result<Record, StorageError> {
        self.check()?;
        let key = match &wanted.uuid {
            Some(uuid) if is_key(uuid) && uuid::Uuid::parse_str(uuid).is_ok() => uuid.clone(),
            Some(uuid) => {
                let text = format!("cannot create a VDI of uuid `{uuid}`: that is not a uuid");
                return Err(StorageError::backend(number::BAD_REQUEST, text));
            }
            None => uuid::Uuid::new_v4().to_string(),
        };
        if let Some(rule) = wanted.sm_config.get(TRANSFER)
            && let Err(why) = rule.parse::<TransferRule>()
        {
            let text = format!("cannot create a VDI with sm_config.transfer={rule}: {why}");
            return Err(StorageError::backend(number::BAD_REQUEST, text));
        }
        if let Some(device) = wanted.sm_config.get("device").cloned() {
            let size = self.size_of_device(&device, wanted.virtual_size)?;
            return Ok(Record::new(key, size, Some(device), wanted));
        }
        match wanted.sm_config.get(ALLOCATION) {
            Some(value) => {
                preallocates(value).map_err(|why| {
                    let text = format!("cannot create a VDI with sm_config.allocation={value}");
                    StorageError::backend(number::BAD_REQUEST, format!("{text}: {why}"))
                })?;
            }
            None if self.rules.preallocated => {
                wanted.sm_config.insert(ALLOCATION.into(), PREALLOCATED.into());
            }
            None => {}
        }
        let size = round_up(wanted.virtual_size).ok_or_else(|| {
            let text = format!(
                "cannot create a VDI of {} bytes: virtual_size is a number of bytes above 0",
                wanted.virtual_size
            );
            StorageError::backend(number::VDI_SIZE, text)
        })?;
        self.check_space(size, "create a VDI")?;
        Ok(Record::new(key, size, None, wanted))
    }

    fn size_of_device(&self, path: &str, wanted: i64) -> Result<i64, StorageError> {
        let device = image::inspect_device(path)?;
        if wanted > device.size || wanted < 0 || device.size <= 0 {
            let text = format!(
                "cannot create a VDI of {wanted} bytes on {path}: the device has {}",
                device.size
            );
            return Err(StorageError::backend(number::VDI_SIZE, text));
        }
        for other in self.catalog.list()? {
            let same = other.device.as_deref().is_some_and(|taken| {
                image::inspect_device(taken).is_ok_and(|taken| taken.number == device.number)
            });
            if same {
                let text = format!(
                    "cannot create a VDI on {path}: it is the VDI {} ({}) already",
                    other.key, other.name_label
                );
                return Err(StorageError::backend(number::VDI_CREATE, text));
            }
        }
        Ok(device.size)
    }

    /// Makes a planned volume: data first, then the record. Succeeds when this very volume is
    /// there.
    ///
    /// # Errors
    /// A full disk, among others; nothing is left then.
    pub fn make(&self, record: &Record) -> Result<VdiInfo, StorageError> {
        match self.catalog.read(&record.key) {
            Err(StorageError::VdiDoesNotExist(_)) => {}
            Ok(there) if there.virtual_size == record.virtual_size => return Ok(self.tell(&there)),
            Ok(there) => {
                let text = format!(
                    "cannot create VDI {}: there is one, of {} bytes",
                    record.key, there.virtual_size
                );
                return Err(StorageError::backend(number::VDI_CREATE, text));
            }
            Err(damaged) => return Err(damaged),
        }
        if record.device.is_none() {
            self.make_data(record)?;
        }
        if let Err(error) = self.catalog.write(record) {
            self.discard_data(&record.key)?;
            return Err(error);
        }
        Ok(self.tell(record))
    }

    fn make_data(&self, record: &Record) -> Result<(), StorageError> {
        let path = self.dir.join(Record::data_file(&record.key));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::from(0o600))
            .map_err(|error| failed("create", &path, &error.into()))?;
        fault::point!("a data file is made");
        let made = lay_out(&fd, 0, record.virtual_size, record.is_preallocated())
            .and_then(|()| rustix::fs::fsync(&fd))
            .and_then(|()| {
                let dir = rustix::fs::open(&self.dir, OFlags::RDONLY, Mode::empty())?;
                rustix::fs::fsync(dir)
            });
        if let Err(error) = made {
            self.discard_data(&record.key)?;
            return Err(too_large(error, record.virtual_size, &path));
        }
        fault::point!("a data file is laid out");
        Ok(())
    }

    /// Removes the data of a volume that has no record. Succeeds when there is none.
    ///
    /// # Errors
    /// The file system's.
    pub fn discard_data(&self, key: &str) -> Result<(), StorageError> {
        let name = Record::data_file(key);
        publish::remove(&self.dir, &name)
            .map_err(|error| failed("remove", &self.dir.join(&name), &error))
    }

    /// Whether anything lies where a volume's data file should.
    pub(super) fn has_data(&self, key: &str) -> bool {
        self.dir.join(Record::data_file(key)).symlink_metadata().is_ok()
    }

    /// Removes a volume: its record first, then its data. Succeeds when it is gone.
    ///
    /// # Errors
    /// The file system's; called again it goes on where it failed.
    pub fn remove(&self, key: &str) -> Result<(), StorageError> {
        self.check()?;
        if !is_key(key) {
            return Ok(());
        }
        // An orphaned data file of this name belongs to somebody: only our intents discard those.
        let mut is_file = false;
        self.catalog.remove(key, |record| {
            is_file = record.device.is_none();
            record.check_owner(&self.us.host)
        })?;
        if is_file { self.discard_data(key) } else { Ok(()) }
    }

    /// After a crash: removes what there is of a volume that was not finished.
    ///
    /// # Errors
    /// The file system's.
    pub fn undo_make(&self, key: &str) -> Result<(), StorageError> {
        match self.volume(key) {
            Err(StorageError::VdiDoesNotExist(_)) => {
                self.catalog.remove(key, |_| Ok(()))?;
                self.discard_data(key)
            }
            other => other.map(|_| ()),
        }
    }

    /// After a crash: removes what is left of a volume.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish_remove(&self, key: &str) -> Result<(), StorageError> {
        self.remove(key)?;
        self.discard_data(key)
    }

    /// Changes a volume's record, not what lies under it.
    ///
    /// # Errors
    /// As [`FileSr::volume`]; a full disk.
    pub fn edit_volume(
        &self,
        key: &str,
        edit: impl FnOnce(&mut Record),
    ) -> Result<(), StorageError> {
        self.change_volume(key, |record| {
            edit(record);
            Ok(())
        })
    }

    /// Changes a record that nobody else changes meanwhile.
    pub(super) fn change_volume(
        &self,
        key: &str,
        edit: impl FnOnce(&mut Record) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let changed = self.catalog.change(key, edit);
        if let Err(StorageError::VdiDoesNotExist(_)) = &changed {
            self.check()?;
        }
        changed
    }

    /// Opens a volume's data for a worker; the fence is not taken yet.
    ///
    /// # Errors
    /// SR_BACKEND_FAILURE_46 with what is wrong with the data.
    pub fn open_image(&self, record: &Record, read_only: bool) -> Result<Image, StorageError> {
        let image = Image::open(&self.dir, record, read_only)?;
        Ok(image.ruled(self.rules.of_vdi(&record.sm_config)))
    }

    pub(super) fn check_space(&self, size: i64, what: &str) -> Result<(), StorageError> {
        let space = self.space()?;
        let free = bytes(space.f_bavail, space.f_frsize);
        if size <= free || self.overcommit {
            return Ok(());
        }
        let text = format!(
            "cannot {what}: that takes {size} bytes and SR {} has {free} free. Ask for less, free \
             some space, or set `overcommit = true` in zerotap.toml to let sparse VDIs exceed it",
            self.uuid
        );
        Err(StorageError::backend(number::SR_NO_SPACE, text))
    }
}

/// A volume of the SR in `dir`, beneath `at`. Data blocks in use, bytes: a missing data file has
/// none, activation tells of it.
pub(super) fn tell(at: impl AsFd, dir: &Path, record: &Record) -> VdiInfo {
    let data = || statat(at, dir.join(Record::data_file(&record.key)), AtFlags::empty());
    let in_use = match record.device {
        Some(_) => record.virtual_size,
        None => data().map_or(0, |data| data.st_blocks.saturating_mul(512)),
    };
    record.info(in_use)
}

/// Makes the file `to` bytes long, with its blocks where they are wanted.
pub(super) fn lay_out(fd: &OwnedFd, from: i64, to: i64, preallocated: bool) -> Result<(), Errno> {
    let (from, to) = (from.cast_unsigned(), to.cast_unsigned());
    if preallocated {
        rustix::fs::fallocate(fd, FallocateFlags::empty(), from, to - from)
    } else {
        rustix::fs::ftruncate(fd, to)
    }
}

pub(super) fn too_large(error: Errno, size: i64, path: &Path) -> StorageError {
    match error {
        Errno::FBIG | Errno::INVAL => {
            let text = format!(
                "cannot make {} {size} bytes long: this file system has no files of that size",
                path.display()
            );
            StorageError::backend(number::VDI_SIZE, text)
        }
        Errno::OPNOTSUPP => {
            let text = format!(
                "cannot preallocate {}: this file system does not do that. Leave \
                 sm_config.allocation out for a sparse VDI",
                path.display()
            );
            StorageError::backend(number::VDI_CREATE, text)
        }
        error => failed("write", path, &error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sr::rules::Rules;

    const SR: &str = "8a6b0f4e-0d0c-4f0f-9a31-1f6d0b5a2c77";

    fn sr() -> (tempfile::TempDir, FileSr) {
        let dir = tempfile::tempdir().expect("a directory");
        let sr = FileSr::new(SR.into(), dir.path().into(), false);
        sr.create("test", "").expect("an empty directory takes an SR");
        (dir, sr)
    }

    fn make(sr: &FileSr, size: i64, sm_config: &[(&str, &str)]) -> Result<VdiInfo, StorageError> {
        let pairs = sm_config.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string()));
        let wanted = VdiInfo { sm_config: pairs.collect::<Pairs>(), ..VdiInfo::new("disk", size) };
        sr.make(&sr.plan(wanted)?)
    }

    fn text<T: std::fmt::Debug>(result: Result<T, StorageError>) -> String {
        result.expect_err("refused").to_string()
    }

    #[test]
    fn volumes_are_made_listed_grown_and_removed() {
        let (dir, sr) = sr();
        let sparse = make(&sr, 1 << 20 | 1, &[]).expect("room");
        assert_eq!(sparse.virtual_size, (1 << 20) + 4096);
        assert_eq!(sparse.physical_utilisation, 0);
        let full = make(&sr, 1 << 20, &[("allocation", "preallocated")]).expect("room");
        assert!(full.physical_utilisation >= 1 << 20);
        let (listed, info) = sr.scan().expect("complete");
        assert_eq!(listed.len(), 2);
        assert!(info.free_space > 0 && info.free_space <= info.total_space);
        let key = &sparse.vdi;
        assert_eq!(sr.resize(key, 2 << 20), Ok(2 << 20));
        assert_eq!(sr.resize(key, 2 << 20), Ok(2 << 20));
        assert_eq!(sr.volume_info(key).expect("there").virtual_size, 2 << 20);
        assert!(text(sr.resize(key, 4096)).contains("only grows"));
        assert!(text(sr.destroy()).contains("2 VDIs"));
        for info in listed {
            sr.remove(&info.vdi).expect("removed");
            sr.remove(&info.vdi).expect("removed already");
        }
        sr.destroy().expect("empty");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 0);
    }

    #[test]
    fn an_sr_may_say_how_its_volumes_are_allocated() {
        let (_dir, sr) = sr();
        let config = Pairs::from([("allocation".into(), "preallocated".into())]);
        let sr = sr.ruled(Rules::of(&config).expect("a rule"));
        let made = make(&sr, 1 << 20, &[]).expect("room");
        assert!(made.physical_utilisation >= 1 << 20 && made.sm_config == config, "{made:?}");
        let sparse = make(&sr, 1 << 20, &[("allocation", "sparse")]).expect("room");
        assert_eq!(sparse.physical_utilisation, 0);
        let config = Pairs::from([("allocation".into(), "thin".into())]);
        assert!(text(Rules::of(&config)).contains("device_config.allocation=thin"));
        assert!(text(make(&sr, 4096, &[("allocation", "thin")])).contains("sparse or"));
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused_and_leave_nothing() {
        let (dir, sr) = sr();
        for size in [0, -1, i64::MIN, i64::MAX, i64::MAX / 2] {
            for allocation in ["sparse", "preallocated"] {
                let refused = make(&sr, size, &[("allocation", allocation)]).expect_err("refused");
                assert!([79, 44].contains(&refused.code()), "{size}: {refused}");
            }
        }
        assert!(text(make(&sr, 4096, &[("allocation", "thick")])).contains("preallocated"));
        assert!(text(make(&sr, 4096, &[("device", "/dev/null")])).contains("not a block device"));
        let left = std::fs::read_dir(dir.path()).expect("a directory").count();
        assert_eq!(left, 2, "the SR's record and its reserve");
    }

    #[test]
    fn overcommitment_is_a_choice() {
        let (dir, sr) = sr();
        let free = sr.stat().expect("there").free_space;
        assert!(text(make(&sr, free * 2, &[])).contains("overcommit"));
        let bold = FileSr::new(SR.into(), dir.path().into(), true);
        make(&bold, free * 2, &[]).expect("sparse");
    }

    #[test]
    fn an_sr_is_made_once_and_only_where_it_can_be() {
        let (dir, sr) = sr();
        sr.create("again", "").expect("it is the same");
        let other = FileSr::new(uuid::Uuid::new_v4().into(), dir.path().into(), false);
        assert!(text(other.create("other", "")).contains(SR));
        assert!(text(other.attach()).contains(SR));
        let file = dir.path().join(crate::sr::catalog::SR_RECORD);
        let nowhere = FileSr::new(SR.into(), file.clone(), false);
        assert!(text(nowhere.create("x", "")).contains("not a directory"));
        let missing = FileSr::new(SR.into(), dir.path().join("no"), false);
        assert!(text(missing.create("x", "")).contains("does not exist"));
        // An empty mount point is no empty SR.
        std::fs::remove_file(file).expect("removable");
        assert!(text(sr.scan()).contains("mounted"));
        assert!(text(sr.volume("any")).contains("mounted"));
        assert!(text(sr.remove("any")).contains("mounted"));
    }

    #[test]
    fn an_image_that_vanished_shrank_or_is_held_is_refused() {
        let (dir, sr) = sr();
        let key = make(&sr, 1 << 20, &[]).expect("room").vdi;
        let record = sr.volume(&key).expect("there");
        let held = sr.open_image(&record, false).expect("whole");
        assert!(held.try_fence().expect("flock works"));
        let second = sr.open_image(&record, false).expect("whole");
        assert!(!second.try_fence().expect("flock works"));
        drop(held);
        assert!(second.try_fence().expect("flock works"));
        let data = dir.path().join(Record::data_file(&key));
        std::fs::OpenOptions::new()
            .write(true)
            .open(&data)
            .and_then(|file| file.set_len(1 << 19))
            .expect("writable");
        assert!(text(sr.open_image(&record, false)).contains("shrunk to 524288"));
        std::fs::remove_file(&data).expect("removable");
        assert!(text(sr.open_image(&record, true)).contains("vanished"));
        std::os::unix::fs::symlink("/etc/passwd", &data).expect("writable");
        assert!(sr.open_image(&record, true).is_err());
    }

    #[test]
    fn a_uuid_makes_creation_repeatable() {
        let (_dir, sr) = sr();
        let uuid = uuid::Uuid::new_v4().to_string();
        let wanted = VdiInfo { uuid: Some(uuid.clone()), ..VdiInfo::new("disk", 4096) };
        let first = sr.plan(wanted.clone()).and_then(|record| sr.make(&record)).expect("made");
        let again = sr.plan(wanted.clone()).and_then(|record| sr.make(&record)).expect("there");
        assert_eq!((first.vdi.as_str(), &first), (uuid.as_str(), &again));
        let larger = VdiInfo { virtual_size: 8192, ..wanted };
        assert!(text(sr.plan(larger).and_then(|record| sr.make(&record))).contains("4096"));
        let odd = VdiInfo { uuid: Some("../../etc".into()), ..VdiInfo::new("disk", 4096) };
        assert!(text(sr.plan(odd)).contains("not a uuid"));
    }
}
