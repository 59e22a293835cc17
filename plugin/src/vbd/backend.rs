//! The backend's side of XenBus for one VBD, as a pure machine: what was seen and what happened go
//! in, what to do comes out. No I/O, no clock. `actor` feeds it and acts; tests play whole lives.
//!
//! It goes by levels, not edges: an event brings what is now (watches coalesce, a quick frontend is
//! never seen in between), and from all that is known it chooses at most one step that takes time.
//! It never connects a ring over another, never closes a disk under a guest that did not let go,
//! and never makes a live guest start again.
//! Sources: xen/include/public/io/blkif.h; Linux drivers/block/xen-blkback/xenbus.c
//! (`frontend_changed`, `connect`), drivers/xen/xenbus/xenbus_client.c.

mod judge;
#[cfg(test)]
mod tests;
mod words;

pub use judge::{BROKEN, SHORT};
pub use words::{
    Action, BackendSight, ConnectError, Event, Medium, Publication, PublishError, Sight, Worker,
};

use super::frontend::Fault;
use super::xenbus::State;
use judge::{LOST, Step};
use zerotap_rpc_schema::worker::{Journaled, RingParameters};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Serving {
    /// Not known yet, after our start: a worker may serve a ring of which we know nothing.
    Unknown,
    /// Why, for people; empty when that is not known.
    Nobody(String),
    Ready(Worker),
    /// It serves until told otherwise, but must not be given anything new.
    Leaving,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ring {
    Absent,
    Connecting(RingParameters, Journaled),
    Connected(RingParameters),
    Disconnecting(RingParameters),
    /// Let go with every request answered, the guest unaware: it may be connected again as it is.
    Paused(RingParameters),
    /// Its worker died, the guest unaware: what it had taken stands in the ring's journal.
    Orphaned(RingParameters),
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Whether the toolstack ordered it read-only.
    read_only: bool,
    /// Whether we play the toolstack for it.
    ours: bool,
    sight: Option<Sight>,
    serving: Serving,
    ring: Ring,
    /// A publication is under way.
    publishing: Option<Publication>,
    /// Nothing is published until both directories were seen again.
    look_first: bool,
    /// The ring that could not be connected, and why: not tried again as it is.
    refused: Option<(Result<RingParameters, Fault>, String)>,
    complained: bool,
    broken: bool,
    /// The guest's writes wait for space.
    short: bool,
    /// The domain was seen alive.
    alive_once: bool,
    forced: bool,
    /// The toolstack made the directory anew while a ring of the old one was served.
    stale: bool,
    /// An earlier daemon had told the worker to let go of the ring.
    draining: bool,
    removed: bool,
    ended: bool,
    trouble: Option<String>,
    /// Why the last publication failed.
    hindrance: Option<String>,
}

impl Backend {
    /// A device that nothing is known of yet. `ours`: `VBD.plug` made it, not a toolstack.
    #[must_use]
    pub fn new(read_only: bool, ours: bool) -> Self {
        Backend {
            read_only,
            ours,
            sight: None,
            serving: Serving::Unknown,
            ring: Ring::Absent,
            publishing: None,
            look_first: false,
            refused: None,
            complained: false,
            broken: false,
            short: false,
            alive_once: false,
            forced: false,
            stale: false,
            draining: false,
            removed: false,
            ended: false,
            trouble: None,
            hindrance: None,
        }
    }

    /// Takes an event in and answers what to do now.
    #[must_use]
    pub fn step(mut self, event: Event) -> (Self, Vec<Action>) {
        let mut actions = Vec::new();
        self.learn(event, &mut actions);
        self.decide(&mut actions);
        (self, actions)
    }

    /// Both directories as they were last seen.
    #[must_use]
    pub fn sight(&self) -> Option<&Sight> {
        self.sight.as_ref()
    }

    /// The ring that the worker serves.
    #[must_use]
    pub fn connected_ring(&self) -> Option<&RingParameters> {
        match &self.ring {
            Ring::Connected(ring) => Some(ring),
            _ => None,
        }
    }

    /// The ring that the worker is letting go of.
    #[must_use]
    pub fn leaving_ring(&self) -> Option<&RingParameters> {
        match &self.ring {
            Ring::Disconnecting(ring) => Some(ring),
            _ => None,
        }
    }

    /// Whether the worker was told by an earlier daemon to let go of a ring that is wanted still.
    #[must_use]
    pub fn goes_on_draining(&self) -> bool {
        let frontend = self.sight.as_ref().and_then(|sight| sight.frontend_state.as_deref());
        self.draining && frontend.and_then(State::parse) == Some(State::Connected)
    }

    /// Whether the worker may hold pages of the guest.
    #[must_use]
    pub fn holds_guest(&self) -> bool {
        matches!(self.ring, Ring::Connecting(..) | Ring::Connected(_) | Ring::Disconnecting(_))
    }

    /// Whether it is known what there is: both directories, and what a worker serves.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.sight.is_some() && self.has_met_worker()
    }

    /// Whether it is known what a worker serves, or that there is none.
    #[must_use]
    pub fn has_met_worker(&self) -> bool {
        self.serving != Serving::Unknown
    }

    /// Whether the frontend's ring is worth reading when its `state` is this.
    #[must_use]
    pub fn wants_ring(&self, frontend_state: Option<&str>) -> bool {
        match frontend_state.and_then(State::parse) {
            Some(State::Initialised) => true,
            Some(State::Connected) => self.connected_ring().is_none(),
            _ => false,
        }
    }

    /// What is wrong and what to do, for people.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    fn learn(&mut self, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Seen(sight) => self.see(sight),
            Event::WorkerReady(worker) => self.meet(worker),
            Event::WorkerDied(why) => {
                self.short = false;
                self.serving = Serving::Nobody(why);
                self.ring = match std::mem::replace(&mut self.ring, Ring::Absent) {
                    Ring::Connected(ring) => Ring::Orphaned(ring),
                    ring => ring,
                };
            }
            Event::WorkerLeaves => self.serving = Serving::Leaving,
            Event::Connected(outcome) => self.connected(outcome, actions),
            Event::Disconnected { drained } => {
                (self.broken, self.short, self.draining) = (false, false, false);
                let stale = std::mem::take(&mut self.stale);
                self.ring = match std::mem::replace(&mut self.ring, Ring::Absent) {
                    Ring::Disconnecting(ring) if drained && !stale => Ring::Paused(ring),
                    Ring::Disconnecting(ring) if !stale => Ring::Orphaned(ring),
                    _ => Ring::Absent,
                };
            }
            Event::Published(outcome) => self.published(outcome),
            Event::RingBroken => self.broken = self.connected_ring().is_some(),
            Event::Short(short) => self.short = short && self.connected_ring().is_some(),
            Event::Forced => self.forced = true,
        }
    }

    fn see(&mut self, sight: Sight) {
        self.look_first = false;
        self.removed = false;
        self.alive_once |= sight.alive;
        let is_new = |sight: &Sight| {
            let state = sight.backend.as_ref().and_then(|backend| backend.state.as_deref());
            state.and_then(State::parse) == Some(State::Initialising)
        };
        if is_new(&sight) && self.sight.as_ref().is_some_and(|before| !is_new(before)) {
            self.forced = false;
            self.stale = self.holds_guest();
        }
        // A frontend that went back may come with a ring that looks like the refused one.
        if !sight.ring.as_ref().is_some_and(|ring| Some(ring) == self.refused_ring()) {
            self.refused = None;
        }
        if !self.wants_ring(sight.frontend_state.as_deref())
            && let Ring::Paused(_) | Ring::Orphaned(_) = self.ring
        {
            self.ring = Ring::Absent;
        }
        self.sight = Some(sight);
    }

    fn refused_ring(&self) -> Option<&Result<RingParameters, Fault>> {
        self.refused.as_ref().map(|(ring, _)| ring)
    }

    fn meet(&mut self, worker: Worker) {
        self.refused = None;
        self.ring = match (std::mem::replace(&mut self.ring, Ring::Absent), &worker.ring) {
            (ring @ (Ring::Connecting(..) | Ring::Disconnecting(_)), _) => ring,
            (_, Some(served)) => Ring::Connected(served.clone()),
            (Ring::Connected(ring), None) if worker.answered_all => Ring::Paused(ring),
            (Ring::Connected(ring), None) => Ring::Orphaned(ring),
            (ring, None) => ring,
        };
        self.draining = worker.draining && self.connected_ring().is_some();
        self.serving = Serving::Ready(worker);
    }

    fn connected(&mut self, outcome: Result<(), ConnectError>, actions: &mut Vec<Action>) {
        let Ring::Connecting(ring, how) = std::mem::replace(&mut self.ring, Ring::Absent) else {
            return;
        };
        match outcome {
            Ok(()) => {
                self.ring = Ring::Connected(ring);
                if std::mem::take(&mut self.complained) {
                    actions.push(Action::Complain(String::new()));
                }
            }
            Err(ConnectError::Again) => self.ring = Ring::Orphaned(ring),
            Err(ConnectError::Refused(text)) if how == Journaled::Resume => {
                self.refused = Some((Ok(ring), format!("{LOST} ({text})")));
            }
            Err(ConnectError::Refused(text)) => {
                let text = format!(
                    "the frontend's ring could not be connected ({text}): the \
                     guest's driver has to connect anew"
                );
                self.refuse(Ok(ring), text, actions);
            }
        }
    }

    fn refuse(
        &mut self,
        ring: Result<RingParameters, Fault>,
        text: String,
        actions: &mut Vec<Action>,
    ) {
        actions.push(Action::Complain(text.clone()));
        self.complained = true;
        self.refused = Some((ring, text));
    }

    fn published(&mut self, outcome: Result<(), PublishError>) {
        let publication = self.publishing.take();
        match outcome {
            Ok(()) => {
                self.hindrance = None;
                let backend = self.sight.as_mut().and_then(|sight| sight.backend.as_mut());
                if let (Some(backend), Some(publication)) = (backend, publication) {
                    backend.state = Some(publication.state().to_string());
                    match publication {
                        Publication::Properties(worker) => {
                            backend.sectors = Some(worker.image.sectors);
                        }
                        Publication::NoMedium => backend.sectors = Some(0),
                        Publication::Offers(_) | Publication::State(_) => {}
                    }
                }
            }
            Err(error) => {
                self.look_first = true;
                self.hindrance = match error {
                    PublishError::Changed => None,
                    PublishError::Failed(text) => Some(text),
                };
            }
        }
    }

    fn decide(&mut self, actions: &mut Vec<Action>) {
        let moving = matches!(self.ring, Ring::Connecting(..) | Ring::Disconnecting(_));
        if moving || self.publishing.is_some() || self.ended {
            return;
        }
        let mut verdict = self.judge();
        if let Step::Refuse(fault) = verdict.step {
            let text = format!("{fault}: the guest's driver has to connect anew");
            self.refuse(Err(fault), text, actions);
            verdict = self.judge();
        }
        self.trouble = self.hindrance.clone().or(verdict.trouble);
        let Step::Do(action) = verdict.step else { return };
        match &action {
            Action::Publish { .. } if self.look_first => return,
            Action::Publish { what, .. } => self.publishing = Some(what.clone()),
            Action::Connect(ring, how) => self.ring = Ring::Connecting(ring.clone(), *how),
            Action::Disconnect => {
                if let Ring::Connected(ring) = std::mem::replace(&mut self.ring, Ring::Absent) {
                    self.ring = Ring::Disconnecting(ring);
                }
            }
            Action::RemoveDirectories => self.removed = true,
            Action::End => self.ended = true,
            Action::Complain(_) => {}
        }
        actions.push(action);
    }
}
