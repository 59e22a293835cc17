//! The system calls that serving takes, each with its reason. All others answer EPERM: a call that
//! a library begins to make one day costs an error in the log, not a guest its disk.

use super::ConfineFailed;
use crate::engine::FICLONERANGE;
use crate::xen::{Host, evtchn, gntdev};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is,
    SeccompCondition, SeccompFilter, SeccompRule, apply_filter,
};
use std::collections::BTreeMap;

/// Which libc does not name for x86_64 (arch/x86/entry/syscalls/syscall_64.tbl).
const SYS_IO_PGETEVENTS: i64 = 333;

/// Whatever their arguments are: they reach only what the worker holds already.
const ALLOWED: &[(i64, &str)] = &[
    (libc::SYS_io_uring_enter, "the engine: submit and wait"),
    (libc::SYS_io_uring_setup, "an engine for each queue"),
    (libc::SYS_io_setup, "the engine of kernels without io_uring"),
    (libc::SYS_io_submit, "see io_setup"),
    (libc::SYS_io_getevents, "see io_setup"),
    (SYS_IO_PGETEVENTS, "see io_setup"),
    (libc::SYS_io_cancel, "see io_setup"),
    (libc::SYS_io_destroy, "see io_setup"),
    (libc::SYS_epoll_create1, "see io_setup: to wait for descriptors"),
    (libc::SYS_epoll_ctl, "see epoll_create1"),
    (libc::SYS_epoll_wait, "see epoll_create1"),
    (libc::SYS_epoll_pwait, "see epoll_create1"),
    (libc::SYS_poll, "see io_setup; the library's look at the standard descriptors"),
    (libc::SYS_ppoll, "see poll"),
    (libc::SYS_eventfd2, "a queue's mailbox"),
    (libc::SYS_timerfd_create, "deadlines that an engine waits for"),
    (libc::SYS_timerfd_settime, "see timerfd_create"),
    (libc::SYS_read, "event channels, eventfds"),
    (libc::SYS_readv, "see read"),
    (libc::SYS_write, "the log, event channels, eventfds"),
    (libc::SYS_writev, "see write"),
    (libc::SYS_pread64, "what direct I/O wants of memory, on kernels that do not say"),
    (libc::SYS_pwrite64, "a parent's metadata"),
    (libc::SYS_preadv, "see pread64"),
    (libc::SYS_preadv2, "see pread64"),
    (libc::SYS_pwritev, "see pwrite64"),
    (libc::SYS_pwritev2, "see pwrite64"),
    (libc::SYS_fsync, "make the image durable"),
    (libc::SYS_fdatasync, "make the image durable, at the end"),
    (libc::SYS_fallocate, "discard, and allocate zeroes"),
    (libc::SYS_flock, "give the image's fence back, at the end"),
    (libc::SYS_lseek, "how long the image has grown; where it has holes"),
    (libc::SYS_fstat, "what the image is"),
    (libc::SYS_newfstatat, "see fstat: by an empty path"),
    (libc::SYS_statx, "see fstat: by an empty path"),
    (libc::SYS_fcntl, "a descriptor's flags; the budget's locks"),
    (libc::SYS_close, "what is used no more"),
    (libc::SYS_accept4, "control and NBD connections, on sockets it was given"),
    (libc::SYS_recvmsg, "control messages with their descriptors; NBD"),
    (libc::SYS_recvfrom, "see recvmsg"),
    (libc::SYS_sendmsg, "NBD"),
    (libc::SYS_sendto, "answers to the daemon"),
    (libc::SYS_shutdown, "hang up"),
    (libc::SYS_getsockopt, "who is connected"),
    (libc::SYS_setsockopt, "buffers of a connection"),
    (libc::SYS_munmap, "grants, buffers, stacks"),
    (libc::SYS_mremap, "a buffer that grows"),
    (libc::SYS_madvise, "a thread's stack and buffers that are used no more"),
    (libc::SYS_brk, "memory"),
    (libc::SYS_futex, "threads wait for each other"),
    (libc::SYS_set_robust_list, "a thread begins"),
    (libc::SYS_rseq, "a thread begins"),
    (libc::SYS_sigaltstack, "a thread begins: where a stack's overflow is told"),
    (libc::SYS_rt_sigprocmask, "a thread begins"),
    (libc::SYS_rt_sigaction, "an abort"),
    (libc::SYS_rt_sigreturn, "a signal's end"),
    (libc::SYS_restart_syscall, "a stopped process goes on"),
    (libc::SYS_sched_getaffinity, "how many processors there are"),
    (libc::SYS_sched_yield, "let others go first"),
    (libc::SYS_gettid, "a panic's message"),
    (libc::SYS_getpid, "what it says of itself"),
    (libc::SYS_getrandom, "seeds of hash tables"),
    (libc::SYS_clock_gettime, "the time, where the kernel's page does not tell it"),
    (libc::SYS_clock_nanosleep, "wait a moment before trying again"),
    (libc::SYS_nanosleep, "see clock_nanosleep"),
    (libc::SYS_exit, "a thread ends"),
    (libc::SYS_exit_group, "the worker ends"),
];

/// What may be asked of a device. Source for block devices: linux/fs.h.
const IOCTLS: &[(u32, &str)] = &[
    (gntdev::MAP_GRANT_REF, "map grants"),
    (gntdev::UNMAP_GRANT_REF, "unmap grants"),
    (gntdev::GRANT_COPY, "copy grants"),
    (evtchn::BIND_INTERDOMAIN, "bind an event channel"),
    (evtchn::NOTIFY, "send an event"),
    (evtchn::RESTRICT_DOMID, "keep to one domain's event channels"),
    (0x1268, "a block device's sector"),
    (0x127b, "a block device's physical sector"),
    (0x8008_1272, "a block device's size"),
    (0x1277, "discard on a block device"),
    (0x127f, "zeroes on a block device"),
    (0x5421, "sockets that do not block"),
    (FICLONERANGE, "share extents with a copy, into a file it was given"),
];

/// What may be registered with a ring. Source: linux/io_uring.h.
const REGISTRATIONS: &[(u32, &str)] = &[
    (0, "buffers"),
    (1, "buffers that have gone unused"),
    (2, "the image"),
    (8, "which operations there are"),
    (11, "restrictions, before the ring is enabled"),
    (12, "enable it"),
];

/// Installs the filter, for this thread and all that it starts.
pub(super) fn allow_only(host: Host) -> Result<(), ConfineFailed> {
    let install = || {
        // glibc takes `clone` instead then, whose flags a filter can see.
        apply(&compile(
            BTreeMap::from([(libc::SYS_clone3, vec![])]),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        )?)?;
        apply(&compile(
            rules(host)?,
            SeccompAction::Errno(libc::EPERM.unsigned_abs()),
            SeccompAction::Allow,
        )?)
    };
    install().map_err(ConfineFailed::Seccomp)
}

fn rules(host: Host) -> Result<BTreeMap<i64, Vec<SeccompRule>>, String> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|(call, _)| (*call, vec![])).collect();
    let masked = |argument, bits: i32, value: i32| {
        let bits = u64::from(bits.unsigned_abs());
        rule(argument, Is::MaskedEq(bits), u64::from(value.unsigned_abs()))
    };
    // Nothing writable becomes a program.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![masked(2, libc::PROT_EXEC, 0)?]);
    }
    // Threads, no processes.
    rules.insert(libc::SYS_clone, vec![masked(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?]);
    rules.insert(libc::SYS_clone3, vec![]);
    let named = u64::from(libc::PR_SET_NAME.unsigned_abs());
    rules.insert(libc::SYS_prctl, vec![rule(0, Is::Eq, named)?]);
    // An abort signals the worker itself, and its number is no secret.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![rule(0, Is::Eq, own)?]);
    for (call, known) in [(libc::SYS_ioctl, IOCTLS), (libc::SYS_io_uring_register, REGISTRATIONS)] {
        let known: Result<_, _> =
            known.iter().map(|(code, _)| rule(1, Is::Eq, (*code).into())).collect();
        rules.insert(call, known?);
    }
    if host == Host::Sim {
        rules.insert(libc::SYS_openat, vec![]);
    }
    Ok(rules)
}

fn rule(argument: u8, is: Is, value: u64) -> Result<SeccompRule, String> {
    let condition = SeccompCondition::new(argument, Length::Dword, is, value);
    condition.and_then(|only| SeccompRule::new(vec![only])).map_err(said)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, String> {
    let arch = std::env::consts::ARCH.try_into().map_err(said)?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(said)?;
    filter.try_into().map_err(said)
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn said(error: BackendError) -> String {
    error.to_string()
}

fn apply(program: &BpfProgram) -> Result<(), String> {
    apply_filter(program).map_err(|error| error.to_string())
}
