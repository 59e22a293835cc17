//! The listener and the clients. Called by the worker's loop: completions in, then one turn for
//! each client that they touched.

use super::CLIENTS_MAX;
use super::connection::{Connection, Ground};
use super::export::Export;
use super::lend::{RECEIVE, SEND};
use super::ranges::{Ranges, Writer};
use crate::copy::Hold;
use crate::engine::{Engine, Tag};
use rustix::net::{SocketFlags, accept_with};
use std::os::fd::{AsFd, OwnedFd};
use zerotap_rpc_schema::worker::NbdCounters;

const LISTENER: Tag = Tag::Nbd { client: u16::MAX, lane: 0 };

/// The NBD server of a worker.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    export: Export,
    /// Boxed: the kernel knows where parts of it are.
    clients: Vec<Option<Box<Connection>>>,
    touched: [bool; CLIENTS_MAX],
    ranges: Ranges,
    started: Vec<Writer>,
    counters: NbdCounters,
    paused: bool,
    hold: Option<Hold>,
    held: Vec<Writer>,
    draining: bool,
}

impl Server {
    /// Serves `export` to those who connect to `listener`.
    ///
    /// # Errors
    /// When the listener cannot be made non-blocking.
    pub fn new(listener: OwnedFd, export: Export, engine: &mut Engine) -> std::io::Result<Server> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        engine.wait_readable(listener.as_fd(), LISTENER);
        Ok(Server {
            listener,
            export,
            clients: (0..CLIENTS_MAX).map(|_| None).collect(),
            touched: [false; CLIENTS_MAX],
            ranges: Ranges::default(),
            started: Vec::new(),
            counters: NbdCounters::default(),
            paused: false,
            hold: None,
            held: Vec::new(),
            draining: false,
        })
    }

    /// Begins nothing new until [`Server::resume`]; [`Server::quiet`] tells when nothing is with
    /// the image any more.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Goes on, and while the image is copied changes it by `hold`.
    pub fn resume(&mut self, hold: Option<Hold>) {
        self.hold = hold;
        self.paused = false;
        self.touched = [true; CLIENTS_MAX];
        self.retry_held();
    }

    /// Tries again what waits for the copy.
    pub fn retry_held(&mut self) {
        self.started.append(&mut self.held);
    }

    /// Whether no request is with the image.
    #[must_use]
    pub fn quiet(&self) -> bool {
        self.clients.iter().flatten().all(|client| client.running == 0)
    }

    /// The image has grown: who connects from now on is told so, all may go as far.
    pub fn grow(&mut self, sectors: u64) {
        self.export.grow(sectors);
    }

    /// Hangs up on all and takes no more; [`Server::drained`] tells when they are gone.
    pub fn drain(&mut self) {
        self.draining = true;
        self.clients.iter_mut().flatten().for_each(|client| client.hang_up());
        self.touched = [true; CLIENTS_MAX];
    }

    /// Whether nothing of any client is left.
    #[must_use]
    pub fn drained(&self) -> bool {
        self.clients.iter().all(Option::is_none)
    }

    /// What it counted.
    #[must_use]
    pub fn counters(&self) -> NbdCounters {
        let clients = self.clients.iter().flatten();
        NbdCounters {
            clients: u32::try_from(clients.clone().count()).unwrap_or(u32::MAX),
            in_flight: clients.map(|client| client.running).sum(),
            ..self.counters.clone()
        }
    }

    /// One of the server's operations completed.
    pub fn on_completion(&mut self, client: u16, lane: u16, result: i32, engine: &mut Engine) {
        if (Tag::Nbd { client, lane }) == LISTENER {
            return self.accept(engine);
        }
        let index = usize::from(client);
        let Some(Some(connection)) = self.clients.get_mut(index) else { return };
        self.touched[index] = true;
        match lane {
            RECEIVE => connection.on_received(result),
            SEND => connection.on_sent(result),
            request => {
                let mut ground = Ground {
                    engine,
                    export: &self.export,
                    ranges: &mut self.ranges,
                    counters: &mut self.counters,
                    started: &mut self.started,
                    paused: self.paused,
                    hold: self.hold.as_ref(),
                    held: &mut self.held,
                };
                connection.on_step(request, result, &mut ground);
            }
        }
    }

    /// A turn for each client that was touched since the last.
    pub fn serve(&mut self, engine: &mut Engine) {
        let mut ground = Ground {
            engine,
            export: &self.export,
            ranges: &mut self.ranges,
            counters: &mut self.counters,
            started: &mut self.started,
            paused: self.paused,
            hold: self.hold.as_ref(),
            held: &mut self.held,
        };
        loop {
            while let Some((client, slot)) = ground.started.pop() {
                if let Some(connection) = &mut self.clients[usize::from(client)] {
                    connection.run(slot, &mut ground);
                    self.touched[usize::from(client)] = true;
                }
            }
            for (index, place) in self.clients.iter_mut().enumerate() {
                if !std::mem::take(&mut self.touched[index]) {
                    continue;
                }
                let Some(connection) = place else { continue };
                connection.serve(&mut ground);
                if connection.closed() {
                    tracing::info!(client = index, "NBD client gone");
                    *place = None;
                }
            }
            // A write that had nothing to do may have let others start.
            if ground.started.is_empty() {
                return;
            }
        }
    }

    fn accept(&mut self, engine: &mut Engine) {
        engine.wait_readable(self.listener.as_fd(), LISTENER);
        let Ok(socket) = accept_with(&self.listener, SocketFlags::CLOEXEC) else { return };
        if self.draining {
            return;
        }
        let Some(index) = self.clients.iter().position(Option::is_none) else {
            self.counters.refused_clients += 1;
            // Who does not get to the point makes room for those who come after.
            let handshakes = self.clients.iter_mut().flatten().filter(|it| it.is_in_handshake());
            if let Some(idle) = handshakes.min_by_key(|client| client.serial) {
                idle.hang_up();
                self.touched[usize::from(idle.number)] = true;
            }
            tracing::warn!(CLIENTS_MAX, "too many NBD clients; one more was refused");
            return;
        };
        let number = u16::try_from(index).expect("a few clients");
        self.counters.clients_total += 1;
        match Connection::new(number, self.counters.clients_total, socket) {
            Ok(connection) => {
                tracing::info!(client = number, "NBD client connected");
                self.clients[index] = Some(Box::new(connection));
                self.touched[index] = true;
            }
            Err(error) => tracing::error!(%error, "no memory for an NBD client"),
        }
    }
}
