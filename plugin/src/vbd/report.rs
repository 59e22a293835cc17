//! What operators are told of VBDs: `VBD.list`, `VBD.stat`, troubles.
//!
//! Reads what the actors tell and asks workers for counters; changes nothing.

use super::Vbds;
use super::actor::{Hold, Message};
use super::device;
use super::status::Status;
use crate::vdi::VdiId;
use crate::xenstore::read_if_there;
use std::time::Duration;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::admin::{Trouble, Vbd, VbdParams, VbdStat};
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::worker::{ImageInfo, VbdCounters, VbdId};

/// How long the first question after the start may wait for what the last daemon left.
const SETTLE_DEADLINE: Duration = Duration::from_secs(2);
const SETTLE_INTERVAL: Duration = Duration::from_millis(2);

impl Vbds {
    /// All VBDs of our VDIs, by domain and device.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list(&self) -> Result<Vec<Vbd>, StorageError> {
        self.settled().await;
        let mut all = Vec::new();
        for status in self.statuses() {
            let held_by = self.disks.holders(&status.identity.vdi).await?;
            all.push(status.vbd(held_by));
        }
        all.sort_by_key(|vbd| (vbd.domid, vbd.devid));
        Ok(all)
    }

    /// A VBD with all that its worker knows.
    ///
    /// # Errors
    /// There is no such VBD, or its worker does not answer.
    pub async fn stat(&self, params: VbdParams) -> Result<VbdStat, StorageError> {
        let devid = device::devid(&params.device).map_err(bad_request)?;
        let id = VbdId { domid: params.domid, devid };
        self.settled().await;
        let status = self.find(id).ok_or_else(|| {
            let name = format!("{} of domain {}", params.device, params.domid);
            StorageError::DoesNotExist(("VBD".to_owned(), name))
        })?;
        let held_by = self.disks.holders(&status.identity.vdi).await?;
        let mut vbd = self.now(&status).await.vbd(held_by);
        let disk = self.disks.worker(&status.identity.vdi);
        let mut counters = None;
        if let Some(disk) = &disk {
            let all = disk.stat().await.map_err(|error| {
                StorageError::backend(number::WORKER_FAILED, format!("statistics of {id}: {error}"))
            })?;
            counters = all.into_iter().find(|counters| counters.vbd == id);
        }
        let counters = counters.unwrap_or_else(|| VbdCounters::new(id));
        if counters.broken && vbd.trouble.is_none() {
            self.tell(id, Message::Broken).await;
            vbd.trouble = Some(super::backend::BROKEN.to_owned());
        }
        if counters.counters.waiting_for_space > 0 && vbd.trouble.is_none() {
            self.tell(id, Message::Short(true)).await;
            vbd.trouble = Some(super::backend::SHORT.to_owned());
        }
        Ok(VbdStat {
            vbd,
            ring: status.ring,
            image: disk.map(|disk| {
                let image = disk.image();
                let told = status.identity.offer.sector_bytes(&image);
                ImageInfo {
                    discard: status.identity.discard(&image),
                    emulated_sector_bytes: (told != image.sector_bytes).then_some(told),
                    ..image
                }
            }),
            counters: counters.counters,
            read_latency: counters.read_latency,
            write_latency: counters.write_latency,
            flush_latency: counters.flush_latency,
            age_ms: 0,
            discard_latency: counters.discard_latency,
        })
    }

    /// The VBDs whose rings are served, and of which VDI. No I/O.
    #[must_use]
    pub fn connected(&self) -> Vec<(VbdId, VdiId)> {
        let served = self.statuses().into_iter().filter(|status| status.ring.is_some());
        served.map(|status| (status.address.id, status.identity.vdi)).collect()
    }

    /// What is wrong. No I/O.
    #[must_use]
    pub fn trouble(&self) -> Vec<Trouble> {
        let mut all = Vec::new();
        if !self.store.alive() {
            all.push(Trouble {
                what: "xenstore".to_owned(),
                problem: "xenstored does not answer; no VBD can be plugged, unplugged or connected"
                    .to_owned(),
                remedy:
                    "see whether xenstored runs (its log, `xenstore-ls`); zerotap connects again \
                         by itself"
                        .to_owned(),
            });
        }
        for status in self.statuses() {
            if let Some(text) = &status.trouble {
                let (problem, remedy) = text.split_once(": ").unwrap_or((text, ""));
                all.push(Trouble {
                    what: vbd_name(&status),
                    problem: problem.to_owned(),
                    remedy: remedy.to_owned(),
                });
            }
        }
        all.extend(self.shared.with(|devices| {
            let wrong = devices.wrong.iter().map(|((kind, id), problem)| Trouble {
                what: format!("VBD {} of domain {} ({kind})", device::name(id.devid), id.domid),
                problem: format!("its backend directory names a VDI of ours, but {problem}"),
                remedy: "remove the directory and plug the device again".to_owned(),
            });
            wrong.collect::<Vec<_>>()
        }));
        all
    }

    /// A status with both states as they are in xenstore, if it answers: a guest may have seen them
    /// before its actor has.
    async fn now(&self, status: &Status) -> Status {
        let mut status = status.clone();
        let frontend = format!("{}/state", status.address.frontend());
        if let Ok(state) = read_if_there(&*self.store, &status.address.key("state")).await {
            status.backend_state = state;
        }
        if let Ok(state) = read_if_there(&*self.store, &frontend).await {
            status.frontend_state = state;
        }
        status
    }

    /// Waits, once after the start, until what the last daemon left is known.
    async fn settled(&self) {
        let look = async {
            while !self.shared.with(|devices| {
                let settled = |hold: &Hold| hold.status.borrow().settled;
                devices.looked && devices.holds.values().all(settled)
            }) {
                tokio::time::sleep(SETTLE_INTERVAL).await;
            }
        };
        let once = async {
            // At the deadline what is known has to do; trouble tells the rest.
            let _ = tokio::time::timeout(SETTLE_DEADLINE, look).await;
        };
        self.settled.get_or_init(|| once).await;
    }

    /// How each VBD is. No I/O.
    #[must_use]
    pub fn statuses(&self) -> Vec<Status> {
        self.shared.with(|devices| {
            let all = devices.holds.values().map(|hold| hold.status.borrow().clone());
            all.filter(|status| !status.ended && status.seen).collect()
        })
    }

    pub(super) fn find(&self, id: VbdId) -> Option<Status> {
        self.statuses().into_iter().find(|status| status.address.id == id)
    }

    pub(super) async fn tell(&self, id: VbdId, message: Message) {
        let actor = self.shared.with(|devices| {
            let mut all = devices.holds.iter().filter(|((_, of), _)| *of == id);
            all.next().map(|(_, hold)| hold.messages.clone())
        });
        if let Some(actor) = actor {
            // One that has ended needs to be told nothing.
            let _ = actor.send(message).await;
        }
    }
}

/// An error for who asked for something that cannot be.
pub(super) fn bad_request(text: String) -> StorageError {
    StorageError::backend(number::BAD_REQUEST, text)
}

fn vbd_name(status: &Status) -> String {
    format!("VBD {} of domain {}", status.device(), status.address.id.domid)
}
