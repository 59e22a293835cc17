//! A process that can't be mistaken for another: pid, start time and a pidfd.
//!
//! Knows nothing of workers. The pidfd is opened first and the start time read afterwards: should
//! the pid be reused in between, the start time is the new process's and whoever compares it finds
//! out. Called when a worker is started, adopted, stopped.

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// A process, dead or alive.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start_time: u64,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// There is none.
    pub fn open(pid: u32) -> io::Result<Process> {
        let known = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let known = known.ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = rustix::process::pidfd_open(known, PidfdFlags::NONBLOCK)?;
        let start_time = start_time(pid)?;
        #[expect(
            deprecated,
            reason = "its unsafe successor asks that the descriptor stay the same: an OwnedFd does"
        )]
        let pidfd = AsyncFd::new(pidfd)?;
        Ok(Process { pid, start_time, pidfd })
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its start, in clock ticks since boot.
    #[must_use]
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Waits for its end; the answer tells of it, for people. A process that is not our child does
    /// not tell us how it ended.
    pub async fn exited(&self) -> String {
        if let Err(error) = self.pidfd.readable().await {
            return format!("it cannot be watched: {error}");
        }
        let id = WaitId::PidFd(self.pidfd.get_ref().as_fd());
        match rustix::process::waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("it exited with status {code}"),
                (None, Some(signal)) => format!("signal {signal} ended it"),
                (None, None) => "it ended".into(),
            },
            Ok(None) | Err(_) => "it ended".into(),
        }
    }

    /// Ends it at once (SIGKILL). Succeeds when it has ended.
    pub fn kill(&self) {
        let killed = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
        match killed {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => tracing::warn!(pid = self.pid, "cannot kill: {error}"),
        }
    }
}

/// The process's start, in clock ticks since boot: field 22 of `/proc/<pid>/stat` (proc(5)).
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Field 2, the program's name, may hold blanks and parentheses.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = after_name.split_ascii_whitespace().nth(22 - 3);
    field.and_then(|ticks| ticks.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Resident memory in KiB, 0 for a process that is gone.
#[must_use]
pub fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_known_by_its_start_and_tells_how_it_ended() {
        let sleep = |text: &str| {
            std::process::Command::new("sh").args(["-c", text]).spawn().expect("a shell").id()
        };
        let child = Process::open(sleep("exec sleep 60")).expect("running");
        let again = Process::open(child.pid()).expect("running");
        assert_eq!(child.start_time(), again.start_time());
        assert_eq!(Process::open(std::process::id()).expect("ourselves").pid(), std::process::id());
        child.kill();
        assert_eq!(child.exited().await, "signal 9 ended it");
        child.kill();
        assert_eq!(again.exited().await, "it ended");
        let child = Process::open(sleep("sleep 0.1; exit 3")).expect("running");
        assert_eq!(child.exited().await, "it exited with status 3");
        assert!(Process::open(child.pid()).is_err());
        assert!(rss_kib(std::process::id()) > 0);
        assert_eq!(rss_kib(child.pid()), 0);
    }
}
