//! What a new daemon does about what the old one left: rows and intents on one side, processes and
//! sockets that are seen on the other. Pure: it only says what to do.
//!
//! Never ends a worker whose VDI is active: guests' I/O goes on through a restart. Called once, at
//! start.

use crate::state::{Intent, Operation, WorkerRow};
use crate::vdi::VdiId;
use std::collections::{BTreeMap, BTreeSet};

/// How a worker's row compares with the process of its pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It runs and has said Hello.
    Serving,
    /// It runs (pid and start time agree) and does not answer.
    Silent,
    /// No such process, or another one with its pid.
    Gone,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Go on with this worker (by id): it serves.
    Adopt(String),
    /// Remember this worker as dead: its VDI is active and not served.
    Mourn(String),
    /// End this worker and forget it: nobody has its VDI active.
    Stop(String),
    /// Forget this worker: it has ended, and nobody has its VDI active.
    Forget(String),
    /// End whoever serves the socket of this id: no call ever said that it runs.
    Reap(String),
    /// Remove the data of a volume that was not finished, unless its record is there.
    UndoCreate(i64, VdiId),
    /// Remove what is left of a volume.
    FinishDestroy(i64, VdiId),
    /// Finish to grow a volume to this many bytes, when its data has grown.
    FinishResize(i64, VdiId, i64),
    /// Finish to revert a volume to content of this many bytes, when that is in place.
    FinishRevert(i64, VdiId, i64),
    /// Deactivate this datapath.
    FinishDeactivate(i64, VdiId, String),
    /// Give a VDI's record back, if the VDI is not active here.
    Disown(i64, VdiId),
    /// Remove an SR's record and forget the SR.
    FinishDestroySr(i64, String),
}

/// What is remembered and what is seen.
#[derive(Debug, Clone, Default)]
pub struct Situation {
    /// Remembered workers, each with what is seen of it.
    pub workers: Vec<(WorkerRow, Seen)>,
    /// VDIs that some datapath has active.
    pub active: BTreeSet<VdiId>,
    /// Ids of all sockets in the workers' directory.
    pub sockets: BTreeSet<String>,
    /// What was begun and not finished, oldest first.
    pub intents: Vec<Intent>,
}

/// What to do, in this order.
#[must_use]
pub fn plan(situation: &Situation) -> Vec<Action> {
    let rows: BTreeMap<&str, Seen> =
        situation.workers.iter().map(|(row, seen)| (row.id.as_str(), *seen)).collect();
    let workers = situation.workers.iter().map(|(row, seen)| {
        let id = row.id.clone();
        match (seen, situation.active.contains(&row.vdi)) {
            (Seen::Serving, true) => Action::Adopt(id),
            // It may well serve its guests and only not us: it is not killed behind their backs.
            (Seen::Silent | Seen::Gone, true) => Action::Mourn(id),
            (Seen::Serving | Seen::Silent, false) => Action::Stop(id),
            (Seen::Gone, false) => Action::Forget(id),
        }
    });
    let strays = situation.sockets.iter().filter(|id| !rows.contains_key(id.as_str()));
    let strays = strays.map(|id| Action::Reap(id.clone()));
    let intents = situation.intents.iter().map(|Intent { id, vdi, operation }| match operation {
        Operation::CreateVdi => Action::UndoCreate(*id, vdi.clone()),
        Operation::DestroyVdi => Action::FinishDestroy(*id, vdi.clone()),
        Operation::ResizeVdi { size } => Action::FinishResize(*id, vdi.clone(), *size),
        Operation::RevertVdi { size } => Action::FinishRevert(*id, vdi.clone(), *size),
        // Its worker has no row, or the intent would be settled: it is among the strays.
        Operation::Activate { .. } | Operation::Disown => Action::Disown(*id, vdi.clone()),
        Operation::Deactivate { dp } => Action::FinishDeactivate(*id, vdi.clone(), dp.clone()),
        Operation::DestroySr => Action::FinishDestroySr(*id, vdi.sr.clone()),
    });
    workers.chain(strays).chain(intents).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(n: u8) -> WorkerRow {
        WorkerRow {
            id: format!("w{n}"),
            vdi: VdiId::new("sr", format!("v{n}")),
            pid: 1000 + u32::from(n),
            start_time: 1,
            socket: format!("/run/w{n}.sock"),
            version: "1".into(),
            read_only: false,
            since: String::new(),
        }
    }

    fn operations() -> impl Strategy<Value = Operation> {
        prop_oneof![
            Just(Operation::CreateVdi),
            Just(Operation::DestroyVdi),
            (1..9i64).prop_map(|size| Operation::ResizeVdi { size }),
            (1..9i64).prop_map(|size| Operation::RevertVdi { size }),
            Just(Operation::Activate { worker: "w9".into() }),
            Just(Operation::Deactivate { dp: "dp".into() }),
            Just(Operation::DestroySr),
            Just(Operation::Disown),
        ]
    }

    fn situations() -> impl Strategy<Value = Situation> {
        let seen = prop::sample::select(vec![Seen::Serving, Seen::Silent, Seen::Gone]);
        let workers = prop::collection::vec((seen, any::<bool>(), any::<bool>()), 0..6);
        let strays = prop::collection::btree_set(6..10u8, 0..4);
        (workers, strays, prop::collection::vec((0..10u8, operations()), 0..5)).prop_map(
            |(workers, strays, intents)| {
                let mut situation = Situation::default();
                for (n, (seen, active, socket)) in (0u8..).zip(workers) {
                    if active {
                        situation.active.insert(row(n).vdi);
                    }
                    if socket {
                        situation.sockets.insert(row(n).id);
                    }
                    situation.workers.push((row(n), seen));
                }
                situation.sockets.extend(strays.into_iter().map(|n| row(n).id));
                situation.intents = (1..)
                    .zip(intents)
                    .map(|(id, (n, operation))| Intent { id, vdi: row(n).vdi, operation })
                    .collect();
                situation
            },
        )
    }

    proptest! {
        /// Each worker, each stray socket and each intent is dealt with once.
        #[test]
        fn nothing_is_forgotten(situation in situations()) {
            let actions = plan(&situation);
            let ids: BTreeSet<&str> =
                situation.workers.iter().map(|(row, _)| row.id.as_str()).collect();
            let strays = situation.sockets.iter().filter(|id| !ids.contains(id.as_str())).count();
            prop_assert_eq!(actions.len(), ids.len() + strays + situation.intents.len());
            let distinct: BTreeSet<String> = actions.iter().map(|a| format!("{a:?}")).collect();
            prop_assert_eq!(distinct.len(), actions.len());
        }

        /// A worker that serves an active VDI is adopted, whatever else lies about.
        #[test]
        fn guests_keep_their_workers(situation in situations()) {
            let actions = plan(&situation);
            for (row, seen) in &situation.workers {
                let active = situation.active.contains(&row.vdi);
                prop_assert_eq!(
                    actions.contains(&Action::Adopt(row.id.clone())),
                    active && *seen == Seen::Serving
                );
                let ended = [Action::Stop(row.id.clone()), Action::Reap(row.id.clone())];
                prop_assert!(!(active && ended.iter().any(|action| actions.contains(action))));
            }
        }
    }
}
