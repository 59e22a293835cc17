//! A volume's data: a raw file or a block device, opened for direct I/O and fenced.
//!
//! Never reads or writes what is in it. The fence is `flock` on the open file description that a
//! worker gets: it lasts until the last I/O of the last process that shares it is done, which the
//! death of a process alone does not tell. Called by the file SR, on blocking threads.

use crate::sr::record::Record;
use crate::sr::rules::Rules;
use crate::sr::transport;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::worker::Discard;

/// How long a block device may be claimed by someone else before it is refused.
const CLAIM_DEADLINE: Duration = Duration::from_secs(2);
/// How often the claim is tried.
const CLAIM_INTERVAL: Duration = Duration::from_millis(5);

/// A volume's data, open and not fenced yet.
#[derive(Debug)]
pub struct Image {
    fd: OwnedFd,
    path: PathBuf,
    read_only: bool,
    rules: Rules,
    preallocated: bool,
}

/// What is known of a block device that shall be a volume.
#[derive(Debug, PartialEq, Eq)]
pub struct Device {
    /// Bytes.
    pub size: i64,
    /// Major and minor number in one.
    pub number: u64,
}

impl Image {
    /// Opens the data of `record`, which lies in `dir`.
    ///
    /// # Errors
    /// SR_BACKEND_FAILURE_46: gone, cut short, no direct I/O, not permitted.
    pub fn open(dir: &Path, record: &Record, read_only: bool) -> Result<Image, StorageError> {
        let path = match &record.device {
            Some(device) => PathBuf::from(device),
            None => dir.join(Record::data_file(&record.key)),
        };
        let refuse = |problem: &str| {
            let text = format!(
                "cannot activate VDI {} ({}): {} {problem}",
                record.key,
                record.name_label,
                path.display()
            );
            StorageError::backend(number::VDI_UNAVAILABLE, text)
        };
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        // A block device that something has mounted is refused by the kernel: EXCL claims it.
        let shape = match record.device {
            Some(_) if !read_only => OFlags::EXCL,
            Some(_) => OFlags::empty(),
            None => OFlags::NOFOLLOW,
        };
        let flags = access | shape | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = open_patiently(&path, flags).map_err(|error| match error {
            Errno::NOENT => refuse(
                "has vanished. Put it back from a backup, or give the VDI up with VDI.destroy",
            ),
            Errno::INVAL => refuse(
                "lies on a file system that cannot do direct I/O (O_DIRECT). Move the SR to one \
                 that can: ext4, xfs, btrfs, NFS",
            ),
            Errno::BUSY => refuse("is in use by something else (mounted, RAID, LVM)"),
            error => refuse(&format!("cannot be opened: {error}")),
        })?;
        let stat = rustix::fs::fstat(&fd).map_err(|error| refuse(&error.to_string()))?;
        let size = match (FileType::from_raw_mode(stat.st_mode), &record.device) {
            (FileType::RegularFile, None) => stat.st_size,
            (FileType::BlockDevice, Some(_)) => {
                device_size(&fd).map_err(|error| refuse(&error.to_string()))?
            }
            (_, None) => return Err(refuse("is not a regular file")),
            (_, Some(_)) => return Err(refuse("is not a block device")),
        };
        if size < record.virtual_size {
            return Err(refuse(&format!(
                "has shrunk to {size} bytes, and the disk has {}. Put it back from a backup; or, \
                 if the rest is not needed, make it as long again (truncate -s {})",
                record.virtual_size, record.virtual_size
            )));
        }
        let (rules, preallocated) = (Rules::default(), record.is_preallocated());
        Ok(Image { fd, path, read_only, rules, preallocated })
    }

    /// The same with rules.
    #[must_use]
    pub fn ruled(self, rules: Rules) -> Image {
        Image { rules, ..self }
    }

    /// How guests are served, as far as VDI or SR say.
    #[must_use]
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// Whether it is reached over a network.
    #[must_use]
    pub fn is_networked(&self) -> bool {
        transport::is_networked(&self.fd)
    }

    /// Takes the fence, or says that someone else still has it. Never waits.
    ///
    /// # Errors
    /// The kernel's: a file system without `flock`.
    pub fn try_fence(&self) -> Result<bool, StorageError> {
        let wanted = if self.read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match rustix::fs::flock(&self.fd, wanted) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
            Err(error) => {
                let text = format!("cannot lock {}: {error}", self.path.display());
                Err(StorageError::backend(number::VDI_UNAVAILABLE, text))
            }
        }
    }

    /// Whether its path still leads to it: a volume that was reverted meanwhile has other data.
    #[must_use]
    pub fn is_current(&self) -> bool {
        let held = rustix::fs::fstat(&self.fd).map(|stat| (stat.st_dev, stat.st_ino));
        let there = rustix::fs::stat(&self.path).map(|stat| (stat.st_dev, stat.st_ino));
        held.is_ok() && held == there
    }

    /// In which units ranges of it may be forgotten; `None` where they may not. What was allocated
    /// beforehand must stay so: the guest paid for it that a write never fails for want of space.
    #[must_use]
    pub fn discard(&self) -> Option<Discard> {
        if self.read_only || self.preallocated {
            return None;
        }
        let stat = rustix::fs::fstat(&self.fd).ok()?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
            return device_discard(stat.st_rdev);
        }
        // As Linux's loop driver has it (`loop_config_discard`): the file system's block.
        let block = rustix::fs::fstatvfs(&self.fd).ok()?.f_bsize;
        let granularity_bytes = u32::try_from(block).ok().filter(|&bytes| bytes > 0)?;
        Some(Discard { granularity_bytes, alignment_bytes: 0 })
    }

    /// Whether it is open for reading alone.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Where the data lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same, once more: a fence that one takes is both's.
    ///
    /// # Errors
    /// No room for a descriptor.
    pub fn share(&self) -> Result<Image, StorageError> {
        let fd = self.fd.try_clone().map_err(|error| {
            let text = format!("{}: {error}", self.path.display());
            StorageError::backend(number::VDI_UNAVAILABLE, text)
        })?;
        let (path, rules) = (self.path.clone(), self.rules);
        let (read_only, preallocated) = (self.read_only, self.preallocated);
        Ok(Image { fd, path, read_only, rules, preallocated })
    }

    /// The descriptor for the worker; the fence goes with it.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

/// What the kernel tells of a device's discards (Documentation/ABI/stable/sysfs-block). A partition
/// has its disk's queue.
fn device_discard(number: u64) -> Option<Discard> {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let dir = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let whole = if dir.join("partition").exists() { dir.join("..") } else { dir.clone() };
    let read = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u32>().ok();
    let granularity_bytes = read(whole.join("queue/discard_granularity")).filter(|&it| it > 0)?;
    let alignment_bytes = read(dir.join("discard_alignment")).unwrap_or(0);
    Some(Discard { granularity_bytes, alignment_bytes })
}

/// A worker that has just ended may have its claim on a block device for some milliseconds more.
fn open_patiently(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let deadline = Instant::now() + CLAIM_DEADLINE;
    loop {
        match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(CLAIM_INTERVAL),
            other => return other,
        }
    }
}

/// Looks at a block device.
///
/// # Errors
/// SR_BACKEND_FAILURE_78: it is none, or can't be opened.
pub fn inspect_device(path: &str) -> Result<Device, StorageError> {
    let refuse = |problem: String| {
        let text = format!("cannot make a VDI of sm_config.device={path}: {problem}");
        StorageError::backend(number::VDI_CREATE, text)
    };
    if !path.starts_with('/') {
        return Err(refuse("give the absolute path of a block device".into()));
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| refuse(e.to_string()))?;
    let stat = rustix::fs::fstat(&fd).map_err(|error| refuse(error.to_string()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        return Err(refuse("it is not a block device".into()));
    }
    let size = device_size(&fd).map_err(|error| refuse(error.to_string()))?;
    Ok(Device { size, number: stat.st_rdev })
}

/// A block device's end is its size.
fn device_size(fd: &OwnedFd) -> Result<i64, Errno> {
    let end = rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0))?;
    i64::try_from(end).map_err(|_| Errno::FBIG)
}
