//! FICLONERANGE: a range of one file's extents becomes another file's too (XFS, btrfs). The caller
//! waits for it, and so does, on XFS, what would write to either file meanwhile.

use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl, opcode};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

/// `linux/fs.h`: `_IOW(0x94, 13, struct file_clone_range)`: four words of 64 bits.
pub(crate) const FICLONERANGE: rustix::ioctl::Opcode = opcode::write::<[u64; 4]>(0x94, 13);

/// Shares a range of `from`, in bytes, with the same range of `to`. It begins with a block of the
/// file system and ends with one, or where `from` ends.
///
/// # Errors
/// EOPNOTSUPP, EINVAL or EXDEV where extents cannot be shared; ENOSPC.
pub(crate) fn clone_range(from: impl AsFd, to: impl AsFd, range: Range<u64>) -> Result<(), Errno> {
    let source = u64::try_from(from.as_fd().as_raw_fd()).map_err(|_| Errno::BADF)?;
    let words = [source, range.start, range.end - range.start, range.start];
    // SAFETY: the request reads a `struct file_clone_range`, whose fields these are: src_fd,
    // src_offset, src_length and dest_offset. `from` is open while it lasts.
    unsafe { ioctl(to, Setter::<FICLONERANGE, [u64; 4]>::new(words)) }
}
