//! A stand-in for XAPI's message-switch that judges whoever serves a queue, and a caller as XAPI
//! is one.
//!
//! HTTP over a unix socket, sessions, queues, long polls, acknowledgements; newest messages first,
//! redelivery of what was not acknowledged. It can be killed and started again, with its queues or
//! without, hold messages back, and deliver them twice. Whatever its peers do that the genuine one
//! would not take is a violation, which [`Switch::check`] tells.

mod caller;
mod http;
mod judge;
mod state;

pub use caller::{Answer, Caller};

use anyhow::ensure;
use http::Connection;
use state::{Outcome, State};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The queue that is judged.
pub const QUEUE: &str = "org.xen.xapi.storage.zerotap";

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// One life of the switch, between start and kill.
#[derive(Debug)]
struct Life {
    over: AtomicBool,
    streams: Mutex<Vec<UnixStream>>,
}

/// A switch; it ends with this handle.
#[derive(Debug)]
pub struct Switch {
    socket: PathBuf,
    shared: Arc<Shared>,
    life: Option<Arc<Life>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Switch {
    /// Listens at `socket`.
    ///
    /// # Errors
    /// When it can't.
    pub fn start(socket: &Path) -> anyhow::Result<Switch> {
        let shared = Arc::default();
        let mut switch = Switch { socket: socket.to_owned(), shared, life: None };
        switch.resume()?;
        Ok(switch)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// kill -9: every connection ends in the middle of whatever it carries.
    pub fn kill(&mut self) {
        let Some(life) = self.life.take() else { return };
        let _steady = self.shared.state();
        life.over.store(true, Ordering::SeqCst);
        for stream in life.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        // Wakes the thread that accepts.
        let _ = UnixStream::connect(&self.socket);
        let _ = std::fs::remove_file(&self.socket);
        self.shared.changed.notify_all();
    }

    /// Kills it and starts it again, with its persistent queues or, without `keep`, with none.
    ///
    /// # Errors
    /// When it can't listen.
    pub fn restart(&mut self, keep: bool) -> anyhow::Result<()> {
        self.kill();
        self.shared.state().restart(keep);
        self.resume()
    }

    fn resume(&mut self) -> anyhow::Result<()> {
        let listener = UnixListener::bind(&self.socket)?;
        let life = Arc::new(Life { over: AtomicBool::new(false), streams: Mutex::default() });
        self.life = Some(Arc::clone(&life));
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), false) = (stream, life.over.load(Ordering::SeqCst)) else {
                    return;
                };
                let (shared, life) = (Arc::clone(&shared), Arc::clone(&life));
                std::thread::spawn(move || serve(stream, &shared, &life));
            }
        });
        Ok(())
    }

    /// Hands nothing to servers while `held`.
    pub fn hold(&self, held: bool) {
        self.shared.state().held = held;
        self.shared.changed.notify_all();
    }

    /// Delivers messages once more, acknowledged or not.
    pub fn deliver_again(&self, ids: &[i64]) {
        self.shared.state().deliver_again(ids);
        self.shared.changed.notify_all();
    }

    /// How many messages wait in the queue that is judged, handed out or not.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.state().waiting(QUEUE)
    }

    /// A caller of its own.
    ///
    /// # Errors
    /// When the switch is away.
    pub fn caller(&self) -> anyhow::Result<Caller> {
        Caller::connect(&self.socket)
    }

    /// Tells what a peer did wrong.
    ///
    /// # Errors
    /// When there was anything.
    pub fn check(&self) -> anyhow::Result<()> {
        let state = self.shared.state();
        ensure!(state.violations.is_empty(), "violations: {:#?}", state.violations);
        Ok(())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.kill();
    }
}

fn serve(stream: UnixStream, shared: &Shared, life: &Life) {
    let Ok(copy) = stream.try_clone() else { return };
    life.streams.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
    let mut connection = Connection::new(stream);
    let mut session = None;
    loop {
        let request = match connection.request() {
            Ok(Some(request)) => request,
            Ok(None) => break,
            Err(problem) => {
                if !problem.is::<std::io::Error>() {
                    shared.state().violations.push(format!("{problem:#}"));
                }
                break;
            }
        };
        let Some((status, body)) = answer(shared, life, &mut session, &request) else { return };
        if connection.answer(status, &body).is_err() {
            break;
        }
    }
    let mut state = shared.state();
    if let (Some(token), false) = (session, life.over.load(Ordering::SeqCst)) {
        state.disconnected(&token);
        drop(state);
        shared.changed.notify_all();
    }
}

/// None once this life is over: a killed switch does nothing more.
fn answer(
    shared: &Shared,
    life: &Life,
    session: &mut Option<String>,
    request: &http::Request,
) -> Option<(u16, String)> {
    let began = Instant::now();
    let mut state = shared.state();
    loop {
        if life.over.load(Ordering::SeqCst) {
            return None;
        }
        match state.serve(session, request) {
            Outcome::Answer(status, body) => {
                shared.changed.notify_all();
                return Some((status, body));
            }
            Outcome::Wait { timeout, empty } => {
                let left = Duration::from_secs_f64(timeout).saturating_sub(began.elapsed());
                if left.is_zero() {
                    return Some((200, empty));
                }
                let waited = shared.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}
