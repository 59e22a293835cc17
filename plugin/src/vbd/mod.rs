//! VBDs: what domains see of VDIs, over xenstore.
//!
//! Writes the backend's side of XenBus and plays the toolstack for `VBD.plug`; it never touches a
//! ring or an image, which are a worker's. Called by the RPC's admin methods and by the VDI side.

pub mod actor;
pub mod address;
mod asking;
pub mod backend;
pub mod device;
pub mod disk;
pub mod frontend;
pub mod gone;
pub mod offer;
mod pace;
mod plug;
pub mod publish;
pub mod reading;
mod report;
pub mod space;
pub mod status;
#[cfg(test)]
mod tests;
mod toolstack;
pub mod watcher;
pub mod xenbus;

use crate::events::Events;
use crate::vdi::Registry;
use crate::worker::WorkerNews;
use crate::xenstore::Store;
use crate::xenstore::live::Live;
use disk::{Disks, News};
use offer::Offer;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OnceCell, mpsc, watch};
use tokio::task::JoinHandle;
use watcher::{Shared, Watcher};

/// News of workers that wait for the watcher.
const NEWS_MAX: usize = 64;

/// What there is to choose.
#[derive(Debug, Clone)]
pub struct VbdConfig {
    /// Backend kinds to look after, beside our own.
    pub kinds: Vec<String>,
    /// Where changes are told.
    pub events: Events,
    /// What guests are offered at the most.
    pub offer: Offer,
}

/// All VBDs of this host. All work is done in tasks of its own: a caller may go at any moment.
pub struct Vbds {
    store: Arc<dyn Store>,
    disks: Arc<dyn Disks>,
    shared: Shared,
    own: watch::Receiver<Option<address::Own>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// What was there at the start is known.
    settled: OnceCell<()>,
}

impl Vbds {
    /// Starts to look after VBDs. It never fails because xenstored is away: it keeps trying, and
    /// [`Vbds::trouble`] says so.
    #[must_use]
    pub fn start(
        config: VbdConfig,
        registry: Arc<Registry>,
        mut news: mpsc::Receiver<WorkerNews>,
    ) -> Arc<Vbds> {
        let (sender, receiver) = mpsc::channel(NEWS_MAX);
        let translate = tokio::spawn(async move {
            while let Some(one) = news.recv().await {
                if sender.send(News::from(one)).await.is_err() {
                    break;
                }
            }
        });
        let vbds = Vbds::with(config, Arc::new(Live::start()), registry, receiver);
        vbds.keep(translate);
        vbds
    }

    /// The same over any store and any VDIs.
    fn with(
        config: VbdConfig,
        store: Arc<dyn Store>,
        disks: Arc<dyn Disks>,
        news: mpsc::Receiver<News>,
    ) -> Arc<Vbds> {
        let mut kinds = config.kinds;
        if !kinds.iter().any(|kind| kind == publish::OWN_KIND) {
            kinds.push(publish::OWN_KIND.to_owned());
        }
        let shared = Shared::default();
        let (sender, own) = watch::channel(None);
        let watcher = Watcher {
            store: store.clone(),
            disks: disks.clone(),
            kinds,
            events: config.events,
            offer: config.offer,
            shared: shared.clone(),
            own: sender,
        };
        let task = tokio::spawn(watcher.run(news));
        Arc::new(Vbds {
            store,
            disks,
            shared,
            own,
            tasks: Mutex::new(vec![task]),
            settled: OnceCell::new(),
        })
    }

    fn keep(&self, task: JoinHandle<()>) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    /// Whether xenstored answers.
    #[must_use]
    pub fn xenstore_alive(&self) -> bool {
        self.store.alive()
    }

    /// Ends all tasks. Rings and xenstore stay as they are: guests do not notice.
    pub async fn stop(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
            // That it was aborted is what was wanted.
            let _ = task.await;
        }
        let holds = self.shared.with(|devices| std::mem::take(&mut devices.holds));
        for (_, hold) in holds {
            let mut status = hold.status;
            // Its inbox closes, so it ends.
            drop(hold.messages);
            while status.changed().await.is_ok() {}
        }
    }
}
