//! The records of an SR's volumes: one file `<key>.vdi.json` each, in the SR's directory.
//!
//! Complete or an error: whoever gets a list may delete what is not on it. Never touches volumes'
//! data nor a file that is not ours. Blocking; called by the file SR.

use crate::sr::lock::SrLock;
use crate::sr::publish::{self, is_temporary};
use crate::sr::record::{Record, is_key};
use crate::sr::reserve;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;

/// The SR's own record.
pub const SR_RECORD: &str = "zerotap-sr.json";
const RECORD_SUFFIX: &str = ".vdi.json";
const DATA_SUFFIX: &str = ".raw";
/// The most volumes of one SR.
pub const VOLUMES_MAX: usize = 20_000;
/// Fewer records are read by one thread.
const SHARE_MIN: usize = 512;

/// Records in a directory.
#[derive(Debug)]
pub struct Catalog {
    dir: PathBuf,
    /// Our threads' part of [`Steady`].
    steady: Mutex<()>,
}

/// Held while a record is replaced and while all are listed, against our threads and other hosts: a
/// directory that changes while it is read may show a renamed file twice or not at all.
#[derive(Debug)]
pub(super) struct Steady<'a> {
    _hosts: Option<SrLock>,
    _threads: MutexGuard<'a, ()>,
}

/// What lies in the directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Keys of records.
    pub keys: Vec<String>,
    /// Data files that no record speaks of.
    pub orphans: Vec<String>,
    /// Half-written records that a crash left.
    pub temporaries: Vec<String>,
    /// Everything that is not ours.
    pub foreign: Vec<String>,
}

impl Catalog {
    /// The records in `dir`.
    #[must_use]
    pub fn new(dir: PathBuf) -> Catalog {
        Catalog { dir, steady: Mutex::new(()) }
    }

    /// Keeps the records as they are: for all but us (`alone`, to write), or for all.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn steady(&self, alone: bool) -> Result<Steady<'_>, StorageError> {
        let threads = self.steady.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts = SrLock::take(&self.dir, alone)
            .map_err(|error| failed("lock", &self.dir.join(SR_RECORD), &error.into()))?;
        Ok(Steady { _hosts: hosts, _threads: threads })
    }

    /// One volume's record.
    ///
    /// # Errors
    /// `Vdi_does_not_exist`; a damaged record, named.
    pub fn read(&self, key: &str) -> Result<Record, StorageError> {
        if !is_key(key) {
            return Err(StorageError::VdiDoesNotExist(key.into()));
        }
        self.judge(key, publish::read(&self.dir, &record_file(key)))
    }

    fn judge(&self, key: &str, read: io::Result<Record>) -> Result<Record, StorageError> {
        let record = read.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StorageError::VdiDoesNotExist(key.into()),
            io::ErrorKind::InvalidData => damaged(&self.dir, key, &error.to_string()),
            _ => {
                let path = self.dir.join(record_file(key));
                let text = format!("cannot read the record {}: {error}", path.display());
                StorageError::backend(number::IO_ERROR, text)
            }
        })?;
        record.check(key).map_err(|problem| damaged(&self.dir, key, &problem))?;
        Ok(record)
    }

    /// All volumes' records.
    ///
    /// # Errors
    /// Any record that can't be read: a list is complete or it is none.
    pub fn list(&self) -> Result<Vec<Record>, StorageError> {
        self.map(|_, record| record)
    }

    /// What `each` makes of the open directory and of all volumes' records, several at a time where
    /// there are many. Sweeps up what a crash left half-written.
    ///
    /// # Errors
    /// As [`Catalog::list`].
    pub fn map<T: Send>(
        &self,
        each: impl Fn(&OwnedFd, Record) -> T + Sync,
    ) -> Result<Vec<T>, StorageError> {
        let _steady = self.steady(false)?;
        let Contents { keys, temporaries, .. } = self.contents_while_steady()?;
        for name in temporaries {
            // Nobody writes now, so it is nobody's. Should it stay, nothing depends on that.
            let _ = publish::remove(&self.dir, &name);
        }
        let dir = rustix::fs::open(&self.dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| failed("open", &self.dir, &error.into()))?;
        let read = |keys: &[String]| {
            let read = |key: &String| self.judge(key, publish::read_in(&dir, &record_file(key)));
            let each = |key: &String| read(key).map(|record| each(&dir, record));
            keys.iter().map(each).collect::<Result<Vec<T>, StorageError>>()
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = keys.len().div_ceil(threads).max(SHARE_MIN);
        if keys.len() <= share {
            return read(&keys);
        }
        std::thread::scope(|scope| {
            let shares = keys.chunks(share);
            let readers: Vec<_> = shares.map(|keys| scope.spawn(move || read(keys))).collect();
            let mut all = Vec::with_capacity(keys.len());
            for reader in readers {
                let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                all.append(&mut read?);
            }
            Ok(all)
        })
    }

    /// Writes or replaces a record. Durable when it returns.
    ///
    /// # Errors
    /// The file system's; the old record is still there then.
    pub fn write(&self, record: &Record) -> Result<(), StorageError> {
        let _steady = self.steady(true)?;
        self.write_while_steady(record)
    }

    /// Changes a record: read and replaced with nobody writing in between, on whichever host.
    /// Durable when it returns; nothing is written when `edit` fails or changes nothing.
    ///
    /// # Errors
    /// As [`Catalog::read`] and [`Catalog::write`]; the edit's own.
    pub fn change<T>(
        &self,
        key: &str,
        edit: impl FnOnce(&mut Record) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let _steady = self.steady(true)?;
        let before = self.read(key)?;
        let mut record = before.clone();
        let result = edit(&mut record)?;
        if record != before {
            self.write_while_steady(&record)?;
        }
        Ok(result)
    }

    fn write_while_steady(&self, record: &Record) -> Result<(), StorageError> {
        let name = record_file(&record.key);
        publish::publish(&self.dir, &name, record)
            .map_err(|error| failed("write the record", &self.dir.join(name), &error))
    }

    /// Removes a record that `may` go. Succeeds when there is none.
    ///
    /// # Errors
    /// Why it may not; a damaged record; the file system's.
    pub fn remove(
        &self,
        key: &str,
        may: impl FnOnce(&Record) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        if !is_key(key) {
            return Ok(());
        }
        let _steady = self.steady(true)?;
        match self.read(key) {
            Ok(record) => may(&record)?,
            // A crash may have left it half-written.
            Err(StorageError::VdiDoesNotExist(_)) => {}
            Err(damaged) => return Err(damaged),
        }
        let name = record_file(key);
        publish::remove(&self.dir, &name)
            .map_err(|error| failed("remove the record", &self.dir.join(name), &error))
    }

    /// What lies in the directory, sorted by name.
    ///
    /// # Errors
    /// The directory can't be read; more than [`VOLUMES_MAX`] records.
    pub fn contents(&self) -> Result<Contents, StorageError> {
        let _steady = self.steady(false)?;
        self.contents_while_steady()
    }

    /// The same for who holds [`Catalog::steady`].
    ///
    /// # Errors
    /// As [`Catalog::contents`].
    pub(super) fn contents_while_steady(&self) -> Result<Contents, StorageError> {
        let names = names(&self.dir).map_err(|error| failed("list", &self.dir, &error))?;
        let mut contents = Contents::default();
        let mut data = Vec::new();
        for name in names {
            if let Some(key) = name.strip_suffix(RECORD_SUFFIX).filter(|key| is_key(key)) {
                contents.keys.push(key.into());
            } else if is_temporary(&name) {
                contents.temporaries.push(name);
            } else if name.strip_suffix(DATA_SUFFIX).is_some_and(is_key) {
                data.push(name);
            } else if name != SR_RECORD && name != reserve::NAME {
                contents.foreign.push(name);
            }
        }
        if contents.keys.len() > VOLUMES_MAX {
            let text = format!("{} holds more than {VOLUMES_MAX} volumes", self.dir.display());
            return Err(StorageError::backend(number::SR_SCAN, text));
        }
        let known = |name: &str| {
            let key = name.strip_suffix(DATA_SUFFIX).unwrap_or_default();
            contents.keys.binary_search_by(|known| known.as_str().cmp(key)).is_ok()
        };
        contents.orphans = data.into_iter().filter(|name| !known(name)).collect();
        Ok(contents)
    }
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = std::fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<String>>>()?;
    // By key rather than by file name, so that a suffix does not change the order.
    names.sort_by(|a, b| stem(a).cmp(stem(b)).then_with(|| a.cmp(b)));
    Ok(names)
}

fn stem(name: &str) -> &str {
    name.strip_suffix(RECORD_SUFFIX).unwrap_or(name)
}

fn record_file(key: &str) -> String {
    format!("{key}{RECORD_SUFFIX}")
}

fn damaged(dir: &Path, key: &str, problem: &str) -> StorageError {
    StorageError::backend(
        number::VDI_LOAD,
        format!(
            "the record of VDI {key} is damaged: {} : {problem}. Put it back from a backup; or, to \
             give the VDI up, move it out of the directory (its data is {key}.raw beside it)",
            dir.join(record_file(key)).display()
        ),
    )
}

/// A file operation that failed, for people.
pub fn failed(what: &str, path: &Path, error: &io::Error) -> StorageError {
    if publish::is_full(error) {
        let text = format!(
            "cannot {what} {}: the file system is full. Free some space, or grow it",
            path.display()
        );
        return StorageError::backend(number::SR_NO_SPACE, text);
    }
    let text = format!("cannot {what} {}: {error}", path.display());
    StorageError::backend(number::IO_ERROR, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerotap_rpc_schema::smapi2::VdiInfo;

    fn catalog(keys: &[&str]) -> (tempfile::TempDir, Catalog) {
        let dir = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::new(dir.path().into());
        for key in keys {
            let record = Record::new((*key).into(), 4096, None, VdiInfo::new("disk", 4096));
            catalog.write(&record).expect("room for a record");
        }
        (dir, catalog)
    }

    #[test]
    fn a_record_cut_short_fails_the_list_but_not_its_neighbours() {
        let (dir, catalog) = catalog(&["a", "b"]);
        assert_eq!(catalog.list().expect("both are whole").len(), 2);
        let path = dir.path().join("a.vdi.json");
        let text = std::fs::read(&path).expect("a record");
        // The last byte is a newline: without it the record is whole.
        for length in 0..text.len() - 1 {
            std::fs::write(&path, &text[..length]).expect("writable");
            let error = catalog.list().expect_err("a is damaged").to_string();
            assert!(error.contains("a.vdi.json"), "{length}: {error}");
            assert!(catalog.read("b").is_ok());
            assert!(catalog.change("a", |_| Ok(())).is_err(), "it must not be made up anew");
            assert!(catalog.remove("a", |_| Ok(())).is_err(), "nobody knows whose it is");
            assert_eq!(std::fs::read(&path).expect("there").len(), length);
        }
    }

    #[test]
    fn many_records_are_all_listed_in_order_or_not_at_all() {
        let (dir, catalog) = catalog(&["k"]);
        let keys: Vec<String> = (0..3 * SHARE_MIN).map(|n| format!("v{n:05}")).collect();
        for key in &keys {
            let record = Record::new(key.clone(), 4096, None, VdiInfo::new("disk", 4096));
            let text = serde_json::to_vec(&record).expect("a record");
            std::fs::write(dir.path().join(record_file(key)), text).expect("writable");
        }
        let told = catalog.map(|_, record| record.key).expect("all are whole");
        assert_eq!(told[1..], keys);
        std::fs::write(dir.path().join(record_file(&keys[2 * SHARE_MIN])), "{").expect("writable");
        assert!(catalog.list().is_err());
    }

    #[test]
    fn a_record_under_another_name_is_damaged() {
        let (dir, catalog) = catalog(&["a"]);
        std::fs::copy(dir.path().join("a.vdi.json"), dir.path().join("b.vdi.json")).expect("copy");
        assert!(catalog.read("b").expect_err("a's record").to_string().contains("record of a"));
    }

    #[test]
    fn everything_in_the_directory_is_accounted_for() {
        let (dir, catalog) = catalog(&["a", "a-b", "a.b"]);
        for name in ["a.raw", "a-b.raw", "lost.raw", "notes.txt", SR_RECORD, ".zerotap-x.tmp"] {
            std::fs::write(dir.path().join(name), "").expect("writable");
        }
        let contents = catalog.contents().expect("readable");
        assert_eq!(contents.keys, ["a", "a-b", "a.b"]);
        assert_eq!(contents.orphans, ["lost.raw"]);
        assert_eq!(contents.foreign, ["notes.txt"]);
        assert_eq!(contents.temporaries, [".zerotap-x.tmp"]);
        assert_eq!(catalog.list().expect("readable").len(), 3);
        assert!(catalog.contents().expect("readable").temporaries.is_empty(), "nobody writes it");
    }

    #[test]
    fn a_full_disk_is_called_so() {
        for (errno, number) in [(28, 44), (122, 44), (5, 200)] {
            let error = io::Error::from_raw_os_error(errno);
            let told = failed("write", Path::new("/srv/x"), &error);
            assert_eq!(told.code(), number, "{told}");
            assert!(told.to_string().contains("/srv/x"), "{told}");
        }
    }

    #[test]
    fn the_unknown_does_not_exist() {
        let (_dir, catalog) = catalog(&[]);
        for key in ["nobody", "../x", "", "a/b"] {
            assert_eq!(catalog.read(key), Err(StorageError::VdiDoesNotExist(key.into())));
        }
        catalog.remove("nobody", |_| Ok(())).expect("gone already");
    }
}
