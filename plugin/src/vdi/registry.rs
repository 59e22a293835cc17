//! Every VDI's door: posts commands to the VDI's actor, and answers what can be told at once.
//!
//! Never does a command's work. A caller that goes away in the middle changes nothing: the actor
//! finishes. Called by the RPC handlers and, to look workers up, by the VBD side.

use crate::sr::Srs;
use crate::sr::attached::internal;
use crate::sr::file::FileSr;
use crate::sr::record::Record;
use crate::state::{Commits, Datapath, State};
use crate::vdi::VdiId;
use crate::vdi::actor::{self, Command, Edit, Job, Reply};
use crate::vdi::automaton::superstate;
use crate::vdi::tasks::{Task, Tasks};
use crate::worker::set::{Entry, Lives};
use crate::worker::{Launcher, WorkerHandle, Workers};
use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use uuid::Uuid;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::admin::Unlocked;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi2::{Backend, DpStat, Mode, VdiInfo, VdiState};
use zerotap_rpc_schema::worker::VbdId;

/// Commands that wait for one VDI.
const COMMANDS_QUEUED_MAX: usize = 64;
/// How often the end of all commands is looked for.
const IDLE_INTERVAL: Duration = Duration::from_millis(10);

/// Who uses a VDI.
#[derive(Debug, Clone, PartialEq)]
pub struct Holder {
    /// The datapath.
    pub dp: String,
    /// Its domain, as the caller told it.
    pub domain: String,
    /// Attached or activated.
    pub state: VdiState,
    /// Since when, RFC 3339.
    pub since: String,
}

/// All VDIs in use.
#[derive(Debug)]
pub struct Registry {
    pub(super) state: State,
    pub(super) srs: Arc<Srs>,
    pub(super) workers: Workers,
    pub(super) launcher: Launcher,
    pub(super) backend_kind: String,
    /// What lasts.
    pub(super) tasks: Tasks,
    /// Wakes whoever does what is owed (`chores.rs`).
    pub(super) chores: Notify,
    actors: Mutex<HashMap<VdiId, mpsc::Sender<Job>>>,
}

impl Registry {
    /// The one registry of the daemon. `backend_kind` goes into attach answers.
    #[must_use]
    pub fn new(
        state: State,
        srs: Arc<Srs>,
        workers: Workers,
        launcher: Launcher,
        backend_kind: String,
    ) -> Arc<Registry> {
        let (actors, chores, tasks) = (Mutex::default(), Notify::new(), Tasks::default());
        Arc::new(Registry { state, srs, workers, launcher, backend_kind, tasks, chores, actors })
    }

    /// The worker that serves a VDI now. No I/O.
    #[must_use]
    pub fn worker(&self, vdi: &VdiId) -> Option<WorkerHandle> {
        self.workers.serving(vdi)
    }

    /// All workers that serve. No I/O.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerHandle> {
        self.workers.all_serving()
    }

    /// A VDI's worker, dead or alive. No I/O.
    #[must_use]
    pub fn entry(&self, vdi: &VdiId) -> Option<Entry> {
        self.workers.entry(vdi)
    }

    /// All workers, dead or alive. No I/O.
    #[must_use]
    pub fn all_workers(&self) -> Vec<Entry> {
        self.workers.all()
    }

    /// A VBD is gone for good.
    pub fn forget(&self, vbd: VbdId) {
        self.launcher.journals.remove(vbd);
    }

    /// There are these VBDs and no others.
    pub fn forget_others(&self, there: &BTreeSet<VbdId>) {
        self.launcher.journals.remove_others(there);
    }

    /// How often each VDI's worker was started and died. No I/O.
    #[must_use]
    pub fn lives(&self) -> BTreeMap<VdiId, Lives> {
        self.workers.lives()
    }

    /// What the state database was given to write. No I/O.
    #[must_use]
    pub fn commits(&self) -> Commits {
        self.state.commits()
    }

    /// Who uses a VDI.
    ///
    /// # Errors
    /// The database failed.
    pub async fn holders(&self, vdi: &VdiId) -> Result<Vec<Holder>, StorageError> {
        Ok(self.uses(vdi).await?.into_iter().map(Holder::from).collect())
    }

    /// Every use of every VDI.
    ///
    /// # Errors
    /// The database failed.
    pub async fn all_datapaths(&self) -> Result<Vec<(VdiId, Datapath)>, StorageError> {
        self.state.all_datapaths().await.map_err(internal)
    }

    /// Whether some use of a VDI may write to it now.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn is_written(&self, vdi: &VdiId) -> Result<bool, StorageError> {
        let writes = |held: &Datapath| held.state == VdiState::Activated(Mode::ReadWrite);
        Ok(self.state.datapaths(vdi).await.map_err(internal)?.iter().any(writes))
    }

    /// What lasts and is under way, the oldest first. No I/O.
    #[must_use]
    pub fn tasks(&self) -> Vec<Arc<Task>> {
        self.tasks.list()
    }

    /// DP.stat_vdi.
    ///
    /// # Errors
    /// No such SR; the database failed.
    pub async fn stat(&self, vdi: &VdiId) -> Result<DpStat, StorageError> {
        self.srs.get(&vdi.sr)?;
        let datapaths = self.uses(vdi).await?;
        Ok(DpStat {
            superstate: superstate(datapaths.iter().map(|held| held.state)),
            dps: datapaths.into_iter().map(|held| (held.dp, held.state)).collect(),
        })
    }

    /// What an attach answers.
    pub(super) fn backend(&self, vdi: &VdiId) -> Backend {
        actor::backend(vdi, &self.backend_kind, &self.launcher.nbd_socket(vdi))
    }

    /// DP.attach_info.
    ///
    /// # Errors
    /// `Does_not_exist` for a datapath that is not attached.
    pub async fn attach_info(&self, vdi: &VdiId, dp: &str) -> Result<Backend, StorageError> {
        let used = self.used(vdi, dp).await?;
        let datapaths = self.state.datapaths(&used).await.map_err(internal)?;
        if datapaths.iter().any(|held| held.dp == dp) {
            return Ok(self.backend(&used));
        }
        Err(StorageError::DoesNotExist(("datapath".into(), dp.into())))
    }

    /// VDI.create.
    ///
    /// # Errors
    /// No such SR, a size or an sm-config that makes no sense, no space.
    pub async fn create(
        self: &Arc<Self>,
        sr: &str,
        wanted: VdiInfo,
    ) -> Result<VdiInfo, StorageError> {
        let place = self.srs.get(sr)?;
        let record: Record = place.run(move |file| file.plan(wanted)).await?;
        let vdi = VdiId::new(sr, record.key.clone());
        self.ask(&vdi, |reply| Command::Create { record: Box::new(record), reply }).await
    }

    /// VDI.snapshot and VDI.clone: a new VDI, as `wanted`, with the content of `vdi`. `name`: its
    /// key, where the call may come twice; made already, it stays as it is.
    ///
    /// # Errors
    /// No such VDI; no space; it is in use and the file system cannot share extents.
    pub async fn copy(
        self: &Arc<Self>,
        vdi: &VdiId,
        wanted: VdiInfo,
        name: Option<Uuid>,
    ) -> Result<VdiInfo, StorageError> {
        let place = self.srs.get(&vdi.sr)?;
        if let Some(key) = name.map(|name| name.to_string()) {
            match place.run(move |file| file.volume_info(&key)).await {
                Err(StorageError::VdiDoesNotExist(_)) => {}
                made => return made,
            }
        }
        let (source, key) = (vdi.vdi.clone(), name.unwrap_or_else(Uuid::new_v4).to_string());
        let plan = move |file: &FileSr| file.plan_copy(key, &source, wanted);
        let record: Record = place.run(plan).await?;
        self.ask(vdi, |reply| Command::Copy { record: Box::new(record), reply }).await
    }

    /// VDI.revert: `vdi` gets the content of `snapshot`, a key of its SR.
    ///
    /// # Errors
    /// It is active; either is missing; no space.
    pub async fn revert(
        self: &Arc<Self>,
        vdi: &VdiId,
        snapshot: String,
    ) -> Result<(), StorageError> {
        self.ask(vdi, |reply| Command::Revert { snapshot, reply }).await
    }

    /// VDI.unlock: takes a VDI from the host `from`, which is dead, for a `reason`.
    ///
    /// # Errors
    /// Another host has it, or none; its data is locked; no such VDI.
    pub async fn unlock(
        self: &Arc<Self>,
        vdi: &VdiId,
        from: String,
        reason: String,
    ) -> Result<Unlocked, StorageError> {
        self.ask(vdi, |reply| Command::Unlock { from, reason, reply }).await
    }

    /// VDI.epoch_begin: a guest starts. What a guest wrote that died without an end is forgotten.
    ///
    /// # Errors
    /// No such VDI; an earlier epoch's copy is in use; no space.
    pub async fn epoch_begin(
        self: &Arc<Self>,
        vdi: &VdiId,
        persistent: bool,
    ) -> Result<(), StorageError> {
        self.ask(vdi, |reply| Command::EpochBegin { persistent, reply }).await
    }

    /// VDI.epoch_end: a guest has ended. Succeeds when there is nothing to forget.
    ///
    /// # Errors
    /// The copy is in use; no such SR.
    pub async fn epoch_end(self: &Arc<Self>, vdi: &VdiId) -> Result<(), StorageError> {
        self.ask(vdi, |reply| Command::EpochEnd { reply }).await
    }

    /// VDI.destroy.
    ///
    /// # Errors
    /// It is in use; no such SR.
    pub async fn destroy(self: &Arc<Self>, vdi: &VdiId) -> Result<(), StorageError> {
        self.ask(vdi, |reply| Command::Destroy { reply }).await
    }

    /// VDI.resize; the answer is the new size in bytes.
    ///
    /// # Errors
    /// It would shrink, does not fit; its worker does not follow.
    pub async fn resize(self: &Arc<Self>, vdi: &VdiId, size: i64) -> Result<i64, StorageError> {
        self.ask(vdi, |reply| Command::Resize { size, reply }).await
    }

    /// VDI.set_name_label and its like.
    ///
    /// # Errors
    /// No such SR or VDI.
    pub async fn edit(self: &Arc<Self>, vdi: &VdiId, edit: Edit) -> Result<(), StorageError> {
        self.ask(vdi, |reply| Command::Edit { edit, reply }).await
    }

    /// VDI.attach3.
    ///
    /// # Errors
    /// No such VDI, or others use it in a way that excludes this one.
    pub async fn attach(
        self: &Arc<Self>,
        vdi: &VdiId,
        dp: String,
        domain: String,
        mode: Mode,
    ) -> Result<Backend, StorageError> {
        self.ask(vdi, |reply| Command::Attach { dp, domain, mode, reply }).await
    }

    /// VDI.activate3 and, with `read_only`, VDI.activate_readonly.
    ///
    /// # Errors
    /// Not attached so; the image or the worker fails.
    pub async fn activate(
        self: &Arc<Self>,
        vdi: &VdiId,
        dp: String,
        read_only: bool,
    ) -> Result<(), StorageError> {
        self.ask(vdi, |reply| Command::Activate { dp, read_only, reply }).await
    }

    /// VDI.deactivate.
    ///
    /// # Errors
    /// The worker does not let go.
    pub async fn deactivate(self: &Arc<Self>, vdi: &VdiId, dp: String) -> Result<(), StorageError> {
        self.ask(vdi, |reply| Command::Deactivate { dp, reply }).await
    }

    /// VDI.detach.
    ///
    /// # Errors
    /// It is active.
    pub async fn detach(self: &Arc<Self>, vdi: &VdiId, dp: String) -> Result<(), StorageError> {
        self.ask(vdi, |reply| Command::Detach { dp, reply }).await
    }

    /// DP.destroy2.
    ///
    /// # Errors
    /// Only without `allow_leak`: the worker does not let go.
    pub async fn destroy_datapath(
        self: &Arc<Self>,
        vdi: &VdiId,
        dp: String,
        allow_leak: bool,
    ) -> Result<(), StorageError> {
        self.ask(vdi, |reply| Command::DestroyDatapath { dp, allow_leak, reply }).await
    }

    /// Has another worker serve a VDI whose own died, if it is still active.
    ///
    /// # Errors
    /// The image or the worker fails.
    pub(super) async fn revive(self: &Arc<Self>, vdi: &VdiId) -> Result<(), StorageError> {
        self.ask(vdi, |reply| Command::Revive { reply }).await
    }

    /// Worker.upgrade: has a worker of the installed program serve a VDI, under its guests.
    ///
    /// # Errors
    /// No worker serves it; the new one fails.
    pub async fn upgrade(self: &Arc<Self>, vdi: &VdiId) -> Result<(), StorageError> {
        self.ask(vdi, |reply| Command::Upgrade { reply }).await
    }

    /// Does what is owed for a VDI.
    ///
    /// # Errors
    /// What still can't be done.
    pub(super) async fn tidy(self: &Arc<Self>, vdi: &VdiId) -> Result<(), StorageError> {
        self.ask(vdi, |reply| Command::Tidy { reply }).await
    }

    /// Remembers that a VDI is to be given back to other hosts, as soon as that can be written.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn owe(&self, vdi: &VdiId) -> Result<(), StorageError> {
        self.state.owe(vdi).await.map_err(internal)?;
        self.chores.notify_one();
        Ok(())
    }

    pub(super) async fn ask<T>(
        self: &Arc<Self>,
        vdi: &VdiId,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, StorageError> {
        let (reply, answer) = oneshot::channel();
        let (vdi_asked, span) = (vdi.clone(), tracing::Span::current());
        self.post(vdi, Job { vdi: vdi_asked, command: command(reply), span })?;
        answer.await.unwrap_or_else(|_| {
            let text = format!("the operation on VDI {vdi} broke off; the daemon's log tells why");
            Err(StorageError::Internal(text))
        })
    }

    fn post(self: &Arc<Self>, vdi: &VdiId, job: Job) -> Result<(), StorageError> {
        let mut actors = self.actors.lock().unwrap_or_else(PoisonError::into_inner);
        // A VDI and the copy that a guest uses instead have one actor.
        let base = vdi.base();
        let job = match actors.entry(base.clone()) {
            Slot::Occupied(slot) => match slot.get().try_send(job) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Full(_)) => {
                    let text = format!(
                        "VDI {vdi} is busy: {COMMANDS_QUEUED_MAX} calls wait for it. Try again \
                        later"
                    );
                    return Err(StorageError::backend(number::GENERAL, text));
                }
                // Its task panicked, which was logged; the next one reads the truth from the
                // database.
                Err(mpsc::error::TrySendError::Closed(job)) => job,
            },
            Slot::Vacant(_) => job,
        };
        let (sender, queue) = mpsc::channel(COMMANDS_QUEUED_MAX);
        // A fresh queue has room.
        let _ = sender.try_send(job);
        actors.insert(base.clone(), sender);
        tokio::spawn(actor::run(Arc::clone(self), base, queue));
        Ok(())
    }

    /// Waits until no command is under way. For the end of the daemon, when none comes any more.
    pub async fn idle(&self) {
        while !self.actors.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            tokio::time::sleep(IDLE_INTERVAL).await;
        }
    }

    /// Lets an actor go that has nothing to do. Posting happens under the same lock: no job is
    /// lost.
    pub(super) fn retire(&self, vdi: &VdiId, queue: &mpsc::Receiver<Job>) -> bool {
        let mut actors = self.actors.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = queue.is_empty();
        if idle {
            actors.remove(vdi);
        }
        idle
    }
}

impl From<Datapath> for Holder {
    fn from(held: Datapath) -> Self {
        Holder { dp: held.dp, domain: held.domain, state: held.state, since: held.since }
    }
}
