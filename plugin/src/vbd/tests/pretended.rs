//! A worker that only says that it serves, and a registry of such.

use super::super::disk::{Answer, Disk, Disks};
use crate::vdi::VdiId;
use crate::worker::{Offered, WorkerError};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::worker::{
    Connected, Counters, Discard, ImageInfo, Journaled, RingParameters, TransferRule, VbdCounters,
    VbdId,
};

#[derive(Debug)]
pub(super) struct PretendedDisk {
    id: String,
    vdi: VdiId,
    pub(super) read_only: bool,
    pub(super) journaled: bool,
    rings: Mutex<BTreeMap<VbdId, (RingParameters, bool)>>,
    calls: Mutex<Vec<String>>,
    refuse: Mutex<Option<String>>,
    alive: Mutex<bool>,
    /// While true, no disconnect ends: the storage does not answer.
    stuck: watch::Sender<bool>,
    pub(super) broken: Mutex<bool>,
}

impl PretendedDisk {
    pub(super) fn new(id: &str, vdi: VdiId) -> Arc<Self> {
        Self::with(id, vdi, false)
    }

    /// One that finds a journal of every ring.
    pub(super) fn journaled(id: &str, vdi: VdiId) -> Arc<Self> {
        Self::with(id, vdi, true)
    }

    fn with(id: &str, vdi: VdiId, journaled: bool) -> Arc<Self> {
        Arc::new(PretendedDisk {
            id: id.to_owned(),
            vdi,
            read_only: false,
            journaled,
            rings: Mutex::default(),
            calls: Mutex::default(),
            refuse: Mutex::default(),
            alive: Mutex::new(true),
            stuck: watch::channel(false).0,
            broken: Mutex::default(),
        })
    }

    /// The ring of a VBD that it serves, and whether read-only.
    pub(super) fn ring(&self, vbd: VbdId) -> Option<(RingParameters, bool)> {
        self.rings.lock().unwrap().get(&vbd).cloned()
    }

    /// `connect` and `disconnect` as they came.
    pub(super) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    pub(super) fn refuse(&self, text: Option<&str>) {
        *self.refuse.lock().unwrap() = text.map(str::to_owned);
    }

    pub(super) fn die(&self) {
        *self.alive.lock().unwrap() = false;
        self.rings.lock().unwrap().clear();
    }

    pub(super) fn stick(&self, stuck: bool) {
        self.stuck.send_replace(stuck);
    }

    fn check(&self) -> Result<(), WorkerError> {
        if *self.alive.lock().unwrap() { Ok(()) } else { Err(WorkerError::Gone) }
    }
}

impl Disk for PretendedDisk {
    fn vdi(&self) -> &VdiId {
        &self.vdi
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn pid(&self) -> u32 {
        4242
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn image(&self) -> ImageInfo {
        ImageInfo {
            sectors: 4096,
            sector_bytes: 512,
            physical_sector_bytes: 4096,
            emulated_sector_bytes: None,
            memory_align_bytes: 512,
            discard: Some(Discard { granularity_bytes: 4096, alignment_bytes: 0 }),
        }
    }

    fn indirect_segments_max(&self) -> u32 {
        256
    }

    fn ring_page_order_max(&self) -> u32 {
        4
    }

    fn queues_max(&self) -> u32 {
        4
    }

    fn connected(&self) -> Answer<'_, Vec<Connected>> {
        Box::pin(async move {
            self.check()?;
            let broken = *self.broken.lock().unwrap();
            let rings = self.rings.lock().unwrap();
            let tell = |(&vbd, (ring, _)): (&VbdId, &(RingParameters, bool))| Connected {
                vbd,
                ring: ring.clone(),
                broken,
                draining: false,
            };
            Ok(rings.iter().map(tell).collect())
        })
    }

    fn transfer(&self) -> Option<TransferRule> {
        Some(TransferRule::Auto)
    }

    fn connect(
        &self,
        vbd: VbdId,
        ring: RingParameters,
        read_only: bool,
        offered: Offered,
        _transfer: Option<TransferRule>,
        how: Journaled,
    ) -> Answer<'_, ()> {
        Box::pin(async move {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            self.check()?;
            assert!(!(read_only && offered.discard), "who may not write may not discard");
            self.calls.lock().unwrap().push(format!("connect {vbd} {}", ring.queues[0].port));
            if let Some(text) = self.refuse.lock().unwrap().clone() {
                return Err(WorkerError::Refused(text));
            }
            if how == Journaled::Resume && !self.journaled {
                return Err(WorkerError::Refused("there is no journal".to_owned()));
            }
            let before = self.rings.lock().unwrap().insert(vbd, (ring, read_only));
            assert!(before.is_none(), "a ring is connected over another");
            Ok(())
        })
    }

    fn leaves(&self) -> bool {
        true
    }

    fn disconnect(&self, vbd: VbdId, leave: bool) -> Answer<'_, bool> {
        Box::pin(async move {
            let mut stuck = self.stuck.subscribe();
            let _ = stuck.wait_for(|stuck| !stuck).await;
            self.check()?;
            let how = if leave { ", leaving what waits" } else { "" };
            self.calls.lock().unwrap().push(format!("disconnect {vbd}{how}"));
            self.rings.lock().unwrap().remove(&vbd);
            Ok(true)
        })
    }

    fn keeps_journals(&self) -> bool {
        true
    }

    fn conclude(&self, _vbd: VbdId, _ring: &RingParameters) {}

    fn stat(&self) -> Answer<'_, Vec<VbdCounters>> {
        Box::pin(async move {
            self.check()?;
            let broken = *self.broken.lock().unwrap();
            let rings = self.rings.lock().unwrap();
            let tell = |&vbd: &VbdId| VbdCounters {
                vbd,
                broken,
                counters: Counters { reads: 3, ..Counters::default() },
                ..VbdCounters::new(vbd)
            };
            Ok(rings.keys().map(tell).collect())
        })
    }
}

/// Who serves what.
#[derive(Clone, Default)]
pub(super) struct PretendedDisks(Arc<Mutex<BTreeMap<VdiId, Arc<PretendedDisk>>>>);

impl PretendedDisks {
    pub(super) fn add(&self, disk: &Arc<PretendedDisk>) {
        self.0.lock().unwrap().insert(disk.vdi.clone(), disk.clone());
    }

    pub(super) fn remove(&self, vdi: &VdiId) {
        self.0.lock().unwrap().remove(vdi);
    }
}

impl Disks for PretendedDisks {
    fn worker(&self, vdi: &VdiId) -> Option<Arc<dyn Disk>> {
        self.0.lock().unwrap().get(vdi).cloned().map(|disk| disk as Arc<dyn Disk>)
    }

    fn holders<'a>(
        &'a self,
        _vdi: &'a VdiId,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, StorageError>> + Send + 'a>> {
        Box::pin(async { Ok(vec!["vbd/5/xvda".to_owned()]) })
    }

    fn waits<'a>(
        &'a self,
        _vdi: &'a VdiId,
        _domid: u16,
    ) -> Pin<Box<dyn Future<Output = Option<String>> + Send + 'a>> {
        Box::pin(async { None })
    }

    fn forget(&self, _vbd: VbdId) {}

    fn forget_others(&self, _there: &BTreeSet<VbdId>) {}
}
