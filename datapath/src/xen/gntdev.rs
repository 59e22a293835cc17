//! `/dev/xen/gntdev`: map a guest's granted pages, or copy out of them.
//!
//! Source: Linux `include/uapi/xen/gntdev.h` and `drivers/xen/gntdev.c`. MAP only records
//! references and answers an offset; mmap at that offset makes the hypercalls, for all pages or
//! none; munmap undoes them; UNMAP forgets the record. Must not be followed by fork.

use super::{Access, CopyOut, GRANTS_PER_MAP_MAX, Piece, Towards};
use crate::ring::shared::{PAGE_BYTES, SharedMapping};
use rustix::io::Errno;
use rustix::ioctl::{Direction, Opcode, Setter, Updater, ioctl, opcode};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A reference in a map call.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ref {
    domid: u32,
    gref: u32,
}

/// `ioctl_gntdev_map_grant_ref`; the kernel reads `count` of the references.
#[repr(C)]
struct MapGrantRef {
    count: u32,
    pad: u32,
    index: u64,
    refs: [Ref; GRANTS_PER_MAP_MAX],
}

/// `ioctl_gntdev_unmap_grant_ref`.
#[repr(C)]
struct UnmapGrantRef {
    index: u64,
    count: u32,
    pad: u32,
}

/// `ioctl_gntdev_grant_copy`.
#[repr(C)]
struct GrantCopy {
    count: u32,
    segments: *mut CopySegment,
}

/// `gntdev_grant_copy_segment`; each end is an address, or a grant as [`Gntdev::granted`] puts it.
#[repr(C)]
#[derive(Debug)]
struct CopySegment {
    source: u64,
    destination: u64,
    bytes: u16,
    flags: u16,
    status: i16,
}

// The header declares the map structure with one reference: its opcode has that size.
pub(crate) const MAP_GRANT_REF: Opcode = gntdev_opcode::<[u64; 3]>(0);
pub(crate) const UNMAP_GRANT_REF: Opcode = gntdev_opcode::<UnmapGrantRef>(1);
pub(crate) const GRANT_COPY: Opcode = gntdev_opcode::<GrantCopy>(8);
const COPY_SOURCE_GREF: u16 = 1;
const COPY_DESTINATION_GREF: u16 = 2;
const _: () = assert!(size_of::<CopySegment>() == 24);

/// The header's opcodes carry no direction, but a size.
const fn gntdev_opcode<T>(number: u8) -> Opcode {
    opcode::from_components(Direction::None, b'G', number, size_of::<T>())
}

/// One domain's grants.
#[derive(Debug)]
pub struct Gntdev {
    device: Arc<OwnedFd>,
    domid: u16,
    /// The segments of a copy; kept for their memory.
    segments: Vec<CopySegment>,
}

impl Gntdev {
    /// The grants of domain `domid`, by an open grant device.
    #[must_use]
    pub fn new(device: Arc<OwnedFd>, domid: u16) -> Self {
        Gntdev { device, domid, segments: Vec::new() }
    }

    /// Maps `grefs` side by side.
    ///
    /// # Errors
    /// When any of them cannot be mapped; then none is.
    pub fn map(
        &self,
        grefs: &[u32],
        access: Access,
    ) -> rustix::io::Result<(SharedMapping, MapRecord)> {
        let count = u32::try_from(grefs.len()).map_err(|_| Errno::INVAL)?;
        let domid = u32::from(self.domid);
        let mut call = MapGrantRef {
            count,
            pad: 0,
            index: 0,
            refs: [Ref { domid, gref: 0 }; GRANTS_PER_MAP_MAX],
        };
        for (slot, &gref) in call.refs.iter_mut().zip(grefs) {
            slot.gref = gref;
        }
        // SAFETY: opcode and structure are the header's; the kernel reads `count` references, which
        // the caller keeps to the array's length, and writes `index`.
        unsafe { ioctl(&*self.device, Updater::<MAP_GRANT_REF, _>::new(&mut call))? };
        let record = MapRecord { device: Arc::clone(&self.device), index: call.index, count };
        let bytes = grefs.len() * PAGE_BYTES;
        let writable = access == Access::ReadWrite;
        let memory = SharedMapping::map(&*self.device, call.index, bytes, writable)?;
        Ok((memory, record))
    }

    /// Copies all pieces in one call, each for itself.
    pub fn copy(&mut self, memory: &SharedMapping, pieces: &mut [Piece], towards: Towards) {
        let mut segments = std::mem::take(&mut self.segments);
        segments.clear();
        segments.extend(pieces.iter().map(|piece| {
            let granted = self.granted(piece.gref, piece.page_offset);
            let ours = memory.address(piece.offset, usize::from(piece.bytes)) as u64;
            let (source, destination, flags) = match towards {
                Towards::Guest => (ours, granted, COPY_DESTINATION_GREF),
                Towards::Us => (granted, ours, COPY_SOURCE_GREF),
            };
            CopySegment { source, destination, bytes: piece.bytes, flags, status: 0 }
        }));
        // SAFETY: the addresses lie in `memory`, which no Rust reference points into.
        let called = unsafe { self.call_copy(&mut segments) }.is_ok();
        for (piece, segment) in pieces.iter_mut().zip(&segments) {
            piece.copied = called && segment.status == 0;
        }
        self.segments = segments;
    }

    /// Copies out of granted pages in one call.
    ///
    /// # Errors
    /// When any of them cannot be copied.
    pub fn copy_out(&self, copies: &mut [CopyOut<'_>]) -> rustix::io::Result<()> {
        let mut segments = Vec::with_capacity(copies.len());
        for copy in copies.iter_mut() {
            if copy.to.len() > PAGE_BYTES {
                return Err(Errno::INVAL);
            }
            segments.push(CopySegment {
                source: self.granted(copy.gref, 0),
                destination: copy.to.as_mut_ptr() as u64,
                bytes: u16::try_from(copy.to.len()).map_err(|_| Errno::INVAL)?,
                flags: COPY_SOURCE_GREF,
                status: 0,
            });
        }
        // SAFETY: the destinations are borrowed mutably by `copies`.
        unsafe { self.call_copy(&mut segments)? };
        if segments.iter().all(|segment| segment.status == 0) { Ok(()) } else { Err(Errno::FAULT) }
    }

    /// A place in a granted page: reference, offset, domain, from the lowest bit on.
    fn granted(&self, gref: u32, page_offset: u16) -> u64 {
        u64::from(self.domid) << 48 | u64::from(page_offset) << 32 | u64::from(gref)
    }

    /// It succeeds even when segments fail (XSA-361's lesson): each has its own status.
    ///
    /// # Safety
    /// The kernel may read and write at our ends of the segments.
    unsafe fn call_copy(&self, segments: &mut [CopySegment]) -> rustix::io::Result<()> {
        let count = u32::try_from(segments.len()).map_err(|_| Errno::INVAL)?;
        let call = GrantCopy { count, segments: segments.as_mut_ptr() };
        // SAFETY: opcode and structure are the header's; the segments outlive the call, what they
        // point to is the caller's promise.
        unsafe { ioctl(&*self.device, Setter::<GRANT_COPY, _>::new(call)) }
    }
}

/// The grant device's record of a mapping; dropping it, after the mapping, makes it forget.
#[derive(Debug)]
pub struct MapRecord {
    device: Arc<OwnedFd>,
    index: u64,
    count: u32,
}

impl Drop for MapRecord {
    fn drop(&mut self) {
        let call = UnmapGrantRef { index: self.index, count: self.count, pad: 0 };
        // SAFETY: opcode and structure are the header's; the kernel only reads it.
        let forgotten = unsafe { ioctl(&*self.device, Setter::<UNMAP_GRANT_REF, _>::new(call)) };
        debug_assert!(forgotten.is_ok(), "the grant device forgets an own record: {forgotten:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_are_the_headers() {
        // As a C compiler computes them from linux/uapi/xen/gntdev.h on x86_64.
        assert_eq!(MAP_GRANT_REF, 0x0018_4700);
        assert_eq!(UNMAP_GRANT_REF, 0x0010_4701);
        assert_eq!(GRANT_COPY, 0x0010_4708);
    }
}
