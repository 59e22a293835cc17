//! What is chosen, from made-up kernels and from this one, with and without io_uring.

use super::*;
use rustix::fs::{MemfdFlags, memfd_create};
use std::os::fd::{AsFd, OwnedFd};

fn file() -> OwnedFd {
    memfd_create("file", MemfdFlags::CLOEXEC).unwrap()
}

fn decided(setting: EngineSetting, uring: bool, aio: bool) -> Result<EngineChoice, NoEngine> {
    decide(setting, |kind| {
        let there = if kind == EngineKind::IoUring { uring } else { aio };
        let problem = format!("{kind} is missing");
        if there { Ok(()) } else { Err(Unavailable { kind, problem }) }
    })
}

#[test]
fn io_uring_is_taken_where_it_will_do_and_the_reason_told_where_not() {
    use EngineSetting::{Aio, Auto, IoUring};
    let kind = |setting, uring, aio| decided(setting, uring, aio).map(|choice| choice.kind).ok();
    for (setting, uring, aio, expected) in [
        (Auto, true, true, Some(EngineKind::IoUring)),
        (Auto, true, false, Some(EngineKind::IoUring)),
        (Auto, false, true, Some(EngineKind::Aio)),
        (Auto, false, false, None),
        (IoUring, true, true, Some(EngineKind::IoUring)),
        (IoUring, false, true, None),
        (Aio, true, true, Some(EngineKind::Aio)),
        (Aio, true, false, None),
    ] {
        assert_eq!(kind(setting, uring, aio), expected, "{setting} {uring} {aio}");
    }
    assert!(decided(Auto, false, true).unwrap().why.contains("io_uring is missing"));
    let named = decided(IoUring, false, true).unwrap_err().to_string();
    assert!(named.contains("io_uring is missing") && named.contains("set it to"), "{named}");
    let neither = decided(Auto, false, false).unwrap_err().to_string();
    assert!(neither.contains("io_uring is missing") && neither.contains("aio is missing"));
}

#[test]
fn this_kernel_has_both() {
    assert_eq!(choose(EngineSetting::Auto, file().as_fd()).unwrap().kind, EngineKind::IoUring);
    assert_eq!(choose(EngineSetting::Aio, file().as_fd()).unwrap().kind, EngineKind::Aio);
}

/// Lets this thread's calls of `number` fail, for good.
fn refuse(number: libc::c_long, errno: i32) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf: 0,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let mut equal = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number as u32);
    equal.jf = 1;
    let answer = |value| statement(libc::BPF_RET | libc::BPF_K, value);
    let mut program = [
        // The call's number is first in `struct seccomp_data`.
        statement(load, 0),
        equal,
        answer(libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program; both calls concern this thread alone.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter), 0);
    }
}

/// What is chosen by a thread whose calls of `number` fail.
fn without(
    number: libc::c_long,
    errno: i32,
    setting: EngineSetting,
) -> Result<EngineChoice, NoEngine> {
    let thread = std::thread::spawn(move || {
        refuse(number, errno);
        choose(setting, file().as_fd())
    });
    thread.join().unwrap()
}

#[test]
fn a_refused_io_uring_gives_way_to_aio_and_says_why() {
    for (number, errno, why) in [
        (libc::SYS_io_uring_setup, libc::ENOSYS, "the kernel has none"),
        (libc::SYS_io_uring_setup, libc::EPERM, "forbids it"),
        (libc::SYS_io_uring_setup, libc::ENOMEM, "RLIMIT_MEMLOCK"),
        (libc::SYS_io_uring_register, libc::EPERM, "forbids it"),
    ] {
        let choice = without(number, errno, EngineSetting::Auto).unwrap();
        assert_eq!(choice.kind, EngineKind::Aio);
        assert!(choice.why.contains(why), "{}", choice.why);
        let refused = without(number, errno, EngineSetting::IoUring).unwrap_err().to_string();
        assert!(refused.contains(why) && refused.contains("set it to \"auto\""), "{refused}");
    }
}

#[test]
fn a_refused_aio_says_why() {
    for (errno, why) in [(libc::ENOSYS, "CONFIG_AIO"), (libc::EAGAIN, "fs.aio-max-nr")] {
        let refused = without(libc::SYS_io_setup, errno, EngineSetting::Aio).unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
    let older = without(libc::SYS_io_submit, libc::EINVAL, EngineSetting::Aio).unwrap_err();
    assert!(older.to_string().contains("4.18"), "{older}");
}
