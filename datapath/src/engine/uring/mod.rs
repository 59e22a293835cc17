//! io_uring, with only what the worker needs of it.
//!
//! The image is a registered file: no reference counting per request. Event channels are not (see
//! `xen/evtchn.rs`). Buffers stay with who submitted the operation until its completion was taken;
//! that is the safety of this file, and `device.rs` upholds it by keeping a slot busy until then.

mod probe;
mod restrictions;
mod stream;

use super::{Completion, IoVector, Tag, Unavailable};
use crate::ring::shared::SharedMapping;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Submission entries; more operations wait in the kernel's completion queue, never get lost.
const ENTRIES: u32 = 256;
const COMPLETION_ENTRIES: u32 = 4096;
const IMAGE: types::Fixed = types::Fixed(0);
/// The one piece of registered memory.
const BUFFERS: u16 = 0;

/// The ring.
pub(super) struct Uring {
    ring: IoUring,
    /// Success of a helper operation needs no completion (Linux 5.17).
    skip_success: squeue::Flags,
    /// Addresses of the memory whose pages the kernel has at hand.
    registered: Range<usize>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring for one image, with the best set-up that the kernel has.
    pub(super) fn new(image: BorrowedFd<'_>) -> Result<Self, Unavailable> {
        let ring = Self::build(ENTRIES, COMPLETION_ENTRIES).map_err(probe::refused)?;
        let registered = ring.submitter().register_files(&[image.as_raw_fd()]);
        registered.map_err(probe::refused)?;
        restrictions::restrict(&ring).map_err(probe::refused)?;
        let skip_success = if ring.params().is_feature_skip_cqe_on_success() {
            squeue::Flags::SKIP_SUCCESS
        } else {
            squeue::Flags::empty()
        };
        Ok(Uring { ring, skip_success, registered: 0..0 })
    }

    /// Before Linux 5.13 the kernel would first wait for all operations, that is, for ever. Without
    /// it, or without leave to lock so much memory, operations look pages up.
    pub(super) fn register(&mut self, memory: &SharedMapping) {
        if !self.ring.params().is_feature_resource_tagging() {
            return;
        }
        let base = memory.address(0, memory.bytes());
        let vector = IoVector { iov_base: base.cast(), iov_len: memory.bytes() };
        // SAFETY: the range is a mapping, whose pages the kernel then holds: whatever becomes
        // of the mapping, nothing else is read or written.
        if unsafe { self.ring.submitter().register_buffers(&[vector]) }.is_ok() {
            self.registered = base.addr()..base.addr() + memory.bytes();
        }
    }

    pub(super) fn unregister(&mut self) {
        if !std::mem::take(&mut self.registered).is_empty() {
            let unregistered = self.ring.submitter().unregister_buffers();
            debug_assert!(unregistered.is_ok(), "they were registered: {unregistered:?}");
        }
    }

    /// Whether a vector lies in registered memory.
    fn is_registered(&self, vector: &IoVector) -> bool {
        let start = vector.iov_base.addr();
        self.registered.start <= start && start + vector.iov_len <= self.registered.end
    }

    /// Whether there are completions, or what would become one when the kernel is entered.
    pub(super) fn has_news(&mut self) -> bool {
        self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    /// Whether the kernel has not taken all entries.
    pub(super) fn has_queued(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// From the newest set-up flags to none: an older kernel refuses flags that it does not know.
    /// The ring is disabled until it is restricted.
    fn build(entries: u32, completion_entries: u32) -> std::io::Result<IoUring> {
        let mut deferred = IoUring::builder();
        deferred.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        let mut cooperative = IoUring::builder();
        cooperative.setup_coop_taskrun().setup_taskrun_flag();
        let plain = IoUring::builder();
        let mut refused = None;
        for mut builder in [deferred, cooperative, plain] {
            builder.setup_cqsize(completion_entries).dontfork().setup_r_disabled();
            match builder.build(entries) {
                Ok(ring) => return Ok(ring),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| std::io::Error::from(std::io::ErrorKind::Unsupported)))
    }

    /// # Safety
    /// As for [`super::Engine::read`].
    pub(super) unsafe fn read(&mut self, vectors: &[IoVector], offset: u64, tag: Tag) {
        let entry = if let [only] = vectors {
            let (base, length) = (only.iov_base.cast(), bytes(only));
            if self.is_registered(only) {
                opcode::ReadFixed::new(IMAGE, base, length, BUFFERS).offset(offset).build()
            } else {
                opcode::Read::new(IMAGE, base, length).offset(offset).build()
            }
        } else {
            let (first, count) = raw(vectors);
            opcode::Readv::new(IMAGE, first, count).offset(offset).build()
        };
        // SAFETY: the caller's promise.
        unsafe { self.push(&entry.user_data(tag.encode())) };
    }

    /// # Safety
    /// As for [`super::Engine::read`].
    pub(super) unsafe fn write(&mut self, vectors: &[IoVector], offset: u64, tag: Tag) {
        let entry = if let [only] = vectors {
            let (base, length) = (only.iov_base.cast(), bytes(only));
            if self.is_registered(only) {
                opcode::WriteFixed::new(IMAGE, base, length, BUFFERS).offset(offset).build()
            } else {
                opcode::Write::new(IMAGE, base, length).offset(offset).build()
            }
        } else {
            let (first, count) = raw(vectors);
            opcode::Writev::new(IMAGE, first, count).offset(offset).build()
        };
        // SAFETY: the caller's promise.
        unsafe { self.push(&entry.user_data(tag.encode())) };
    }

    pub(super) fn flush(&mut self, tag: Tag) {
        let entry = opcode::Fsync::new(IMAGE).flags(types::FsyncFlags::DATASYNC).build();
        // SAFETY: names no memory.
        unsafe { self.push(&entry.user_data(tag.encode())) };
    }

    pub(super) fn wait_readable(&mut self, descriptor: BorrowedFd<'_>, tag: Tag) {
        let entry = poll(descriptor);
        // SAFETY: names no memory.
        unsafe { self.push(&entry.user_data(tag.encode())) };
    }

    /// # Safety
    /// As for [`super::Engine::wait_event`].
    pub(super) unsafe fn wait_event(
        &mut self,
        channel: BorrowedFd<'_>,
        unmask: Option<*const u32>,
        word: *mut [u32; 16],
        tag: Tag,
    ) {
        let file = types::Fd(channel.as_raw_fd());
        let quiet = squeue::Flags::IO_LINK | self.skip_success;
        if let Some(port) = unmask {
            let entry = opcode::Write::new(file, port.cast(), 4).build();
            // SAFETY: the caller's promise.
            unsafe { self.push(&entry.flags(quiet).user_data(helper(tag))) };
        }
        // The descriptor is non-blocking: a read alone would answer EAGAIN at once, a poll alone
        // would cost a system call more. Linked, the kernel reads when there is something. The
        // unmasking is in the chain, so that its end means that nothing of it is left.
        let readable = poll(channel).flags(quiet).user_data(helper(tag));
        // SAFETY: names no memory.
        unsafe { self.push(&readable) };
        let read = opcode::Read::new(file, word.cast(), 64).build();
        // SAFETY: the caller's promise.
        unsafe { self.push(&read.user_data(tag.encode())) };
    }

    pub(super) fn cancel_event(&mut self, tag: Tag, done: Tag) {
        let entry = opcode::AsyncCancel::new(helper(tag)).build();
        // SAFETY: names no memory.
        unsafe { self.push(&entry.user_data(done.encode())) };
    }

    pub(super) fn submit_and_wait(
        &mut self,
        wanted: usize,
        completions: &mut Vec<Completion>,
    ) -> std::io::Result<()> {
        let entered = if wanted > 0 { self.ring.submit_and_wait(wanted) } else { self.look() };
        match entered {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // The completion queue overflowed: taking from it is the cure.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
        let quiet = !self.skip_success.is_empty();
        completions.extend(self.ring.completion().filter_map(|entry| completion(&entry, quiet)));
        Ok(())
    }

    /// Hands all to the kernel and lets it finish what is done already, without sleeping. The
    /// crate's own call would leave out the flag that runs deferred completions.
    fn look(&mut self) -> std::io::Result<usize> {
        const GETEVENTS: u32 = 1;
        let queued = u32::try_from(self.ring.submission().len()).unwrap_or(ENTRIES);
        // SAFETY: the flag and counts are the kernel's documented ones, there is no argument; what
        // the queued entries point to is their submitters' promise.
        unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, GETEVENTS, None) }
    }

    /// # Safety
    /// What the entry points to stays valid until its completion was taken.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the caller's promise.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: hand it over, without waiting.
            let _ = self.ring.submit();
        }
    }
}

fn raw(vectors: &[IoVector]) -> (*const IoVector, u32) {
    let count = u32::try_from(vectors.len()).expect("a request has at most 256 vectors");
    (vectors.as_ptr(), count)
}

fn bytes(vector: &IoVector) -> u32 {
    u32::try_from(vector.iov_len).expect("a request has at most 1 MiB")
}

fn poll(descriptor: BorrowedFd<'_>) -> squeue::Entry {
    let readable = u32::from(libc::POLLIN.unsigned_abs());
    opcode::PollAdd::new(types::Fd(descriptor.as_raw_fd()), readable).build()
}

/// Marks the operations of a chain that stand before the one whose completion is waited for.
const HELPER: u64 = 1 << 63;

fn helper(tag: Tag) -> u64 {
    tag.encode() | HELPER
}

/// A helper's success says nothing. Its failure ends the chain: where success is skipped (`quiet`),
/// the kernel posts no completion for the rest of the chain, so this one stands for it.
fn completion(entry: &cqueue::Entry, quiet: bool) -> Option<Completion> {
    let (bits, result) = (entry.user_data(), entry.result());
    let of_helper = bits & HELPER != 0;
    if of_helper && (result >= 0 || !quiet) {
        return None;
    }
    Some(Completion { tag: Tag::decode(bits & !HELPER), result })
}
