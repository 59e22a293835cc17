//! The simulated host's side of grants and event channels: files in one directory.
//!
//! Layout (all integers little endian):
//! * `mem.<domid>`: the guest's memory;
//! * `grants.<domid>`: its grant table, [`GRANT_BYTES`] an entry, the index is the grant reference:
//!   u32 flags, u32 frame (page of `mem`), u64 zero;
//! * `uses.<domid>.<n>`, [`HOLDERS_MAX`] of them: how often a back end maps each grant now, a u32 a
//!   grant. Who counts has the file locked: with Xen, too, a process's mappings go with it;
//! * `evt.<domid>.<port>.back` and `.front`: FIFOs, one byte an event, towards back end and front
//!   end. A bind holds an exclusive lock on `.back`, so that, as with Xen, a second one fails and
//!   the process's death releases it.
//!
//! The memory is a real file of tmpfs: direct I/O into "guest" pages is the kernel's own.

use super::{Access, CopyOut, Piece, Towards};
use crate::ring::shared::{PAGE_BYTES, SharedMapping};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// Bytes of a grant table entry.
pub const GRANT_BYTES: usize = 16;
/// Back ends of a guest that map its grants at a time.
pub const HOLDERS_MAX: u32 = 32;
/// Bytes of a file of uses.
pub const USES_BYTES: usize = GRANTS_MAX as usize * 4;
/// Flag: the entry is in force.
pub const GRANT_VALID: u32 = 1;
/// Flag: it may only be read.
pub const GRANT_READ_ONLY: u32 = 2;
/// Entries in a guest's grant table.
pub const GRANTS_MAX: u32 = 32 * 1024;

/// The file that is a guest's memory.
#[must_use]
pub fn memory_name(domid: u16) -> String {
    format!("mem.{domid}")
}

/// The file that is a guest's grant table.
#[must_use]
pub fn grants_name(domid: u16) -> String {
    format!("grants.{domid}")
}

/// The file where the back end `holder` of a guest counts its mappings.
#[must_use]
pub fn uses_name(domid: u16, holder: u32) -> String {
    format!("uses.{domid}.{holder}")
}

/// The FIFO that takes events to the `back` or `front` end of a guest's port.
#[must_use]
pub fn event_name(domid: u16, port: u32, end: &str) -> String {
    format!("evt.{domid}.{port}.{end}")
}

/// One guest's grants, as its back end sees them.
#[derive(Debug)]
pub struct SimGrants {
    memory: OwnedFd,
    /// All of the guest's memory, for copies: a hypervisor needs no mapping for them.
    whole: SharedMapping,
    table: SharedMapping,
    uses: Rc<Uses>,
}

/// The mappings that one back end has.
#[derive(Debug)]
struct Uses {
    counts: SharedMapping,
    /// Locked.
    _file: OwnedFd,
}

impl SimGrants {
    /// Opens the guest's files below `directory`.
    ///
    /// # Errors
    /// When there is no such guest.
    pub fn open(directory: impl AsFd, domid: u16) -> rustix::io::Result<Self> {
        let open = |name| openat(&directory, name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let table = open(grants_name(domid))?;
        let bytes = GRANTS_MAX as usize * GRANT_BYTES;
        let table = SharedMapping::map(&table, 0, bytes, true)?;
        let memory = open(memory_name(domid))?;
        let bytes = usize::try_from(fstat(&memory)?.st_size).map_err(|_| Errno::INVAL)?;
        let whole = SharedMapping::map(&memory, 0, bytes, true)?;
        let uses = Rc::new(Uses::claim(&directory, domid)?);
        Ok(SimGrants { memory, whole, table, uses })
    }

    fn frame(&self, gref: u32, access: Access) -> rustix::io::Result<u64> {
        if gref >= GRANTS_MAX {
            return Err(Errno::INVAL);
        }
        let entry = gref as usize * GRANT_BYTES;
        let flags = self.table.load(entry);
        let forbidden = access == Access::ReadWrite && flags & GRANT_READ_ONLY != 0;
        if flags & GRANT_VALID == 0 || forbidden {
            return Err(Errno::INVAL);
        }
        Ok(u64::from(self.table.load(entry + 4)))
    }

    /// Maps `grefs` side by side. All or none, as the grant device does.
    ///
    /// # Errors
    /// When a reference is not in force, or forbids the access.
    pub fn map(
        &self,
        grefs: &[u32],
        access: Access,
    ) -> rustix::io::Result<(SharedMapping, SimUse)> {
        let frames =
            grefs.iter().map(|&gref| self.frame(gref, access)).collect::<Result<Vec<_>, _>>()?;
        let window = super::window::side_by_side(&self.memory, &frames, access)?;
        for &gref in grefs {
            self.uses.counts.add(gref as usize * 4, 1);
        }
        Ok((window, SimUse { uses: Rc::clone(&self.uses), grefs: grefs.into() }))
    }

    /// Copies all pieces, each for itself.
    pub fn copy(&mut self, memory: &SharedMapping, pieces: &mut [Piece], towards: Towards) {
        for piece in pieces {
            let (bytes, offset) = (usize::from(piece.bytes), usize::from(piece.page_offset));
            let access = match towards {
                Towards::Guest => Access::ReadWrite,
                Towards::Us => Access::ReadOnly,
            };
            let place = self.place(piece.gref, access, offset, bytes);
            piece.copied = place.is_ok();
            match (place, towards) {
                (Ok(at), Towards::Guest) => self.whole.copy_from(at, memory, piece.offset, bytes),
                (Ok(at), Towards::Us) => memory.copy_from(piece.offset, &self.whole, at, bytes),
                (Err(_), _) => {}
            }
        }
    }

    /// Copies out of granted pages.
    ///
    /// # Errors
    /// When a reference is not in force or a range leaves its page.
    pub fn copy_out(&self, copies: &mut [CopyOut<'_>]) -> rustix::io::Result<()> {
        for copy in copies {
            let place = self.place(copy.gref, Access::ReadOnly, 0, copy.to.len())?;
            self.whole.copy_out(place, copy.to);
        }
        Ok(())
    }

    /// Where a piece of a granted page is in the guest's memory.
    fn place(
        &self,
        gref: u32,
        access: Access,
        offset: usize,
        bytes: usize,
    ) -> rustix::io::Result<usize> {
        let frame = usize::try_from(self.frame(gref, access)?).map_err(|_| Errno::INVAL)?;
        let start = frame * PAGE_BYTES + offset;
        let inside = offset + bytes <= PAGE_BYTES && start + bytes <= self.whole.bytes();
        if inside { Ok(start) } else { Err(Errno::INVAL) }
    }
}

impl Uses {
    /// The first file that nobody alive counts in.
    fn claim(directory: impl AsFd, domid: u16) -> rustix::io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        for holder in 0..HOLDERS_MAX {
            let file = openat(&directory, uses_name(domid, holder), flags, Mode::empty())?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let counts = SharedMapping::map(&file, 0, USES_BYTES, true)?;
            counts.copy_in(0, &vec![0; USES_BYTES]);
            return Ok(Uses { counts, _file: file });
        }
        Err(Errno::MFILE)
    }
}

/// Grants in use by a mapping; given back when dropped.
#[derive(Debug)]
pub struct SimUse {
    uses: Rc<Uses>,
    grefs: Box<[u32]>,
}

impl Drop for SimUse {
    fn drop(&mut self) {
        for &gref in &self.grefs {
            self.uses.counts.add(gref as usize * 4, u32::MAX);
        }
    }
}

/// A bound port.
#[derive(Debug)]
pub struct SimChannel {
    back: OwnedFd,
    front: OwnedFd,
}

impl SimChannel {
    /// Binds the guest's `port`.
    ///
    /// # Errors
    /// EINVAL when it is bound already, ENOENT when the guest has no such port.
    pub fn bind(directory: impl AsFd, domid: u16, port: u32) -> rustix::io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |end| openat(&directory, event_name(domid, port, end), flags, Mode::empty());
        let (back, front) = (open("back")?, open("front")?);
        flock(&back, FlockOperation::NonBlockingLockExclusive).map_err(|_| Errno::INVAL)?;
        // As with Xen, a fresh bind has an event pending: the ring is looked at once for sure.
        rustix::io::write(&back, &[0]).map_or_else(full_is_fine, |_| Ok(()))?;
        Ok(SimChannel { back, front })
    }

    /// What becomes readable with an event.
    #[must_use]
    pub fn descriptor(&self) -> &OwnedFd {
        &self.back
    }

    /// Sends the guest an event.
    ///
    /// # Errors
    /// When the guest's end is gone.
    pub fn notify(&self) -> rustix::io::Result<()> {
        rustix::io::write(&self.front, &[0]).map_or_else(full_is_fine, |_| Ok(()))
    }
}

/// A full FIFO has events pending already: one more would say nothing new.
fn full_is_fine(errno: Errno) -> rustix::io::Result<()> {
    if errno == Errno::AGAIN { Ok(()) } else { Err(errno) }
}
