//! Memory that a guest can change at any moment.
//!
//! It is never a Rust reference: every access is one atomic or volatile copy into private memory,
//! inside bounds that are checked here. Whoever wants two looks at the same bytes gets two copies,
//! and validates the one it goes on to use (XSA-155).

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Memory that both ends of a ring see: a [`SharedMapping`], or what a model checker puts in its
/// place (`tests/ring_model.rs`), so that it checks the very code that serves guests.
pub trait Memory {
    /// Its length in bytes.
    fn bytes(&self) -> usize;
    /// Reads a word; what the writer stored before it is visible after (Acquire).
    fn load(&self, offset: usize) -> u32;
    /// Writes a word after all that was written before it (Release).
    fn store(&self, offset: usize, value: u32);
    /// Lets nothing after it come before anything in front of it, not even a load a store.
    fn fence(&self);
    /// Copies `N` bytes out, each read exactly once.
    fn read<const N: usize>(&self, offset: usize) -> [u8; N];
    /// Copies bytes in.
    fn copy_in(&self, offset: usize, from: &[u8]);
}

impl Memory for SharedMapping {
    fn bytes(&self) -> usize {
        self.bytes()
    }

    fn load(&self, offset: usize) -> u32 {
        self.load(offset)
    }

    fn store(&self, offset: usize, value: u32) {
        self.store(offset, value);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.read(offset)
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        self.copy_in(offset, from);
    }
}

/// Bytes in a page: a grant's size on x86.
pub const PAGE_BYTES: usize = 4096;

/// A mapping of memory shared with a guest; unmapped when dropped.
///
/// Its addresses may be handed to the kernel for direct I/O. Whoever does that keeps the mapping
/// until the kernel has answered.
#[derive(Debug)]
pub struct SharedMapping {
    base: NonNull<u8>,
    bytes: usize,
}

impl SharedMapping {
    /// Maps `bytes` of `file` from `offset` on, shared.
    ///
    /// # Errors
    /// What mmap answers; for a grant device, that a grant could not be mapped.
    pub fn map(
        file: impl AsFd,
        offset: u64,
        bytes: usize,
        writable: bool,
    ) -> rustix::io::Result<Self> {
        let protection =
            if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours; it
        // is only ever reached through this type, which makes no reference into it.
        let base = unsafe {
            mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, file, offset)?
        };
        let base = NonNull::new(base.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(SharedMapping { base, bytes })
    }

    /// Private, anonymous memory behind the same interface: bounce buffers, tests.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn anonymous(bytes: usize) -> rustix::io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as in `map`.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, protection, MapFlags::PRIVATE)?
        };
        let base = NonNull::new(base.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(SharedMapping { base, bytes })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of `offset`, for an I/O vector of `length` bytes.
    ///
    /// # Panics
    /// When the range leaves the mapping.
    #[must_use]
    pub fn address(&self, offset: usize, length: usize) -> *mut u8 {
        self.check(offset, length);
        // SAFETY: `check` keeps the offset inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Gives anonymous memory back to the host: it reads as zeroes afterwards.
    pub fn forget(&self) {
        let base = self.base.as_ptr().cast();
        // SAFETY: the range is this mapping's own, and no reference into it exists; what the kernel
        // still does with its pages it does with the ones that it holds.
        let forgotten =
            unsafe { rustix::mm::madvise(base, self.bytes, rustix::mm::Advice::LinuxDontNeed) };
        debug_assert!(forgotten.is_ok(), "madvise of an own mapping: {forgotten:?}");
    }

    fn check(&self, offset: usize, length: usize) {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.bytes);
        assert!(inside, "{length} bytes at {offset} leave a mapping of {}", self.bytes);
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "a word at {offset} is not aligned");
        let address = self.address(offset, 4).cast::<u32>();
        // SAFETY: in bounds and aligned (above); atomics may alias what others change.
        unsafe { AtomicU32::from_ptr(address) }
    }

    /// Reads a word; what the writer stored before it is visible after (Acquire).
    #[must_use]
    pub fn load(&self, offset: usize) -> u32 {
        self.word(offset).load(Ordering::Acquire)
    }

    /// Writes a word after all that was written before it (Release).
    pub fn store(&self, offset: usize, value: u32) {
        #[cfg(test)]
        super::crash::point();
        self.word(offset).store(value, Ordering::Release);
    }

    /// Adds to a word, wrapping; answers what it was.
    pub fn add(&self, offset: usize, value: u32) -> u32 {
        self.word(offset).fetch_add(value, Ordering::AcqRel)
    }

    /// Copies `N` bytes out, each byte read exactly once.
    #[must_use]
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let from = self.address(offset, N);
        let mut copy = [0; N];
        if offset.is_multiple_of(4) && N.is_multiple_of(4) {
            for (n, word) in copy.chunks_exact_mut(4).enumerate() {
                // SAFETY: in bounds (above), aligned because the mapping and `offset` are.
                let value = unsafe { from.cast::<u32>().add(n).read_volatile() };
                word.copy_from_slice(&value.to_le_bytes());
            }
        } else {
            for (n, byte) in copy.iter_mut().enumerate() {
                // SAFETY: in bounds (above).
                *byte = unsafe { from.add(n).read_volatile() };
            }
        }
        copy
    }

    /// Copies bytes out in bulk; a writer at the same time tears them, nothing worse.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) {
        let from = self.address(offset, to.len());
        // SAFETY: in bounds (above), and `to` is private memory that cannot overlap a mapping.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
    }

    /// Copies bytes in.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        let to = self.address(offset, from.len());
        #[cfg(test)]
        super::crash::point();
        // SAFETY: in bounds (above), and `from` is private memory that cannot overlap a mapping.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
    }

    /// Copies bytes from another mapping; a writer at the same time tears them, nothing worse.
    pub fn copy_from(&self, offset: usize, from: &SharedMapping, from_offset: usize, bytes: usize) {
        let (to, from) = (self.address(offset, bytes), from.address(from_offset, bytes));
        // SAFETY: both in bounds (above); `copy` may overlap.
        unsafe { std::ptr::copy(from, to, bytes) };
    }

    /// Copies bytes from one place of the mapping to another.
    pub fn copy_within(&self, from: usize, to: usize, bytes: usize) {
        let (from, to) = (self.address(from, bytes), self.address(to, bytes));
        // SAFETY: both in bounds (above); `copy` may overlap.
        unsafe { std::ptr::copy(from, to, bytes) };
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's own, and nothing of ours points into it any more:
        // the device drops a mapping only once the kernel has answered all I/O on it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_bounded() {
        let memory = SharedMapping::anonymous(PAGE_BYTES).unwrap();
        memory.copy_in(10, b"abc");
        assert_eq!(memory.read::<3>(10), *b"abc");
        memory.store(4092, 7);
        assert_eq!((memory.load(4092), memory.add(4092, 1), memory.load(4092)), (7, 7, 8));
        let outside = std::panic::AssertUnwindSafe(|| memory.read::<8>(4090));
        assert!(std::panic::catch_unwind(outside).is_err());
    }
}
