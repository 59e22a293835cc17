//! Finds the VBDs that are ours and keeps an actor for each; hands on what concerns them.
//!
//! It watches the backend directories of our kinds, and domains that come and go. A watch's event
//! is reduced at once to which device has to be looked at; a set of those is all that is kept. It
//! never acts on a device itself. One task, started by [`super::Vbds`].

use super::actor::{self, Hold, Message};
use super::address::{self, Address, Own, Spot};
use super::disk::{Disks, News};
use super::offer::Offer;
use super::reading::{self, Found};
use crate::events::Events;
use crate::xenstore::{Store, StoreError, Watch};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;
use zerotap_rpc_schema::worker::VbdId;

/// All is looked at this often, whatever the watches say.
const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
/// Devices to look at that are kept apart; above, all are looked at.
const ATTENTION_MAX: usize = 4096;
/// VBDs that are served; far above what a host has.
const VBDS_MAX: usize = 16_384;
/// Domains are made and die.
const DOMAIN_WATCHES: &[&str] = &["@introduceDomain", "@releaseDomain"];

/// A kind and a device.
pub type Key = (String, VbdId);

/// What others may know of the devices.
#[derive(Default)]
pub struct Devices {
    /// Those that are ours.
    pub holds: BTreeMap<Key, Hold>,
    /// Those that name a VDI of ours and are wrong, and why.
    pub wrong: BTreeMap<Key, String>,
    /// All were looked at once.
    pub looked: bool,
}

/// The devices, for whoever asks.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<Devices>>);

impl Shared {
    /// Reads or changes them. `act` must not wait.
    pub fn with<T>(&self, act: impl FnOnce(&mut Devices) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What has to be looked at.
#[derive(Default)]
struct Attention {
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Default)]
struct Pending {
    tree: bool,
    all: bool,
    devices: BTreeSet<Key>,
}

impl Attention {
    fn note(&self, note: impl FnOnce(&mut Pending)) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        note(&mut pending);
        if pending.devices.len() > ATTENTION_MAX {
            pending.devices.clear();
            (pending.tree, pending.all) = (true, true);
        }
        self.wake.notify_one();
    }

    fn take(&self) -> Pending {
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The task.
pub struct Watcher {
    /// xenstore.
    pub store: Arc<dyn Store>,
    /// The VDI side.
    pub disks: Arc<dyn Disks>,
    /// The backend kinds that are looked after.
    pub kinds: Vec<String>,
    /// Where changes are told.
    pub events: Events,
    /// What guests are offered at the most.
    pub offer: Offer,
    /// What it keeps.
    pub shared: Shared,
    /// Told once our own domain is known.
    pub own: tokio::sync::watch::Sender<Option<Own>>,
}

impl Watcher {
    /// Runs until the sender of `news` is gone, or for ever.
    pub async fn run(self, mut news: mpsc::Receiver<News>) {
        let attention = Arc::new(Attention::default());
        // Until all was looked at once nobody knows whether a worker that shall end holds a guest.
        let mut early = Vec::new();
        let own = tokio::select! {
            own = self.own_domid() => own,
            () = self.gather(&mut news, &mut early) => return,
        };
        self.own.send_replace(Some(own));
        let watches = self.watch(own, &attention);
        let mut resync = tokio::time::interval(RESYNC_INTERVAL);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let looked = self.shared.with(|devices| devices.looked);
            if looked {
                for news in early.drain(..) {
                    self.hand_on(news).await;
                }
            }
            tokio::select! {
                biased;
                news = news.recv() => match news {
                    Some(news @ News::Releasing { .. }) if !looked => early.push(news),
                    Some(news) => self.hand_on(news).await,
                    None => break,
                },
                () = attention.wake.notified() => self.look(own, &attention).await,
                _ = resync.tick() => {
                    attention.note(|pending| (pending.tree, pending.all) = (true, true));
                    self.find_lost_rings();
                }
            }
        }
        drop(watches);
    }

    /// As long as there is no actor, other news concern nobody.
    async fn gather(&self, news: &mut mpsc::Receiver<News>, early: &mut Vec<News>) {
        while let Some(news) = news.recv().await {
            if let News::Releasing { .. } = news {
                early.push(news);
            }
        }
    }

    async fn own_domid(&self) -> Own {
        loop {
            match self.store.read(address::OWN_DOMID).await {
                Ok(text) => match text.parse() {
                    Ok(domid) => return Own { domid, named: true },
                    Err(_) => tracing::error!(text, "xenstore's `domid` is no domain"),
                },
                Err(StoreError::Missing(_)) => {
                    tracing::warn!("xenstore has no `domid`; taking this host for domain 0");
                    return Own { domid: 0, named: false };
                }
                Err(error) => tracing::debug!(%error, "waiting for xenstored"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn watch(&self, own: Own, attention: &Arc<Attention>) -> Vec<Watch> {
        let kinds = self.kinds.iter().map(|kind| {
            let (root, kind) = (address::root(own, kind), kind.clone());
            let (attention, at) = (attention.clone(), root.clone());
            let sink = move |path: &str| match address::spot(&root, path) {
                Spot::Nothing => {}
                Spot::Tree => attention.note(|pending| pending.tree = true),
                Spot::Device(id) => attention.note(|pending| {
                    pending.devices.insert((kind.clone(), id));
                }),
            };
            self.store.watch(&at, Arc::new(sink))
        });
        let domains = DOMAIN_WATCHES.iter().map(|special| {
            let attention = attention.clone();
            let sink = move |_: &str| attention.note(|pending| pending.all = true);
            self.store.watch(special, Arc::new(sink))
        });
        kinds.chain(domains).collect()
    }

    async fn look(&self, own: Own, attention: &Arc<Attention>) {
        let pending = attention.take();
        let mut devices = pending.devices;
        let mut whole = pending.tree;
        // Ours or not: a directory that cannot be read now may be ours.
        let mut listed: BTreeSet<VbdId> = devices.iter().map(|(_, id)| *id).collect();
        if pending.tree {
            for kind in &self.kinds {
                match self.list(own, kind).await {
                    Ok(found) => {
                        listed.extend(&found);
                        devices.extend(found.into_iter().map(|id| (kind.clone(), id)));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "not listed");
                        whole = false;
                    }
                }
            }
        }
        let poke = |hold: &Hold| hold.poke.notify_one();
        let unknown = self.shared.with(|known| {
            known.holds.retain(|_, hold| !hold.status.borrow().ended);
            if pending.tree || pending.all {
                known.holds.values().for_each(poke);
            }
            known.wrong.retain(|key, _| devices.contains(key) || !pending.tree);
            devices.retain(|key| known.holds.get(key).map(poke).is_none());
            devices
        });
        for key in unknown {
            self.consider(own, key, attention).await;
        }
        let first =
            whole && self.shared.with(|devices| !std::mem::replace(&mut devices.looked, true));
        if first {
            // Those that went while no daemon was there told nobody.
            self.disks.forget_others(&listed);
        }
    }

    async fn list(&self, own: Own, kind: &str) -> Result<Vec<VbdId>, StoreError> {
        let root = address::root(own, kind);
        let mut found = Vec::new();
        for domid in self.store.list(&root).await? {
            for devid in self.store.list(&format!("{root}/{domid}")).await? {
                found.extend(address::id(&domid, &devid));
            }
        }
        Ok(found)
    }

    /// Starts an actor for a device if it is ours.
    async fn consider(&self, own: Own, key: Key, attention: &Arc<Attention>) {
        let address = Address { id: key.1, kind: key.0.clone(), own };
        let found = match reading::identity(&*self.store, &address, &self.offer).await {
            Ok(found) => found,
            // Once xenstored is back, all is looked at anew.
            Err(error) => return tracing::debug!(vbd = %key.1, %error, "not read"),
        };
        let wrong = match found {
            Found::Ours(identity) if self.shared.with(|d| d.holds.len()) < VBDS_MAX => {
                tracing::info!(vbd = %key.1, kind = key.0, vdi = %identity.vdi, "a VBD of ours");
                let disk = match self.disks.worker(&identity.vdi) {
                    Some(disk) => match self.disks.waits(&identity.vdi, key.1.domid).await {
                        Some(why) => Err(why),
                        None => Ok(disk),
                    },
                    None => Err(String::new()),
                };
                // A directory that was made again while its actor ended has to be looked at.
                let (attention, again) = (attention.clone(), key.clone());
                let (disks, id) = (self.disks.clone(), key.1);
                let ended = move || {
                    disks.forget(id);
                    attention.note(|pending| {
                        pending.devices.insert(again);
                    });
                };
                let (store, events) = (self.store.clone(), self.events.clone());
                let hold = actor::start(store, address, identity, disk, events, ended);
                self.shared.with(|devices| devices.holds.insert(key.clone(), hold));
                None
            }
            Found::Ours(_) => Some(format!("{VBDS_MAX} VBDs are served already")),
            Found::Wrong(text) => Some(text),
            Found::Foreign => None,
        };
        self.shared.with(|devices| match wrong {
            Some(text) => drop(devices.wrong.insert(key, text)),
            None => drop(devices.wrong.remove(&key)),
        });
    }

    /// Tells the actors of a VDI what its worker is up to.
    async fn hand_on(&self, news: News) {
        match news {
            News::Ready(disk) => {
                for (id, hold) in self.of(|vdi| vdi == disk.vdi()) {
                    let message = match self.disks.waits(disk.vdi(), id.domid).await {
                        Some(why) => Message::Died(String::new(), why),
                        None => Message::Ready(disk.clone()),
                    };
                    let _ = hold.send(message).await;
                }
            }
            News::Died { worker, vdi, why } => {
                for (_, hold) in self.of(|of| *of == vdi) {
                    let _ = hold.send(Message::Died(worker.clone(), why.clone())).await;
                }
            }
            News::Releasing { worker, vdi, domid, done } => {
                let mut answers = Vec::new();
                let all = self.of(|of| *of == vdi).into_iter();
                for (_, hold) in all.filter(|(id, _)| domid.is_none_or(|it| it == id.domid)) {
                    let (sender, answer) = tokio::sync::oneshot::channel();
                    let _ = hold.send(Message::Releasing(worker.clone(), sender)).await;
                    answers.push(answer);
                }
                tokio::spawn(async move {
                    for answer in answers {
                        // An actor that has gone has let go.
                        let _ = answer.await;
                    }
                    let _ = done.send(());
                });
            }
        }
    }

    fn of(
        &self,
        wanted: impl Fn(&crate::vdi::VdiId) -> bool,
    ) -> Vec<(VbdId, mpsc::Sender<Message>)> {
        self.shared.with(|devices| {
            let wanted =
                devices.holds.iter().filter(|(_, hold)| wanted(&hold.status.borrow().identity.vdi));
            wanted.map(|(key, hold)| (key.1, hold.messages.clone())).collect()
        })
    }

    /// Asks the workers, beside this task, whether a guest broke a ring, or one is not served any
    /// more, as an earlier daemon may have told them: they don't tell by themselves.
    fn find_lost_rings(&self) {
        for (vdi, actors) in self.served() {
            let Some(disk) = self.disks.worker(&vdi) else { continue };
            tokio::spawn(async move {
                let Ok(rings) = disk.connected().await else { return };
                for (vbd, actor) in actors {
                    let _ = match rings.iter().find(|ring| ring.vbd == vbd) {
                        Some(ring) if ring.broken => actor.send(Message::Broken).await,
                        Some(_) => Ok(()),
                        None => actor.send(Message::Doubted).await,
                    };
                }
            });
        }
    }

    fn served(&self) -> BTreeMap<crate::vdi::VdiId, BTreeMap<VbdId, mpsc::Sender<Message>>> {
        let mut served = BTreeMap::<_, BTreeMap<_, _>>::new();
        self.shared.with(|devices| {
            for hold in devices.holds.values() {
                let status = hold.status.borrow();
                if status.ring.is_some() {
                    let actors = served.entry(status.identity.vdi.clone()).or_default();
                    actors.insert(status.address.id, hold.messages.clone());
                }
            }
        });
        served
    }
}
