//! The only place that submits I/O: a small vocabulary of operations, over io_uring or Linux AIO.
//!
//! One engine for each thread, its only place to wait: completions, event channels and sockets all
//! arrive as completions, in any order. Errors of an operation are its completion's business, never
//! the engine's. Which of the two it is makes no difference to its users; [`choice`] decides.

mod aio;
mod aside;
pub mod choice;
mod clone;
mod discard;
#[cfg(test)]
pub(crate) mod simulated;
mod stream;
mod tag;
#[cfg(test)]
mod tests;
mod uring;
mod vectors;

pub(crate) use aside::discard as discard_device;
pub use choice::Unavailable;
pub(crate) use clone::{FICLONERANGE, clone_range};
pub use libc::iovec as IoVector;
pub use stream::{Allocation, Message};
pub use tag::Tag;
pub(crate) use vectors::{add_vector, advance_vectors};

use crate::ring::shared::SharedMapping;
use aio::Aio;
use discard::Discards;
use std::os::fd::BorrowedFd;
use uring::Uring;
use zerotap_rpc_schema::engine::EngineKind;

/// A completed operation: its tag, and bytes done or a negative error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Who submitted it.
    pub tag: Tag,
    /// As a system call would answer.
    pub result: i32,
}

/// One thread's engine for one image.
#[derive(Debug)]
pub struct Engine(Kind, Discards);

#[derive(Debug)]
enum Kind {
    Uring(Uring),
    Aio(Aio),
    #[cfg(test)]
    Simulated(simulated::Simulated),
}

/// Calls the same method of whichever engine it is.
macro_rules! either {
    ($engine:expr, $it:ident => $call:expr) => {
        match &mut $engine.0 {
            Kind::Uring($it) => $call,
            Kind::Aio($it) => $call,
            #[cfg(test)]
            Kind::Simulated($it) => $call,
        }
    };
}
use either;

impl Engine {
    /// An engine of this `kind` for one image.
    ///
    /// # Errors
    /// When the kernel does not have it, or has no room for one more.
    pub fn new(image: BorrowedFd<'_>, kind: EngineKind) -> Result<Self, Unavailable> {
        let engine = match kind {
            EngineKind::IoUring => Kind::Uring(Uring::new(image)?),
            EngineKind::Aio => Kind::Aio(Aio::new(image)?),
        };
        let discards = Discards::new(image)
            .map_err(|error| Unavailable { kind, problem: error.to_string() })?;
        Ok(Engine(engine, discards))
    }

    /// A queue's engine over a simulated disk.
    #[cfg(test)]
    pub(crate) fn simulated(engine: simulated::Simulated) -> Self {
        Engine(Kind::Simulated(engine), Discards::Holes)
    }

    /// Has the kernel keep the pages of `memory` at hand, if it can: operations whose only vector
    /// lies in it need not look them up. It is to stay what it is until [`Engine::unregister`].
    pub fn register(&mut self, memory: &SharedMapping) {
        if let Kind::Uring(uring) = &mut self.0 {
            uring.register(memory);
        }
    }

    /// Has it let go of them; no operation on them is under way.
    pub fn unregister(&mut self) {
        if let Kind::Uring(uring) = &mut self.0 {
            uring.unregister();
        }
    }

    /// Reads the image at byte `offset` into `vectors`.
    ///
    /// # Safety
    /// The vectors, and the memory that they describe, stay valid and in place until the completion
    /// of `tag` was taken.
    pub unsafe fn read(&mut self, vectors: &[IoVector], offset: u64, tag: Tag) {
        // SAFETY: the caller's promise.
        either!(self, it => unsafe { it.read(vectors, offset, tag) });
    }

    /// Writes `vectors` to the image at byte `offset`.
    ///
    /// # Safety
    /// As for [`Engine::read`].
    pub unsafe fn write(&mut self, vectors: &[IoVector], offset: u64, tag: Tag) {
        // SAFETY: the caller's promise.
        either!(self, it => unsafe { it.write(vectors, offset, tag) });
    }

    /// Makes durable what was written and completed before.
    pub fn flush(&mut self, tag: Tag) {
        either!(self, it => it.flush(tag));
    }

    /// Completes once, when `descriptor` is readable.
    pub fn wait_readable(&mut self, descriptor: BorrowedFd<'_>, tag: Tag) {
        either!(self, it => it.wait_readable(descriptor, tag));
    }

    /// Completes once, when an event came through `channel`, which does not block, with the event
    /// read into `word`. Before that, `unmask` is written to the channel if there is something to
    /// write.
    ///
    /// # Safety
    /// `unmask`, `word` and the descriptor stay valid and in place until the completion of `tag`
    /// was taken.
    pub unsafe fn wait_event(
        &mut self,
        channel: BorrowedFd<'_>,
        unmask: Option<*const u32>,
        word: *mut [u32; 16],
        tag: Tag,
    ) {
        // SAFETY: the caller's promise.
        either!(self, it => unsafe { it.wait_event(channel, unmask, word, tag) });
    }

    /// Ends a [`Engine::wait_event`]: its completion comes with an error, if none came before.
    pub fn cancel_event(&mut self, tag: Tag, done: Tag) {
        either!(self, it => it.cancel_event(tag, done));
    }

    /// Whether something has completed, or `None` if only the kernel can tell. Enters no kernel.
    pub fn has_news(&mut self) -> Option<bool> {
        match &mut self.0 {
            Kind::Uring(uring) => Some(uring.has_news()),
            Kind::Aio(_) => None,
            #[cfg(test)]
            Kind::Simulated(_) => None,
        }
    }

    /// Whether operations wait to be handed to the kernel.
    pub fn has_queued(&mut self) -> bool {
        match &mut self.0 {
            Kind::Uring(uring) => uring.has_queued(),
            Kind::Aio(_) => true,
            #[cfg(test)]
            Kind::Simulated(_) => true,
        }
    }

    /// Hands all to the kernel and sleeps until at least `wanted` operations have completed, then
    /// moves what completed into `completions`.
    ///
    /// # Errors
    /// When the kernel refuses the engine itself.
    pub fn submit_and_wait(
        &mut self,
        wanted: usize,
        completions: &mut Vec<Completion>,
    ) -> std::io::Result<()> {
        let before = completions.len();
        either!(self, it => it.submit_and_wait(wanted, completions))?;
        self.take_aside(before, completions);
        Ok(())
    }
}
