//! One look at all that is counted: workers, their VBDs, SRs.
//!
//! It takes [`LOOK_DEADLINE`] at the most, whoever does not answer, and is then made of what they
//! told last. What is gone is not in it. Called for `/metrics` and by whoever else reads counters.

use super::asked::{Asked, Told};
use crate::rpc::Core;
use crate::state::WorkerRow;
use crate::vbd::status::Status;
use crate::worker::Counted;
use crate::worker::set::Entry;
use futures_util::FutureExt;
use std::time::Duration;
use zerotap_rpc_schema::smapi2::SrInfo;
use zerotap_rpc_schema::worker::VbdCounters;

/// How long a look waits for workers and file systems.
pub const LOOK_DEADLINE: Duration = Duration::from_millis(500);

/// Those who are asked.
#[derive(Default)]
pub struct Watched {
    workers: Asked<String, Counted>,
    srs: Asked<String, SrInfo>,
}

/// A worker.
#[derive(Debug)]
pub struct WorkerLook {
    /// Who it is.
    pub row: WorkerRow,
    /// It serves.
    pub up: bool,
    /// What it told.
    pub told: Option<Told<Counted>>,
}

/// A VBD.
#[derive(Debug)]
pub struct VbdLook {
    /// How it is.
    pub status: Status,
    /// What its worker told of it.
    pub counters: Option<Told<VbdCounters>>,
}

/// An SR.
#[derive(Debug)]
pub struct SrLook {
    /// Its uuid.
    pub uuid: String,
    /// What its file system told.
    pub told: Option<Told<SrInfo>>,
}

/// What there was to see.
#[derive(Debug)]
pub struct Look {
    /// All workers.
    pub workers: Vec<WorkerLook>,
    /// All VBDs.
    pub vbds: Vec<VbdLook>,
    /// All SRs that are attached.
    pub srs: Vec<SrLook>,
}

impl Look {
    /// Looks.
    pub async fn take(core: &Core) -> Look {
        let entries = core.registry.all_workers();
        let asks = entries.iter().filter_map(|entry| match entry {
            Entry::Known(worker) if worker.end().is_none() => {
                let asked = worker.clone();
                let counted = async move { asked.counted().await.ok() };
                Some((worker.id().to_owned(), counted.boxed()))
            }
            _ => None,
        });
        let uuids = core.srs.list();
        let srs = uuids.iter().filter_map(|uuid| Some((uuid.clone(), core.srs.get(uuid).ok()?)));
        let spaces = srs.map(|(uuid, sr)| {
            let space = async move { sr.run(|file| file.stat()).await.ok() };
            (uuid, space.boxed())
        });
        let (mut workers, mut srs) = tokio::join!(
            core.watched.workers.ask(asks.collect(), LOOK_DEADLINE),
            core.watched.srs.ask(spaces.collect(), LOOK_DEADLINE)
        );
        let of_vbd = |status: Status| {
            let told = status.worker.as_ref().and_then(|worker| workers.get(worker));
            let counters = told.and_then(|Told { value, age, fresh }| {
                let mut all = value.vbds.iter();
                let value = all.find(|counted| counted.vbd == status.address.id)?.clone();
                Some(Told { value, age: *age, fresh: *fresh })
            });
            VbdLook { status, counters }
        };
        let mut vbds: Vec<_> = core.vbds.statuses().into_iter().map(of_vbd).collect();
        vbds.sort_by_key(|vbd| vbd.status.address.id);
        let of_worker = |entry: &Entry| WorkerLook {
            row: entry.row().clone(),
            up: entry.trouble().is_none(),
            told: workers.remove(&entry.row().id),
        };
        let of_sr = |uuid: String| SrLook { told: srs.remove(&uuid), uuid };
        Look {
            workers: entries.iter().map(of_worker).collect(),
            vbds,
            srs: uuids.into_iter().map(of_sr).collect(),
        }
    }
}
