//! Which worker serves which VDI, and who is told when that changes.
//!
//! Never starts or stops one. VDI actors put workers in and take them out; the VBD side looks them
//! up and hears of them; a task a worker notices when it dies.

use crate::events::Events;
use crate::state::WorkerRow;
use crate::vdi::VdiId;
use crate::worker::WorkerHandle;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use zerotap_rpc_schema::event::Change;

/// News that wait for the VBD side.
pub const NEWS_QUEUED_MAX: usize = 256;
/// How long the VBD side may take to hear of news, or to let go of a VDI's rings.
pub const RELEASE_DEADLINE: Duration = Duration::from_secs(5);

/// What the VBD side must hear of.
#[derive(Debug)]
pub enum WorkerNews {
    /// A worker is ready: VBDs that wait for its VDI can go on. Or its image has grown: they tell
    /// their guests.
    Ready(WorkerHandle),
    /// A VDI, or a domain's use of it, is about to be deactivated. Disconnect its rings, then say
    /// so; after [`RELEASE_DEADLINE`] that is done in any case.
    Releasing {
        /// Who serves it.
        worker: WorkerHandle,
        /// Whose rings, where others go on.
        domid: Option<u16>,
        /// To be sent when no ring is served any more.
        done: oneshot::Sender<()>,
    },
    /// A worker died: its rings are not served. Told again when there are other words for it.
    Died {
        /// What it served.
        vdi: VdiId,
        /// Its id.
        worker: String,
        /// How it ended and what is done about it, for people.
        text: String,
    },
}

/// A VDI's worker.
#[derive(Debug, Clone)]
pub enum Entry {
    /// It has said Hello. It may have ended since.
    Known(WorkerHandle),
    /// It died, or does not answer: its VDI is active and not served.
    Dead {
        /// What was remembered of it.
        row: WorkerRow,
        /// What is wrong with it, for people.
        why: String,
        /// Whether another may take its place: it has ended, or nobody is served by it.
        ended: bool,
        /// How long it had served, as far as is known.
        served: Option<Duration>,
    },
}

impl Entry {
    /// What is remembered of it.
    #[must_use]
    pub fn row(&self) -> &WorkerRow {
        match self {
            Entry::Known(handle) => handle.row(),
            Entry::Dead { row, .. } => row,
        }
    }

    /// What is wrong with it, for people; `None` while it serves.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        match self {
            Entry::Known(handle) => handle.end(),
            Entry::Dead { why, .. } => Some(why.clone()),
        }
    }
}

/// How often a VDI's worker was started and died while this daemon ran and the VDI was in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lives {
    /// Workers started.
    pub starts: u64,
    /// Workers that died, nobody having told them to end.
    pub deaths: u64,
}

/// All workers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Workers {
    entries: Arc<Mutex<BTreeMap<VdiId, Entry>>>,
    lives: Arc<Mutex<BTreeMap<VdiId, Lives>>>,
    news: mpsc::Sender<WorkerNews>,
    /// Told of each death.
    deaths: Arc<Notify>,
    events: Events,
}

impl Workers {
    /// None yet; `news` goes to the VBD side.
    #[must_use]
    pub fn new(news: mpsc::Sender<WorkerNews>, events: Events) -> Workers {
        let (entries, lives, deaths) = Default::default();
        Workers { entries, lives, news, deaths, events }
    }

    /// How often each VDI's worker was started and died.
    #[must_use]
    pub fn lives(&self) -> BTreeMap<VdiId, Lives> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, vdi: &VdiId, count: impl FnOnce(&mut Lives)) {
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        count(lives.entry(vdi.clone()).or_default());
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<VdiId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker that serves a VDI, alive and not about to stop.
    #[must_use]
    pub fn serving(&self, vdi: &VdiId) -> Option<WorkerHandle> {
        match self.entries().get(vdi) {
            Some(Entry::Known(handle)) if is_serving(handle) => Some(handle.clone()),
            _ => None,
        }
    }

    /// All workers that serve.
    #[must_use]
    pub fn all_serving(&self) -> Vec<WorkerHandle> {
        let entries = self.entries();
        let known = entries.values().filter_map(|entry| match entry {
            Entry::Known(handle) if is_serving(handle) => Some(handle.clone()),
            _ => None,
        });
        known.collect()
    }

    /// A VDI's worker, dead or alive.
    #[must_use]
    pub fn entry(&self, vdi: &VdiId) -> Option<Entry> {
        self.entries().get(vdi).cloned()
    }

    /// All workers, dead or alive.
    #[must_use]
    pub fn all(&self) -> Vec<Entry> {
        self.entries().values().cloned().collect()
    }

    /// Where changes are told.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Takes in a worker that an earlier daemon started. The VBD side has not started yet and will
    /// look it up.
    pub fn adopt(&self, worker: WorkerHandle) {
        self.tell_of(worker.row(), "adopted", None);
        self.take_in(worker);
    }

    fn tell_of(&self, row: &WorkerRow, state: &str, why: Option<String>) {
        let VdiId { sr, vdi } = row.vdi.clone();
        let (worker, pid, state) = (row.id.clone(), row.pid, state.to_owned());
        self.events.tell(Change::Worker { sr, vdi, worker, pid, state, why });
    }

    fn take_in(&self, worker: WorkerHandle) {
        // First, or a death at once would be nobody's.
        self.entries().insert(worker.vdi().clone(), Entry::Known(worker.clone()));
        self.watch(worker);
    }

    /// Takes in a worker that has just become ready.
    pub async fn ready(&self, worker: WorkerHandle) {
        self.count(worker.vdi(), |lives| lives.starts += 1);
        self.tell_of(worker.row(), "started", None);
        self.take_in(worker.clone());
        self.tell(WorkerNews::Ready(worker)).await;
    }

    /// Of a worker that serves there is something new: its image has grown, or it serves one more.
    pub async fn tell_anew(&self, worker: WorkerHandle) {
        self.tell(WorkerNews::Ready(worker)).await;
    }

    /// Remembers a worker that can't be used. `ended`: another may take its place.
    pub fn mourn(&self, row: WorkerRow, why: String, ended: bool) {
        let dead = Entry::Dead { row: row.clone(), why, ended, served: None };
        self.entries().insert(row.vdi, dead);
        self.deaths.notify_one();
    }

    /// Tells of a dead worker in other words: what is done about it.
    pub async fn explain(&self, vdi: &VdiId, words: String) {
        let worker = match self.entries().get_mut(vdi) {
            Some(Entry::Dead { row, why, .. }) => {
                why.clone_from(&words);
                row.id.clone()
            }
            _ => return,
        };
        self.tell(WorkerNews::Died { vdi: vdi.clone(), worker, text: words }).await;
    }

    /// Waits for a death.
    pub async fn death(&self) {
        self.deaths.notified().await;
    }

    /// Forgets a VDI's worker; another may follow.
    pub async fn remove(&self, vdi: &VdiId) {
        let removed = self.entries().remove(vdi);
        if let Some(Entry::Dead { row, .. }) = removed {
            // What was told of it is not true any more.
            let (vdi, text) = (vdi.clone(), String::new());
            self.tell(WorkerNews::Died { vdi, worker: row.id, text }).await;
        }
    }

    /// Forgets a VDI that is not in use any more.
    pub async fn forget(&self, vdi: &VdiId) {
        self.remove(vdi).await;
        self.lives.lock().unwrap_or_else(PoisonError::into_inner).remove(vdi);
    }

    /// Has the VBD side let go of a worker's rings, or of those of one domain.
    pub async fn release(&self, worker: &WorkerHandle, domid: Option<u16>) {
        let (done, released) = oneshot::channel();
        self.tell(WorkerNews::Releasing { worker: worker.clone(), domid, done }).await;
        if tokio::time::timeout(RELEASE_DEADLINE, released).await.is_err() {
            tracing::warn!(
                vdi = %worker.vdi(),
                domid,
                "its rings are still served after {} s; it is deactivated all the same",
                RELEASE_DEADLINE.as_secs()
            );
        }
    }

    async fn tell(&self, news: WorkerNews) {
        // Nobody listens while the daemon stops.
        if self.news.send_timeout(news, RELEASE_DEADLINE).await.is_err() && !self.news.is_closed() {
            tracing::error!("the VBD side does not take news of workers");
        }
    }

    fn watch(&self, worker: WorkerHandle) {
        let workers = self.clone();
        tokio::spawn(async move {
            let text = worker.ended().await;
            let (vdi, row) = (worker.vdi().clone(), worker.row().clone());
            if worker.is_stopping() {
                workers.tell_of(&row, "stopped", None);
                return;
            }
            tracing::error!(%vdi, worker = row.id, pid = row.pid, "worker died: {text}");
            {
                let mut entries = workers.entries();
                let ours = entries.get(&vdi).is_some_and(|entry| entry.row().id == row.id);
                if !ours {
                    return;
                }
                let served = Some(worker.age());
                let (why, ended) = (text.clone(), true);
                entries.insert(vdi.clone(), Entry::Dead { row, why, ended, served });
            }
            workers.deaths.notify_one();
            workers.count(&vdi, |lives| lives.deaths += 1);
            workers.tell_of(worker.row(), "died", Some(text.clone()));
            let worker = worker.id().to_string();
            let text = format!("its worker died ({text}): another is being started");
            workers.tell(WorkerNews::Died { vdi, worker, text }).await;
        });
    }
}

fn is_serving(worker: &WorkerHandle) -> bool {
    worker.end().is_none() && !worker.is_stopping()
}
