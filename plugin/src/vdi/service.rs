//! A VDI begins to be served, and ceases to be: image, fence, worker, in that order and back.
//!
//! Intent before, outcome after: whichever instant the daemon is killed at, the next one finds what
//! there is (`worker/reconcile.rs`). Run by the VDI's actor alone.

use crate::fault;
use crate::sr::Sr;
use crate::sr::attached::internal;
use crate::sr::image::Image;
use crate::state::{Datapath, Operation, WorkerRow, now};
use crate::vdi::actor::Vdi;
use crate::worker::process::Process;
use crate::worker::set::Entry;
use crate::worker::{Launcher, WorkerHandle, spawn};
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi2::Mode;

/// How long an image's last user may take to let go of it: I/O of a dead worker outlives it.
pub(super) const FENCE_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is asked meanwhile whether another host has the VDI active.
const OWNER_INTERVAL: Duration = Duration::from_millis(200);
/// How often the fence is tried.
const FENCE_INTERVAL: Duration = Duration::from_millis(5);
/// How long the kernel may take to end a silent worker that was killed.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

impl Vdi<'_> {
    /// Starts a worker for `activated` and remembers both at once.
    pub(super) async fn serve(
        &self,
        sr: &Sr,
        mode: Mode,
        activated: &Datapath,
    ) -> Result<(), StorageError> {
        self.clear_away().await?;
        let read_only = mode == Mode::ReadOnly;
        let key = self.id.vdi.clone();
        let image = sr
            .run(move |file| {
                let record = file.volume_here(&key)?;
                file.open_image(&record, read_only)
            })
            .await?;
        let deadline = Instant::now() + FENCE_DEADLINE;
        while !fence(&image, OWNER_INTERVAL).await? {
            // Whoever has it may be about to say so.
            let key = self.id.vdi.clone();
            sr.run(move |file| file.volume_here(&key).map(drop)).await?;
            if Instant::now() >= deadline {
                return Err(self.fenced_off(&image));
            }
        }
        if !image.is_current() {
            let text = format!(
                "cannot activate VDI {}: it was reverted at this very moment. Try again",
                self.id
            );
            return Err(StorageError::backend(number::VDI_UNAVAILABLE, text));
        }
        let state = &self.registry.state;
        let worker = Launcher::new_id();
        let intent = Operation::Activate { worker: worker.clone() };
        let intent = state.begin(self.id, &intent).await.map_err(internal)?;
        let started = match self.start(sr, image, &worker).await {
            Ok(started) => started,
            Err(problem) => {
                self.disown(sr).await?;
                state.settle(intent).await.map_err(internal)?;
                return Err(problem);
            }
        };
        if let Err(error) = state.settle_with_worker(intent, started.row(), activated).await {
            // What can't be remembered must not run. The intent stays, and with it the owner.
            if let Err(problem) = started.stop().await {
                tracing::error!(vdi = %self.id, "{problem}");
            }
            return Err(internal(error));
        }
        let (pid, version) = (started.pid(), started.version());
        tracing::info!(vdi = %self.id, worker, pid, version, read_only, "worker serves");
        self.registry.workers.ready(started).await;
        Ok(())
    }

    /// Takes the VDI for this host, then starts its worker: of hosts that read alone there may be
    /// several, and the image's lock excludes them from a writer's.
    async fn start(
        &self,
        sr: &Sr,
        image: Image,
        worker: &str,
    ) -> Result<WorkerHandle, StorageError> {
        if !image.read_only() {
            let key = self.id.vdi.clone();
            sr.run(move |file| file.own(&key, now())).await?;
        }
        let launcher = &self.registry.launcher;
        let failed = |problem: String| {
            let text = format!("cannot activate VDI {}: its worker: {problem}", self.id);
            StorageError::backend(number::WORKER_FAILED, text)
        };
        let started = launcher.start(worker, self.id, image);
        let started = started.await.map_err(failed)?;
        match launcher.open_nbd(worker, self.id) {
            Ok(()) => Ok(started),
            Err(problem) => {
                started.stop().await.map_err(failed)?;
                Err(failed(problem))
            }
        }
    }

    /// Gives the VDI back to all hosts. What cannot be written now is owed: it is tried again in
    /// the background, and keeps nobody here from the VDI.
    pub(super) async fn disown(&self, sr: &Sr) -> Result<(), StorageError> {
        let key = self.id.vdi.clone();
        let Err(error) = sr.run(move |file| file.disown(&key)).await else { return Ok(()) };
        tracing::warn!(vdi = %self.id, "not given back to other hosts yet: {error}");
        self.registry.owe(self.id).await
    }

    /// Stops the worker and remembers `deactivated`, at once with the worker's end.
    pub(super) async fn cease(&self, deactivated: &Datapath) -> Result<(), StorageError> {
        let state = &self.registry.state;
        let intent = Operation::Deactivate { dp: deactivated.dp.clone() };
        let intent = state.begin(self.id, &intent).await.map_err(internal)?;
        let worker = match self.stop().await {
            Ok(worker) => worker,
            Err(problem) => {
                state.settle(intent).await.map_err(internal)?;
                return Err(problem);
            }
        };
        if let Ok(sr) = self.registry.srs.get(&self.id.sr)
            && worker.as_ref().is_none_or(|row| !row.read_only)
        {
            self.disown(&sr).await?;
        }
        let worker = worker.map(|row| row.id);
        state
            .settle_without_worker(Some(intent), self.id, worker.as_deref(), Some(deactivated))
            .await
            .map_err(internal)?;
        self.registry.workers.forget(self.id).await;
        Ok(())
    }

    /// Makes sure that no earlier worker is left, dead or stuck, and forgets it.
    pub(super) async fn clear_away(&self) -> Result<(), StorageError> {
        let Some(row) = self.stop().await? else { return Ok(()) };
        let state = &self.registry.state;
        state.settle_without_worker(None, self.id, Some(&row.id), None).await.map_err(internal)?;
        self.registry.workers.remove(self.id).await;
        tracing::info!(vdi = %self.id, worker = row.id, "cleared a former worker away");
        Ok(())
    }

    /// Stops the VDI's worker, whatever its condition, and waits until nobody does I/O on the
    /// image.
    async fn stop(&self) -> Result<Option<WorkerRow>, StorageError> {
        let Some(entry) = self.registry.workers.entry(self.id) else { return Ok(None) };
        let failed = |text: String| {
            let text = format!("cannot deactivate VDI {}: {text}", self.id);
            StorageError::backend(number::WORKER_FAILED, text)
        };
        let polite = match &entry {
            Entry::Known(handle) => {
                if handle.end().is_none() {
                    self.registry.workers.release(handle, None).await;
                    fault::point!("a worker's rings are let go of");
                }
                handle.stop().await.map_err(failed)?
            }
            Entry::Dead { row, .. } => {
                end_silent(row).await.map_err(failed)?;
                false
            }
        };
        spawn::remove_socket(&self.registry.launcher.nbd_socket(self.id));
        fault::point!("a worker's sockets are removed");
        if !polite {
            self.await_fence().await?;
        }
        Ok(Some(entry.row().clone()))
    }

    /// After a worker's death: its I/O may still be under way.
    async fn await_fence(&self) -> Result<(), StorageError> {
        let Ok(sr) = self.registry.srs.get(&self.id.sr) else { return Ok(()) };
        let key = self.id.vdi.clone();
        let opened = sr.run(move |file| file.open_image(&file.volume_here(&key)?, true)).await;
        // An image that can't be opened is nobody's; whoever activates it next is told. One that
        // another host has was taken from us when nobody had it locked any more.
        let Ok(image) = opened else { return Ok(()) };
        if fence(&image, FENCE_DEADLINE).await? { Ok(()) } else { Err(self.fenced_off(&image)) }
    }

    pub(super) fn fenced_off(&self, image: &Image) -> StorageError {
        let text = format!(
            "VDI {} is in use: another process has {} locked (lslocks names it), or I/O of a \
             worker that died is still under way. Try again when that is over",
            self.id,
            image.path().display()
        );
        StorageError::backend(number::VDI_UNAVAILABLE, text)
    }
}

/// Waits for the image's fence; false when its holder keeps it.
pub(super) async fn fence(image: &Image, patience: Duration) -> Result<bool, StorageError> {
    let deadline = Instant::now() + patience;
    while !image.try_fence()? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(FENCE_INTERVAL).await;
    }
    Ok(true)
}

/// Ends a worker that is remembered and does not answer, if it is still there.
pub(super) async fn end_silent(row: &WorkerRow) -> Result<(), String> {
    match Process::open(row.pid) {
        Ok(process) if process.start_time() == row.start_time => {
            process.kill();
            if tokio::time::timeout(KILL_DEADLINE, process.exited()).await.is_err() {
                return Err(format!("worker {} (pid {}) does not end", row.id, row.pid));
            }
        }
        _ => {}
    }
    spawn::remove_socket(Path::new(&row.socket));
    Ok(())
}
