//! The doors that a worker locks behind itself before it reads what a guest or an image wrote.
//!
//! From then on it has what it was given and nothing else: no capabilities, a user of its own,
//! empty namespaces, no files to open, and only the system calls that serving takes ([`calls`]).
//! What the kernel cannot do is left out and told in [`Confinement`]; what it refuses to do is an
//! error, and the worker does not serve. Called once, by `main`, while there is one thread.

mod calls;
#[cfg(test)]
mod tests;

use crate::xen::Host;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, Gid, Uid, UnshareFlags};
use std::os::fd::BorrowedFd;

/// Descriptors: rings, event channels, journals and eventfds of all queues, NBD clients, control
/// connections.
const DESCRIPTORS_MAX: u64 = 1024;
/// The buffers that io_uring keeps at hand, and what kernels before 5.12 count of its rings.
const LOCKED_BYTES_MAX: u64 = 256 << 20;

/// Why a worker could not be confined. It must not serve then.
#[derive(Debug, thiserror::Error)]
pub enum ConfineFailed {
    /// A system call was refused.
    #[error("cannot confine the worker: {step}: {errno}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// The reason.
        errno: Errno,
    },
    /// Landlock failed though the kernel has it.
    #[error("cannot confine the worker: Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter of system calls was refused.
    #[error("cannot confine the worker: seccomp: {0}")]
    Seccomp(String),
}

fn step(step: &'static str) -> impl Fn(Errno) -> ConfineFailed {
    move |errno| ConfineFailed::Step { step, errno }
}

/// What was achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confinement {
    /// A user of its own, without capabilities, in empty namespaces. Only root can arrange that.
    pub own_user: bool,
    /// Landlock refuses every file (Linux 5.13).
    pub landlock: bool,
}

/// Locks everything but what serving takes. `user`: who to become, for a worker started by root.
/// `simulated`: the simulated host's directory, whose files stand for the kernel's devices.
///
/// # Errors
/// When a step is refused.
pub fn confine(
    host: Host,
    user: Option<u32>,
    simulated: BorrowedFd<'_>,
) -> Result<Confinement, ConfineFailed> {
    limit().map_err(step("limit resources"))?;
    if let Some(user) = user {
        leave_namespaces()?;
        become_user(user)?;
    }
    rustix::thread::set_no_new_privs(true).map_err(step("renounce new privileges"))?;
    let landlock = refuse_files((host == Host::Sim).then_some(simulated))?;
    calls::allow_only(host)?;
    Ok(Confinement { own_user: user.is_some(), landlock })
}

fn limit() -> rustix::io::Result<()> {
    let at_most = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
    // What is in the guest's pages is the guest's business.
    setrlimit(Resource::Core, at_most(0))?;
    let held = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    setrlimit(Resource::Nofile, at_most(DESCRIPTORS_MAX.min(held)))?;
    let held = rustix::process::getrlimit(Resource::Memlock).maximum.unwrap_or(u64::MAX);
    match setrlimit(Resource::Memlock, at_most(LOCKED_BYTES_MAX)) {
        // Not root, and has less already.
        Err(Errno::PERM) if held < LOCKED_BYTES_MAX => Ok(()),
        done => done,
    }
}

/// No network, nobody to share memory with, and a file system with nothing in it.
fn leave_namespaces() -> Result<(), ConfineFailed> {
    let all = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: no flag of these separates what threads share, and there is one thread.
    unsafe { rustix::thread::unshare_unsafe(all) }.map_err(step("leave the namespaces"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(step("keep mounts to itself"))?;
    // Any directory that there always is will do to mount upon: nobody else sees it.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    let empty = rustix::mount::mount("none", "/proc", "tmpfs", flags, Some(c"size=4k,mode=555"));
    empty.map_err(step("make an empty file system"))?;
    // Not pivot_root, which a dom0 that runs from its initramfs refuses. There is no way back
    // without the capabilities that go next and with no directory open.
    let enter = || {
        rustix::process::chdir("/proc")?;
        rustix::process::chroot(".")
    };
    enter().map_err(step("enter the empty file system"))
}

/// Becomes a user without a name, which takes the capabilities away.
fn become_user(user: u32) -> Result<(), ConfineFailed> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Beyond the last that the kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(step("give capabilities up")(errno)),
        }
    }
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    rustix::thread::set_thread_groups(&[]).map_err(step("leave all groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(step("become a group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(step("become a user"))
}

/// No path can be opened any more; what is open stays so. True when the kernel can do that.
fn refuse_files(simulated: Option<BorrowedFd<'_>>) -> Result<bool, ConfineFailed> {
    let all = AccessFs::from_all(ABI::V6);
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    let ruleset = match simulated {
        Some(directory) => {
            let wanted = AccessFs::ReadFile | AccessFs::WriteFile;
            ruleset.add_rule(PathBeneath::new(directory, wanted))?
        }
        None => ruleset,
    };
    Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}
