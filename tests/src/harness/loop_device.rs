//! Loop devices and the small file systems on them: full disks, sectors of 4096 bytes. Needs root.

use super::eventually;
use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A loop device, taken down when dropped: after everything that has it open.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    backing: PathBuf,
    mounted: Option<PathBuf>,
}

impl LoopDevice {
    /// A device of `bytes` zeros over a sparse file, made at `backing`.
    ///
    /// # Errors
    /// When this is not root, or there is no loop device to be had.
    pub fn new(backing: &Path, bytes: u64, sector_bytes: u32) -> anyhow::Result<LoopDevice> {
        let root = rustix::process::geteuid().is_root();
        ensure!(root, "this scenario makes a loop device: run it as root");
        std::fs::File::create(backing)?.set_len(bytes)?;
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "-b", &sector_bytes.to_string()]).arg(backing);
        let path = run(&mut losetup)?.trim().into();
        Ok(LoopDevice { path, backing: backing.to_owned(), mounted: None })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it `bytes` long, while it is in use.
    ///
    /// # Errors
    /// When the kernel does not.
    pub fn grow(&self, bytes: u64) -> anyhow::Result<()> {
        std::fs::File::options().write(true).open(&self.backing)?.set_len(bytes)?;
        run(Command::new("losetup").arg("-c").arg(&self.path)).map(drop)
    }

    /// Makes an ext4 file system on it and mounts that at `dir`, which is made.
    ///
    /// # Errors
    /// When mkfs or mount fail.
    pub fn mount(&mut self, dir: &Path) -> anyhow::Result<()> {
        self.mount_made(dir, &["mkfs.ext4", "-q", "-O", "^has_journal"])
    }

    /// The same with XFS, whose files can share extents. Takes 300 MiB or more.
    ///
    /// # Errors
    /// When mkfs or mount fail.
    pub fn mount_xfs(&mut self, dir: &Path) -> anyhow::Result<()> {
        self.mount_made(dir, &["mkfs.xfs", "-q", "-m", "reflink=1"])
    }

    fn mount_made(&mut self, dir: &Path, make: &[&str]) -> anyhow::Result<()> {
        run(Command::new(make[0]).args(&make[1..]).arg(&self.path))?;
        std::fs::create_dir(dir)?;
        run(Command::new("mount").arg(&self.path).arg(dir))?;
        self.mounted = Some(dir.to_owned());
        Ok(())
    }

    /// The XFS on it stops as if the power went: what was not synced is lost, of its log too. It is
    /// mounted anew by [`LoopDevice::mount_again`], once all who had files open are gone.
    ///
    /// # Errors
    /// When nothing is mounted, or `xfs_io` fails.
    pub fn cut_power(&self) -> anyhow::Result<()> {
        let dir = self.mounted.as_ref().context("nothing is mounted")?;
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(dir)).map(drop)
    }

    /// Mounts what stands on the device: the file system recovers what its log tells of.
    ///
    /// # Errors
    /// When the mount is in use, or mount fails.
    pub fn mount_again(&self) -> anyhow::Result<()> {
        let dir = self.mounted.as_ref().context("nothing is mounted")?;
        eventually("umount", || Ok(run(Command::new("umount").arg(dir)).ok()))?;
        run(Command::new("mount").arg(&self.path).arg(dir)).map(drop)
    }

    /// The file system on it takes no write, as when the storage below has stopped.
    ///
    /// # Errors
    /// When nothing is mounted, or it is frozen already.
    pub fn freeze(&self) -> anyhow::Result<()> {
        let dir = self.mounted.as_ref().context("nothing is mounted")?;
        run(Command::new("fsfreeze").arg("-f").arg(dir)).map(drop)
    }

    /// It takes writes again.
    ///
    /// # Errors
    /// When nothing is mounted, or it was not frozen.
    pub fn thaw(&self) -> anyhow::Result<()> {
        let dir = self.mounted.as_ref().context("nothing is mounted")?;
        run(Command::new("fsfreeze").arg("-u").arg(dir)).map(drop)
    }

    /// How many flushes have reached the device.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn flushes(&self) -> anyhow::Result<u64> {
        let name = self.path.file_name().context("a device has a name")?;
        let stat = Path::new("/sys/block").join(name).join("stat");
        let stat = std::fs::read_to_string(stat)?;
        // Linux Documentation/block/stat.rst: the 16th field is flush I/Os.
        let flushes = stat.split_whitespace().nth(15).context("the kernel counts no flushes")?;
        Ok(flushes.parse()?)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let succeeds = |command: &mut Command| {
            let command = command.stderr(Stdio::null());
            Ok(command.status().is_ok_and(|status| status.success()).then_some(()))
        };
        // A killed process's files are closed a little after its end: not at once free.
        let mut done = Ok(());
        if let Some(dir) = &self.mounted {
            // It may be left frozen by who failed.
            let _ = succeeds(Command::new("fsfreeze").arg("-u").arg(dir));
            done = eventually("umount", || succeeds(Command::new("umount").arg(dir)));
        }
        let detach = || succeeds(Command::new("losetup").arg("-d").arg(&self.path));
        if let Err(error) = done.and_then(|()| eventually("losetup -d", detach)) {
            eprintln!("{} is left behind: {error:#}", self.path.display());
        }
    }
}

/// Runs a program to its end; answers what it printed.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?}: is it installed?"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}
