//! A guest domain: its memory by frames, its grant table, its place in xenstore.
//!
//! Frames and grant references are handed out from free lists; giving a reference back fails while
//! a back end still maps the page, as it does in a Linux guest.

use super::Port;
use crate::xenstore::Client;
use anyhow::{Context as _, ensure};
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags, fallocate, flock, ftruncate, open};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use zerotap_datapath::ring::shared::SharedMapping;
use zerotap_datapath::xen::sim;

/// Bytes of a frame of guest memory.
pub const FRAME_BYTES: usize = 4096;
/// The first grant reference that a guest hands out; Xen keeps those before it.
pub const FIRST_GREF: u32 = 8;

/// A guest. Not tied to a thread by design, but its mappings are: make it where it is used.
#[derive(Debug)]
pub struct Domain {
    dir: PathBuf,
    domid: u16,
    memory: SharedMapping,
    table: SharedMapping,
    /// Where back ends count their mappings.
    uses: Vec<(OwnedFd, SharedMapping)>,
    free_frames: Vec<u32>,
    free_grefs: Vec<u32>,
    next_port: u32,
}

impl Domain {
    /// Makes the domain's files in `dir` and, as a toolstack does, its place in xenstore.
    /// `scattered` frames are never neighbours, as in a guest that ran for long.
    ///
    /// # Errors
    /// When the files or nodes cannot be made.
    pub fn create(
        dir: &Path,
        domid: u16,
        memory_bytes: u64,
        scattered: bool,
    ) -> anyhow::Result<Domain> {
        let frames = u32::try_from(memory_bytes / FRAME_BYTES as u64)?;
        ensure!(frames > 1, "a guest needs memory");
        let table_bytes = u64::from(sim::GRANTS_MAX) * sim::GRANT_BYTES as u64;
        let memory = file(&dir.join(sim::memory_name(domid)), memory_bytes)?;
        let table = file(&dir.join(sim::grants_name(domid)), table_bytes)?;
        let uses = (0..sim::HOLDERS_MAX).map(|holder| {
            let file = file(&dir.join(sim::uses_name(domid, holder)), sim::USES_BYTES as u64)?;
            let counts = SharedMapping::map(&file, 0, sim::USES_BYTES, false)?;
            Ok((file, counts))
        });
        let uses = uses.collect::<anyhow::Result<_>>()?;
        let order: Vec<u32> = match scattered {
            true => {
                (0..frames).rev().filter(|n| n % 2 == 1).chain((0..frames).step_by(2)).collect()
            }
            false => (0..frames).rev().collect(),
        };
        introduce(dir, domid)?;
        Ok(Domain {
            dir: dir.to_owned(),
            domid,
            memory: SharedMapping::map(&memory, 0, usize::try_from(memory_bytes)?, true)?,
            table: SharedMapping::map(&table, 0, usize::try_from(table_bytes)?, true)?,
            uses,
            free_frames: order,
            free_grefs: (FIRST_GREF..sim::GRANTS_MAX).rev().collect(),
            next_port: 1,
        })
    }

    /// The domain's number.
    #[must_use]
    pub fn domid(&self) -> u16 {
        self.domid
    }

    /// A xenstore connection with the guest's rights.
    ///
    /// # Errors
    /// When xenstored is away.
    pub fn xenstore(&self) -> anyhow::Result<Client> {
        Client::connect(&crate::xenstored::socket_path(&self.dir, self.domid))
    }

    /// All of its memory.
    #[must_use]
    pub fn memory(&self) -> &SharedMapping {
        &self.memory
    }

    /// Takes a free frame.
    ///
    /// # Errors
    /// When the guest's memory is used up.
    pub fn frame(&mut self) -> anyhow::Result<u32> {
        self.free_frames.pop().context("the guest is out of memory")
    }

    /// Gives a frame back.
    pub fn free_frame(&mut self, frame: u32) {
        self.free_frames.push(frame);
    }

    /// Grants the back end access to a frame.
    ///
    /// # Errors
    /// When the grant table is full.
    pub fn grant(&mut self, frame: u32, read_only: bool) -> anyhow::Result<u32> {
        let gref = self.free_grefs.pop().context("the guest's grant table is full")?;
        let entry = gref as usize * sim::GRANT_BYTES;
        self.table.store(entry + 4, frame);
        let mode = if read_only { sim::GRANT_READ_ONLY } else { 0 };
        self.table.store(entry, sim::GRANT_VALID | mode);
        Ok(gref)
    }

    /// Ends a grant.
    ///
    /// # Errors
    /// When the back end still maps it.
    pub fn revoke(&mut self, gref: u32) -> anyhow::Result<()> {
        let used = self.uses(gref);
        ensure!(used == 0, "grant {gref} is ended and the back end still maps it {used} times");
        self.table.store(gref as usize * sim::GRANT_BYTES, 0);
        self.free_grefs.push(gref);
        Ok(())
    }

    /// Ends a grant as no honest guest can: while it is used. The reference is not handed out
    /// again.
    pub fn snatch(&mut self, gref: u32) {
        self.table.store(gref as usize * sim::GRANT_BYTES, 0);
    }

    /// How often back ends map a grant now. A dead one's mappings have gone with it.
    #[must_use]
    pub fn uses(&self, gref: u32) -> u32 {
        let count = |(file, counts): &(OwnedFd, SharedMapping)| {
            let count = counts.load(gref as usize * 4);
            if count > 0 && flock(file, FlockOperation::NonBlockingLockShared).is_ok() {
                // Nobody counts there any more.
                let _ = flock(file, FlockOperation::Unlock);
                return 0;
            }
            count
        };
        self.uses.iter().map(count).sum()
    }

    /// How many mappings the back end has of all grants together.
    #[must_use]
    pub fn uses_in_all(&self) -> u64 {
        (0..sim::GRANTS_MAX).map(|gref| u64::from(self.uses(gref))).sum()
    }

    /// A new event channel.
    ///
    /// # Errors
    /// When its files cannot be made.
    pub fn port(&mut self) -> anyhow::Result<Port> {
        self.next_port += 1;
        Port::create(&self.dir, self.domid, self.next_port)
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        let uses = (0..sim::HOLDERS_MAX).map(|holder| sim::uses_name(self.domid, holder));
        for name in
            [sim::memory_name(self.domid), sim::grants_name(self.domid)].into_iter().chain(uses)
        {
            // The directory may be gone with the host.
            let _ = std::fs::remove_file(self.dir.join(name));
        }
    }
}

fn file(path: &Path, bytes: u64) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::RUSR | Mode::WUSR)
        .with_context(|| format!("create {}", path.display()))?;
    ftruncate(&file, bytes)?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes).context("memory for the guest")?;
    Ok(file)
}

/// What a toolstack does for a new domain. Introduced first: an entry of a domain that is not known
/// yet would be void.
fn introduce(dir: &Path, domid: u16) -> anyhow::Result<()> {
    let mut toolstack = Client::connect(&crate::xenstored::socket_path(dir, 0))?;
    toolstack.introduce(domid)?;
    let home = format!("/local/domain/{domid}");
    toolstack.mkdir(&home)?;
    toolstack.set_perms(&home, &["n0", &format!("r{domid}")])?;
    toolstack.write(&format!("{home}/domid"), domid)?;
    toolstack.mkdir(&format!("{home}/device/vbd"))?;
    Ok(())
}

/// Ends a domain as a toolstack does after its death: xenstored is told, its nodes go.
///
/// # Errors
/// When xenstored is away.
pub fn destroy(dir: &Path, domid: u16) -> anyhow::Result<()> {
    let mut toolstack = Client::connect(&crate::xenstored::socket_path(dir, 0))?;
    toolstack.release(domid)?;
    toolstack.remove(&format!("/local/domain/{domid}"))
}
