//! The journals of VBDs' rings: files in memory that outlive workers and the daemon itself.
//!
//! Makes, opens and removes them, and never looks inside: that is the workers' business. Called
//! when a ring is connected and when its device is gone.

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, open};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use zerotap_rpc_schema::worker::{
    Journaled, QUEUES_MAX, QueueParameters, RingParameters, VbdId, journal_bytes,
};

/// The journals of this host, one file a queue.
#[derive(Debug, Clone)]
pub struct Journals {
    /// Their directory, below the run directory, which goes with a boot as guests do.
    pub dir: PathBuf,
}

impl Journals {
    fn path(&self, vbd: VbdId, queue: usize) -> PathBuf {
        self.dir.join(format!("{}-{}-{queue}", vbd.domid, vbd.devid))
    }

    /// The journals of a VBD's queues, in their order: new ones, or those that there are.
    ///
    /// # Errors
    /// A text for people.
    pub fn open(
        &self,
        vbd: VbdId,
        ring: &RingParameters,
        how: Journaled,
    ) -> Result<Vec<OwnedFd>, String> {
        if how == Journaled::Begin {
            self.remove(vbd);
        }
        let one = |(number, queue)| self.open_one(vbd, number, queue, how);
        ring.queues.iter().enumerate().map(one).collect()
    }

    fn open_one(
        &self,
        vbd: VbdId,
        number: usize,
        queue: &QueueParameters,
        how: Journaled,
    ) -> Result<OwnedFd, String> {
        let path = self.path(vbd, number);
        let (made, access) = match how {
            Journaled::Begin => (OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR),
            Journaled::Resume => (OFlags::empty(), Mode::empty()),
        };
        let text = |errno: Errno| match (how, errno) {
            (Journaled::Resume, Errno::NOENT) => format!("there is no journal {}", path.display()),
            _ => format!("the journal {}: {errno}", path.display()),
        };
        let flags = made | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = open(&path, flags, access).map_err(text)?;
        if how == Journaled::Begin {
            // All of it: a worker that writes where there is no memory left is killed.
            let bytes = journal_bytes(queue.ring_refs.len()) as u64;
            fallocate(&file, FallocateFlags::empty(), 0, bytes).map_err(text)?;
        }
        Ok(file)
    }

    /// Removes the journals of all VBDs but these: those that went while no daemon was there.
    pub fn remove_others(&self, kept: &BTreeSet<VbdId>) {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) => return tracing::warn!("cannot list {}: {error}", self.dir.display()),
        };
        let owners = entries.flatten().filter_map(|entry| owner(entry.file_name().to_str()?));
        // All of a device's files go with the first that is found.
        for vbd in owners.collect::<BTreeSet<_>>().difference(kept) {
            tracing::info!(%vbd, "the device is gone: its journals are removed");
            self.remove(*vbd);
        }
    }

    /// Removes a VBD's journals. A worker that still writes to one does so to nobody's use.
    pub fn remove(&self, vbd: VbdId) {
        for queue in 0..QUEUES_MAX {
            let path = self.path(vbd, queue);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!("cannot remove {}: {error}", path.display());
                }
                _ => {}
            }
        }
    }
}

/// The VBD that a file of this name is of.
fn owner(name: &str) -> Option<VbdId> {
    let mut parts = name.split('-');
    let vbd = VbdId { domid: parts.next()?.parse().ok()?, devid: parts.next()?.parse().ok()? };
    let queue: usize = parts.next()?.parse().ok()?;
    (parts.next().is_none() && queue < QUEUES_MAX).then_some(vbd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerotap_rpc_schema::worker::Abi;

    #[test]
    fn journals_are_made_anew_or_found_or_not() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("memory");
        let journals = Journals { dir: dir.path().into() };
        let vbd = VbdId { domid: 5, devid: 51712 };
        let queue = |pages| QueueParameters { ring_refs: vec![8; pages], port: 1 };
        let (queues, protocol) = (vec![queue(1), queue(16)], Abi::X86_64);
        let ring = RingParameters { queues, protocol, persistent: true };
        let refused = journals.open(vbd, &ring, Journaled::Resume).expect_err("nothing there");
        assert!(refused.contains("no journal"), "{refused}");
        let made = journals.open(vbd, &ring, Journaled::Begin).expect("memory");
        let bytes = |file: &OwnedFd| rustix::fs::fstat(file).expect("open").st_size;
        assert_eq!(made.iter().map(bytes).collect::<Vec<_>>(), [8192, 69632]);
        rustix::io::pwrite(&made[0], b"taken", 0).expect("writable");
        let read = |file: &OwnedFd| {
            let mut head = [0; 5];
            rustix::io::pread(file, &mut head, 0).expect("readable");
            head
        };
        let found = journals.open(vbd, &ring, Journaled::Resume).expect("there they are");
        assert_eq!(read(&found[0]), *b"taken");
        let anew = journals.open(vbd, &ring, Journaled::Begin).expect("memory");
        assert_eq!((read(&anew[0]), read(&found[0])), ([0; 5], *b"taken"), "not the same file");
        journals.remove(vbd);
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    #[test]
    fn journals_of_devices_that_are_gone_are_removed_and_no_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let names = ["5-51712-0", "5-51712-1", "5-51728-0", "6-51712-3", "7-51712-0"];
        let strange = ["notes", "7-51712", "7-51712-9", "7-51712-0-0", "70000-51712-0"];
        for name in names.iter().chain(&strange) {
            std::fs::write(dir.path().join(name), "").expect("written");
        }
        let kept = [(5, 51712), (7, 51712)].map(|(domid, devid)| VbdId { domid, devid });
        Journals { dir: dir.path().into() }.remove_others(&BTreeSet::from(kept));
        let left = std::fs::read_dir(dir.path()).expect("readable").flatten();
        let left: BTreeSet<_> = left.map(|it| it.file_name().into_string().unwrap()).collect();
        let wanted = [names[0], names[1], names[4]].into_iter().chain(strange);
        assert_eq!(left, wanted.map(str::to_owned).collect());
    }
}
