//! Whether an image is reached over a network: then what was sent may be sent again after the I/O
//! has completed, and a guest's page that was lent for it must not be taken away.
//!
//! Looks at file systems and sysfs, never at data. What cannot be told counts as a network: then
//! data is copied, which is always right.

use rustix::fs::{FileType, major, minor};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// How deep devices are stacked on one another: partitions, RAID, LVM, encryption.
const LAYERS_MAX: u32 = 8;

/// File systems whose data comes over a network, or whose devices cannot be seen
/// (linux/uapi/linux/magic.h and the file systems' own headers).
const NETWORK_FILE_SYSTEMS: [u64; 13] = [
    0x6969,      // NFS
    0x517b,      // SMB
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x00c3_6400, // Ceph
    0x0102_1997, // 9P
    0x6573_5546, // FUSE: GlusterFS, sshfs
    0x0bd0_0bd0, // Lustre
    0x5346_414f, // AFS
    0x7375_7245, // Coda
    0x4750_4653, // GPFS
    0x9123_683e, // btrfs
    0x2fc1_2fc1, // ZFS
];

/// Drivers and transports, as they stand in a device's path in sysfs, that use a network.
const NETWORK_DEVICES: [&str; 6] = ["nbd", "rbd", "drbd", "session", "nvme-fabrics", "nvme-subsys"];

/// Whether the image behind `fd` is reached over a network.
#[must_use]
pub fn is_networked(fd: &OwnedFd) -> bool {
    let Ok(stat) = rustix::fs::fstat(fd) else { return true };
    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
        return device(stat.st_rdev, LAYERS_MAX);
    }
    let Ok(system) = rustix::fs::fstatfs(fd) else { return true };
    is_network_file_system(system.f_type.cast_unsigned()) || device(stat.st_dev, LAYERS_MAX)
}

fn is_network_file_system(magic: u64) -> bool {
    NETWORK_FILE_SYSTEMS.contains(&(magic & 0xffff_ffff))
}

/// A file system without a device of its own lies in memory.
fn device(number: u64, layers: u32) -> bool {
    let link = format!("/sys/dev/block/{}:{}", major(number), minor(number));
    std::fs::canonicalize(link).is_ok_and(|dir| stacked(&dir, layers))
}

/// The device of this sysfs directory, and those that it is made of.
fn stacked(dir: &Path, layers: u32) -> bool {
    if layers == 0 || is_network_device(dir) {
        return true;
    }
    if let Ok(file) = std::fs::read_to_string(dir.join("loop/backing_file")) {
        return backing_file(Path::new(file.trim_end()));
    }
    // A partition is below its disk, which has the layers.
    let disk = if dir.join("partition").exists() { dir.parent().unwrap_or(dir) } else { dir };
    let below = std::fs::read_dir(disk.join("slaves")).into_iter().flatten().flatten();
    below
        .filter_map(|entry| std::fs::canonicalize(entry.path()).ok())
        .any(|dir| stacked(&dir, layers - 1))
}

fn is_network_device(dir: &Path) -> bool {
    let digits = |rest: &str| rest.chars().all(|c| c.is_ascii_digit() || c == 'p');
    dir.iter()
        .filter_map(|part| part.to_str())
        .any(|part| NETWORK_DEVICES.iter().any(|name| part.strip_prefix(name).is_some_and(digits)))
}

/// A loop device's file. A path that is gone cannot be told.
fn backing_file(file: &Path) -> bool {
    let path: PathBuf = file.into();
    std::fs::File::open(path).map_or(true, |file| {
        let fd: OwnedFd = file.into();
        rustix::fs::fstatfs(&fd)
            .map_or(true, |system| is_network_file_system(system.f_type.cast_unsigned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_use_a_network_are_known() {
        for (dir, network) in [
            ("/sys/devices/virtual/block/nbd3", true),
            ("/sys/devices/virtual/block/nbd3/nbd3p1", true),
            ("/sys/devices/rbd/0/block/rbd0", true),
            ("/sys/devices/virtual/block/drbd10", true),
            ("/sys/devices/platform/host3/session1/target3:0:0/3:0:0:1/block/sdb", true),
            ("/sys/devices/virtual/nvme-fabrics/ctl/nvme1/nvme1n1", true),
            ("/sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1", true),
            ("/sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0/nvme0n1", false),
            ("/sys/devices/pci0000:00/0000:00:05.0/virtio1/block/vda", false),
            ("/sys/devices/virtual/block/dm-0", false),
            ("/sys/devices/virtual/block/md127", false),
            ("/sys/devices/virtual/block/ram0", false),
        ] {
            assert_eq!(is_network_device(Path::new(dir)), network, "{dir}");
        }
    }

    #[test]
    fn file_systems_that_use_a_network_are_known() {
        assert!(is_network_file_system(0x6969));
        // CIFS's number is negative where the field has a sign.
        assert!(is_network_file_system(0xffff_ffff_ff53_4d42));
        assert!(!is_network_file_system(0xef53), "ext4");
        assert!(!is_network_file_system(0x0102_1994), "tmpfs");
    }

    #[test]
    fn layers_are_looked_through() {
        let sys = tempfile::tempdir().expect("a directory");
        let of = |name: &str| {
            let dir = sys.path().join(name);
            std::fs::create_dir_all(dir.join("slaves")).expect("writable");
            dir
        };
        let (dm, md, nbd, disk) = (of("dm-1"), of("md0"), of("nbd0"), of("sda"));
        let stack = |upper: &Path, lower: &Path| {
            let name = lower.file_name().expect("a name");
            std::os::unix::fs::symlink(lower, upper.join("slaves").join(name)).expect("writable");
        };
        stack(&dm, &md);
        stack(&md, &disk);
        assert!(!stacked(&dm, LAYERS_MAX));
        let part = md.join("md0p1");
        std::fs::create_dir(&part).expect("writable");
        std::fs::write(part.join("partition"), "1").expect("writable");
        assert!(!stacked(&part, LAYERS_MAX));
        stack(&md, &nbd);
        assert!(stacked(&dm, LAYERS_MAX) && stacked(&part, LAYERS_MAX));
        assert!(stacked(&disk, 0), "what is too deep to be seen cannot be told");
    }
}
