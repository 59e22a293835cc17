//! `cargo xtask xen`: Xen 4.17, a Debian dom0 and one unmodified Linux guest, booted in QEMU under
//! software emulation. Needs neither root nor KVM. One script runs in dom0, one in the guest, and
//! their exit statuses are the verdict.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

mod cpio;
mod debian;
mod outcome;
mod programs;
mod qemu;
pub(crate) mod scenario;
mod trees;

pub(crate) use outcome::Outcome;

use crate::{packages, process, workspace};

/// How Xen runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Guest {
    /// Paravirtualised: what Xen began with.
    Pv,
    /// Hardware-assisted without emulated devices.
    Pvh,
}

impl Guest {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pv => "pv",
            Self::Pvh => "pvh",
        }
    }
}

/// Who serves the guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// Our daemon and its workers.
    Zerotap,
    /// The kernel's own, for comparison.
    Blkback,
}

impl Backend {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Zerotap => "zerotap",
            Self::Blkback => "blkback",
        }
    }
}

/// What a script may call; the files in `xtask/xen/dom0` and `xtask/xen/guest` say more.
const FUNCTIONS: &str = "\
A script is sourced by busybox's shell; what it exits with is its verdict, and both must be 0.

In dom0:
  guest_define [PHASE]        create the next guest, paused; prints its domid; PHASE is its script's
  disk_plug DOMID DEVICE SIZE [r|w]   give it a disk; the same DEVICE again has the same data
  disk_unplug DOMID DEVICE    take it away; its data stays
  disk_show DOMID DEVICE      what is known about it
  disk_data DEVICE            the file or block device behind it
  guest_start, guest_wait SECONDS     run the latest guest; wait for its end and verdict
  guest_await WORD SECONDS, guest_tell WORD [VALUE], guest_log
  within SECONDS COMMAND..., step WORDS..., report WORDS...
In the guest:
  disk_present DEVICE, disk_gone DEVICE, verify DEVICE SIZE [FIO OPTION...]
  tell WORD, await WORD, within SECONDS COMMAND..., step WORDS...; $PHASE

Example:
  cargo xtask xen --guest pvh --dom0-script xtask/xen/scenarios/life.dom0.sh \\
    --guest-script xtask/xen/scenarios/life.guest.sh --timeout 1800";

#[derive(clap::Args)]
#[command(after_help = FUNCTIONS)]
pub(crate) struct Options {
    #[arg(long, value_enum, default_value = "pv")]
    guest: Guest,
    #[arg(long, value_enum, default_value = "zerotap")]
    backend: Backend,
    /// Sourced in dom0 once xenstored and the daemon are up; by default: one disk, one guest.
    #[arg(long, value_name = "FILE")]
    dom0_script: Option<PathBuf>,
    /// Sourced in the guest; by default: verify random I/O on /dev/xvda.
    #[arg(long, value_name = "FILE")]
    guest_script: Option<PathBuf>,
    /// Take our binaries as they were built last.
    #[arg(long)]
    no_build: bool,
    /// Virtual CPUs of the guest.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    vcpus: u8,
    /// Seconds until the machine is switched off, whatever it is doing.
    #[arg(long, value_name = "S", default_value_t = 300)]
    timeout: u64,
}

/// One boot, with its scripts' text.
pub(crate) struct Boot {
    pub(crate) guest: Guest,
    pub(crate) backend: Backend,
    pub(crate) dom0_script: String,
    pub(crate) guest_script: String,
    pub(crate) vcpus: u8,
    /// Whether the guest's front end offers to keep its grants, as it does unless told otherwise.
    pub(crate) keeps_grants: bool,
    /// Whether dom0 has QEMU, for disks of kind qdisk.
    pub(crate) qemu: bool,
    pub(crate) limit: Duration,
}

/// How it ended, and every line that dom0 reported on the way.
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) report: String,
}

/// The command.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let script = |file: &Option<PathBuf>, otherwise: &str| match file {
        Some(file) => fs::read_to_string(file).with_context(|| format!("cannot read {file:?}")),
        None => Ok(otherwise.to_owned()),
    };
    let boot = Boot {
        guest: options.guest,
        backend: options.backend,
        dom0_script: script(&options.dom0_script, scenario::DISK.dom0)?,
        guest_script: script(&options.guest_script, scenario::DISK.guest)?,
        vcpus: options.vcpus,
        keeps_grants: true,
        qemu: false,
        limit: Duration::from_secs(options.timeout),
    };
    let ended = if options.no_build { boot.run_as_built()? } else { boot.run()? };
    for line in ended.report.lines().filter(|line| !line.starts_with("verdict ")) {
        println!("{line}");
    }
    println!("xen {} {}: {}", boot.guest.name(), boot.backend.name(), ended.outcome);
    Ok(ended.outcome == Outcome::Passed)
}

impl Boot {
    /// Builds what is out of date, boots, waits for the end and judges it.
    pub(crate) fn run(&self) -> Result<Ended> {
        if self.backend == Backend::Zerotap {
            process::run(&mut workspace::build_static())?;
        }
        self.run_as_built()
    }

    /// The same with our binaries as they are.
    fn run_as_built(&self) -> Result<Ended> {
        packages::ensure(packages::FOR_XEN)?;
        let debian = debian::Debian::unpacked()?;
        let work = room()?;
        let ran = trees::pack(self, &debian, &work).and_then(|()| qemu::run(self, &debian, &work));
        let _ = fs::remove_dir_all(&work);
        let ran = ran?;
        let outcome = outcome::judge(self.guest, &ran);
        Ok(Ended { outcome, report: ran.report })
    }
}

/// A directory for one boot, named after this process: two boots at a time must not share archives.
/// What killed ones left behind, a hundred megabytes each, goes.
fn room() -> Result<PathBuf> {
    let rooms = workspace::target_dir().join("xen");
    for left in fs::read_dir(&rooms).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(left.file_name()).exists() {
            let _ = fs::remove_dir_all(left.path());
        }
    }
    let room = rooms.join(std::process::id().to_string());
    fs::create_dir_all(&room).with_context(|| format!("cannot create {room:?}"))?;
    Ok(room)
}
