//! What a ring takes from the moment that it is enabled: what the engine asks for, and no more.
//!
//! seccomp does not see what is submitted. A ring is therefore made disabled, told once what it
//! shall ever do, then enabled; the kernel answers EACCES to the rest (Linux 5.10,
//! `io_uring/register.c`). Whatever gets into a ring's memory then opens, connects or maps nothing.
//! It costs a look at a bit for each operation.

use super::probe::OPERATIONS;
use io_uring::register::Restriction;
use io_uring::{IoUring, squeue};

/// The registrations: buffers come and go, and the ring is to be enabled. Source: linux/io_uring.h.
const REGISTRATIONS: [u8; 3] = [0, 1, 12];
const FLAGS: squeue::Flags =
    squeue::Flags::FIXED_FILE.union(squeue::Flags::IO_LINK).union(squeue::Flags::SKIP_SUCCESS);

/// Bounds a ring that is disabled yet, for good, and enables it. Who calls is the only thread that
/// may submit to a ring with a single issuer.
///
/// # Errors
/// When the kernel knows of no restrictions.
pub(super) fn restrict(ring: &IoUring) -> std::io::Result<()> {
    let mut all: Vec<Restriction> =
        OPERATIONS.iter().map(|(code, _)| Restriction::sqe_op(*code)).collect();
    all.push(Restriction::sqe_flags_allowed(FLAGS.bits()));
    all.extend(REGISTRATIONS.map(Restriction::register_op));
    ring.submitter().register_restrictions(&mut all)?;
    ring.submitter().register_enable_rings()
}

#[cfg(test)]
mod tests {
    use super::super::{IMAGE, Uring};
    use super::*;
    use io_uring::{opcode, types};
    use std::os::fd::{AsFd as _, AsRawFd as _};

    fn uring() -> Uring {
        Uring::new(tempfile::tempfile().unwrap().as_fd()).unwrap()
    }

    fn result(uring: &mut Uring, entry: &squeue::Entry) -> i32 {
        // SAFETY: what the entries of these tests point to is static.
        unsafe { uring.push(entry) };
        uring.ring.submit_and_wait(1).unwrap();
        uring.ring.completion().next().unwrap().result()
    }

    #[test]
    fn no_other_operation_is_taken_and_no_other_flag() {
        let (mut uring, here) = (uring(), types::Fd(libc::AT_FDCWD));
        let poll = || opcode::PollAdd::new(IMAGE, u32::from(libc::POLLOUT.unsigned_abs())).build();
        assert!(result(&mut uring, &poll()) > 0, "what the engine asks for");
        let refused = [
            ("OPENAT", opcode::OpenAt::new(here, c"/etc/passwd".as_ptr()).build()),
            ("UNLINKAT", opcode::UnlinkAt::new(here, c"/nowhere".as_ptr()).build()),
            ("SOCKET", opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build()),
            ("CLOSE", opcode::Close::new(types::Fd(-1)).build()),
            ("NOP", opcode::Nop::new().build()),
            ("drained", poll().flags(squeue::Flags::IO_DRAIN)),
            ("aside", poll().flags(squeue::Flags::ASYNC)),
        ];
        for (what, entry) in refused {
            assert_eq!(result(&mut uring, &entry), -libc::EACCES, "{what}");
        }
        assert!(result(&mut uring, &poll()) > 0, "the ring goes on");
    }

    #[test]
    fn nothing_more_is_registered_and_nothing_is_lifted() {
        let (uring, image) = (uring(), tempfile::tempfile().unwrap());
        let submitter = uring.ring.submitter();
        let errno = |tried: std::io::Result<()>| tried.map_err(|error| error.raw_os_error());
        let refused = Err(Some(libc::EACCES));
        assert_eq!(errno(submitter.register_eventfd(image.as_raw_fd())), refused);
        assert_eq!(errno(submitter.register_files_update(0, &[-1]).map(drop)), refused);
        assert_eq!(errno(submitter.unregister_files()), refused);
        let mut all = [Restriction::sqe_op(opcode::OpenAt::CODE)];
        assert_eq!(errno(submitter.register_restrictions(&mut all)), refused);
    }
}
