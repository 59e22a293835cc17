//! A taken-over worker tries to get out, every way that we know.

use super::*;
use crate::engine::Engine;
use crate::engine::choice::choose;
use io_uring::{IoUring, opcode, types};
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::UnmountFlags;
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::test_kill_process;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use zerotap_rpc_schema::engine::{EngineKind, EngineSetting};

const USER: u32 = 0x7a70_0001;

fn as_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs `attempt` confined, in a thread: all that a worker gives up, a thread can give up alone,
/// but for the limits, which are harmless here.
fn confined<T: Send + 'static>(attempt: impl FnOnce(Confinement) -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        let nothing = open("/dev/null", OFlags::RDWR, Mode::empty()).unwrap();
        let user = as_root().then_some(USER);
        let confinement = confine(Host::Xen, user, std::os::fd::AsFd::as_fd(&nothing)).unwrap();
        attempt(confinement)
    });
    thread.join().expect("the confined thread says what is wrong")
}

/// A system call by number, and what the kernel said.
fn call(number: i64, arguments: [usize; 4]) -> Result<i64, i32> {
    let [a, b, c, d] = arguments;
    // SAFETY: the calls that are tried take numbers or null pointers here.
    let result = unsafe { libc::syscall(number, a, b, c, d) };
    if result >= 0 {
        Ok(result)
    } else {
        Err(Errno::from_io_error(&last_error()).unwrap().raw_os_error())
    }
}

fn last_error() -> std::io::Error {
    std::io::Error::last_os_error()
}

#[test]
fn no_file_can_be_opened_by_any_call() {
    let escaped = confined(|_| {
        let mut escaped = Vec::new();
        for path in ["/etc/passwd", "/proc/self/mem", "/dev/null", ".", "/"] {
            if open(path, OFlags::RDONLY, Mode::empty()).is_ok() {
                escaped.push(path);
            }
        }
        escaped
    });
    assert_eq!(escaped, Vec::<&str>::new());
}

#[test]
fn io_uring_opens_no_file_either() {
    let result = confined(|_| {
        let mut ring = IoUring::new(4).unwrap();
        let path = c"/etc/passwd";
        let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
        // SAFETY: the path is static.
        unsafe { ring.submission().push(&entry).unwrap() };
        ring.submit_and_wait(1).unwrap();
        ring.completion().next().unwrap().result()
    });
    assert!(result == -libc::EACCES || result == -libc::ENOENT, "{result}");
}

#[test]
fn no_socket_no_process_no_signal_no_privilege() {
    let parent = rustix::process::getppid().unwrap();
    let escaped = confined(move |_| {
        let mut escaped = Vec::new();
        let mut tried = |what: &'static str, succeeded: bool| {
            if succeeded {
                escaped.push(what);
            }
        };
        tried("a socket", socket(AddressFamily::INET, SocketType::STREAM, None).is_ok());
        tried("a unix socket", socket(AddressFamily::UNIX, SocketType::STREAM, None).is_ok());
        tried("a process", Command::new("/bin/true").spawn().is_ok());
        tried("a signal", test_kill_process(parent).is_ok());
        let root = Uid::from_raw(0);
        tried("root", rustix::thread::set_thread_res_uid(root, root, root).is_ok());
        tried("a mount", rustix::mount::unmount("/", UnmountFlags::DETACH).is_ok());
        tried("a root directory", rustix::process::chroot("/").is_ok());
        escaped
    });
    assert_eq!(escaped, Vec::<&str>::new());
}

#[test]
fn calls_that_are_not_listed_are_refused() {
    let refused = confined(|_| {
        let tried = [
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_memfd_create,
            libc::SYS_add_key,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_init_module,
            libc::SYS_reboot,
            libc::SYS_prlimit64,
            libc::SYS_dup,
            libc::SYS_socketpair,
            libc::SYS_fork,
        ];
        tried.map(|number| (number, call(number, [0; 4])))
    });
    for (number, result) in refused {
        assert_eq!(result, Err(libc::EPERM), "system call {number}");
    }
}

#[test]
fn memory_does_not_become_a_program() {
    let page = confined(|_| {
        let writable_and_program = (libc::PROT_READ | libc::PROT_EXEC) as usize;
        let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
        call(libc::SYS_mmap, [0, 4096, writable_and_program, anonymous])
    });
    assert_eq!(page, Err(libc::EPERM));
}

#[test]
fn devices_take_only_what_serving_asks() {
    let answer = confined(|_| call(libc::SYS_ioctl, [0, 0x5412, 0, 0]));
    assert_eq!(answer, Err(libc::EPERM), "TIOCSTI");
}

#[test]
fn rings_register_only_what_an_engine_does() {
    let answers = confined(|_| {
        [0, 4, 9, 12, 13, 15, 1 << 31]
            .map(|what| (what, call(libc::SYS_io_uring_register, [usize::MAX - 1, what, 0, 0])))
    });
    for (what, answer) in answers {
        // There is no such ring; the call itself is allowed.
        let expected = if matches!(what, 0 | 12) { libc::EBADF } else { libc::EPERM };
        assert_eq!(answer, Err(expected), "registration {what}");
    }
}

#[test]
fn what_serving_takes_still_works() {
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, vec![7; 8192]).unwrap();
    let image = open(&path, OFlags::RDWR | OFlags::DIRECT, Mode::empty()).unwrap();
    let stat = open("/proc/stat", OFlags::RDONLY, Mode::empty()).unwrap();
    let read = confined(move |_| {
        assert!(rustix::io::pread(&stat, &mut [0; 64], 0).is_ok_and(|bytes| bytes == 64));
        let image = crate::image::Image::new(image).unwrap();
        std::thread::spawn(move || {
            choose(EngineSetting::IoUring, image.file()).unwrap();
            Engine::new(image.file(), EngineKind::IoUring).unwrap();
            let mut ring = IoUring::new(4).unwrap();
            let file = types::Fd(image.file().as_raw_fd());
            let mut page = Box::new([0u8; 8192]);
            let aligned = page.as_mut_ptr().align_offset(4096);
            // SAFETY: 4096 of 8192 bytes from an aligned place on lie within, and live until the
            // completion.
            let at = unsafe { page.as_mut_ptr().add(aligned) };
            let entry = opcode::Read::new(file, at, 4096).build();
            // SAFETY: as above.
            unsafe { ring.submission().push(&entry).unwrap() };
            ring.submit_and_wait(1).unwrap();
            let result = ring.completion().next().unwrap().result();
            (result, page[aligned])
        })
        .join()
        .unwrap()
    });
    assert_eq!(read, (4096, 7));
}

#[test]
fn a_worker_of_roots_has_nothing_of_roots() {
    let (tell, told) = std::sync::mpsc::channel();
    let (go, going) = std::sync::mpsc::channel::<()>();
    let watched = std::thread::spawn(move || {
        confined(move |confinement| {
            let thread = rustix::thread::gettid().as_raw_nonzero();
            tell.send((thread, confinement, Path::new("/proc").read_dir().is_ok())).unwrap();
            let _ = going.recv();
        });
    });
    let (thread, confinement, sees_files) = told.recv().unwrap();
    let task = format!("/proc/self/task/{thread}");
    let status = std::fs::read_to_string(format!("{task}/status")).unwrap();
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let shared = ["mnt", "net", "ipc", "uts", "cgroup"].map(|namespace| {
        let of = |task: &str| std::fs::read_link(format!("{task}/ns/{namespace}")).unwrap();
        (namespace, of(&task) == of("/proc/self"))
    });
    let network = std::fs::read_to_string(format!("{task}/net/dev")).unwrap();
    drop(go);
    watched.join().unwrap();
    let is = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!((is("NoNewPrivs:"), is("Seccomp:")), ("1".into(), "2".into()), "{status}");
    assert!(!sees_files);
    let limit = |name: &str, most: u64| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let hard = line.split_whitespace().nth(1).unwrap();
        assert!(hard.parse::<u64>().is_ok_and(|hard| hard <= most), "{name}: {hard}");
    };
    limit("Max core file size", 0);
    limit("Max open files", DESCRIPTORS_MAX);
    limit("Max locked memory", LOCKED_BYTES_MAX);
    if as_root() {
        assert!(confinement.own_user);
        assert_eq!(shared.iter().find(|(_, shared)| *shared), None, "namespaces of its own");
        let devices: Vec<_> = network.lines().skip(2).map(str::trim_start).collect();
        assert!(devices.iter().all(|device| device.starts_with("lo:")), "{devices:?}");
        assert_eq!(is("Uid:"), std::array::from_fn::<_, 4, _>(|_| USER.to_string()).join(" "));
        assert_eq!(is("Groups:"), "");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(is(set), "0000000000000000", "{set}");
        }
    }
}
