//! VDI.resize: the data grows, then the record, then the worker that serves it, then what guests
//! are told.
//!
//! Each step is finished before the next begins and the intent covers all: a crash between any two
//! is made good by the next start (`recover.rs`). A disk in use only grows: what a guest was once
//! offered it may have written to. Run by the VDI's actor.

use crate::fault;
use crate::sr::attached::internal;
use crate::state::Operation;
use crate::vdi::VdiId;
use crate::vdi::actor::Vdi;
use crate::vdi::registry::Registry;
use crate::vdi::volume::is_open;
use crate::worker::WorkerHandle;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;

/// Bytes of what blkif and the worker's protocol count in.
const SECTOR_BYTES: u64 = 512;

impl Vdi<'_> {
    pub(super) async fn resize(&self, size: i64) -> Result<i64, StorageError> {
        let sr = self.registry.srs.get(&self.id.sr)?;
        self.retry_leaked().await?;
        let worker = self.registry.worker(self.id);
        if let Some(old) = worker.as_ref().filter(|worker| !worker.resizes()) {
            let text = format!(
                "cannot resize VDI {} while it is active: its worker {} is of version {}, which \
                 cannot do that. Deactivate the VDI first",
                self.id,
                old.id(),
                old.version()
            );
            return Err(StorageError::backend(number::VDI_RESIZE, text));
        }
        let state = &self.registry.state;
        let intent = Operation::ResizeVdi { size };
        let intent = state.begin(self.id, &intent).await.map_err(internal)?;
        let key = self.id.vdi.clone();
        let resized = sr.run(move |file| file.resize(&key, size)).await;
        let followed = match &resized {
            Ok(bytes) => follow(self.registry, self.id, *bytes).await,
            Err(_) => Ok(None),
        };
        fault::point!("a worker serves what has grown");
        if resized.as_ref().err().is_none_or(|error| !is_open(error)) {
            state.settle(intent).await.map_err(internal)?;
        }
        let bytes = resized?;
        let active = followed?;
        tracing::info!(vdi = %self.id, bytes, active = active.is_some(), "VDI resized");
        if let Some(worker) = active {
            self.registry.workers.tell_anew(worker).await;
        }
        Ok(bytes)
    }
}

/// Has the VDI's worker, where there is one, serve all `bytes` of the image. Which worker it is, if
/// it serves more than before.
///
/// # Errors
/// The worker does not; the volume has grown all the same.
pub(super) async fn follow(
    registry: &Registry,
    vdi: &VdiId,
    bytes: i64,
) -> Result<Option<WorkerHandle>, StorageError> {
    let Some(worker) = registry.worker(vdi) else { return Ok(None) };
    let sectors = bytes.cast_unsigned() / SECTOR_BYTES;
    if sectors <= worker.image().sectors {
        return Ok(None);
    }
    match worker.resize(sectors).await {
        Ok(()) => Ok(Some(worker)),
        Err(error) => {
            let text = format!(
                "VDI {vdi} has {bytes} bytes now, and its guests do not see them: {error}. Resize \
                 it to the same size once more, or deactivate and activate it"
            );
            Err(StorageError::backend(number::WORKER_FAILED, text))
        }
    }
}
