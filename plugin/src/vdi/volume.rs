//! What the volume commands do: create, copy, unlock, destroy, edit.
//!
//! They refuse what would pull a volume from under its users; the SR does the rest. Run by the
//! VDI's actor alone.

use crate::sr::attached::internal;
use crate::sr::file::FileSr;
use crate::sr::record::Record;
use crate::sr::{COPY_DEADLINE, Sr};
use crate::state::Operation;
use crate::vdi::VdiId;
use crate::vdi::actor::{Edit, Vdi};
use crate::vdi::datapath::check_name;
use crate::vdi::tasks::Task;
use crate::worker::{WorkerError, WorkerHandle};
use std::sync::Arc;
use std::time::Instant;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::admin::Unlocked;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi2::{VdiInfo, VdiState};

impl Vdi<'_> {
    pub(super) async fn create(&self, record: Record) -> Result<VdiInfo, StorageError> {
        let sr = self.registry.srs.get(&self.id.sr)?;
        let state = &self.registry.state;
        let intent = state.begin(self.id, &Operation::CreateVdi).await.map_err(internal)?;
        let made = sr.run(move |file| file.make(&record)).await;
        if made.as_ref().err().is_none_or(|error| !is_open(error)) {
            state.settle(intent).await.map_err(internal)?;
        }
        let made = made?;
        tracing::info!(vdi = %self.id, bytes = made.virtual_size, "VDI created");
        Ok(made)
    }

    /// Run by the source's actor: nobody activates or grows the source meanwhile.
    pub(super) async fn copy(&self, record: Record) -> Result<VdiInfo, StorageError> {
        let sr = self.registry.srs.get(&self.id.sr)?;
        self.retry_leaked().await?;
        let state = &self.registry.state;
        let in_use = self.registry.is_written(self.id).await?;
        let copy = VdiId::new(self.id.sr.clone(), record.key.clone());
        let intent = state.begin(&copy, &Operation::CreateVdi).await.map_err(internal)?;
        let (source, started) = (self.id.vdi.clone(), Instant::now());
        let task = self.registry.tasks.begin(self.id, "copy");
        let made = match self.registry.worker(self.id).filter(|it| in_use && it.copies()) {
            Some(worker) => self.copy_in_use(&sr, record, &worker, task).await,
            None => {
                let work = move |file: &FileSr| file.copy(&source, &record, in_use, &task.progress);
                sr.run_for(COPY_DEADLINE, work).await
            }
        };
        if made.as_ref().err().is_none_or(|error| !is_open(error)) {
            state.settle(intent).await.map_err(internal)?;
        }
        let made = made?;
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(vdi = %self.id, %copy, snapshot = made.is_a_snapshot, ms, "VDI copied");
        Ok(made)
    }

    /// The worker makes the copy: who uses the disk waits for a piece of it, not for all.
    async fn copy_in_use(
        &self,
        sr: &Sr,
        record: Record,
        worker: &WorkerHandle,
        task: Arc<Task>,
    ) -> Result<VdiInfo, StorageError> {
        let planned = record.clone();
        let data = sr.run(move |file| file.begin_copy(&planned)).await?;
        let to = data.try_clone().map_err(|error| WorkerError::Io(error.to_string()));
        let filled = match to {
            Ok(to) => worker.copy(to).await,
            Err(error) => Err(error),
        };
        let Err(problem) = filled else {
            return sr.run_for(COPY_DEADLINE, move |file| file.finish_copy(&record, &data)).await;
        };
        tracing::warn!(vdi = %self.id, "copied at once instead of by its worker: {problem}");
        let source = self.id.vdi.clone();
        let work = move |file: &FileSr| {
            // Not into the same file: the worker may still be at it.
            file.discard_data(&record.key)?;
            file.copy(&source, &record, true, &task.progress)
        };
        sr.run_for(COPY_DEADLINE, work).await
    }

    pub(super) async fn unlock(
        &self,
        from: String,
        reason: String,
    ) -> Result<Unlocked, StorageError> {
        check_name("reason", &reason)?;
        let sr = self.registry.srs.get(&self.id.sr)?;
        let key = self.id.vdi.clone();
        let seen = sr.run(move |file| file.unlock(&key, &from)).await?;
        let Unlocked { host, boot_id, epoch, since, data } = &seen;
        let vdi = self.id;
        tracing::warn!(%vdi, host, boot_id, epoch, since, data, reason, "VDI taken by force");
        Ok(seen)
    }

    pub(super) async fn destroy(&self) -> Result<(), StorageError> {
        // A copy that a guest uses instead goes first, or is in the way.
        self.epoch_end().await?;
        self.destroy_alone().await
    }

    pub(super) async fn destroy_alone(&self) -> Result<(), StorageError> {
        let sr = self.registry.srs.get(&self.id.sr)?;
        self.retry_leaked().await?;
        self.check_unused("destroy", |_| true).await?;
        self.clear_away().await?;
        let state = &self.registry.state;
        let intent = state.begin(self.id, &Operation::DestroyVdi).await.map_err(internal)?;
        let key = self.id.vdi.clone();
        let removed = sr.run(move |file| file.remove(&key)).await;
        // Half removed it is no VDI any more: the intent stays, and the next start of the daemon
        // removes the rest. Still there, it stays a VDI, as the caller is told.
        if removed.is_ok() || self.is_whole(&sr).await {
            state.settle(intent).await.map_err(internal)?;
        }
        removed?;
        tracing::info!(vdi = %self.id, "VDI destroyed");
        Ok(())
    }

    async fn is_whole(&self, sr: &Sr) -> bool {
        let key = self.id.vdi.clone();
        sr.run(move |file| file.volume(&key)).await.is_ok()
    }

    pub(super) async fn edit(&self, edit: Edit) -> Result<(), StorageError> {
        let sr = self.registry.srs.get(&self.id.sr)?;
        let key = self.id.vdi.clone();
        tracing::info!(vdi = %self.id, ?edit, "VDI's record changes");
        sr.run(move |file| file.edit_volume(&key, |record| apply(record, edit))).await
    }

    /// Refuses while a datapath is in one of the states that `excludes` tells.
    pub(super) async fn check_unused(
        &self,
        verb: &str,
        excludes: impl Fn(VdiState) -> bool,
    ) -> Result<(), StorageError> {
        let held = self.registry.state.datapaths(self.id).await.map_err(internal)?;
        let Some(holder) = held.iter().find(|held| excludes(held.state)) else { return Ok(()) };
        let text = format!(
            "cannot {verb} VDI {}: it is {} for datapath {} of domain {} since {}. End that use \
             first (VDI.deactivate and VDI.detach, or DP.destroy2)",
            self.id, holder.state, holder.dp, holder.domain, holder.since
        );
        Err(StorageError::backend(number::VDI_IN_USE, text))
    }
}

/// Whether the outcome is open: the file system has not answered, and may still do it.
pub(super) fn is_open(error: &StorageError) -> bool {
    error.code() == i32::from(number::SR_UNAVAILABLE)
}

fn apply(record: &mut Record, edit: Edit) {
    match edit {
        Edit::NameLabel(name) => record.name_label = name,
        Edit::Persistent(persistent) => record.persistent = persistent,
        Edit::AddTag(tag) if record.tags.contains(&tag) => {}
        Edit::AddTag(tag) => record.tags.push(tag),
        Edit::RemoveTag(tag) => record.tags.retain(|other| *other != tag),
        Edit::NameDescription(text) => record.name_description = text,
        Edit::ContentId(id) => record.content_id = id,
        Edit::SetSmConfig { key, value } => {
            record.sm_config.insert(key, value);
        }
        Edit::RemoveSmConfig { key } => {
            record.sm_config.remove(&key);
        }
        Edit::SetKey { key, value } => record.set_key(&key, value),
        Edit::UnsetKey { key } => record.unset_key(&key),
    }
}
