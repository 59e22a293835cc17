//! What the two initramfs hold: the guest's, and dom0's with the guest's inside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::Tree;
use super::debian::Debian;
use super::{Backend, Boot};
use crate::{packages, process, workspace};

const LIBRARY_DIR: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// In the order in which they must be loaded; ext4's dependencies before ext4.
const EXT4_MODULES: &[&str] = &["crc16", "crc32c_generic", "libcrc32c", "mbcache", "jbd2", "ext4"];
const GUEST_MODULES: &[&str] = &["xen-blkfront"];
const DOM0_MODULES: &[&str] =
    &["xen-privcmd", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xenfs", "loop", "xen-blkback"];
/// Loaded by a script when it knows the size that it wants.
const DOM0_LATER_MODULES: &[&str] = &["brd"];

/// Programs of this machine that both sides get.
const HOST_PROGRAMS: &[&str] = &["fio", "mke2fs", "e2fsck"];
const GUEST_XEN_PROGRAMS: &[&str] = &["xenstore-ls", "xenstore-read", "xenstore-write"];
const DOM0_XENSTORE_PROGRAMS: &[&str] = &[
    "xenstore-chmod",
    "xenstore-exists",
    "xenstore-list",
    "xenstore-ls",
    "xenstore-read",
    "xenstore-rm",
    "xenstore-watch",
    "xenstore-write",
];
const DOM0_XEN_PROGRAMS: &[&str] = &[
    "libxl-save-helper",
    "xen-init-dom0",
    "xenconsole",
    "xenconsoled",
    "xenstored",
    "xentop",
    "xl",
];

/// Writes both archives into `work` and returns nothing more: `guest.cpio` and `dom0.cpio`.
pub(crate) fn pack(boot: &Boot, debian: &Debian, work: &Path) -> Result<()> {
    let guest_archive = work.join("guest.cpio");
    guest(boot, debian)?.pack(&guest_archive)?;
    let mut dom0 = dom0(boot, debian)?;
    dom0.copy("root/guest.cpio", &guest_archive, 0o644);
    dom0.pack(&work.join("dom0.cpio"))
}

fn guest(boot: &Boot, debian: &Debian) -> Result<Tree> {
    let mut tree = base(debian)?;
    for name in GUEST_XEN_PROGRAMS {
        program(&mut tree, debian, &debian.file(&format!("usr/bin/{name}")))?;
    }
    let modules = [EXT4_MODULES, GUEST_MODULES].concat();
    for name in &modules {
        module(&mut tree, debian, name)?;
    }
    tree.text("etc/modules", modules.join("\n"));
    tree.script("init", include_str!("../../xen/guest/init.sh"));
    tree.text("lib/guest.sh", include_str!("../../xen/guest/lib.sh"));
    tree.text("script.sh", boot.guest_script.clone());
    Ok(tree)
}

fn dom0(boot: &Boot, debian: &Debian) -> Result<Tree> {
    let mut tree = base(debian)?;
    for name in DOM0_XENSTORE_PROGRAMS {
        program(&mut tree, debian, &debian.file(&format!("usr/bin/{name}")))?;
    }
    for name in DOM0_XEN_PROGRAMS {
        program(&mut tree, debian, &debian.file(&format!("usr/lib/xen-4.17/bin/{name}")))?;
    }
    // libxl looks for its helpers where the package has them.
    tree.link("usr/lib/xen-4.17/bin", "/bin");
    // glibc opens it by name when a thread is cancelled, which xl does; ldd does not show it.
    tree.copy(
        &format!("{LIBRARY_DIR}/libgcc_s.so.1"),
        Path::new("/lib/x86_64-linux-gnu/libgcc_s.so.1"),
        0o755,
    );
    for name in [EXT4_MODULES, DOM0_MODULES, DOM0_LATER_MODULES].concat() {
        module(&mut tree, debian, name)?;
    }
    tree.text("etc/modules", [EXT4_MODULES, DOM0_MODULES].concat().join("\n"));
    tree.text("etc/xen/xl.conf", "");
    for directory in ["srv", "var/lib/xen", "var/log/xen/console"] {
        tree.directory(directory);
    }
    tree.copy("root/vmlinuz", &debian.kernel()?, 0o644);
    tree.text("etc/boot.sh", boot_settings(boot));
    tree.script("init", include_str!("../../xen/dom0/init.sh"));
    tree.text("lib/guest.sh", include_str!("../../xen/dom0/guest.sh"));
    tree.text("lib/xenbus.sh", include_str!("../../xen/dom0/xenbus.sh"));
    tree.text("lib/ramdisk.sh", include_str!("../../xen/dom0/ramdisk.sh"));
    tree.text("script.sh", boot.dom0_script.clone());
    match boot.backend {
        Backend::Blkback => {
            tree.text("lib/disk.sh", include_str!("../../xen/dom0/disk-blkback.sh"));
        }
        Backend::Zerotap => {
            tree.text("lib/disk.sh", include_str!("../../xen/dom0/disk-zerotap.sh"));
            tree.text("etc/zerotap.toml", "");
            for name in ["zerotap", "zerotap-datapath"] {
                tree.copy(&format!("bin/{name}"), &workspace::static_dir().join(name), 0o755);
            }
        }
    }
    Ok(tree)
}

/// What dom0's init and library must know of this boot, as shell assignments.
fn boot_settings(boot: &Boot) -> String {
    format!(
        "BACKEND={}\nGUEST_TYPE={}\nGUEST_VCPUS={}\n",
        boot.backend.name(),
        boot.guest.name(),
        boot.vcpus
    )
}

fn base(debian: &Debian) -> Result<Tree> {
    let mut tree = Tree::default();
    for directory in ["dev", "mnt", "proc", "root", "run", "sys", "tmp", "var", "mod"] {
        tree.directory(directory);
    }
    tree.link("var/run", "/run");
    tree.copy("bin/busybox", &debian.file("bin/busybox"), 0o755);
    for name in HOST_PROGRAMS {
        let path = packages::find_program(name).with_context(|| format!("no {name} here"))?;
        program(&mut tree, debian, &path)?;
    }
    tree.link("bin/mkfs.ext4", "mke2fs");
    Ok(tree)
}

fn module(tree: &mut Tree, debian: &Debian, name: &str) -> Result<()> {
    tree.copy(&format!("mod/{name}.ko"), &debian.module(name)?, 0o644);
    Ok(())
}

/// A dynamic program, the loader, and the libraries that the loader would find for it here.
fn program(tree: &mut Tree, debian: &Debian, file: &Path) -> Result<()> {
    let name = file.file_name().with_context(|| format!("{file:?} names no program"))?;
    let mode = fs::metadata(file).with_context(|| format!("no program {file:?}"))?;
    tree.copy(&format!("bin/{}", name.to_string_lossy()), file, mode.permissions().mode() & 0o777);
    tree.copy(LOADER.trim_start_matches('/'), Path::new(LOADER), 0o755);
    let listing =
        process::output(Command::new("ldd").arg(file).env("LD_LIBRARY_PATH", debian.libraries()))?;
    for line in listing.lines() {
        // "\tname => path (address)"; the loader and the vdso have no arrow.
        let Some((library, found)) = line.trim().split_once(" => ") else { continue };
        let path = found.split_whitespace().next().unwrap_or_default();
        if !path.starts_with('/') {
            bail!("{file:?} needs {library}, which neither this machine nor Xen's packages have");
        }
        tree.copy(&format!("{LIBRARY_DIR}/{library}"), Path::new(path), 0o755);
    }
    Ok(())
}
