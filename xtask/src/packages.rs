//! Debian packages that a command needs on this machine: installed when we may, else named with the
//! reason. A program counts as present when it can be found; how it came there does not matter.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// One program, the package that brings it, and what we want it for.
pub(crate) struct Package {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    pub(crate) why: &'static str,
}

pub(crate) const QEMU: Package = Package {
    name: "qemu-system-x86",
    program: "qemu-system-x86_64",
    why: "it is the machine that Xen boots on",
};
pub(crate) const SEABIOS: Package = Package {
    name: "seabios",
    program: "/usr/share/seabios/bios-256k.bin",
    why: "QEMU's machine starts from its firmware",
};
pub(crate) const SPICE: Package = Package {
    name: "libspice-server1",
    program: "/usr/lib/x86_64-linux-gnu/libspice-server.so.1",
    why: "Debian's QEMU for Xen, whose qdisk is a peer in the bench, is linked with it",
};
pub(crate) const FIO: Package = Package {
    name: "fio",
    program: "fio",
    why: "it makes and verifies the I/O in guests, and is the peer in the bench",
};
pub(crate) const E2FSPROGS: Package = Package {
    name: "e2fsprogs",
    program: "mke2fs",
    why: "guests make and check ext4 file systems with it",
};
pub(crate) const QEMU_UTILS: Package = Package {
    name: "qemu-utils",
    program: "qemu-img",
    why: "QEMU reads in tests what guests wrote: a peer that we did not write",
};
pub(crate) const LIBNBD: Package = Package {
    name: "libnbd-bin",
    program: "nbdcopy",
    why: "nbdinfo and nbdcopy judge the NBD server in tests: peers that we did not write",
};
pub(crate) const CC: Package = Package {
    name: "gcc",
    program: "cc",
    why: "the genuine xenstored runs without a hypervisor on stand-ins compiled on the spot",
};
pub(crate) const CXX: Package =
    Package { name: "g++", program: "c++", why: "libFuzzer is compiled with it, from its crate" };
pub(crate) const XFSPROGS: Package = Package {
    name: "xfsprogs",
    program: "mkfs.xfs",
    why: "snapshots of disks in use are tested on a file system that shares extents",
};
pub(crate) const PROMETHEUS_CLIENT: Package = Package {
    name: "python3-prometheus-client",
    program: "/usr/lib/python3/dist-packages/prometheus_client/openmetrics/parser.py",
    why: "Prometheus's own parser judges /metrics in tests",
};
pub(crate) const RPM: Package = Package {
    name: "rpm",
    program: "rpmbuild",
    why: "it makes the package for XCP-ng, whose dom0 is of the RPM kind",
};
pub(crate) const CPIO: Package =
    Package { name: "cpio", program: "cpio", why: "it unpacks what rpmbuild made, to try it" };
pub(crate) const CHROMIUM: Package = Package {
    name: "chromium",
    program: "chromium",
    why: "the status page is tested in a browser",
};
pub(crate) const CURL: Package = Package {
    name: "curl",
    program: "curl",
    why: "a client that we did not write knocks at the daemon's TCP door in tests",
};
pub(crate) const OPENSSL: Package =
    Package { name: "openssl", program: "openssl", why: "it makes the certificates of the tests" };
pub(crate) const SQLITE: Package = Package {
    name: "sqlite3",
    program: "sqlite3",
    why: "it lays out the schema that the daemon's queries are checked against",
};

/// What booting Xen takes. The rest (Xen, its tools, a kernel, busybox) is unpacked, not installed.
pub(crate) const FOR_XEN: &[Package] = &[QEMU, SEABIOS, FIO, E2FSPROGS];

/// What the benchmark beside the simulated host takes.
pub(crate) const FOR_BENCH: &[Package] = &[FIO];

/// What the benchmark of the NBD server takes.
pub(crate) const FOR_NBD_BENCH: &[Package] = &[FIO, QEMU_UTILS, LIBNBD];

/// Sees to it that every program is there.
pub(crate) fn ensure(wanted: &[Package]) -> Result<()> {
    let missing: Vec<&Package> =
        wanted.iter().filter(|package| find_program(package.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root()? {
        let reasons: Vec<String> =
            missing.iter().map(|package| format!("  {}: {}", package.name, package.why)).collect();
        let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
        bail!(
            "missing packages:\n{}\nrun: sudo apt-get install {}",
            reasons.join("\n"),
            names.join(" ")
        );
    }
    install(&missing)?;
    for package in missing {
        if find_program(package.program).is_none() {
            bail!("package {} is installed, yet has no {}", package.name, package.program);
        }
    }
    Ok(())
}

/// The full path of a program, also where ordinary users' PATH does not look.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    if name.starts_with('/') {
        return Path::new(name).exists().then(|| name.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn install(missing: &[&Package]) -> Result<()> {
    for package in missing {
        println!("installing {}: {}", package.name, package.why);
    }
    if try_install(missing).is_ok() {
        return Ok(());
    }
    update_lists()?;
    try_install(missing).context("apt could not install what is missing")
}

/// Sees to it that apt knows the packages that are downloaded without being installed.
pub(crate) fn ensure_lists() -> Result<()> {
    let known =
        || process::output(Command::new("apt-cache").args(["show", "xen-utils-4.17"])).is_ok();
    if known() {
        return Ok(());
    }
    if is_root()? {
        update_lists()?;
    }
    if !known() {
        bail!("apt does not know xen-utils-4.17 (Debian 12); run: sudo apt-get update");
    }
    Ok(())
}

/// Fetches apt's package lists: a fresh machine has none yet, or stale ones.
pub(crate) fn update_lists() -> Result<()> {
    process::run(Command::new("apt-get").args(["-q", "update"]))
        .context("apt's package lists cannot be fetched")
}

fn try_install(missing: &[&Package]) -> Result<()> {
    process::run(
        Command::new("apt-get")
            // Another apt that is at work now, as after a machine's first start, is waited for.
            .args(["-o", "DPkg::Lock::Timeout=120"])
            .args(["-qq", "-y", "--no-install-recommends", "install"])
            .args(missing.iter().map(|package| package.name))
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn is_root() -> Result<bool> {
    // The owner of our own /proc directory is our effective user.
    Ok(fs::metadata("/proc/self").context("cannot read /proc/self")?.uid() == 0)
}
