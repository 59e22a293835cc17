//! The guest's end of an event channel: two FIFOs, a byte an event.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zerotap_datapath::xen::sim;

/// An unbound port, waiting for a back end or bound by one. Its files go when it is dropped.
#[derive(Debug)]
pub struct Port {
    number: u32,
    towards_back: OwnedFd,
    towards_front: OwnedFd,
    files: [PathBuf; 2],
}

impl Port {
    pub(super) fn create(dir: &Path, domid: u16, number: u32) -> anyhow::Result<Port> {
        let files = ["back", "front"].map(|end| dir.join(sim::event_name(domid, number, end)));
        let fifo = |path: &Path| -> rustix::io::Result<OwnedFd> {
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            open(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        };
        let (towards_back, towards_front) = (fifo(&files[0])?, fifo(&files[1])?);
        Ok(Port { number, towards_back, towards_front, files })
    }

    /// The number that goes to xenstore.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Sends the back end an event.
    ///
    /// # Errors
    /// When the FIFO is broken.
    pub fn notify(&self) -> rustix::io::Result<()> {
        match rustix::io::write(&self.towards_back, &[0]) {
            // A full FIFO has events pending already.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Takes all events that are pending.
    pub fn drain(&self) {
        let mut events = [0; 4096];
        while rustix::io::read(&self.towards_front, &mut events).is_ok_and(|n| n == events.len()) {}
    }

    /// Waits until the back end sent an event through one of `ports`, or `other` has something to
    /// read, or `deadline`.
    ///
    /// # Errors
    /// When poll fails.
    pub fn wait<'a>(
        ports: impl Iterator<Item = &'a Port>,
        other: BorrowedFd<'_>,
        deadline: Instant,
    ) -> rustix::io::Result<Woken> {
        let left = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(60));
        let timeout = rustix::event::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(60),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = vec![PollFd::from_borrowed_fd(other, PollFlags::IN)];
        fds.extend(ports.map(|port| PollFd::new(&port.towards_front, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let woken = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Ok(Woken { event: fds[1..].iter().any(woken), other: woken(&fds[0]) })
    }
}

/// What ended a wait; neither at the deadline.
#[derive(Debug, Clone, Copy)]
pub struct Woken {
    /// An event of the back end's.
    pub event: bool,
    /// The other descriptor.
    pub other: bool,
}

impl Drop for Port {
    fn drop(&mut self) {
        for file in &self.files {
            // The directory may be gone with the host.
            let _ = std::fs::remove_file(file);
        }
    }
}
