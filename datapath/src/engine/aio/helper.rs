//! A thread for what AIO cannot do: fallocate(2), which may take long. Started for the first one.

use super::context::last_errno;
use crate::engine::{Completion, Tag};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

const STACK_BYTES: usize = 64 * 1024;

/// One `fallocate`.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) mode: i32,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) tag: Tag,
}

/// The thread, as its engine holds it. Dropping it waits until its jobs are done.
#[derive(Debug)]
pub(super) struct Helper {
    jobs: Option<Sender<Job>>,
    done: Receiver<Completion>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    /// `signal` is written to after each job.
    pub(super) fn start(image: Arc<OwnedFd>, signal: Arc<OwnedFd>) -> io::Result<Self> {
        let (jobs, inbox) = channel::<Job>();
        let (outbox, done) = channel();
        let thread = std::thread::Builder::new().name("allocate".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || {
            for job in inbox {
                // An engine that is gone waits for nothing.
                let _ = outbox.send(Completion { tag: job.tag, result: allocate(&image, &job) });
                let _ = rustix::io::write(&signal, &1u64.to_ne_bytes());
            }
        })?;
        Ok(Helper { jobs: Some(jobs), done, thread: Some(thread) })
    }

    pub(super) fn give(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("taken by drop alone");
        jobs.send(job).expect("the thread lives as long as its inbox");
    }

    /// What is done.
    pub(super) fn take(&self) -> impl Iterator<Item = Completion> {
        self.done.try_iter()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn allocate(image: &OwnedFd, job: &Job) -> i32 {
    let signed = |number| libc::off_t::try_from(number).unwrap_or(libc::off_t::MAX);
    let (offset, bytes) = (signed(job.offset), signed(job.bytes));
    loop {
        // SAFETY: names no memory.
        if unsafe { libc::fallocate(image.as_raw_fd(), job.mode, offset, bytes) } == 0 {
            return 0;
        }
        match last_errno() {
            rustix::io::Errno::INTR => {}
            errno => return -errno.raw_os_error(),
        }
    }
}
