//! Pages of a file side by side in memory, as the grant device gives scattered grants.

use super::Access;
use crate::ring::shared::{PAGE_BYTES, SharedMapping};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::os::fd::AsFd;

/// Maps the pages `frames` of `memory` side by side, in the order given.
///
/// # Errors
/// What mmap answers.
pub(super) fn side_by_side(
    memory: impl AsFd,
    frames: &[u64],
    access: Access,
) -> rustix::io::Result<SharedMapping> {
    let writable = access == Access::ReadWrite;
    let window = SharedMapping::anonymous(frames.len() * PAGE_BYTES)?;
    let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
    let mut n = 0;
    while n < frames.len() {
        let run = (n + 1..frames.len())
            .take_while(|&next| frames[next] == frames[n] + (next - n) as u64)
            .count()
            + 1;
        let address = window.address(n * PAGE_BYTES, run * PAGE_BYTES);
        let offset = frames[n] * PAGE_BYTES as u64;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the range lies in `window`, which is this function's own and unused so far;
        // replacing its pages is what MAP_FIXED is for.
        unsafe { mmap(address.cast(), run * PAGE_BYTES, protection, flags, &memory, offset)? };
        n += run;
    }
    Ok(window)
}
