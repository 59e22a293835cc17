//! What one client has yet to be sent: a bounded queue and the thread that empties it.
//!
//! The daemon answers and fires watches under its lock; a client that does not read must not hold
//! that lock, hence the queue. One that reads too little is hung up on.

use super::wire::Message;
use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// The most messages that wait for one client.
const MESSAGES_MAX: usize = 65_536;

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Vec<u8>>,
    closed: bool,
}

/// One client's queue.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    changed: Condvar,
    stream: UnixStream,
}

impl Outbox {
    pub(super) fn new(stream: UnixStream) -> Arc<Outbox> {
        let outbox = Outbox { queue: Mutex::default(), changed: Condvar::new(), stream };
        Arc::new(outbox)
    }

    pub(super) fn push(&self, message: &Message) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.messages.len() < MESSAGES_MAX {
            queue.messages.push_back(message.bytes());
            self.changed.notify_one();
        } else {
            drop(queue);
            self.close();
        }
    }

    /// Hangs up: the reader of the stream sees its end, the writer stops.
    pub(super) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_one();
        // It may be closed already, by the other side.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Sends until the client is gone; runs on its own thread.
    pub(super) fn run(&self) {
        loop {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            while queue.messages.is_empty() && !queue.closed {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            if queue.closed {
                return;
            }
            let batch: Vec<u8> = queue.messages.drain(..).flatten().collect();
            drop(queue);
            if (&self.stream).write_all(&batch).is_err() {
                return self.close();
            }
        }
    }
}
