//! What the two initramfs hold: the guest's, and dom0's with the guest's inside.

use std::path::Path;

use anyhow::{Context, Result};

use super::cpio::Tree;
use super::debian::Debian;
use super::programs::{LIBRARY_DIR, Programs};
use super::{Backend, Boot};
use crate::{packages, workspace};

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
    let programs = Programs { debian, work };
    guest(boot, &programs)?.pack(&guest_archive)?;
    let mut dom0 = dom0(boot, &programs)?;
    dom0.copy("root/guest.cpio", &guest_archive, 0o644);
    dom0.pack(&work.join("dom0.cpio"))
}

fn guest(boot: &Boot, programs: &Programs) -> Result<Tree> {
    let mut tree = base(programs)?;
    let debian = programs.debian;
    for name in GUEST_XEN_PROGRAMS {
        programs.put(&mut tree, &debian.file(&format!("usr/bin/{name}")))?;
    }
    let modules = [EXT4_MODULES, GUEST_MODULES].concat();
    for name in &modules {
        module(&mut tree, debian, name)?;
    }
    let mut loaded = modules.join("\n");
    if !boot.keeps_grants {
        // Behind the last module, which is blkfront: init hands it on.
        loaded.push_str(" feature_persistent=0");
    }
    tree.text("etc/modules", loaded);
    tree.script("init", include_str!("../../xen/guest/init.sh"));
    tree.text("lib/guest.sh", include_str!("../../xen/guest/lib.sh"));
    tree.text("script.sh", boot.guest_script.clone());
    Ok(tree)
}

fn dom0(boot: &Boot, programs: &Programs) -> Result<Tree> {
    let mut tree = base(programs)?;
    let debian = programs.debian;
    for name in DOM0_XENSTORE_PROGRAMS {
        programs.put(&mut tree, &debian.file(&format!("usr/bin/{name}")))?;
    }
    for name in DOM0_XEN_PROGRAMS {
        programs.put(&mut tree, &debian.file(&format!("usr/lib/xen-4.17/bin/{name}")))?;
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
    scripts(boot, &mut tree);
    if boot.qemu {
        programs.put(&mut tree, &Debian::qemu()?.file("usr/libexec/xen-qemu-system-i386"))?;
    }
    if boot.backend == Backend::Zerotap {
        tree.text("etc/zerotap.toml", "");
        for name in ["zerotap", "zerotap-datapath"] {
            tree.copy(&format!("bin/{name}"), &workspace::static_dir().join(name), 0o755);
        }
    }
    Ok(tree)
}

/// dom0's init, the functions that a scenario may call, and the scenario.
fn scripts(boot: &Boot, tree: &mut Tree) {
    tree.script("init", include_str!("../../xen/dom0/init.sh"));
    tree.text("etc/boot.sh", boot_settings(boot));
    tree.text("lib/guest.sh", include_str!("../../xen/dom0/guest.sh"));
    tree.text("lib/xenbus.sh", include_str!("../../xen/dom0/xenbus.sh"));
    tree.text("lib/ramdisk.sh", include_str!("../../xen/dom0/ramdisk.sh"));
    let disk = match boot.backend {
        Backend::Blkback => include_str!("../../xen/dom0/disk-blkback.sh"),
        Backend::Zerotap => include_str!("../../xen/dom0/disk-zerotap.sh"),
    };
    tree.text("lib/disk.sh", disk);
    tree.text("script.sh", boot.dom0_script.clone());
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

fn base(programs: &Programs) -> Result<Tree> {
    let mut tree = Tree::default();
    for directory in ["dev", "mnt", "proc", "root", "run", "sys", "tmp", "var", "mod"] {
        tree.directory(directory);
    }
    tree.link("var/run", "/run");
    tree.copy("bin/busybox", &programs.debian.file("bin/busybox"), 0o755);
    for name in HOST_PROGRAMS {
        let path = packages::find_program(name).with_context(|| format!("no {name} here"))?;
        programs.put(&mut tree, &path)?;
    }
    tree.link("bin/mkfs.ext4", "mke2fs");
    Ok(tree)
}

fn module(tree: &mut Tree, debian: &Debian, name: &str) -> Result<()> {
    tree.copy(&format!("mod/{name}.ko"), &debian.module(name)?, 0o644);
    Ok(())
}
