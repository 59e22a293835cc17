//! The backend's side of XenBus for one VBD, as a pure machine: what was seen and what happened go
//! in, what to do comes out. No I/O, no clock. `actor` feeds it and acts; tests play whole lives.
//!
//! It goes by levels, not edges: an event brings what is now (watches coalesce, a quick frontend is
//! never seen in between), and from all that is known it chooses at most one step that takes time.
//! It never connects a ring over another, never closes a disk under a guest that did not let go, and
//! never makes a live guest start again.
//! Sources: xen/include/public/io/blkif.h; Linux drivers/block/xen-blkback/xenbus.c
//! (`frontend_changed`, `connect`), drivers/xen/xenbus/xenbus_client.c.

#[cfg(test)]
mod tests;

use super::frontend::Fault;
use super::xenbus::State;
use zerotap_rpc_schema::worker::{ImageInfo, RingParameters};

const NOT_READY: &str = "hotplug-status is not `connected` yet: the toolstack's script has not \
                         finished, or there is none for this kind";
const NO_DOMAIN: &str = "there is no such domain yet, or no more: remove the device's directories if \
                         there will be none";
const NO_WORKER: &str = "no worker serves the VDI: activate it (VDI.activate3), the guest waits";
const LOST: &str = "the worker that served this guest's ring is gone, and its requests with it: the \
                    guest's disk stands still until the guest is restarted, or the VBD is unplugged \
                    (VBD.unplug with force) and plugged again";
/// What a ring that the guest broke is reported as.
pub const BROKEN: &str = "the guest broke the ring's rules and is not served any more: its driver has to \
                      connect anew, or restart the guest";
const GARBAGE: &str =
    "the guest has written garbage into its state: its driver has to connect anew";

/// Both directories of the device, as they are now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight {
    /// Ours; `None` once the toolstack has removed it.
    pub backend: Option<BackendSight>,
    /// Whether xenstored knows the guest's domain.
    pub alive: bool,
    /// The guest's `state`; `None` when it is not there.
    pub frontend_state: Option<String>,
    /// The ring that the guest has published; `None` unless [`Backend::wants_ring`].
    pub ring: Option<Result<RingParameters, Fault>>,
}

/// What matters in the backend's directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackendSight {
    /// `state`, raw: what a publication insists on finding unchanged.
    pub state: Option<String>,
    /// `online`: 0 when the toolstack takes the device away.
    pub online: bool,
    /// Whether the device may be offered: the toolstack's script is done, or none is needed.
    pub ready: bool,
}

/// The worker that serves the VDI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its process.
    pub pid: u32,
    /// The image, as it found it.
    pub image: ImageInfo,
    /// Whether it can only read.
    pub read_only: bool,
    /// The most segments of an indirect request.
    pub indirect_segments_max: u32,
    /// The highest ring order.
    pub ring_page_order_max: u32,
    /// The ring of this VBD that it serves already.
    pub ring: Option<RingParameters>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Both directories were read.
    Seen(Sight),
    /// A worker is ready.
    WorkerReady(Worker),
    /// The worker died; its rings are lost.
    WorkerDied,
    /// The worker is about to be ended; it must let go of its rings first.
    WorkerLeaves,
    /// The answer to [`Action::Connect`].
    Connected(Result<(), String>),
    /// The answer to [`Action::Disconnect`]: the worker holds nothing of the guest any more.
    Disconnected {
        /// Whether it answered all that it had taken: false when it died.
        drained: bool,
    },
    /// The answer to [`Action::Publish`].
    Published(Result<(), PublishError>),
    /// The guest broke the ring's rules; the worker stopped serving it.
    RingBroken,
    /// The operator wants the device gone, whatever the guest thinks.
    Forced,
}

/// Why a publication failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishError {
    /// `state` was not what was seen: look again.
    Changed,
    /// xenstored said no, or is away.
    Failed(String),
}

/// What to do. Each is answered by an event, but for the last three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Have the worker serve the ring.
    Connect(RingParameters),
    /// Have the worker finish and let go of the ring.
    Disconnect,
    /// Write into the backend's directory, provided that `state` still is `from`.
    Publish {
        /// What `state` was.
        from: String,
        /// What to write.
        what: Publication,
    },
    /// Write into the error node what the guest did wrong; empty: remove the node.
    Complain(String),
    /// Remove both directories: the domain is gone, and no toolstack knows this kind.
    RemoveDirectories,
    /// The device is gone and nothing is held: forget it.
    End,
}

/// What is written, each in one transaction with the state that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publication {
    /// What a frontend has to know before it makes its ring; then `InitWait`.
    Offers(Worker),
    /// What a frontend has to know before it makes its disk; then `Connected`.
    Properties(Worker),
    /// A state and nothing else.
    State(State),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Serving {
    Nobody,
    Ready(Worker),
    /// It serves until told otherwise, but must not be given anything new.
    Leaving,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ring {
    Absent,
    Connecting(RingParameters),
    Connected(RingParameters),
    Disconnecting(RingParameters),
    /// Let go with every request answered, the guest unaware: it may be connected again as it is.
    Paused(RingParameters),
}

/// What to do next, and what is wrong.
struct Verdict {
    step: Step,
    trouble: Option<String>,
}

enum Step {
    Wait,
    Do(Action),
    Refuse(Fault),
}

impl Verdict {
    fn wait() -> Self {
        Verdict { step: Step::Wait, trouble: None }
    }

    fn trouble(text: impl Into<String>) -> Self {
        Verdict { step: Step::Wait, trouble: Some(text.into()) }
    }

    fn act(action: Action) -> Self {
        Verdict { step: Step::Do(action), trouble: None }
    }
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
    /// The domain was seen alive.
    alive_once: bool,
    forced: bool,
    /// The toolstack made the directory anew while a ring of the old one was served.
    stale: bool,
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
            serving: Serving::Nobody,
            ring: Ring::Absent,
            publishing: None,
            look_first: false,
            refused: None,
            complained: false,
            broken: false,
            alive_once: false,
            forced: false,
            stale: false,
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

    /// Whether the worker may hold pages of the guest.
    #[must_use]
    pub fn holds_guest(&self) -> bool {
        matches!(self.ring, Ring::Connecting(_) | Ring::Connected(_) | Ring::Disconnecting(_))
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
            Event::WorkerDied => {
                self.serving = Serving::Nobody;
                if let Ring::Connected(_) = self.ring {
                    self.ring = Ring::Absent;
                }
            }
            Event::WorkerLeaves => self.serving = Serving::Leaving,
            Event::Connected(outcome) => self.connected(outcome, actions),
            Event::Disconnected { drained } => {
                self.broken = false;
                let stale = std::mem::take(&mut self.stale);
                self.ring = match std::mem::replace(&mut self.ring, Ring::Absent) {
                    Ring::Disconnecting(ring) if drained && !stale => Ring::Paused(ring),
                    _ => Ring::Absent,
                };
            }
            Event::Published(outcome) => self.published(outcome),
            Event::RingBroken => self.broken = self.connected_ring().is_some(),
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
            && let Ring::Paused(_) = self.ring
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
            (ring @ (Ring::Connecting(_) | Ring::Disconnecting(_)), _) => ring,
            (_, Some(served)) => Ring::Connected(served.clone()),
            (Ring::Connected(_), None) => Ring::Absent,
            (ring, None) => ring,
        };
        self.serving = Serving::Ready(worker);
    }

    fn connected(&mut self, outcome: Result<(), String>, actions: &mut Vec<Action>) {
        let Ring::Connecting(ring) = std::mem::replace(&mut self.ring, Ring::Absent) else {
            return;
        };
        match outcome {
            Ok(()) => {
                self.ring = Ring::Connected(ring);
                if std::mem::take(&mut self.complained) {
                    actions.push(Action::Complain(String::new()));
                }
            }
            Err(text) => {
                let text = format!("the frontend's ring could not be connected: {text}");
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
        let moving = matches!(self.ring, Ring::Connecting(_) | Ring::Disconnecting(_));
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
            Action::Connect(ring) => self.ring = Ring::Connecting(ring.clone()),
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

    /// What all that is known calls for.
    fn judge(&self) -> Verdict {
        let Some(sight) = &self.sight else { return Verdict::wait() };
        let connected = self.connected_ring().is_some();
        let Some(backend) = &sight.backend else {
            return Verdict::act(if connected { Action::Disconnect } else { Action::End });
        };
        if connected && (self.stale || self.serving == Serving::Leaving) {
            return Verdict::act(Action::Disconnect);
        }
        if self.forced || self.domain_gone(sight, backend) {
            return self.close(sight, backend);
        }
        let Some(state) = &backend.state else { return Verdict::wait() };
        use State::{Closed, Closing, Connected, InitWait, Initialised, Initialising, Unknown};
        let Some(own @ (Initialising | InitWait | Initialised | Connected | Closing | Closed)) =
            State::parse(state)
        else {
            return Verdict::trouble(format!(
                "the backend's state is `{}`, which zerotap never writes: remove the device and \
                 plug it again",
                state.escape_default()
            ));
        };
        let frontend = sight.frontend_state.as_deref().unwrap_or("0");
        match State::parse(frontend) {
            // The toolstack writes the frontend's directory at the same time.
            Some(Unknown) if own == Initialising => Verdict::wait(),
            Some(Unknown | Closed) => self.close(sight, backend),
            Some(Initialising) => self.offer(sight, backend, own),
            Some(Initialised | Connected) if connected => self.serve(sight, backend, own),
            Some(Initialised | Connected) => self.connect(sight, backend, own),
            Some(Closing) if matches!(own, InitWait | Initialised | Connected) => {
                self.publish(backend, Publication::State(Closing))
            }
            Some(Closing | InitWait) => self.with_health(Verdict::wait()),
            Some(State::Reconfiguring | State::Reconfigured) | None => {
                self.with_health(Verdict::trouble(GARBAGE))
            }
        }
    }

    /// The frontend is at its beginning, for the first time or again (driver reload, kexec, resume).
    fn offer(&self, sight: &Sight, backend: &BackendSight, own: State) -> Verdict {
        if !backend.online && own != State::Initialising {
            // Never connected, or done: there is nothing that the guest could have to let go of.
            return self.close(sight, backend);
        }
        if self.connected_ring().is_some() {
            return Verdict::act(Action::Disconnect);
        }
        match &self.serving {
            _ if own == State::InitWait => Verdict::wait(),
            _ if !backend.ready => Verdict::trouble(NOT_READY),
            _ if !sight.alive => Verdict::trouble(NO_DOMAIN),
            Serving::Ready(worker) if worker.read_only && !self.read_only => Verdict::trouble(
                "the VDI is activated read-only and the VBD is read-write: activate it read-write \
                 (VDI.activate3) or plug the VBD read-only",
            ),
            Serving::Ready(worker) => self.publish(backend, Publication::Offers(worker.clone())),
            _ => Verdict::trouble(NO_WORKER),
        }
    }

    /// The frontend has a ring, and the worker serves one.
    fn serve(&self, sight: &Sight, backend: &BackendSight, own: State) -> Verdict {
        let initialised =
            sight.frontend_state.as_deref().and_then(State::parse) == Some(State::Initialised);
        match (&sight.ring, self.connected_ring()) {
            // A guest that resumed publishes a new ring without a word; one that is connected may
            // write into its keys what it likes.
            (Some(Ok(new)), Some(old)) if initialised && new != old => {
                Verdict::act(Action::Disconnect)
            }
            _ if own == State::Connected || own == State::Closing => {
                self.with_health(Verdict::wait())
            }
            _ => match &self.serving {
                Serving::Ready(worker) => {
                    self.publish(backend, Publication::Properties(worker.clone()))
                }
                _ => self.with_health(Verdict::wait()),
            },
        }
    }

    /// The frontend has a ring that nobody serves.
    fn connect(&self, sight: &Sight, backend: &BackendSight, own: State) -> Verdict {
        if !backend.online && matches!(own, State::Closing | State::Closed) {
            return self.close(sight, backend);
        }
        let live = sight.frontend_state.as_deref().and_then(State::parse) == Some(State::Connected)
            && matches!(own, State::Connected | State::Closing);
        let paused = match (&self.ring, &sight.ring) {
            (Ring::Paused(old), Some(Ok(new))) => old == new,
            (Ring::Paused(_), None) => true,
            _ => false,
        };
        if live && !paused {
            // Requests that the dead worker had taken would be lost or done twice.
            return Verdict::trouble(LOST);
        }
        let Some(ring) = &sight.ring else { return Verdict::wait() };
        if let Some((refused, text)) = &self.refused
            && refused == ring
        {
            return Verdict::trouble(text.clone());
        }
        match (&self.serving, ring) {
            _ if own == State::Initialising && !backend.ready => Verdict::trouble(NOT_READY),
            (_, Err(fault)) => Verdict { step: Step::Refuse(fault.clone()), trouble: None },
            (Serving::Ready(_), Ok(ring)) => Verdict::act(Action::Connect(ring.clone())),
            _ => Verdict::trouble(NO_WORKER),
        }
    }

    /// Lets go of the guest, then says so.
    fn close(&self, sight: &Sight, backend: &BackendSight) -> Verdict {
        let state = backend.state.as_deref().and_then(State::parse);
        match state {
            _ if self.connected_ring().is_some() => Verdict::act(Action::Disconnect),
            Some(State::Closed)
                if self.ours && !self.removed && self.domain_gone(sight, backend) =>
            {
                Verdict::act(Action::RemoveDirectories)
            }
            None | Some(State::Closed) => Verdict::wait(),
            Some(_) => self.publish(backend, Publication::State(State::Closed)),
        }
    }

    /// A device may be made before its domain, but is not offered then.
    fn domain_gone(&self, sight: &Sight, backend: &BackendSight) -> bool {
        let new = backend.state.as_deref().and_then(State::parse) == Some(State::Initialising);
        !sight.alive && (self.alive_once || !new)
    }

    fn publish(&self, backend: &BackendSight, what: Publication) -> Verdict {
        let from = backend.state.clone().unwrap_or_default();
        Verdict::act(Action::Publish { from, what })
    }

    /// Adds what is wrong with the ring that is served, or with its not being served.
    fn with_health(&self, verdict: Verdict) -> Verdict {
        let trouble = self.broken.then(|| BROKEN.to_owned());
        Verdict { trouble: trouble.or(verdict.trouble), step: verdict.step }
    }
}

impl Publication {
    /// The state that it leads to.
    #[must_use]
    pub fn state(&self) -> State {
        match self {
            Publication::Offers(_) => State::InitWait,
            Publication::Properties(_) => State::Connected,
            Publication::State(state) => *state,
        }
    }
}
