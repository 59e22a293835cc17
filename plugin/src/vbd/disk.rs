//! What the VBD side needs of the VDI side: a worker, and the VDIs that have one.
//!
//! Traits, so that tests can put something simple in the place of processes.

use crate::vdi::registry::Holder;
use crate::vdi::{Registry, VdiId};
use crate::worker::{Offered, WorkerError, WorkerHandle, WorkerNews};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::oneshot;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::smapi2::VdiState;
use zerotap_rpc_schema::worker::{
    Connected, ImageInfo, Journaled, RingParameters, TransferRule, VbdCounters, VbdId,
};

/// An answer that is not there yet.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, WorkerError>> + Send + 'a>>;

/// A worker that is ready. Each call has a deadline of its own.
pub trait Disk: Debug + Send + Sync {
    /// What it serves.
    fn vdi(&self) -> &VdiId;
    /// Its id.
    fn id(&self) -> &str;
    /// Its process.
    fn pid(&self) -> u32;
    /// Whether the image is open read-only.
    fn read_only(&self) -> bool;
    /// The image as it found it.
    fn image(&self) -> ImageInfo;
    /// The most segments that an indirect request may have.
    fn indirect_segments_max(&self) -> u32;
    /// The highest ring order that it maps.
    fn ring_page_order_max(&self) -> u32;
    /// The most queues that are worth having.
    fn queues_max(&self) -> u32;
    /// How it reaches guests' pages; none when it knows no rules.
    fn transfer(&self) -> Option<TransferRule>;
    /// The rings that it serves.
    fn connected(&self) -> Answer<'_, Vec<Connected>>;
    /// Has it serve a ring; with discards only if its image has that, by a rule only if it knows
    /// rules.
    fn connect(
        &self,
        vbd: VbdId,
        ring: RingParameters,
        read_only: bool,
        offered: Offered,
        transfer: Option<TransferRule>,
        how: Journaled,
    ) -> Answer<'_, ()>;
    /// Whether it can leave what waits for space to the next worker.
    fn leaves(&self) -> bool;
    /// Has it finish what it took and let go of the guest. What waits for space fails, or with
    /// `leave` is left to the next worker. True when all was answered.
    fn disconnect(&self, vbd: VbdId, leave: bool) -> Answer<'_, bool>;
    /// Whether another can go on with what it took, should it die.
    fn keeps_journals(&self) -> bool;
    /// All that it took of a ring is answered, and it will end: whoever serves the ring next is to
    /// know, though it keeps no journals.
    fn conclude(&self, vbd: VbdId, ring: &RingParameters);
    /// Its counters.
    fn stat(&self) -> Answer<'_, Vec<VbdCounters>>;
}

/// The VDIs of this host.
pub trait Disks: Send + Sync {
    /// The worker that serves a VDI. No I/O.
    fn worker(&self, vdi: &VdiId) -> Option<Arc<dyn Disk>>;
    /// The datapaths that hold a VDI.
    fn holders<'a>(
        &'a self,
        vdi: &'a VdiId,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, StorageError>> + Send + 'a>>;
    /// Why a domain must wait though a worker serves the VDI, for people: its own use is attached
    /// and not active, so it is another's that is, as when a guest migrates within its host.
    fn waits<'a>(
        &'a self,
        vdi: &'a VdiId,
        domid: u16,
    ) -> Pin<Box<dyn Future<Output = Option<String>> + Send + 'a>>;
    /// A device is gone for good: nothing of its journals is needed any more.
    fn forget(&self, vbd: VbdId);
    /// There are these devices and no others: the same of all those.
    fn forget_others(&self, there: &BTreeSet<VbdId>);
}

/// What is to be known of workers as it happens.
#[derive(Debug)]
pub enum News {
    /// One is ready.
    Ready(Arc<dyn Disk>),
    /// One is about to be ended, or a domain's use of it: its rings are to be let go of, then
    /// `done` be sent.
    Releasing {
        /// Its id.
        worker: String,
        /// Its VDI.
        vdi: VdiId,
        /// Whose rings, where others go on.
        domid: Option<u16>,
        /// To be sent when it serves no ring.
        done: oneshot::Sender<()>,
    },
    /// One died.
    Died {
        /// Its id.
        worker: String,
        /// Its VDI.
        vdi: VdiId,
        /// Why, and what is done about it, for people. May be told again with other words.
        why: String,
    },
}

impl From<WorkerNews> for News {
    fn from(news: WorkerNews) -> Self {
        match news {
            WorkerNews::Ready(worker) => News::Ready(Arc::new(worker)),
            WorkerNews::Releasing { worker, domid, done } => {
                let (id, vdi) = (worker.id().to_owned(), worker.vdi().clone());
                News::Releasing { worker: id, vdi, domid, done }
            }
            WorkerNews::Died { vdi, worker, text } => News::Died { worker, vdi, why: text },
        }
    }
}

/// A domain's name is the caller's hint: one that no use names is not kept waiting.
fn waits(holders: &[Holder], domid: u16) -> Option<String> {
    let domain = domid.to_string();
    let mut own = holders.iter().filter(|holder| holder.domain == domain).peekable();
    let dp = own.peek()?.dp.clone();
    let active = own.any(|holder| matches!(holder.state, VdiState::Activated(_)));
    (!active).then(|| {
        format!(
            "the VDI is active for another domain; datapath {dp} of this one is only attached: \
             activate it (VDI.activate3) once the other is not active any more"
        )
    })
}

impl Disk for WorkerHandle {
    fn vdi(&self) -> &VdiId {
        self.vdi()
    }

    fn id(&self) -> &str {
        self.id()
    }

    fn pid(&self) -> u32 {
        self.pid()
    }

    fn read_only(&self) -> bool {
        self.read_only()
    }

    fn image(&self) -> ImageInfo {
        self.image()
    }

    fn indirect_segments_max(&self) -> u32 {
        self.indirect_segments_max()
    }

    fn ring_page_order_max(&self) -> u32 {
        self.ring_page_order_max()
    }

    fn queues_max(&self) -> u32 {
        self.queues_max()
    }

    fn transfer(&self) -> Option<TransferRule> {
        self.transfer()
    }

    fn connected(&self) -> Answer<'_, Vec<Connected>> {
        Box::pin(self.connected())
    }

    fn connect(
        &self,
        vbd: VbdId,
        ring: RingParameters,
        read_only: bool,
        offered: Offered,
        transfer: Option<TransferRule>,
        how: Journaled,
    ) -> Answer<'_, ()> {
        Box::pin(self.connect(vbd, ring, read_only, offered, transfer, how))
    }

    fn leaves(&self) -> bool {
        self.leaves()
    }

    fn disconnect(&self, vbd: VbdId, leave: bool) -> Answer<'_, bool> {
        Box::pin(self.disconnect(vbd, leave))
    }

    fn keeps_journals(&self) -> bool {
        self.keeps_journals()
    }

    fn conclude(&self, vbd: VbdId, ring: &RingParameters) {
        self.conclude(vbd, ring);
    }

    fn stat(&self) -> Answer<'_, Vec<VbdCounters>> {
        Box::pin(self.stat())
    }
}

impl Disks for Registry {
    fn worker(&self, vdi: &VdiId) -> Option<Arc<dyn Disk>> {
        self.worker(vdi).map(|worker| Arc::new(worker) as Arc<dyn Disk>)
    }

    fn holders<'a>(
        &'a self,
        vdi: &'a VdiId,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, StorageError>> + Send + 'a>> {
        Box::pin(async move {
            let holders = self.holders(vdi).await?;
            Ok(holders.into_iter().map(|holder| holder.dp).collect())
        })
    }

    fn waits<'a>(
        &'a self,
        vdi: &'a VdiId,
        domid: u16,
    ) -> Pin<Box<dyn Future<Output = Option<String>> + Send + 'a>> {
        Box::pin(async move {
            match self.holders(vdi).await {
                Ok(holders) => waits(&holders, domid),
                // It is served, as what a toolstack has plugged should be.
                Err(error) => {
                    tracing::error!(%vdi, domid, "whose use is active is not known: {error}");
                    None
                }
            }
        })
    }

    fn forget(&self, vbd: VbdId) {
        self.forget(vbd);
    }

    fn forget_others(&self, there: &BTreeSet<VbdId>) {
        self.forget_others(there);
    }
}
