//! A queue's timer: readable a while after it was set.
//!
//! It never repeats by itself: while nothing is waited for the queue is not woken.

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

const NEVER: Duration = Duration::from_secs(24 * 3600);

/// The timer.
#[derive(Debug)]
pub(super) struct Timer {
    descriptor: OwnedFd,
    set: bool,
}

impl Timer {
    /// One that is not set.
    ///
    /// # Errors
    /// When there is no descriptor for it.
    pub(super) fn new() -> Result<Self, Errno> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Timer { descriptor, set: false })
    }

    /// Has it expire after a pause; false when it is set already.
    pub(super) fn set(&mut self, pause: Duration) -> bool {
        if self.set {
            return false;
        }
        // A history of the tests has a time of its own: it says when this expires.
        let pause = if cfg!(test) { NEVER } else { pause };
        let it_value = Timespec::try_from(pause).expect("a short time");
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval, it_value };
        let flags = TimerfdTimerFlags::empty();
        timerfd_settime(&self.descriptor, flags, &once).expect("a time that makes sense");
        self.set = true;
        true
    }

    /// It has expired: it may be set again, which also makes it unreadable.
    pub(super) fn expired(&mut self) {
        self.set = false;
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
