//! A simulated xenstored: the wire protocol over unix sockets, one for dom0 and one a guest.
//!
//! It answers as the genuine daemon of Xen 4.17 does, errors, permissions, quotas, watches and
//! transaction conflicts included, and it can go away and come back ([`Xenstored::pause`]), which
//! the genuine one cannot without losing its tree. Used by the simulated host and by tests.

mod outbox;
mod perms;
mod state;
mod store;
mod transaction;
mod view;
mod watch;
pub mod wire;

pub use perms::DOM0;
pub use state::TRANSACTIONS_PER_DOMAIN_MAX;
pub use view::{NODES_PER_DOMAIN_MAX, VALUE_BYTES_MAX};
pub use watch::WATCHES_PER_DOMAIN_MAX;

use anyhow::Context as _;
use outbox::Outbox;
use state::{Effect, State};
use std::collections::BTreeMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wire::Message;

/// The socket on which a client counts as this domain.
#[must_use]
pub fn socket_path(dir: &Path, domid: u16) -> PathBuf {
    match domid {
        DOM0 => dir.join("xenstored.sock"),
        _ => dir.join(format!("xenstored.{domid}.sock")),
    }
}

/// A running daemon; it ends with this handle.
#[derive(Debug)]
pub struct Xenstored {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
    /// The sockets that are open; the flag ends their threads.
    listeners: Mutex<BTreeMap<u16, Arc<AtomicBool>>>,
}

impl Xenstored {
    /// Listens for dom0 in `dir`; guests' sockets appear as they are introduced.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(dir: &Path) -> anyhow::Result<Xenstored> {
        let shared = Shared {
            dir: dir.to_owned(),
            state: Mutex::new(State::new()),
            listeners: Mutex::default(),
        };
        let shared = Arc::new(shared);
        listen(&shared, DOM0)?;
        Ok(Xenstored { shared })
    }

    /// Goes away for dom0: hangs up on its clients and removes the socket. The tree stays, and so
    /// do guests' connections: theirs are rings in memory, which never break.
    pub fn pause(&self) {
        self.shared.close(DOM0);
        self.shared.state().hang_up(DOM0);
    }

    /// Comes back after [`Xenstored::pause`].
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn resume(&self) -> anyhow::Result<()> {
        listen(&self.shared, DOM0)
    }
}

impl Drop for Xenstored {
    fn drop(&mut self) {
        // Not in the loop's head: the lock would be held all through it.
        let domids = self.shared.state().domids();
        for domid in domids {
            self.shared.close(domid);
            self.shared.state().hang_up(domid);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners(&self) -> MutexGuard<'_, BTreeMap<u16, Arc<AtomicBool>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a domain's socket.
    fn close(&self, domid: u16) {
        let Some(stop) = self.listeners().remove(&domid) else { return };
        stop.store(true, Ordering::Release);
        let path = socket_path(&self.dir, domid);
        // This wakes the thread in accept(); either may fail when the directory is gone.
        let _ = UnixStream::connect(&path);
        let _ = std::fs::remove_file(&path);
    }
}

/// Opens a domain's socket, unless it is open.
fn listen(shared: &Arc<Shared>, domid: u16) -> anyhow::Result<()> {
    let mut listeners = shared.listeners();
    if listeners.contains_key(&domid) {
        return Ok(());
    }
    let path = socket_path(&shared.dir, domid);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("bind {}", path.display()))?;
    let stop = Arc::new(AtomicBool::new(false));
    listeners.insert(domid, Arc::clone(&stop));
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            match stream {
                Ok(stream) if !stop.load(Ordering::Acquire) => serve(&shared, domid, stream),
                _ => return,
            }
        }
    });
    Ok(())
}

/// Serves one client on two threads of its own.
fn serve(shared: &Arc<Shared>, domid: u16, stream: UnixStream) {
    let Ok(writer) = stream.try_clone() else { return };
    let outbox = Outbox::new(writer);
    let id = shared.state().connect(domid, Arc::clone(&outbox));
    let sender = Arc::clone(&outbox);
    std::thread::spawn(move || sender.run());
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let mut stream = stream;
        while let Ok(message) = Message::read_from(&mut stream) {
            shared.state().serve(id, &message, |effect| match *effect {
                // A guest whose socket cannot be made finds out when it connects.
                Effect::Introduced(domid) => drop(listen(&shared, domid)),
                Effect::Released(domid) => shared.close(domid),
            });
        }
        shared.state().disconnect(id);
        outbox.close();
    });
}
