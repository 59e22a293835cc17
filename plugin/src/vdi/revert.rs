//! VDI.revert: a VDI goes back to the content of its snapshot.
//!
//! Never under a guest: a disk in use is refused. The snapshot stays as it is and may be in use
//! where extents are shared. Run by the VDI's actor; `sr/revert.rs` does it.

use crate::sr::COPY_DEADLINE;
use crate::sr::attached::internal;
use crate::sr::file::FileSr;
use crate::sr::revert::Reversion;
use crate::state::{Operation, now};
use crate::vdi::VdiId;
use crate::vdi::actor::Vdi;
use crate::vdi::volume::is_open;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::smapi2::VdiState;

impl Vdi<'_> {
    pub(super) async fn revert(&self, snapshot: String) -> Result<(), StorageError> {
        let sr = self.registry.srs.get(&self.id.sr)?;
        self.retry_leaked().await?;
        self.check_unused("revert", |state| matches!(state, VdiState::Activated(_))).await?;
        self.clear_away().await?;
        let key = snapshot.clone();
        let size = sr.run(move |file| file.volume(&key)).await?.virtual_size;
        let source = VdiId::new(self.id.sr.clone(), snapshot.clone());
        let in_use = self.registry.is_written(&source).await?;
        let state = &self.registry.state;
        let intent = Operation::RevertVdi { size };
        let intent = state.begin(self.id, &intent).await.map_err(internal)?;
        let key = self.id.vdi.clone();
        let wanted = Reversion { key, snapshot, size, in_use, since: now() };
        let task = self.registry.tasks.begin(self.id, "revert");
        let work = move |file: &FileSr| file.revert(&wanted, &task.progress);
        let reverted = sr.run_for(COPY_DEADLINE, work).await;
        if reverted.as_ref().err().is_none_or(|error| !is_open(error)) {
            state.settle(intent).await.map_err(internal)?;
        }
        reverted?;
        tracing::info!(vdi = %self.id, snapshot = source.vdi, bytes = size, "VDI reverted");
        Ok(())
    }
}
