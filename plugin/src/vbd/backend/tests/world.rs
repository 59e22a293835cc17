//! What is around a machine in its tests: xenstore, a guest, a worker.

use super::*;

/// xenstore, the guest and the worker around a machine; acts at once unless told to hold back.
pub(super) struct World {
    pub(super) machine: Option<Backend>,
    pub(super) backend: Option<BackendSight>,
    pub(super) frontend: Option<String>,
    pub(super) keys: Result<RingParameters, Fault>,
    /// What the worker serves.
    pub(super) served: Option<RingParameters>,
    /// The image of the worker that comes next.
    pub(super) sectors: u64,
    pub(super) alive: bool,
    pub(super) worker_alive: bool,
    pub(super) pending: Vec<Action>,
    pub(super) complaint: String,
    pub(super) ended: bool,
    pub(super) connects: u32,
    pub(super) hows: Vec<Journaled>,
    /// The ring that there is a journal of.
    pub(super) journal: Option<RingParameters>,
    pub(super) states: Vec<String>,
}

/// A machine that knows that there is no worker.
pub(super) fn fresh(read_only: bool, ours: bool) -> Backend {
    let (machine, actions) = Backend::new(read_only, ours).step(Event::WorkerDied(String::new()));
    assert_eq!(actions, []);
    machine
}

impl World {
    pub(super) fn new() -> Self {
        World {
            machine: Some(fresh(false, true)),
            backend: Some(BackendSight {
                state: Some("1".into()),
                online: true,
                ready: true,
                sectors: None,
                medium: Medium::Here,
            }),
            frontend: Some("1".into()),
            keys: Ok(ring(5)),
            served: None,
            sectors: 2048,
            alive: true,
            worker_alive: false,
            pending: Vec::new(),
            complaint: String::new(),
            ended: false,
            connects: 0,
            hows: Vec::new(),
            journal: None,
            states: Vec::new(),
        }
    }

    pub(super) fn machine(&self) -> &Backend {
        self.machine.as_ref().unwrap()
    }

    pub(super) fn state(&self) -> &str {
        self.backend.as_ref().and_then(|backend| backend.state.as_deref()).unwrap_or("gone")
    }

    pub(super) fn tell(&mut self, event: Event) {
        let (machine, actions) = self.machine.take().unwrap().step(event);
        self.machine = Some(machine);
        assert!(actions.len() <= 2, "{actions:?}");
        for action in actions {
            self.check(&action);
            self.pending.push(action);
        }
    }

    /// What must hold of every action, whatever came before.
    pub(super) fn check(&self, action: &Action) {
        let pending = |wanted: fn(&Action) -> bool| self.pending.iter().any(wanted);
        assert!(!self.ended, "{action:?} after the end");
        match action {
            Action::Connect(..) => {
                assert!(self.served.is_none(), "a ring is connected over another");
                assert!(!pending(|a| matches!(a, Action::Connect(..) | Action::Disconnect)));
                let offline = self.machine().sight().unwrap().backend.is_none();
                assert!(!offline, "a ring is connected for a device that is gone");
            }
            Action::Disconnect => {
                assert!(!pending(|a| matches!(a, Action::Connect(..) | Action::Disconnect)));
            }
            Action::Publish { from, what } => {
                assert!(!pending(|a| matches!(a, Action::Publish { .. })));
                let seen = self.machine().sight().unwrap().backend.as_ref().unwrap();
                assert_eq!(seen.state.as_ref(), Some(from));
                match what.state() {
                    State::Connected if *what != Publication::NoMedium => {
                        assert!(self.machine().connected_ring().is_some());
                    }
                    State::Closed | State::InitWait | State::Connected => {
                        assert!(!self.machine().holds_guest());
                    }
                    _ => {}
                }
            }
            Action::End => assert!(!self.machine().holds_guest()),
            Action::Complain(_) | Action::RemoveDirectories => {}
        }
    }

    pub(super) fn see(&mut self) {
        let wants = self.machine().wants_ring(self.frontend.as_deref());
        let sight = Sight {
            backend: self.backend.clone(),
            alive: self.alive,
            frontend_state: self.frontend.clone(),
            ring: wants.then(|| self.keys.clone()),
        };
        self.tell(Event::Seen(sight));
    }

    /// Does the oldest action that waits.
    pub(super) fn act(&mut self, well: bool) {
        if self.pending.is_empty() {
            return;
        }
        match self.pending.remove(0) {
            Action::Connect(ring, how) => {
                self.connects += 1;
                self.hows.push(how);
                let known = how == Journaled::Begin || self.journal.as_ref() == Some(&ring);
                let well = well && self.worker_alive && known;
                if well {
                    self.journal = Some(ring.clone());
                }
                self.served = well.then_some(ring);
                let refused = ConnectError::Refused("no such grant".to_owned());
                let outcome = if well { Ok(()) } else { Err(refused) };
                self.tell(Event::Connected(outcome));
            }
            Action::Disconnect => {
                self.served = None;
                self.tell(Event::Disconnected { drained: self.worker_alive });
            }
            Action::Publish { from, what } => {
                let outcome = match &mut self.backend {
                    _ if !well => Err(PublishError::Failed("xenstored is away".to_owned())),
                    Some(backend) if backend.state.as_ref() == Some(&from) => {
                        backend.state = Some(what.state().to_string());
                        match &what {
                            Publication::Properties(worker) => {
                                backend.sectors = Some(worker.image.sectors);
                            }
                            Publication::NoMedium => backend.sectors = Some(0),
                            Publication::Offers(_) | Publication::State(_) => {}
                        }
                        self.states.push(what.state().to_string());
                        Ok(())
                    }
                    _ => Err(PublishError::Changed),
                };
                self.tell(Event::Published(outcome));
            }
            Action::Complain(text) => self.complaint = text,
            Action::RemoveDirectories => (self.backend, self.frontend) = (None, None),
            Action::End => self.ended = true,
        }
    }

    /// Until nothing moves any more.
    pub(super) fn settle(&mut self) {
        for _ in 0..64 {
            while !self.pending.is_empty() {
                self.act(true);
            }
            let before = (self.state().to_owned(), self.machine().clone());
            self.see();
            if self.pending.is_empty()
                && before == (self.state().to_owned(), self.machine().clone())
            {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.machine());
    }

    pub(super) fn worker(&mut self) {
        self.meet_worker();
        self.settle();
    }

    pub(super) fn meet_worker(&mut self) {
        self.worker_alive = true;
        let (ring, worker) = (self.served.clone(), worker());
        let image = ImageInfo { sectors: self.sectors, ..worker.image };
        self.tell(Event::WorkerReady(Worker { ring, image, ..worker }));
    }

    pub(super) fn worker_dies(&mut self) {
        (self.worker_alive, self.served) = (false, None);
        self.tell(Event::WorkerDied(String::new()));
        self.settle();
    }

    pub(super) fn guest(&mut self, state: &str) {
        self.frontend = Some(state.to_owned());
        self.settle();
    }

    pub(super) fn toolstack(&mut self, state: &str, online: bool) {
        let backend = self.backend.as_mut().unwrap();
        (backend.state, backend.online) = (Some(state.to_owned()), online);
        self.settle();
    }

    pub(super) fn connected() -> Self {
        let mut world = World::new();
        world.worker();
        world.guest("3");
        world.guest("4");
        assert_eq!((world.state(), world.served.as_ref()), ("4", Some(&ring(5))));
        assert_eq!(world.machine().trouble(), None);
        world
    }
}
