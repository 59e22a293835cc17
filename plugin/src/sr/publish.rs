//! Small JSON files that appear whole or not at all: written beside, synced, renamed, and the
//! directory synced.
//!
//! Knows nothing of what is in them. Called by the catalog and the file SR, on blocking threads.
//!
//! A file that is there can be replaced on a full file system, too: a reserve beside it has blocks
//! of its own (`reserve.rs`).

use crate::fault;
use crate::sr::reserve;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

/// The longest record that is written or read, bytes.
pub const RECORD_BYTES_MAX: usize = 256 * 1024;
/// Read in one go.
const RECORD_BYTES_USUAL: usize = 4096;
/// What a file is called while it is written. A leading dot: no listing takes it for a record.
const TEMPORARY_PREFIX: &str = ".zerotap-";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// What `name` is called while it is written.
fn temporary(name: &str) -> String {
    format!("{TEMPORARY_PREFIX}{name}{TEMPORARY_SUFFIX}")
}

/// Whether a name is that of a file which a crash left half-written.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY_PREFIX) && name.ends_with(TEMPORARY_SUFFIX)
}

/// Puts `value` under `name` in `dir`, in place of what is there. Durable when it returns.
///
/// # Errors
/// The file system's; `name` then still holds what it held. `InvalidInput` when it is too long.
pub fn publish(dir: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    if text.len() > RECORD_BYTES_MAX {
        let problem = format!("the record would be {} bytes long", text.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    let dir = File::open(dir)?;
    let temporary = temporary(name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
    let written = rustix::fs::openat(&dir, &temporary, flags | OFlags::CLOEXEC, Mode::from(0o600))
        .map_err(io::Error::from)
        .and_then(|file| {
            let mut file = File::from(file);
            fault::point!("a record is begun beside the old one");
            file.write_all(&text)?;
            file.sync_all()
        })
        .and_then(|()| {
            fault::point!("a record is written beside the old one");
            Ok(rustix::fs::renameat(&dir, &temporary, &dir, name)?)
        });
    if let Err(error) = written {
        // Nothing depends on the removal: the next write of the same name takes the file over.
        let _ = rustix::fs::unlinkat(&dir, &temporary, AtFlags::empty());
        if !is_full(&error) {
            return Err(error);
        }
        reserve::replace(&dir, name, &text, &temporary).map_err(|_| error)?;
        return dir.sync_all();
    }
    fault::point!("a record is renamed");
    dir.sync_all()?;
    reserve::keep(&dir);
    Ok(())
}

/// Whether a file operation failed for want of space.
pub fn is_full(error: &io::Error) -> bool {
    let full = [Errno::NOSPC.raw_os_error(), Errno::DQUOT.raw_os_error()];
    error.raw_os_error().is_some_and(|code| full.contains(&code))
}

/// Reads what [`publish`] wrote.
///
/// # Errors
/// The file system's; `InvalidData` when the file does not hold a `T`, with what is wrong.
pub fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> io::Result<T> {
    let mut text = Vec::with_capacity(RECORD_BYTES_USUAL);
    let limit = u64::try_from(RECORD_BYTES_MAX).unwrap_or(u64::MAX);
    File::open(dir.join(name))?.take(limit).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The same in a directory that is open, for who reads thousands: no more system calls than it
/// takes.
///
/// # Errors
/// As [`read`].
pub fn read_in<T: DeserializeOwned>(dir: &OwnedFd, name: &str) -> io::Result<T> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    let mut text = vec![0; RECORD_BYTES_USUAL];
    let usual = file.read(&mut text)?;
    text.truncate(usual);
    // As [`publish`] ends it, and nothing else in it is.
    if !text.ends_with(b"\n}\n") {
        let limit = u64::try_from(RECORD_BYTES_MAX - usual).unwrap_or(0);
        file.take(limit).read_to_end(&mut text)?;
    }
    serde_json::from_slice(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Removes a file, durably, and what a crash in the middle of [`publish`] left beside it. Succeeds
/// when it is not there.
///
/// # Errors
/// The file system's.
pub fn remove(dir: &Path, name: &str) -> io::Result<()> {
    let there = |name: &str| match std::fs::remove_file(dir.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true),
    };
    let half_written = there(&temporary(name))?;
    if !there(name)? && !half_written {
        return Ok(());
    }
    fault::point!("a file is removed");
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().expect("a directory");
        publish(dir.path(), "a.json", &1).expect("room for it");
        let long = "x".repeat(RECORD_BYTES_MAX);
        let error = publish(dir.path(), "a.json", &long).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(read::<u32>(dir.path(), "a.json").expect("still there"), 1);
        let names = std::fs::read_dir(dir.path()).expect("a directory");
        let names: Vec<_> = names.map(|entry| entry.expect("a name").file_name()).collect();
        assert!(names.len() == 2 && names.contains(&reserve::NAME.into()), "{names:?}");
        remove(dir.path(), "a.json").expect("removed");
        remove(dir.path(), "a.json").expect("removed already");
    }
}
