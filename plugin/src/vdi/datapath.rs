//! What the datapath commands do: attach, activate, deactivate, detach, destroy.
//!
//! The automaton decides, `service.rs` acts, the database remembers. Run by the VDI's actor alone.

use crate::sr::attached::internal;
use crate::state::{Datapath, Operation, now};
use crate::vdi::VdiId;
use crate::vdi::actor::Vdi;
use crate::vdi::automaton::{self, Move, superstate};
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::event::Change;
use zerotap_rpc_schema::smapi2::{Backend, Mode, VdiState};

/// The most uses of one VDI at a time.
const DATAPATHS_MAX: usize = 64;
/// The longest name of a datapath or a domain, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// The uses of a VDI, seen from one of them.
struct Uses {
    /// This one; `Detached` when it is new.
    this: Datapath,
    /// The others.
    others: Vec<Datapath>,
}

impl Uses {
    /// The superstate, with this use in `state`.
    fn superstate_with(&self, state: VdiState) -> VdiState {
        superstate(self.others.iter().map(|held| held.state).chain([state]))
    }
}

impl Vdi<'_> {
    pub(super) async fn attach(
        &self,
        dp: &str,
        domain: String,
        mode: Mode,
    ) -> Result<Backend, StorageError> {
        let sr = self.registry.srs.get(&self.id.sr)?;
        check_name("name of a datapath", dp)?;
        if !domain.is_empty() {
            check_name("name of a domain", &domain)?;
        }
        let key = self.id.vdi.clone();
        let record = sr.run(move |file| file.volume(&key)).await?;
        if record.read_only && mode == Mode::ReadWrite {
            let text = format!(
                "cannot attach VDI {} ({}) RW: it is read-only. Attach it with read_write=false",
                record.key, record.name_label
            );
            return Err(StorageError::backend(number::VDI_UNAVAILABLE, text));
        }
        self.retry_leaked().await?;
        let mut uses = self.uses(dp).await?;
        let from = uses.this.state;
        let to = automaton::step(from, Move::Attach(mode))?;
        automaton::admit(&uses.others, dp, mode, &record.key)?;
        if uses.others.len() >= DATAPATHS_MAX {
            let text = format!(
                "cannot attach VDI {} for datapath {dp}: {DATAPATHS_MAX} datapaths use it, the \
                most there are",
                record.key
            );
            return Err(StorageError::backend(number::VDI_IN_USE, text));
        }
        let (before, after) = (uses.superstate_with(from), uses.superstate_with(to));
        automaton::path(before, after).ok_or(StorageError::IllegalTransition((before, after)))?;
        if from != to {
            uses.this.domain = domain;
            self.change(&uses.this, to).await?;
        }
        Ok(self.registry.backend(self.id))
    }

    pub(super) async fn activate(&self, dp: &str, read_only: bool) -> Result<(), StorageError> {
        let sr = self.registry.srs.get(&self.id.sr)?;
        self.retry_leaked().await?;
        let uses = self.uses(dp).await?;
        let from = uses.this.state;
        let to = automaton::step(from, Move::Activate)?;
        if read_only && to == VdiState::Activated(Mode::ReadWrite) {
            let wanted = VdiState::Activated(Mode::ReadOnly);
            return Err(StorageError::IllegalTransition((from, wanted)));
        }
        if let VdiState::Activated(mode) = to
            && let Err(refused) = automaton::admit_active(&uses.others, dp, mode, &self.id.vdi)
        {
            let key = self.id.vdi.clone();
            if !sr.run(move |file| file.volume(&key)).await?.sharable {
                return Err(refused);
            }
        }
        let (before, after) = (uses.superstate_with(from), uses.superstate_with(to));
        automaton::path(before, after).ok_or(StorageError::IllegalTransition((before, after)))?;
        if let Some(worker) = self.registry.workers.serving(self.id) {
            if from != to {
                self.change(&uses.this, to).await?;
                self.registry.workers.tell_anew(worker).await;
            }
            return Ok(());
        }
        // Also when it is active already: the database says so, and its worker has died.
        let mode = match after {
            VdiState::Activated(mode) => mode,
            _ => Mode::ReadOnly,
        };
        let activated = Datapath { state: to, since: now(), leaked: false, ..uses.this };
        self.serve(&sr, mode, &activated).await?;
        self.log(&activated, from);
        Ok(())
    }

    pub(super) async fn deactivate(&self, dp: &str) -> Result<(), StorageError> {
        self.retry_leaked().await?;
        self.deactivate_only(dp).await
    }

    async fn deactivate_only(&self, dp: &str) -> Result<(), StorageError> {
        let uses = self.uses(dp).await?;
        let from = uses.this.state;
        let to = automaton::step(from, Move::Deactivate)?;
        if from == to {
            return Ok(());
        }
        if let VdiState::Activated(_) = uses.superstate_with(to) {
            // Others go on. Nothing is reopened for them, so no path from superstate to superstate
            // is asked for: who leaves is never refused.
            return self.leave(&uses, to).await;
        }
        let deactivated = Datapath { state: to, since: now(), ..uses.this };
        self.cease(&deactivated).await?;
        self.log(&deactivated, from);
        Ok(())
    }

    /// A use ends and others go on: what its domain has connected is let go of first, as by a
    /// worker that ends.
    async fn leave(&self, uses: &Uses, to: VdiState) -> Result<(), StorageError> {
        let Uses { this, others } = uses;
        let active = |held: &&Datapath| matches!(held.state, VdiState::Activated(_));
        let mut stays = others.iter().filter(active).map(|held| &held.domain);
        let domid = this.domain.parse().ok().filter(|_| !stays.any(|it| *it == this.domain));
        let worker = self.registry.workers.serving(self.id);
        let Some((domid, worker)) = domid.zip(worker) else { return self.change(this, to).await };
        self.registry.workers.release(&worker, Some(domid)).await;
        let changed = self.change(this, to).await;
        // The domain's disks wait now, or, should that not be remembered, go on.
        self.registry.workers.tell_anew(worker).await;
        changed
    }

    pub(super) async fn detach(&self, dp: &str) -> Result<(), StorageError> {
        self.retry_leaked().await?;
        self.detach_only(dp).await
    }

    async fn detach_only(&self, dp: &str) -> Result<(), StorageError> {
        let uses = self.uses(dp).await?;
        let from = uses.this.state;
        let to = automaton::step(from, Move::Detach)?;
        if from == to { Ok(()) } else { self.change(&uses.this, to).await }
    }

    pub(super) async fn destroy_datapath(
        &self,
        dp: &str,
        allow_leak: bool,
    ) -> Result<(), StorageError> {
        let Err(error) = self.give_up(dp).await else { return Ok(()) };
        let this = self.uses(dp).await?.this;
        if allow_leak {
            tracing::warn!(vdi = %self.id, dp, "forgotten, though its clean-up failed: {error}");
            self.change(&this, VdiState::Detached).await?;
            self.registry.chores.notify_one();
            return Ok(());
        }
        tracing::warn!(vdi = %self.id, dp, "leaked, its clean-up is tried again later: {error}");
        let leaked = Datapath { leaked: true, ..this };
        self.registry.state.put_datapath(self.id, &leaked).await.map_err(internal)?;
        self.registry.chores.notify_one();
        Err(error)
    }

    async fn give_up(&self, dp: &str) -> Result<(), StorageError> {
        self.deactivate_only(dp).await?;
        self.detach_only(dp).await
    }

    /// Tries once more to clean leaked datapaths up. When that fails they stay, and are in the way
    /// of whatever they exclude.
    pub(super) async fn retry_leaked(&self) -> Result<(), StorageError> {
        for held in self.registry.state.datapaths(self.id).await.map_err(internal)? {
            if !held.leaked {
                continue;
            }
            match self.give_up(&held.dp).await {
                Ok(()) => {
                    tracing::info!(vdi = %self.id, dp = held.dp, "leaked datapath cleaned up");
                }
                Err(error) => {
                    tracing::warn!(vdi = %self.id, dp = held.dp, "still leaked: {error}");
                }
            }
        }
        Ok(())
    }

    /// Does what is owed for this VDI.
    pub(super) async fn tidy(&self) -> Result<(), StorageError> {
        self.retry_leaked().await?;
        let state = &self.registry.state;
        let held = state.datapaths(self.id).await.map_err(internal)?;
        let active = |held: &Datapath| matches!(held.state, VdiState::Activated(_));
        if !held.iter().any(active) {
            // A worker whose datapath was forgotten (allow_leak).
            self.clear_away().await?;
            self.registry.workers.forget(self.id).await;
            // An SR that is not attached has no intents either.
            let sr = self.registry.srs.get(&self.id.sr)?;
            let key = self.id.vdi.clone();
            sr.run(move |file| file.disown(&key)).await?;
        }
        // A VDI that is active is given back when it is deactivated.
        for intent in state.intents().await.map_err(internal)? {
            if intent.vdi == *self.id && intent.operation == Operation::Disown {
                state.settle(intent.id).await.map_err(internal)?;
            }
        }
        match held.iter().find(|held| held.leaked) {
            Some(held) => {
                let text = format!("datapath {} is still leaked", held.dp);
                Err(StorageError::backend(number::VDI_IN_USE, text))
            }
            None => Ok(()),
        }
    }

    async fn uses(&self, dp: &str) -> Result<Uses, StorageError> {
        let held = self.registry.state.datapaths(self.id).await.map_err(internal)?;
        let (this, others): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.dp == dp);
        let this = this.into_iter().next().unwrap_or_else(|| Datapath {
            dp: dp.into(),
            domain: String::new(),
            state: VdiState::Detached,
            since: now(),
            leaked: false,
        });
        Ok(Uses { this, others })
    }

    async fn change(&self, held: &Datapath, to: VdiState) -> Result<(), StorageError> {
        let changed = Datapath { state: to, since: now(), ..held.clone() };
        self.registry.state.put_datapath(self.id, &changed).await.map_err(internal)?;
        self.log(&changed, held.state);
        Ok(())
    }

    fn log(&self, held: &Datapath, from: VdiState) {
        let Datapath { dp, domain, state, .. } = held;
        tracing::info!(vdi = %self.id, dp, domain, %from, to = %state, "datapath changed");
        let (VdiId { sr, vdi }, dp, domain) = (self.id.clone(), dp.clone(), domain.clone());
        let change = Change::Datapath { sr, vdi, dp, domain, from, to: *state };
        self.registry.workers.events().tell(change);
    }
}

/// Callers choose these names; they end up in the log and in other callers' error texts.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), StorageError> {
    let plain = name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    if plain && !name.is_empty() {
        return Ok(());
    }
    let text = format!(
        "{name:?} cannot be the {what}: give 1 to {NAME_BYTES_MAX} bytes without control characters"
    );
    Err(StorageError::backend(number::BAD_REQUEST, text))
}
