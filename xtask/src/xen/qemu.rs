//! The machine: QEMU with software emulation, two CPUs and two serial ports. The first is Xen's
//! console (dom0's kernel and ours print there too), the second carries dom0's report, which no kernel
//! message can cut in two.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::debian::Debian;
use crate::process;

/// What one run of the machine left.
pub(crate) struct Run {
    pub(crate) console: String,
    pub(crate) report: String,
    pub(crate) timed_out: bool,
}

/// Boots `work/dom0.cpio` and prints its console as it comes. Returns when the machine is off, or was
/// ended at the time limit.
pub(crate) fn run(debian: &Debian, work: &Path, limit: Duration) -> Result<Run> {
    let report = work.join("report");
    let (status, console) = process::echoed(command(debian, work, &report, limit)?)?;
    // timeout(1) says 124 when it ended the machine, 137 when it had to kill it.
    let timed_out = matches!(status.code(), Some(124 | 137));
    let report = fs::read(&report).unwrap_or_default();
    Ok(Run { console, report: String::from_utf8_lossy(&report).into_owned(), timed_out })
}

/// timeout(1) rather than a timer of ours: it holds even when this process is killed.
fn command(debian: &Debian, work: &Path, report: &Path, limit: Duration) -> Result<Command> {
    let kernel = debian.kernel()?;
    let mut command = Command::new("timeout");
    command
        .args(["--foreground", "--kill-after=10"])
        .arg(limit.as_secs().to_string())
        .arg("qemu-system-x86_64")
        // qemu64: a PV dom0 dies early on richer models. svm and npt let Xen run PVH guests.
        .args(["-accel", "tcg,thread=multi", "-cpu", "qemu64,+svm,+npt"])
        .args(["-m", "2560", "-smp", "2", "-nographic", "-nodefaults", "-no-reboot"])
        .args(["-serial", "stdio", "-serial"])
        .arg(format!("file:{}", report.display()))
        .arg("-kernel")
        .arg(debian.hypervisor())
        .args(["-append", "console=com1 com1=115200,8n1 dom0_mem=1408M,max:1408M noreboot"])
        .arg("-initrd")
        .arg(format!(
            "{} console=hvc0 quiet,{}",
            kernel.display(),
            work.join("dom0.cpio").display()
        ));
    Ok(command)
}
