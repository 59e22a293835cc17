//! Debian's Xen, its tools, a stock kernel and busybox, downloaded once and unpacked into the
//! cache. Nothing is installed: the machine that runs this needs no Xen, and keeps none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{packages, process, workspace};

/// The hypervisor, what dom0 runs, and every library of it that a plain Debian lacks.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "libfdt1",
    "libnl-3-200",
    "libnl-route-3-200",
    "libpci3",
    "libxencall1",
    "libxendevicemodel1",
    "libxenevtchn1",
    "libxenforeignmemory1",
    "libxengnttab1",
    "libxenhypfs1",
    "libxenmisc4.17",
    "libxenstore4",
    "libxentoolcore1",
    "libxentoollog1",
    "libyajl2",
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
    "xenstore-utils",
];

/// QEMU as a back end for guests' disks: a peer of the benchmark, and of nothing else.
const PACKAGES_QEMU: &[&str] = &["qemu-system-xen"];

/// Unpacked packages. Its existence means that it is complete: it is built aside and renamed.
pub(crate) struct Debian {
    root: PathBuf,
}

impl Debian {
    /// The cache's copy, downloaded now if this is the first time. Later it needs no network.
    pub(crate) fn unpacked() -> Result<Self> {
        Self::cached("debian", |aside| {
            println!("downloading Xen 4.17, its tools and a kernel (once, about 80 MB)");
            packages::ensure_lists()?;
            let kernel = kernel_package()?;
            download_and_unpack(aside, &[PACKAGES, &[&*kernel]].concat())?;
            process::run(Command::new("gunzip").arg(aside.join("boot/xen-4.17-amd64.gz")))
        })
    }

    /// The same of QEMU's package alone. Xen's libraries, which it needs, are in the other one.
    pub(crate) fn qemu() -> Result<Self> {
        packages::ensure(&[packages::SPICE])?;
        Self::cached("qemu", |aside| {
            println!("downloading QEMU for Xen (once, about 5 MB)");
            packages::ensure_lists()?;
            download_and_unpack(aside, PACKAGES_QEMU)
        })
    }

    /// What `make` unpacked into the directory that it was given, now or earlier.
    fn cached(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let cache = workspace::xen_cache_dir();
        let root = cache.join(name);
        if !root.is_dir() {
            let aside = cache.join(format!("{name}.{}", std::process::id()));
            let _ = fs::remove_dir_all(&aside);
            fs::create_dir_all(&aside).with_context(|| format!("cannot create {aside:?}"))?;
            make(&aside)?;
            // Another boot may have won the race; its copy is as good as ours.
            if fs::rename(&aside, &root).is_err() {
                let _ = fs::remove_dir_all(&aside);
            }
        }
        Ok(Self { root })
    }

    /// A file of the packages, by its installed path without the leading slash.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The hypervisor as an ELF image: QEMU's multiboot loader does not inflate.
    pub(crate) fn hypervisor(&self) -> PathBuf {
        self.file("boot/xen-4.17-amd64")
    }

    /// The stock kernel, for dom0 and the guest alike.
    pub(crate) fn kernel(&self) -> Result<PathBuf> {
        only_entry(&self.file("boot"), "vmlinuz-")
    }

    /// One kernel module, wherever in the kernel's tree it lies.
    pub(crate) fn module(&self, name: &str) -> Result<PathBuf> {
        let modules = only_entry(&self.file("lib/modules"), "")?;
        find_file(&modules.join("kernel"), &format!("{name}.ko"))?
            .with_context(|| format!("the kernel has no module {name}"))
    }

    /// Where the packages' own libraries are.
    pub(crate) fn libraries(&self) -> PathBuf {
        self.file("usr/lib/x86_64-linux-gnu")
    }
}

fn download_and_unpack(aside: &Path, packages: &[&str]) -> Result<()> {
    let archives = aside.join("archives");
    fs::create_dir(&archives)?;
    process::run(
        Command::new("apt-get").args(["-qq", "download"]).args(packages).current_dir(&archives),
    )
    .with_context(|| format!("cannot download from Debian's archive: {}", packages.join(", ")))?;
    for archive in fs::read_dir(&archives)? {
        process::run(Command::new("dpkg-deb").arg("-x").arg(archive?.path()).arg(aside))?;
    }
    Ok(fs::remove_dir_all(&archives)?)
}

/// The name of the package that `linux-image-amd64` stands for at the moment.
fn kernel_package() -> Result<String> {
    let answer = process::output(Command::new("apt-cache").args(["depends", "linux-image-amd64"]))?;
    answer
        .split_whitespace()
        .find(|word| word.starts_with("linux-image-6."))
        .map(str::to_owned)
        .context("apt-cache names no kernel behind linux-image-amd64; this needs Debian 12")
}

fn only_entry(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {directory:?}"))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(path),
        Err(found) => bail!("{directory:?} has {} entries {prefix}*, not one", found.len()),
    }
}

fn find_file(directory: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {directory:?}"))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find_file(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name() == name {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}
