//! The machine: QEMU with software emulation, two CPUs and two serial ports. The first is Xen's
//! console (dom0's kernel and ours print there too), the second carries dom0's report, which no
//! kernel message can cut in two.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::debian::Debian;
use super::{Boot, Guest};
use crate::process;

/// What one run of the machine left.
pub(crate) struct Run {
    pub(crate) console: String,
    pub(crate) report: String,
    pub(crate) timed_out: bool,
}

/// Boots `work/dom0.cpio` and prints its console as it comes. Returns when the machine is off, or
/// was ended at the time limit.
pub(crate) fn run(boot: &Boot, debian: &Debian, work: &Path) -> Result<Run> {
    let report = work.join("report");
    let (status, console) = process::echoed(command(boot, debian, work, &report)?)?;
    // timeout(1) says 124 when it ended the machine, 137 when it had to kill it.
    let timed_out = matches!(status.code(), Some(124 | 137));
    let report = fs::read(&report).unwrap_or_default();
    Ok(Run { console, report: String::from_utf8_lossy(&report).into_owned(), timed_out })
}

/// timeout(1) rather than a timer of ours: it holds even when this process is killed.
fn command(boot: &Boot, debian: &Debian, work: &Path, report: &Path) -> Result<Command> {
    let kernel = debian.kernel()?;
    let mut command = Command::new("timeout");
    command
        .args(["--foreground", "--kill-after=10"])
        .arg(boot.limit.as_secs().to_string())
        .arg("qemu-system-x86_64")
        // qemu64: a PV dom0 dies early on richer models. svm and npt let Xen run PVH guests.
        .args(["-accel", "tcg,thread=multi", "-cpu", "qemu64,+svm,+npt"])
        .args(["-m", "2560", "-smp", "2", "-nographic", "-nodefaults", "-no-reboot"])
        .args(["-serial", "stdio", "-serial"])
        .arg(format!("file:{}", report.display()))
        .arg("-kernel")
        .arg(debian.hypervisor())
        .arg("-append")
        .arg(hypervisor_options(boot.guest))
        .arg("-initrd")
        .arg(format!("{} console=hvc0 quiet,{}/dom0.cpio", kernel.display(), work.display()));
    Ok(command)
}

/// A PVH guest gets a CPU that it shares with no other domain (its own configuration names the same
/// one): where a PV domain's state and its own take turns, QEMU's nested SVM sooner or later
/// resumes it with a wrong GS base, which it does not survive.
fn hypervisor_options(guest: Guest) -> String {
    let common = "console=com1 com1=115200,8n1 dom0_mem=1408M,max:1408M noreboot";
    match guest {
        Guest::Pv => common.to_owned(),
        Guest::Pvh => format!("{common} dom0_max_vcpus=1 dom0_vcpus_pin"),
    }
}
