//! Another worker takes the place of one that died, or of one whose program is older.
//!
//! The VDI stays active and this host's all along, guests stay connected: what the former worker
//! had taken of their rings stands in the journals, and the next one takes it up. It starts beside
//! the former and is given nothing to do before the image's fence is free: then all I/O of the
//! former is over. Run by the VDI's actor alone.

use crate::sr::attached::internal;
use crate::state::{Operation, WorkerRow};
use crate::vdi::actor::Vdi;
use crate::vdi::automaton::superstate;
use crate::vdi::service::{FENCE_DEADLINE, end_silent, fence};
use crate::worker::set::Entry;
use crate::worker::{Launcher, WorkerHandle};
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi2::VdiState;

impl Vdi<'_> {
    /// Replaces a worker that died, if it is still missed.
    pub(super) async fn revive(&self) -> Result<(), StorageError> {
        let Some(Entry::Dead { row, ended: true, .. }) = self.registry.workers.entry(self.id)
        else {
            return Ok(());
        };
        let held = self.registry.state.datapaths(self.id).await.map_err(internal)?;
        let VdiState::Activated(_) = superstate(held.iter().map(|held| held.state)) else {
            // It is cleared away with the other chores.
            return Ok(());
        };
        self.replace(&row, None).await
    }

    /// Replaces a worker that serves by one of the program that is installed now.
    pub(super) async fn upgrade(&self) -> Result<(), StorageError> {
        let Some(worker) = self.registry.workers.serving(self.id) else {
            let text = format!(
                "cannot upgrade the worker of VDI {}: none serves it. Activate the VDI \
                 (VDI.activate3): that starts one of the program that is installed now",
                self.id
            );
            return Err(StorageError::backend(number::WORKER_FAILED, text));
        };
        self.replace(worker.row(), Some(&worker)).await
    }

    async fn replace(
        &self,
        former: &WorkerRow,
        alive: Option<&WorkerHandle>,
    ) -> Result<(), StorageError> {
        let state = &self.registry.state;
        let worker = Launcher::new_id();
        let intent = Operation::Activate { worker: worker.clone() };
        let intent = state.begin(self.id, &intent).await.map_err(internal)?;
        let mut released = false;
        let replaced = self.replace_by(&worker, intent, former, alive, &mut released).await;
        if let Err(problem) = &replaced {
            state.settle(intent).await.map_err(internal)?;
            if released {
                // Its guests wait: the supervisor goes on.
                self.registry.workers.mourn(former.clone(), problem.to_string(), true);
            }
        }
        replaced
    }

    async fn replace_by(
        &self,
        worker: &str,
        intent: i64,
        former: &WorkerRow,
        alive: Option<&WorkerHandle>,
        released: &mut bool,
    ) -> Result<(), StorageError> {
        let failed = |text: String| {
            let text = format!("cannot replace the worker of VDI {}: {text}", self.id);
            StorageError::backend(number::WORKER_FAILED, text)
        };
        let sr = self.registry.srs.get(&self.id.sr)?;
        let (key, read_only) = (self.id.vdi.clone(), former.read_only);
        let record = sr.run(move |file| file.volume_here(&key)).await?;
        // A block device has one user at a time.
        let at_once = record.device.is_none() || read_only;
        if !at_once {
            self.release(former, alive, released).await.map_err(failed)?;
        }
        let image = sr.run(move |file| file.open_image(&record, read_only)).await?;
        let launcher = &self.registry.launcher;
        let started = launcher.start(worker, self.id, image.share()?).await.map_err(failed)?;
        let taken_over = async {
            if at_once {
                self.release(former, alive, released).await.map_err(failed)?;
            }
            if !fence(&image, FENCE_DEADLINE).await? {
                return Err(self.fenced_off(&image));
            }
            // Before it is remembered: whoever adopts it finds NBD clients served.
            launcher.open_nbd(worker, self.id).map_err(failed)?;
            let remembered = self.registry.state.replace_worker(intent, &former.id, started.row());
            remembered.await.map_err(internal)
        };
        if let Err(problem) = taken_over.await {
            if let Err(stuck) = started.stop().await {
                tracing::error!(vdi = %self.id, "{stuck}");
            }
            return Err(problem);
        }
        drop(image);
        let (pid, version) = (started.pid(), started.version());
        let former = &former.id;
        tracing::info!(vdi = %self.id, worker, pid, version, former, "worker serves on");
        launcher.sweep(former);
        self.registry.workers.ready(started).await;
        Ok(())
    }

    /// The former worker finishes what it took and ends; or it has died, and this makes sure.
    async fn release(
        &self,
        former: &WorkerRow,
        alive: Option<&WorkerHandle>,
        released: &mut bool,
    ) -> Result<(), String> {
        let Some(alive) = alive else { return end_silent(former).await };
        *released = true;
        self.registry.workers.release(alive, None).await;
        alive.stop().await.map(drop)
    }
}
