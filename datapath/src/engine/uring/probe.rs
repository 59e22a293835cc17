//! Whether this kernel's io_uring will do, and if not, why, in words for people.

use super::{Uring, restrictions};
use crate::engine::Unavailable;
use io_uring::{Probe, opcode};
use std::io;
use zerotap_rpc_schema::engine::EngineKind;

/// Who may use io_uring: 0 all, 1 a group, 2 nobody (Linux 6.6).
const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";
/// What a worker asks for, and all that its rings take.
pub(super) const OPERATIONS: [(u8, &str); 12] = [
    (opcode::Read::CODE, "READ"),
    (opcode::Readv::CODE, "READV"),
    (opcode::ReadFixed::CODE, "READ_FIXED"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::Writev::CODE, "WRITEV"),
    (opcode::WriteFixed::CODE, "WRITE_FIXED"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    (opcode::RecvMsg::CODE, "RECVMSG"),
    (opcode::SendMsg::CODE, "SENDMSG"),
];

impl Uring {
    /// Makes a small ring and asks it.
    pub(in crate::engine) fn probe() -> Result<(), Unavailable> {
        let ring = Self::build(4, 8).map_err(refused)?;
        // Linux 5.11: the youngest of what is used without being an operation of its own.
        if !ring.params().is_feature_ext_arg() {
            return Err(lacks("the kernel's is older than Linux 5.11".into()));
        }
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(refused)?;
        match OPERATIONS.iter().find(|(code, _)| !probe.is_supported(*code)) {
            Some((_, name)) => Err(lacks(format!("the kernel's has no {name}"))),
            None => restrictions::restrict(&ring).map_err(refused),
        }
    }
}

fn lacks(problem: String) -> Unavailable {
    Unavailable { kind: EngineKind::IoUring, problem }
}

/// What the kernel's error means.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn refused(error: io::Error) -> Unavailable {
    lacks(match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has none, or a seccomp filter hides it (ENOSYS)".into(),
        Some(libc::EPERM) => match std::fs::read_to_string(SYSCTL).as_deref().map(str::trim) {
            Ok(value @ ("1" | "2")) => format!("the sysctl kernel.io_uring_disabled is {value}"),
            _ => "kernel.io_uring_disabled, a security module or seccomp forbids it (EPERM)".into(),
        },
        Some(libc::ENOMEM) => "no memory may be locked for it: raise RLIMIT_MEMLOCK".into(),
        _ => error.to_string(),
    })
}
