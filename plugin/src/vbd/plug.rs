//! `VBD.plug` and `VBD.unplug`: what a toolstack does, for hosts without one that knows us.
//!
//! Both are idempotent and done in a task of their own, to the end, whether or not the caller still
//! waits. The rings are the actor's: this waits for it, over what it tells.

use super::Vbds;
use super::actor::Message;
use super::address::Address;
use super::device;
use super::offer::Offer;
use super::publish::OWN_KIND;
use super::reading::{self, Found};
use super::report::bad_request;
use super::status::Status;
use super::toolstack::{self, Plan, Taken};
use super::xenbus::State;
use crate::vdi::VdiId;
use crate::xenstore::{StoreError, read_if_there};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::admin::{Vbd, VbdPlugParams, VbdUnplugParams};
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::worker::VbdId;

/// How long a daemon that was just started may take to find xenstored.
const START_DEADLINE: Duration = Duration::from_secs(2);
/// How long a device may take to be offered to the guest.
const OFFER_DEADLINE: Duration = Duration::from_secs(10);
/// How long the guest may take to let go, unless the caller says otherwise.
const LET_GO_DEADLINE: Duration = Duration::from_secs(30);
/// How long an actor may take to end once its directories are gone.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// How often is looked whether the watcher has found a device.
const FIND_INTERVAL: Duration = Duration::from_millis(5);
/// How often a withdrawal is tried that met another change of the state.
const WITHDRAWALS_MAX: u32 = 16;

impl Vbds {
    /// Makes a device. It is there for the guest when this returns, whether or not the guest, which
    /// may be paused, has taken it.
    ///
    /// # Errors
    /// What is wrong with the domain, the device or the VDI; nothing is left behind then.
    pub async fn plug(
        self: &Arc<Self>,
        params: VbdPlugParams,
        peer: String,
    ) -> Result<Vbd, StorageError> {
        let this = self.clone();
        let task = tokio::spawn(async move { this.plug_now(params, &peer).await });
        task.await.map_err(|error| StorageError::Internal(error.to_string()))?
    }

    /// Takes a device away: the guest is asked to let go of it, or with `force` is not.
    ///
    /// # Errors
    /// The guest does not let go in time; it is still asked to.
    pub async fn unplug(
        self: &Arc<Self>,
        params: VbdUnplugParams,
        peer: String,
    ) -> Result<(), StorageError> {
        let this = self.clone();
        let task = tokio::spawn(async move { this.unplug_now(params, &peer).await });
        task.await.map_err(|error| StorageError::Internal(error.to_string()))?
    }

    async fn plug_now(&self, params: VbdPlugParams, peer: &str) -> Result<Vbd, StorageError> {
        let plan = self.plan(&params).await?;
        let id = plan.address.id;
        let what = format!("plug {} into domain {}", params.device, params.domid);
        match plan.taken(&*self.store).await.map_err(|error| failed(&what, &error))? {
            Taken::Same => tracing::info!(vbd = %id, peer, "plugged already"),
            Taken::By(other) => {
                return Err(StorageError::backend(
                    number::VDI_IN_USE,
                    format!("{what}: the name is taken by {other}; unplug that first"),
                ));
            }
            Taken::Free(leftover) => {
                let made = plan.make(&*self.store, leftover).await;
                made.map_err(|error| failed(&what, &error))?;
                tracing::info!(vbd = %id, vdi = %plan.vdi, peer, "plugged");
            }
        }
        let offered = |status: &Status| {
            matches!(
                status.state(),
                Some(State::InitWait | State::Initialised | State::Connected | State::Closed)
            )
        };
        let deadline = Instant::now() + OFFER_DEADLINE;
        let status = match self.appear(id, deadline).await {
            Some(status) => reach(status, deadline, offered).await,
            None => None,
        };
        match status {
            Some(status) if status.state() != Some(State::Closed) && !status.ended => {
                let held_by = self.disks.holders(&status.identity.vdi).await?;
                Ok(status.vbd(held_by))
            }
            _ => Err(self.give_up(&plan, &what).await),
        }
    }

    /// Checks everything that can be checked before anything is written.
    async fn plan(&self, params: &VbdPlugParams) -> Result<Plan, StorageError> {
        let what = format!("plug {} into domain {}", params.device, params.domid);
        let address = self.address(params.domid, &params.device).await?;
        if params.domid == address.own.domid {
            return Err(bad_request(format!(
                "{what}: that is this host itself; use the image directly"
            )));
        }
        let alive = self.store.introduced(params.domid).await;
        if !alive.map_err(|error| failed(&what, &error))? {
            return Err(bad_request(format!("{what}: there is no such domain (see `xl list`)")));
        }
        let vdi = VdiId::new(&params.sr, &params.vdi);
        let Some(disk) = self.disks.worker(&vdi) else {
            return Err(StorageError::backend(
                number::VDI_UNAVAILABLE,
                format!("{what}: VDI {vdi} is not activated; attach and activate it first"),
            ));
        };
        if disk.read_only() && !params.read_only {
            return Err(StorageError::backend(
                number::VDI_UNAVAILABLE,
                format!("{what}: VDI {vdi} is activated read-only; plug it read-only"),
            ));
        }
        let (device, read_only) = (params.device.clone(), params.read_only);
        Ok(Plan { address, device, vdi, read_only, transfer: params.transfer })
    }

    async fn address(&self, domid: u16, name: &str) -> Result<Address, StorageError> {
        let devid = device::devid(name).map_err(bad_request)?;
        // A call may come before the daemon has found xenstored.
        let mut own = self.own.clone();
        let found = timeout(START_DEADLINE, own.wait_for(Option::is_some)).await;
        let Some(own) = found.ok().and_then(Result::ok).and_then(|own| *own) else {
            let away = StoreError::Away("not since this daemon was started".to_owned());
            return Err(failed(&format!("find {name} of domain {domid}"), &away));
        };
        Ok(Address { id: VbdId { domid, devid }, kind: OWN_KIND.to_owned(), own })
    }

    /// Takes away what was made and did not come to life.
    async fn give_up(&self, plan: &Plan, what: &str) -> StorageError {
        let id = plan.address.id;
        let status = self.find(id);
        let trouble = status.and_then(|status| status.trouble);
        let why = trouble.unwrap_or_else(|| "xenstored or the worker is too slow".to_owned());
        let seconds = OFFER_DEADLINE.as_secs();
        let text = format!("{what}: not offered to the guest within {seconds} s: {why}");
        if let Err(error) = self.pull(&plan.address, Instant::now() + END_DEADLINE).await {
            tracing::warn!(vbd = %id, %error, "what was made could not be taken away");
        }
        StorageError::backend(number::VDI_UNAVAILABLE, text)
    }

    async fn unplug_now(&self, params: VbdUnplugParams, peer: &str) -> Result<(), StorageError> {
        let address = self.address(params.domid, &params.device).await?;
        let id = address.id;
        let what = format!("unplug {} from domain {}", params.device, params.domid);
        if let Some(status) = self.find(id)
            && status.address.kind != OWN_KIND
        {
            let kind = status.address.kind;
            return Err(bad_request(format!(
                "{what}: a toolstack plugged it (backend kind {kind}); unplug it there, for \
                 example with `xe vbd-unplug`"
            )));
        }
        let patience = params.timeout_seconds.map(|s| Duration::from_secs(u64::from(s)));
        let deadline = Instant::now() + patience.unwrap_or(LET_GO_DEADLINE);
        tracing::info!(vbd = %id, force = params.force, peer, "unplugging");
        if params.force {
            return self.pull(&address, deadline).await;
        }
        let Some(status) = self.served(&address, &what).await? else {
            return self.remove(&address, &what).await;
        };
        self.withdraw(&address).await.map_err(|error| failed(&what, &error))?;
        let closed = |status: &Status| status.state() == Some(State::Closed);
        match reach(status, deadline, closed).await {
            Some(_) => self.remove(&address, &what).await,
            None => Err(self.still_held(id, &what)),
        }
    }

    /// The actor that serves a device; `None` when nobody does, because the device is not there or
    /// names no VDI of ours.
    async fn served(
        &self,
        address: &Address,
        what: &str,
    ) -> Result<Option<watch::Receiver<Status>>, StorageError> {
        let found = reading::identity(&*self.store, address, &Offer::default()).await;
        match found.map_err(|error| failed(what, &error))? {
            Found::Foreign | Found::Wrong(_) => Ok(self.receiver(address.id)),
            Found::Ours(_) => {
                let status = self.appear(address.id, Instant::now() + END_DEADLINE).await;
                let text = || format!("{what}: it is not being looked after yet; try again");
                status.map(Some).ok_or_else(|| StorageError::backend(number::GENERAL, text()))
            }
        }
    }

    /// Writes that the device goes, unless it has gone.
    async fn withdraw(&self, address: &Address) -> Result<(), StoreError> {
        let state = address.key("state");
        for _ in 0..WITHDRAWALS_MAX {
            let Some(now) = read_if_there(&*self.store, &state).await? else { return Ok(()) };
            match self.store.transact(&toolstack::withdraw(address, &now)).await {
                Err(StoreError::Changed(_)) => {}
                other => return other,
            }
        }
        Err(StoreError::Changed(state))
    }

    fn still_held(&self, id: VbdId, what: &str) -> StorageError {
        let status = self.find(id);
        let frontend = status.as_ref().and_then(|status| status.frontend_state.as_deref());
        let doing = match frontend.and_then(State::parse) {
            Some(State::Connected | State::Initialised) => {
                "its driver has not reacted, the domain may be paused or hung"
            }
            Some(State::Closing) => {
                "its driver waits for the last user of the disk: unmount it in the guest"
            }
            _ => "its driver is in no state to let go",
        };
        let word = State::describe(frontend);
        let trouble = status.and_then(|status| status.trouble).map(|text| format!(" ({text})"));
        let trouble = trouble.unwrap_or_default();
        tracing::warn!(vbd = %id, frontend = word, "the guest does not let go");
        StorageError::backend(
            number::VDI_IN_USE,
            format!(
                "{what}: the guest has not let go of the disk; its frontend is {word}: {doing}\
                 {trouble}. It is still asked to; unplug again to wait on, or with --force to pull \
                 the disk away under it"
            ),
        )
    }

    /// Has the worker let go at once, then removes the device.
    async fn pull(&self, address: &Address, deadline: Instant) -> Result<(), StorageError> {
        let id = address.id;
        let what = format!("unplug {} from domain {} by force", device::name(id.devid), id.domid);
        if let Some(status) = self.served(address, &what).await? {
            self.tell(id, Message::Force).await;
            let free = |status: &Status| {
                !status.holds_guest && matches!(status.state(), None | Some(State::Closed))
            };
            if reach(status, deadline, free).await.is_none() {
                return Err(StorageError::backend(
                    number::WORKER_FAILED,
                    format!(
                        "{what}: the worker still holds pages of the guest, because its disk has \
                         not answered; see to the SR's storage, then try again"
                    ),
                ));
            }
        }
        self.remove(address, &what).await
    }

    async fn remove(&self, address: &Address, what: &str) -> Result<(), StorageError> {
        // Of another kind it would be another's device.
        let pointer = format!("{}/backend", address.frontend());
        let named = read_if_there(&*self.store, &pointer).await;
        let named = named.map_err(|error| failed(what, &error))?;
        if named.is_some_and(|named| named != address.backend()) {
            return Ok(());
        }
        let status = self.receiver(address.id);
        let removed = self.store.transact(&toolstack::remove(address)).await;
        removed.map_err(|error| failed(what, &error))?;
        let Some(status) = status else { return Ok(()) };
        if reach(status, Instant::now() + END_DEADLINE, |status| status.ended).await.is_none() {
            tracing::warn!(vbd = %address.id, "its directories are gone, its actor lingers");
        }
        Ok(())
    }

    /// What the actor of a device tells, if it has one that has not ended.
    fn receiver(&self, id: VbdId) -> Option<watch::Receiver<Status>> {
        let key = (OWN_KIND.to_owned(), id);
        let status = self.shared.with(|all| all.holds.get(&key).map(|hold| hold.status.clone()))?;
        let ended = status.borrow().ended;
        (!ended).then_some(status)
    }

    /// Waits until the watcher has found a device.
    async fn appear(&self, id: VbdId, deadline: Instant) -> Option<watch::Receiver<Status>> {
        loop {
            if let Some(status) = self.receiver(id) {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            sleep(FIND_INTERVAL).await;
        }
    }
}

/// Waits until a device is as `wanted`, or has ended; `None` at the deadline.
async fn reach(
    mut status: watch::Receiver<Status>,
    deadline: Instant,
    wanted: impl Fn(&Status) -> bool,
) -> Option<Status> {
    let reached = status.wait_for(|status| status.ended || wanted(status));
    let reached = timeout_at(deadline, reached).await.ok()?;
    reached.ok().map(|status| status.clone())
}

fn failed(what: &str, error: &StoreError) -> StorageError {
    StorageError::backend(number::GENERAL, format!("{what}: {error}"))
}
