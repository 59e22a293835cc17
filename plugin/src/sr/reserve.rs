//! Blocks kept for replacing a record when an SR is full: who has a disk active stands in its
//! record, and a full SR's guests must start and stop all the same.
//!
//! One file beside the records, with zeros written to it, so that writing to it again takes no
//! block from a file system that overwrites in place (ext4, XFS). It becomes the new record and the
//! old one becomes the reserve: nothing is freed that a guest which waits for space could take
//! first. What is in it means nothing. Used by `publish.rs` while the SR is locked.

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

/// What it is called. A leading dot: no listing takes it for a record.
pub(super) const NAME: &str = ".zerotap-reserve";
/// What is kept, bytes: longer than records are, but for those that callers fill.
const BYTES: usize = 8192;

/// Makes the reserve where there is none, or where it has become small. Nobody waits for it: on a
/// full file system it stays as it is.
pub(super) fn keep(dir: &File) {
    let there = rustix::fs::statat(dir, NAME, AtFlags::SYMLINK_NOFOLLOW);
    if there.is_ok_and(|kept| usize::try_from(kept.st_size).is_ok_and(|size| size >= BYTES)) {
        return;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(dir, NAME, flags, Mode::from(0o600))
        .map_err(io::Error::from)
        .and_then(|file| {
            let mut file = File::from(file);
            file.write_all(&[0; BYTES])?;
            file.sync_all()
        });
    if let (Err(error), Err(_)) = (made, there) {
        tracing::warn!("no space is kept for the records of an SR that is full: {error}");
    }
}

/// Puts `text` under `name`, in place of what is there, without a block more. The caller syncs the
/// directory. `temporary` is a name for the time being.
///
/// # Errors
/// There is no reserve, or too little, or nothing to replace; `name` then holds what it held.
pub(super) fn replace(dir: &File, name: &str, text: &[u8], temporary: &str) -> io::Result<()> {
    // A new record would use the reserve up.
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, NAME, flags, Mode::empty())?);
    if file.metadata()?.nlink() != 1 {
        // It was a record once, and a backup that is made of links has it still.
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    file.write_all_at(text, 0)?;
    file.set_len(text.len() as u64)?;
    file.sync_all()?;
    match rustix::fs::renameat_with(dir, NAME, dir, name, RenameFlags::EXCHANGE) {
        // A network file system.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => exchange(dir, name, temporary)?,
        other => other?,
    }
    keep(dir);
    Ok(())
}

/// Has reserve and record change names where the file system cannot do that in one step: at each
/// step the record is the old one or the new one.
fn exchange(dir: &File, name: &str, temporary: &str) -> io::Result<()> {
    rustix::fs::linkat(dir, name, dir, temporary, AtFlags::empty())?;
    rustix::fs::renameat(dir, NAME, dir, name)?;
    Ok(rustix::fs::renameat(dir, temporary, dir, NAME)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room() -> (tempfile::TempDir, File) {
        let room = tempfile::tempdir().expect("a directory");
        let dir = File::open(room.path()).expect("there");
        std::fs::write(room.path().join("a"), "old").expect("room");
        keep(&dir);
        (room, dir)
    }

    fn read(room: &tempfile::TempDir, name: &str) -> String {
        std::fs::read_to_string(room.path().join(name)).expect("there")
    }

    #[test]
    fn a_record_and_the_reserve_change_places() {
        let (room, dir) = room();
        replace(&dir, "a", b"new", "t").expect("there is a reserve");
        assert_eq!(read(&room, "a"), "new");
        let kept = room.path().join(NAME).metadata().expect("there is one again");
        assert_eq!(kept.len(), BYTES as u64);
        assert!(replace(&dir, "b", b"new", "t").is_err(), "a new record would use it up");
        assert!(!room.path().join("b").exists());
        std::fs::hard_link(room.path().join(NAME), room.path().join("backup")).expect("a link");
        assert!(replace(&dir, "a", b"newer", "t").is_err(), "somebody else has it, too");
        std::fs::remove_file(room.path().join(NAME)).expect("removed");
        assert!(replace(&dir, "a", b"newer", "t").is_err(), "there is no reserve");
        assert_eq!(read(&room, "a"), "new");
    }

    #[test]
    fn they_do_so_in_steps_where_one_step_is_too_much() {
        let (room, dir) = room();
        std::fs::write(room.path().join(NAME), "new").expect("room");
        exchange(&dir, "a", "t").expect("three names");
        assert_eq!((read(&room, "a"), read(&room, NAME)), ("new".into(), "old".into()));
        assert!(!room.path().join("t").exists());
    }
}
