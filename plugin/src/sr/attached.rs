//! The SRs that this host has attached, and the lock of each.
//!
//! Operations on a whole SR hold its lock alone, operations on its VDIs share it: no VDI is
//! activated while its SR goes. Called by the RPC handlers (in tasks of their own) and by VDI
//! actors.

use crate::events::Events;
use crate::sr::Sr;
use crate::sr::owner::Identity;
use crate::state::{Operation, SrRow, State};
use crate::vdi::VdiId;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::RwLock;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::event::Change;
use zerotap_rpc_schema::smapi2::{Pairs, VdiState};

/// The most SRs of one host.
pub const SRS_MAX: usize = 256;

/// The attached SRs.
#[derive(Debug)]
pub struct Srs {
    state: State,
    overcommit: bool,
    us: Identity,
    events: Events,
    attached: Mutex<BTreeMap<String, (Pairs, Sr)>>,
    locks: Mutex<HashMap<String, Arc<RwLock<()>>>>,
}

impl Srs {
    /// The SRs that the database tells of; their file systems are not looked at.
    ///
    /// # Errors
    /// The database failed.
    pub async fn restore(state: State, overcommit: bool, events: Events) -> Result<Srs> {
        let us = state.identity(None).await?;
        let mut attached = BTreeMap::new();
        for row in state.srs().await? {
            let sr = Sr::new(&row.uuid, &row.device_config, overcommit, us.clone())?;
            attached.insert(row.uuid, (row.device_config, sr));
        }
        Ok(Srs {
            state,
            overcommit,
            us,
            events,
            attached: Mutex::new(attached),
            locks: Mutex::new(HashMap::new()),
        })
    }

    fn attached(&self) -> MutexGuard<'_, BTreeMap<String, (Pairs, Sr)>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The uuids, sorted.
    #[must_use]
    pub fn list(&self) -> Vec<String> {
        self.attached().keys().cloned().collect()
    }

    /// An attached SR.
    ///
    /// # Errors
    /// `Sr_not_attached`.
    pub fn get(&self, uuid: &str) -> Result<Sr, StorageError> {
        let attached = self.attached();
        let (_, sr) = attached.get(uuid).ok_or_else(|| StorageError::SrNotAttached(uuid.into()))?;
        Ok(sr.clone())
    }

    /// An SR's lock: to be written for the whole SR, read for one of its VDIs.
    pub fn lock(&self, uuid: &str) -> Arc<RwLock<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if !locks.contains_key(uuid) {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        Arc::clone(locks.entry(uuid.into()).or_default())
    }

    /// SR.create: makes it and attaches it.
    ///
    /// # Errors
    /// Anything about the place that keeps it from being an SR.
    pub async fn create(
        &self,
        uuid: &str,
        config: &Pairs,
        name_label: String,
        name_description: String,
    ) -> Result<(), StorageError> {
        let sr = Sr::new(uuid, config, self.overcommit, self.us.clone())?;
        let lock = self.lock(uuid);
        let _alone = lock.write().await;
        self.check_attachable(uuid, config, &sr)?;
        sr.run(move |file| file.create(&name_label, &name_description)).await?;
        self.remember(uuid, config, sr).await
    }

    /// Who we are on SRs that other hosts see too.
    #[must_use]
    pub fn us(&self) -> &Identity {
        &self.us
    }

    /// SR.attach. Succeeds when it is attached so. What a crash of this host left active on it is
    /// given back to all that see it.
    ///
    /// # Errors
    /// Not there, or attached otherwise.
    pub async fn attach(&self, uuid: &str, config: &Pairs) -> Result<(), StorageError> {
        let sr = Sr::new(uuid, config, self.overcommit, self.us.clone())?;
        let lock = self.lock(uuid);
        let _alone = lock.write().await;
        self.check_attachable(uuid, config, &sr)?;
        let in_use = self.in_use(uuid).await?;
        sr.run(move |file| file.attach().and_then(|()| file.disown_leftovers(&in_use))).await?;
        self.finish(uuid, &sr).await?;
        self.remember(uuid, config, sr).await
    }

    /// Finishes or undoes what calls of an earlier boot left half done. Tried once: what nobody was
    /// told of must not come about at some later day.
    async fn finish(&self, uuid: &str, sr: &Sr) -> Result<(), StorageError> {
        let unfinished = self.state.unfinished(uuid).await.map_err(internal)?;
        if unfinished.is_empty() {
            return Ok(());
        }
        for (key, operation) in unfinished {
            let what = format!("{operation:?} of {key}");
            let done = sr.run(move |file| match operation {
                Operation::CreateVdi => file.undo_make(&key),
                Operation::ResizeVdi { size } => file.finish_resize(&key, size).map(drop),
                Operation::RevertVdi { size } => file.finish_revert(&key, size),
                _ => Ok(()),
            });
            match done.await {
                Ok(()) => tracing::info!(sr = uuid, what, "left by an earlier boot, and settled"),
                Err(error) => tracing::error!(sr = uuid, what, "left by an earlier boot: {error}"),
            }
        }
        self.state.finished(uuid).await.map_err(internal)
    }

    /// The keys of its volumes that are active here, or whose worker has not gone.
    async fn in_use(&self, uuid: &str) -> Result<BTreeSet<String>, StorageError> {
        let datapaths = self.state.all_datapaths().await.map_err(internal)?;
        let workers = self.state.workers().await.map_err(internal)?;
        let active =
            datapaths.into_iter().filter(|(_, held)| matches!(held.state, VdiState::Activated(_)));
        let vdis = active.map(|(vdi, _)| vdi).chain(workers.into_iter().map(|row| row.vdi));
        Ok(vdis.filter(|vdi| vdi.sr == uuid).map(|vdi| vdi.vdi).collect())
    }

    fn check_attachable(&self, uuid: &str, config: &Pairs, sr: &Sr) -> Result<(), StorageError> {
        let attached = self.attached();
        if let Some((there, _)) = attached.get(uuid) {
            if there == config {
                return Ok(());
            }
            let text = format!(
                "cannot attach SR {uuid} with {config:?}: it is attached with {there:?}. Detach it \
                first"
            );
            return Err(StorageError::backend(number::SR_IN_USE, text));
        }
        if let Some((other, _)) = attached.iter().find(|(_, (_, other))| other.dir() == sr.dir()) {
            let text = format!(
                "cannot attach SR {uuid}: {} is SR {other}, which is attached",
                sr.dir().display()
            );
            return Err(StorageError::backend(number::SR_IN_USE, text));
        }
        if attached.len() >= SRS_MAX {
            let text =
                format!("cannot attach SR {uuid}: {SRS_MAX} are attached, the most there are");
            return Err(StorageError::backend(number::GENERAL, text));
        }
        Ok(())
    }

    async fn remember(&self, uuid: &str, config: &Pairs, sr: Sr) -> Result<(), StorageError> {
        let row = SrRow { uuid: uuid.into(), device_config: config.clone() };
        self.state.attach_sr(&row).await.map_err(internal)?;
        if self.attached().insert(uuid.into(), (config.clone(), sr)).is_none() {
            tracing::info!(sr = uuid, ?config, "SR attached");
            self.tell(uuid, "attached");
        }
        Ok(())
    }

    /// SR.detach: forgets it and the datapaths that are only attached.
    ///
    /// # Errors
    /// SR_BACKEND_FAILURE_16 while one of its VDIs is active.
    pub async fn detach(&self, uuid: &str) -> Result<(), StorageError> {
        let lock = self.lock(uuid);
        let _alone = lock.write().await;
        if self.get(uuid).is_err() {
            return Ok(());
        }
        self.check_idle(uuid, "detach").await?;
        self.forget(uuid).await?;
        tracing::info!(sr = uuid, "SR detached");
        Ok(())
    }

    /// SR.destroy: removes its record and forgets it.
    ///
    /// # Errors
    /// It has volumes, or is not attached.
    pub async fn destroy(&self, uuid: &str) -> Result<(), StorageError> {
        let lock = self.lock(uuid);
        let _alone = lock.write().await;
        let sr = self.get(uuid)?;
        self.check_idle(uuid, "destroy").await?;
        let whole = VdiId::new(uuid, "");
        let intent = self.state.begin(&whole, &Operation::DestroySr).await.map_err(internal)?;
        if let Err(error) = sr.run(super::file::FileSr::destroy).await {
            self.state.settle(intent).await.map_err(internal)?;
            return Err(error);
        }
        // The intent goes with its SR.
        self.forget(uuid).await?;
        tracing::info!(sr = uuid, "SR destroyed");
        Ok(())
    }

    /// Forgets an SR, its datapaths and its intents.
    ///
    /// # Errors
    /// The database failed.
    pub async fn forget(&self, uuid: &str) -> Result<(), StorageError> {
        self.state.detach_sr(uuid).await.map_err(internal)?;
        if self.attached().remove(uuid).is_some() {
            self.tell(uuid, "detached");
        }
        Ok(())
    }

    fn tell(&self, uuid: &str, state: &str) {
        self.events.tell(Change::Sr { sr: uuid.into(), state: state.into() });
    }

    async fn check_idle(&self, uuid: &str, verb: &str) -> Result<(), StorageError> {
        let datapaths = self.state.all_datapaths().await.map_err(internal)?;
        let active = datapaths.iter().find(|(vdi, datapath)| {
            vdi.sr == uuid && matches!(datapath.state, VdiState::Activated(_))
        });
        if let Some((vdi, datapath)) = active {
            let text = format!(
                "cannot {verb} SR {uuid}: its VDI {} is active for datapath {} of domain {} since \
                 {}. End that use first (VDI.deactivate, or DP.destroy2)",
                vdi.vdi, datapath.dp, datapath.domain, datapath.since
            );
            return Err(StorageError::backend(number::SR_IN_USE, text));
        }
        let workers = self.state.workers().await.map_err(internal)?;
        if let Some(worker) = workers.iter().find(|worker| worker.vdi.sr == uuid) {
            let text = format!(
                "cannot {verb} SR {uuid}: worker {} (pid {}) has not let go of its VDI {} yet. Try \
                 again; Host.status tells what holds it up",
                worker.id, worker.pid, worker.vdi.vdi
            );
            return Err(StorageError::backend(number::SR_IN_USE, text));
        }
        Ok(())
    }
}

/// A fault of ours, or of the disk that the state database lies on.
#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
pub fn internal(error: anyhow::Error) -> StorageError {
    tracing::error!("state database: {error:#}");
    let text = format!("the state database failed: {error:#}. Is its disk full?");
    StorageError::Internal(text)
}
