//! What a new daemon does before it serves: look at what the old one left, and act on the plan.
//!
//! `worker/reconcile.rs` decides. Nothing here fails the start: what can't be settled now is
//! logged, keeps its intent, and is tried at the next start. Called once, by the daemon.

use crate::sr::attached::internal;
use crate::state::WorkerRow;
use crate::vdi::registry::Registry;
use crate::vdi::resize::follow;
use crate::vdi::service::end_silent;
use crate::vdi::{VdiId, automaton};
use crate::worker::client::Client;
use crate::worker::process::Process;
use crate::worker::reconcile::{Action, Seen, Situation, plan};
use crate::worker::{Hello, WorkerHandle, spawn};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::smapi2::VdiState;

/// How long a worker that was killed just now may take to be gone.
const DEATH_DEADLINE: Duration = Duration::from_millis(500);

/// A remembered worker and what became of it.
struct Observed {
    row: WorkerRow,
    seen: Seen,
    handle: Option<WorkerHandle>,
}

/// Adopts, reaps, forgets and settles.
///
/// # Errors
/// The database or the workers' directory can't be read.
pub async fn recover(registry: &Arc<Registry>) -> Result<()> {
    let mut observations = Vec::new();
    for row in registry.state.workers().await? {
        observations.push(tokio::spawn(observe(Arc::clone(registry), row)));
    }
    let mut observed = BTreeMap::new();
    for observation in observations {
        let worker = observation.await.context("looking at a worker")?;
        observed.insert(worker.row.id.clone(), worker);
    }
    let mut active: BTreeMap<VdiId, Vec<VdiState>> = BTreeMap::new();
    for (vdi, held) in registry.state.all_datapaths().await? {
        active.entry(vdi).or_default().push(held.state);
    }
    active.retain(|_, states| {
        matches!(automaton::superstate(states.iter().copied()), VdiState::Activated(_))
    });
    let situation = Situation {
        workers: observed.values().map(|worker| (worker.row.clone(), worker.seen)).collect(),
        active: active.into_keys().collect(),
        sockets: sockets(&registry.launcher.dir)?,
        intents: registry.state.intents().await?,
    };
    for action in plan(&situation) {
        let worker = match &action {
            Action::Adopt(id) | Action::Mourn(id) | Action::Stop(id) | Action::Forget(id) => {
                observed.remove(id)
            }
            _ => None,
        };
        if let Err(error) = act(registry, &action, worker).await {
            tracing::error!(?action, "left by an earlier daemon, not settled yet: {error}");
        }
    }
    sweep_nbd_sockets(registry)
}

/// Removes the NBD sockets that no worker listens on. Nobody makes one yet.
fn sweep_nbd_sockets(registry: &Registry) -> Result<()> {
    let launcher = &registry.launcher;
    let workers = registry.all_workers();
    let used: BTreeSet<_> = workers.iter().map(|it| launcher.nbd_socket(&it.row().vdi)).collect();
    let dir = &launcher.nbd_dir;
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if !used.contains(&path) {
            spawn::remove_socket(&path);
        }
    }
    Ok(())
}

async fn observe(registry: Arc<Registry>, row: WorkerRow) -> Observed {
    let process = match Process::open(row.pid) {
        Ok(process) if process.start_time() == row.start_time => process,
        _ => return Observed { row, seen: Seen::Gone, handle: None },
    };
    let greeting = async {
        let client = Client::connect(Path::new(&row.socket)).await?;
        let hello = Hello::ask(&client).await?;
        Ok::<_, crate::worker::WorkerError>((client, hello))
    };
    match greeting.await {
        Ok((client, hello)) if hello.pid == row.pid => {
            let launcher = registry.launcher.clone();
            let handle = WorkerHandle::new(row.clone(), hello, client, process, launcher);
            Observed { row, seen: Seen::Serving, handle: Some(handle) }
        }
        Ok((_, hello)) => {
            tracing::warn!(worker = row.id, pid = row.pid, "pid {} answers for it", hello.pid);
            Observed { row, seen: Seen::Silent, handle: None }
        }
        // It has died and nobody has waited for it, or it is about to.
        Err(_) if timeout(DEATH_DEADLINE, process.exited()).await.is_ok() => {
            Observed { row, seen: Seen::Gone, handle: None }
        }
        Err(error) => {
            tracing::warn!(worker = row.id, pid = row.pid, "does not answer: {error}");
            Observed { row, seen: Seen::Silent, handle: None }
        }
    }
}

fn sockets(dir: &Path) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let mut ids = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        if let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".sock")) {
            ids.insert(id.to_string());
        }
    }
    Ok(ids)
}

async fn act(
    registry: &Arc<Registry>,
    action: &Action,
    worker: Option<Observed>,
) -> Result<(), StorageError> {
    match (action, worker) {
        (Action::Adopt(_), Some(Observed { handle: Some(handle), .. })) => {
            let (vdi, worker, pid) = (handle.vdi().clone(), handle.id().to_string(), handle.pid());
            tracing::info!(%vdi, worker, pid, "worker adopted");
            registry.workers.adopt(handle);
            Ok(())
        }
        (Action::Mourn(_), Some(Observed { row, seen, .. })) => {
            let why = match seen {
                Seen::Gone => "it ended while the daemon was away",
                _ => "it runs and does not answer the daemon",
            };
            tracing::error!(vdi = %row.vdi, worker = row.id, pid = row.pid, "worker lost: {why}");
            registry.workers.mourn(row, why.into(), seen == Seen::Gone);
            Ok(())
        }
        (Action::Stop(_), Some(Observed { row, handle, .. })) => {
            match handle {
                Some(handle) => handle.stop().await.map(|_| ()),
                None => end_silent(&row).await,
            }
            .map_err(StorageError::Internal)?;
            forget(registry, &row).await
        }
        (Action::Forget(_), Some(Observed { row, .. })) => {
            spawn::remove_socket(Path::new(&row.socket));
            forget(registry, &row).await
        }
        (Action::Adopt(_) | Action::Mourn(_) | Action::Stop(_) | Action::Forget(_), _) => Ok(()),
        (Action::Reap(id), _) => reap(registry, id).await,
        (Action::UndoCreate(intent, vdi), _) => {
            let key = vdi.vdi.clone();
            let sr = registry.srs.get(&vdi.sr)?;
            sr.run(move |file| file.undo_make(&key)).await?;
            settle(registry, *intent).await
        }
        (Action::FinishDestroy(intent, vdi), _) => {
            let key = vdi.vdi.clone();
            let sr = registry.srs.get(&vdi.sr)?;
            sr.run(move |file| file.finish_remove(&key)).await?;
            settle(registry, *intent).await
        }
        (Action::FinishResize(intent, vdi, size), _) => {
            let (key, size) = (vdi.vdi.clone(), *size);
            let sr = registry.srs.get(&vdi.sr)?;
            let bytes = sr.run(move |file| file.finish_resize(&key, size)).await?;
            // VBDs are not looked after yet: they compare what they find with what is served.
            follow(registry, vdi, bytes).await?;
            settle(registry, *intent).await
        }
        (Action::FinishRevert(intent, vdi, size), _) => {
            let (key, size) = (vdi.vdi.clone(), *size);
            let sr = registry.srs.get(&vdi.sr)?;
            sr.run(move |file| file.finish_revert(&key, size)).await?;
            registry.owe(vdi).await?;
            settle(registry, *intent).await
        }
        (Action::FinishDeactivate(intent, vdi, dp), _) => {
            registry.deactivate(vdi, dp.clone()).await?;
            settle(registry, *intent).await
        }
        (Action::FinishDestroySr(_, sr), _) => {
            registry.srs.get(sr)?.run(crate::sr::file::FileSr::destroy).await?;
            registry.srs.forget(sr).await
        }
        // The chores, which begin soon, do it.
        (Action::Disown(intent, _), _) => {
            registry.state.undo_by_giving_back(*intent).await.map_err(internal)
        }
    }
}

async fn forget(registry: &Registry, row: &WorkerRow) -> Result<(), StorageError> {
    tracing::info!(vdi = %row.vdi, worker = row.id, "worker forgotten: nobody has its VDI active");
    spawn::remove_socket(&registry.launcher.nbd_socket(&row.vdi));
    registry.owe(&row.vdi).await?;
    let forgotten = registry.state.settle_without_worker(None, &row.vdi, Some(&row.id), None);
    forgotten.await.map_err(internal)
}

async fn settle(registry: &Registry, intent: i64) -> Result<(), StorageError> {
    registry.state.settle(intent).await.map_err(internal)
}

/// Ends whoever serves a socket that no row speaks of: no caller was ever told that it runs.
async fn reap(registry: &Registry, id: &str) -> Result<(), StorageError> {
    let socket = registry.launcher.socket(id);
    if let Ok(client) = Client::connect(&socket).await {
        let hello = Hello::ask(&client).await.map_err(|error| {
            let text = format!("a worker at {} does not answer: {error}", socket.display());
            StorageError::Internal(text)
        })?;
        if !hello.connected.is_empty() {
            // A worker gets rings only after it was remembered: it is the database that was lost.
            let text = format!(
                "a worker at {} (pid {}) serves {} guests' disks and the database does not know \
                 it: it is left alone. Was the database removed? Shut these guests down, then \
                 kill it",
                socket.display(),
                hello.pid,
                hello.connected.len()
            );
            return Err(StorageError::Internal(text));
        }
        if let Ok(process) = Process::open(hello.pid) {
            let row = WorkerRow {
                id: id.into(),
                vdi: VdiId::new("", ""),
                pid: hello.pid,
                start_time: process.start_time(),
                socket: socket.to_string_lossy().into_owned(),
                version: hello.version.clone(),
                read_only: false,
                since: String::new(),
            };
            let launcher = registry.launcher.clone();
            let stray = WorkerHandle::new(row, hello, client, process, launcher);
            stray.stop().await.map_err(StorageError::Internal)?;
            tracing::info!(worker = id, pid = stray.pid(), "ended a worker that nobody knew of");
        }
    }
    registry.launcher.sweep(id);
    Ok(())
}
