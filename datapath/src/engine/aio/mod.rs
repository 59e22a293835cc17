//! Linux AIO (io_submit), for kernels without io_uring, such as 4.19's.
//!
//! The image's reads, writes and flushes go through an AIO context, all of a round in one call. Its
//! completions tell an eventfd, which is polled beside sockets and event channels; those are read
//! and written directly. Buffers stay with who submitted the operation until its completion was
//! taken, as with io_uring. What a full context does not take waits here, in order.

mod context;
mod helper;
mod wait;

use super::{Allocation, Completion, IoVector, Message, Tag, Unavailable};
use context::{Context, Event, FDSYNC, FLAG_RESFD, Iocb, PREAD, PREADV, PWRITE, PWRITEV};
use helper::{Helper, Job};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use wait::{Act, Waits, polled};
use zerotap_rpc_schema::engine::EngineKind;

/// Operations of a context, as the sysctl fs.aio-max-nr counts them: 65536 of all contexts of the
/// host, where nobody changed it, are enough for 1024 engines. The kernel has room for twice as
/// many, and more on many CPUs.
const OPERATIONS: u32 = 64;
/// Completions taken by a call.
const EVENTS_AT_ONCE: usize = 64;
/// Descriptors are looked at once in so many rounds, while I/O completes in each of them.
const ROUNDS_WITHOUT_POLL_MAX: u32 = 16;
/// How long to wait before the kernel, short of memory, is asked again.
const RETRY_MS: i32 = 1;

/// The engine.
#[derive(Debug)]
pub(super) struct Aio {
    context: Context,
    image: Arc<OwnedFd>,
    signal: Arc<OwnedFd>,
    /// Not with the kernel yet, in order.
    queued: Vec<Iocb>,
    /// Where each of `queued` is, as the kernel wants to be told.
    pointers: Vec<*mut Iocb>,
    with_kernel: usize,
    waits: Waits,
    rounds_without_poll: u32,
    /// Of what needed no waiting.
    completed: Vec<Completion>,
    helper: Option<Helper>,
}

impl Aio {
    /// An engine for one image.
    pub(super) fn new(image: BorrowedFd<'_>) -> Result<Self, Unavailable> {
        let context = Context::new(OPERATIONS).map_err(refused)?;
        let image = image.try_clone_to_owned().map_err(refused)?;
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let signal = signal.map_err(|errno| refused(errno.into()))?;
        Ok(Aio {
            context,
            image: Arc::new(image),
            waits: Waits::new(signal.as_fd()),
            signal: Arc::new(signal),
            queued: Vec::new(),
            pointers: Vec::new(),
            with_kernel: 0,
            rounds_without_poll: 0,
            completed: Vec::new(),
            helper: None,
        })
    }

    /// Makes an engine and tries the youngest of its operations.
    pub(super) fn probe(file: BorrowedFd<'_>) -> Result<(), Unavailable> {
        let mut engine = Aio::new(file)?;
        let mut completions = Vec::new();
        engine.flush(Tag::None);
        engine.submit_and_wait(1, &mut completions).map_err(refused)?;
        match completions[0].result {
            // Whatever else ails the file is its own business.
            errno if errno == -libc::EINVAL => {
                Err(lacks("the kernel is older than Linux 4.18: no IOCB_CMD_FDSYNC".into()))
            }
            _ => Ok(()),
        }
    }

    /// # Safety
    /// As for [`super::Engine::read`].
    pub(super) unsafe fn read(&mut self, vectors: &[IoVector], offset: u64, tag: Tag) {
        self.transfer((PREAD, PREADV), vectors, offset, 0, tag);
    }

    /// # Safety
    /// As for [`super::Engine::read`].
    pub(super) unsafe fn write(&mut self, vectors: &[IoVector], offset: u64, tag: Tag) {
        self.transfer((PWRITE, PWRITEV), vectors, offset, 0, tag);
    }

    /// # Safety
    /// As for [`super::Engine::read`].
    pub(super) unsafe fn write_durable(&mut self, vectors: &[IoVector], offset: u64, tag: Tag) {
        self.transfer((PWRITE, PWRITEV), vectors, offset, libc::RWF_DSYNC, tag);
    }

    fn transfer(
        &mut self,
        (single, vectored): (u16, u16),
        vectors: &[IoVector],
        offset: u64,
        rw_flags: i32,
        tag: Tag,
    ) {
        let (opcode, buffer, bytes) = match vectors {
            [only] => (single, only.iov_base as u64, only.iov_len as u64),
            _ => (vectored, vectors.as_ptr() as u64, vectors.len() as u64),
        };
        let iocb = Iocb { opcode, buffer, bytes, offset, rw_flags, ..self.operation(tag) };
        self.queued.push(iocb);
    }

    pub(super) fn flush(&mut self, tag: Tag) {
        let iocb = Iocb { opcode: FDSYNC, ..self.operation(tag) };
        self.queued.push(iocb);
    }

    fn operation(&self, tag: Tag) -> Iocb {
        Iocb {
            data: tag.encode(),
            descriptor: number(&self.image),
            flags: FLAG_RESFD,
            signal: number(&self.signal),
            ..Iocb::default()
        }
    }

    pub(super) fn allocate(&mut self, allocation: Allocation, offset: u64, bytes: u64, tag: Tag) {
        let helper = match self.helper.take() {
            Some(helper) => Ok(helper),
            None => Helper::start(Arc::clone(&self.image), Arc::clone(&self.signal)),
        };
        match helper {
            Ok(helper) => {
                helper.give(Job { mode: allocation.mode(), offset, bytes, tag });
                self.helper = Some(helper);
            }
            Err(error) => {
                let result = -error.raw_os_error().unwrap_or(libc::EAGAIN);
                self.completed.push(Completion { tag, result });
            }
        }
    }

    pub(super) fn wait_readable(&mut self, descriptor: BorrowedFd<'_>, tag: Tag) {
        self.waits.add(descriptor, tag, Act::Tell);
    }

    /// # Safety
    /// As for [`super::Engine::wait_event`].
    pub(super) unsafe fn wait_event(
        &mut self,
        channel: BorrowedFd<'_>,
        unmask: Option<*const u32>,
        word: *mut [u32; 16],
        tag: Tag,
    ) {
        if let Some(port) = unmask {
            // SAFETY: the caller's promise.
            let port = unsafe { port.read() };
            if let Err(errno) = rustix::io::write(channel, &port.to_ne_bytes()) {
                self.completed.push(Completion { tag, result: -errno.raw_os_error() });
                return;
            }
        }
        self.waits.add(channel, tag, Act::ReadEvents(word));
    }

    pub(super) fn cancel_event(&mut self, tag: Tag, done: Tag) {
        let waited = self.waits.remove(tag);
        if waited {
            self.completed.push(Completion { tag, result: -libc::ECANCELED });
        }
        let result = if waited { 0 } else { -libc::ENOENT };
        self.completed.push(Completion { tag: done, result });
    }

    /// # Safety
    /// As for [`super::Engine::receive`].
    pub(super) unsafe fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        message: *mut Message,
        tag: Tag,
    ) {
        self.waits.add(socket, tag, Act::Receive(message));
    }

    /// # Safety
    /// As for [`super::Engine::receive`].
    pub(super) unsafe fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        message: *const Message,
        tag: Tag,
    ) {
        let act = Act::Send(message);
        // There is room, most of the time.
        // SAFETY: the caller's promise.
        match unsafe { act.perform(&polled(socket, 0)) } {
            Some(result) => self.completed.push(Completion { tag, result }),
            None => self.waits.add(socket, tag, act),
        }
    }

    pub(super) fn submit_and_wait(
        &mut self,
        wanted: usize,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let until = completions.len() + wanted;
        self.exchange(completions)?;
        self.rounds_without_poll += 1;
        if self.rounds_without_poll > ROUNDS_WITHOUT_POLL_MAX {
            self.poll(0, completions)?;
            // The signal may have been of what completed since, and is taken: nobody would be
            // woken for it.
            self.exchange(completions)?;
        }
        while completions.len() < until {
            let starved = !self.queued.is_empty() && self.with_kernel == 0;
            self.poll(if starved { RETRY_MS } else { -1 }, completions)?;
            self.exchange(completions)?;
        }
        Ok(())
    }

    /// Gives the kernel what it takes, and takes what it has done.
    fn exchange(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.submit();
        completions.append(&mut self.completed);
        let mut events = [Event::default(); EVENTS_AT_ONCE];
        while self.with_kernel > 0 {
            let taken = match self.context.take(&mut events) {
                Err(Errno::INTR) => continue,
                taken => taken?,
            };
            self.with_kernel -= taken;
            completions.extend(events[..taken].iter().map(completion));
            if taken < events.len() {
                break;
            }
        }
        completions.extend(self.helper.iter().flat_map(Helper::take));
        Ok(())
    }

    fn submit(&mut self) {
        self.pointers.clear();
        self.pointers.extend(self.queued.iter_mut().map(std::ptr::from_mut));
        let mut gone = 0;
        while gone < self.queued.len() {
            // SAFETY: `queued` stays as it is meanwhile; what the operations point to is their
            // submitters' promise.
            match unsafe { self.context.submit(&mut self.pointers[gone..]) } {
                Ok(taken) => {
                    gone += taken;
                    self.with_kernel += taken;
                }
                Err(Errno::AGAIN) => break,
                Err(errno) => {
                    let tag = Tag::decode(self.queued[gone].data);
                    self.completed.push(Completion { tag, result: -errno.raw_os_error() });
                    gone += 1;
                }
            }
        }
        self.queued.drain(..gone);
    }

    /// Waits for the kernel's signal and for descriptors.
    fn poll(&mut self, timeout_ms: i32, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.rounds_without_poll = 0;
        match self.waits.poll(timeout_ms, completions) {
            Ok(true) => {
                // Before its cause is looked for: one that comes later signals anew.
                let _ = rustix::io::read(&*self.signal, &mut [0; 8]);
                Ok(())
            }
            Ok(false) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn completion(event: &Event) -> Completion {
    let result = i32::try_from(event.result).unwrap_or(i32::MAX);
    Completion { tag: Tag::decode(event.data), result }
}

fn number(descriptor: &OwnedFd) -> u32 {
    let number: RawFd = descriptor.as_raw_fd();
    number.cast_unsigned()
}

fn lacks(problem: String) -> Unavailable {
    Unavailable { kind: EngineKind::Aio, problem }
}

/// What the kernel's error means.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(error: io::Error) -> Unavailable {
    lacks(match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has none (CONFIG_AIO), or it is hidden (ENOSYS)".into(),
        Some(libc::EAGAIN) => {
            "all that the sysctl fs.aio-max-nr allows is in use: raise it".to_owned()
        }
        _ => error.to_string(),
    })
}
