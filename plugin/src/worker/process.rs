//! A process that can't be mistaken for another: pid, start time and, from Linux 5.10 on, a pidfd.
//!
//! Knows nothing of workers. The pidfd is opened first and the start time read afterwards: should
//! the pid be reused in between, the start time is the new process's and whoever compares it finds
//! out. An older kernel is asked again and again. Called when a worker is started, adopted,
//! stopped.

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// How often a process is looked at that the kernel gives no descriptor of.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A process, dead or alive.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start_time: u64,
    /// Absent where the kernel has none.
    pidfd: Option<AsyncFd<OwnedFd>>,
}

impl Process {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// There is none.
    pub fn open(pid: u32) -> io::Result<Process> {
        Self::watched_by(pid, rustix::process::pidfd_open(raw(pid)?, PidfdFlags::NONBLOCK))
    }

    fn watched_by(pid: u32, pidfd: rustix::io::Result<OwnedFd>) -> io::Result<Process> {
        let pidfd = match pidfd {
            // Before Linux 5.3 there is none; before 5.10 none that does not block.
            Err(Errno::NOSYS | Errno::INVAL) => None,
            pidfd => Some(pidfd?),
        };
        let start_time = start_time(pid)?;
        #[expect(
            deprecated,
            reason = "its unsafe successor asks that the descriptor stay the same: an OwnedFd does"
        )]
        let pidfd = pidfd.map(AsyncFd::new).transpose()?;
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
        let Some(pidfd) = &self.pidfd else { return self.looked_at().await };
        if let Err(error) = pidfd.readable().await {
            return format!("it cannot be watched: {error}");
        }
        ended(WaitId::PidFd(pidfd.get_ref().as_fd())).unwrap_or_else(|| "it ended".into())
    }

    async fn looked_at(&self) -> String {
        let Ok(pid) = raw(self.pid) else { return "it ended".into() };
        loop {
            // Only our child's end is told; it keeps its pid until then.
            if let Some(text) = ended(WaitId::Pid(pid)) {
                return text;
            }
            if !self.is_there() {
                return "it ended".into();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn is_there(&self) -> bool {
        start_time(self.pid).is_ok_and(|start| start == self.start_time)
    }

    /// Ends it at once (SIGKILL). Succeeds when it has ended.
    pub fn kill(&self) {
        let killed = match (&self.pidfd, raw(self.pid)) {
            (Some(pidfd), _) => rustix::process::pidfd_send_signal(pidfd.get_ref(), Signal::KILL),
            (None, Ok(pid)) if self.is_there() => rustix::process::kill_process(pid, Signal::KILL),
            (None, _) => Ok(()),
        };
        match killed {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => tracing::warn!(pid = self.pid, "cannot kill: {error}"),
        }
    }
}

fn raw(pid: u32) -> io::Result<Pid> {
    let known = i32::try_from(pid).ok().and_then(Pid::from_raw);
    known.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// How a child of ours ended, and takes it away; `None` while it runs, or when it is not ours.
fn ended(id: WaitId<'_>) -> Option<String> {
    let status = rustix::process::waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    let status = status.ok().flatten()?;
    Some(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("it exited with status {code}"),
        (None, Some(signal)) => format!("signal {signal} ended it"),
        (None, None) => "it ended".into(),
    })
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

    fn shell(text: &str) -> u32 {
        std::process::Command::new("sh").args(["-c", text]).spawn().expect("a shell").id()
    }

    /// As on a kernel without pidfds.
    fn open_without(pid: u32) -> io::Result<Process> {
        Process::watched_by(pid, Err(Errno::NOSYS))
    }

    async fn is_known_by_its_start_and_tells_how_it_ended(open: fn(u32) -> io::Result<Process>) {
        let child = open(shell("exec sleep 60")).expect("running");
        let again = open(child.pid()).expect("running");
        assert_eq!(child.start_time(), again.start_time());
        assert_eq!(open(std::process::id()).expect("ourselves").pid(), std::process::id());
        child.kill();
        assert_eq!(child.exited().await, "signal 9 ended it");
        child.kill();
        assert_eq!(again.exited().await, "it ended");
        let child = open(shell("sleep 0.1; exit 3")).expect("running");
        assert_eq!(child.exited().await, "it exited with status 3");
        assert!(open(child.pid()).is_err());
        assert!(rss_kib(std::process::id()) > 0);
        assert_eq!(rss_kib(child.pid()), 0);
    }

    #[tokio::test]
    async fn a_process_is_watched_by_its_pidfd() {
        is_known_by_its_start_and_tells_how_it_ended(Process::open).await;
    }

    #[tokio::test]
    async fn a_process_is_watched_without_a_pidfd() {
        is_known_by_its_start_and_tells_how_it_ended(open_without).await;
    }

    #[test]
    fn nobody_else_is_killed_without_a_pidfd() {
        let child = open_without(shell("exec sleep 60")).expect("running");
        let other = Process { pid: child.pid(), start_time: child.start_time() + 1, pidfd: None };
        other.kill();
        assert!(ended(WaitId::Pid(raw(child.pid()).expect("a pid"))).is_none());
        assert!(child.is_there());
        child.kill();
    }
}
