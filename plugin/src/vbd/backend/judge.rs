//! What all that the machine knows calls for: one step, and what is wrong.
//!
//! It changes nothing. Called by [`Backend::step`], after each event.
//! Source of the table: Linux drivers/block/xen-blkback/xenbus.c
//! (`frontend_changed`).

use super::super::frontend::Fault;
use super::super::xenbus::State;
use super::{Action, Backend, BackendSight, Medium, Publication, Ring, Serving, Sight, Worker};
use zerotap_rpc_schema::worker::Journaled;

const UNKNOWN: &str = "\
    the worker has not told yet which rings it serves: if that lasts, see whether it hangs";
pub(super) const NOT_READY: &str = "\
    hotplug-status is not `connected` yet: the toolstack's script has not finished, or there is \
    none for this kind";
pub(super) const NO_DOMAIN: &str = "\
    there is no such domain yet, or no more: remove the device's directories if there will be none";
pub(super) const NO_WORKER: &str = "\
    no worker serves the VDI: activate it (VDI.activate3), the guest waits";
pub(super) const NO_MEDIUM: &str = "\
    no medium is in the drive: insert one";
pub(super) const LOST: &str = "\
    what the former worker had taken of this guest's ring cannot be known: the guest's disk stands \
    still until the guest is restarted, or the VBD is unplugged (VBD.unplug with force) and \
    plugged again";
const GARBAGE: &str = "\
    the guest has written garbage into its state: its driver has to connect anew";
/// What a ring that the guest broke is reported as.
pub const BROKEN: &str = "\
    the guest broke the ring's rules and is not served any more: its driver has to connect anew, \
    or the guest be restarted";

/// What a disk whose writes wait for space is reported as.
pub const SHORT: &str = "\
    the guest's writes wait for space in the SR: free some (remove VDIs or snapshots), or give its \
    file system more; they go on by themselves then";

/// What to do next, and what is wrong.
pub(super) struct Verdict {
    pub(super) step: Step,
    pub(super) trouble: Option<String>,
}

pub(super) enum Step {
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

impl Backend {
    /// What all that is known calls for.
    pub(super) fn judge(&self) -> Verdict {
        let Some(sight) = &self.sight else { return Verdict::wait() };
        if self.serving == Serving::Unknown {
            return Verdict::trouble(UNKNOWN);
        }
        let connected = self.connected_ring().is_some();
        let Some(backend) = &sight.backend else {
            return Verdict::act(if connected { Action::Disconnect } else { Action::End });
        };
        if connected && (self.stale || self.draining || self.serving == Serving::Leaving) {
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
        if backend.medium != Medium::Here
            && let Some(verdict) = self.eject(backend, own)
        {
            return verdict;
        }
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

    /// The medium is not in the drive any more: lets go of the ring, and tells a guest that is
    /// connected. `None` when that is done.
    fn eject(&self, backend: &BackendSight, own: State) -> Option<Verdict> {
        if self.connected_ring().is_some() {
            return Some(Verdict::act(Action::Disconnect));
        }
        let connected = matches!(self.ring, Ring::Paused(_)) && own == State::Connected;
        if connected && backend.sectors != Some(0) {
            return Some(self.publish(backend, Publication::NoMedium));
        }
        (backend.medium == Medium::Another).then(|| Verdict::act(Action::End))
    }

    /// The frontend is at its beginning, for the first time or again (driver reload, kexec,
    /// resume).
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
            _ if backend.medium == Medium::Ejected => Verdict::trouble(NO_MEDIUM),
            Serving::Ready(worker) if worker.read_only && !self.read_only => Verdict::trouble(
                "the VDI is activated read-only and the VBD is read-write: activate it read-write \
                 (VDI.activate3) or plug the VBD read-only",
            ),
            Serving::Ready(worker) => self.publish(backend, Publication::Offers(worker.clone())),
            _ => self.no_worker(),
        }
    }

    fn no_worker(&self) -> Verdict {
        match &self.serving {
            Serving::Nobody(why) if !why.is_empty() => Verdict::trouble(why.clone()),
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
            _ => match &self.serving {
                Serving::Ready(worker) if own != State::Closing => {
                    let told = own == State::Connected && !has_grown(worker, backend);
                    if told {
                        self.with_health(Verdict::wait())
                    } else {
                        self.tell(worker, backend)
                    }
                }
                _ => self.with_health(Verdict::wait()),
            },
        }
    }

    fn tell(&self, worker: &Worker, backend: &BackendSight) -> Verdict {
        self.publish(backend, Publication::Properties(worker.clone()))
    }

    /// The frontend has a ring that nobody serves.
    fn connect(&self, sight: &Sight, backend: &BackendSight, own: State) -> Verdict {
        if !backend.online && matches!(own, State::Closing | State::Closed) {
            return self.close(sight, backend);
        }
        let live = sight.frontend_state.as_deref().and_then(State::parse) == Some(State::Connected)
            && matches!(own, State::Connected | State::Closing);
        if backend.medium == Medium::Ejected {
            return Verdict::trouble(NO_MEDIUM);
        }
        // Told that there is no medium, it has nothing in flight.
        let emptied = backend.sectors == Some(0);
        let answered = matches!(&self.serving, Serving::Ready(worker) if worker.answered_all);
        // What a guest that is connected writes into its keys means nothing, as long as we know
        // its ring. A daemon that came anew does not: a journal knows which ring it is of.
        let (wanted, how) = match &self.ring {
            Ring::Paused(ring) if live => (Some(Ok(ring.clone())), Journaled::Begin),
            Ring::Orphaned(ring) if live => (Some(Ok(ring.clone())), Journaled::Resume),
            _ if live && !emptied && !answered => (sight.ring.clone(), Journaled::Resume),
            _ => (sight.ring.clone(), Journaled::Begin),
        };
        let Some(wanted) = wanted else { return Verdict::wait() };
        if let Some((refused, text)) = &self.refused
            && *refused == wanted
        {
            return Verdict::trouble(text.clone());
        }
        match (&self.serving, wanted) {
            _ if own == State::Initialising && !backend.ready => Verdict::trouble(NOT_READY),
            (_, Err(fault)) => Verdict { step: Step::Refuse(fault), trouble: None },
            (Serving::Ready(_), Ok(ring)) => Verdict::act(Action::Connect(ring, how)),
            _ => self.no_worker(),
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
        let wrong = [(self.broken, BROKEN), (self.short, SHORT)];
        let trouble = wrong.into_iter().find(|(so, _)| *so).map(|(_, text)| text.to_owned());
        Verdict { trouble: trouble.or(verdict.trouble), step: verdict.step }
    }
}

/// Whether the guest was told of less than the worker serves. It is never told of less than before.
fn has_grown(worker: &Worker, backend: &BackendSight) -> bool {
    backend.sectors.is_some_and(|told| told < worker.image.sectors)
}
