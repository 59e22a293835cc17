//! What is owed and tried again until it is done: leaked datapaths, VDIs to be given back to other
//! hosts, workers of VDIs that nobody has active any more.
//!
//! It decides when; the VDI's actor does it (`tidy`), as it does before other commands. Run by the
//! daemon, in one task.

use crate::sr::attached::internal;
use crate::state::Operation;
use crate::vdi::{Registry, VdiId};
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::smapi2::VdiState;

/// How long after a failure it is tried again; twice as long after each further one.
const DELAY_FIRST: Duration = Duration::from_secs(1);
/// The longest of these delays.
const DELAY_MAX: Duration = Duration::from_secs(60);
/// How long the task sleeps when nothing is owed: until it is woken.
const IDLE: Duration = Duration::from_secs(24 * 3600);

/// Tries for ever; at once what an earlier daemon left.
pub async fn run(registry: Arc<Registry>) {
    let mut pace = Pace::default();
    let mut first_delay = Duration::ZERO;
    loop {
        let owed = owed(&registry).await.unwrap_or_default();
        let due = pace.take(&owed, Instant::now(), first_delay);
        first_delay = DELAY_FIRST;
        join_all(due.iter().map(|vdi| try_once(&registry, vdi))).await;
        let wake = pace.next().unwrap_or_else(|| Instant::now() + IDLE);
        tokio::select! {
            () = registry.chores.notified() => {}
            () = sleep_until(wake) => {}
        }
    }
}

async fn try_once(registry: &Arc<Registry>, vdi: &VdiId) {
    if let Err(error) = registry.tidy(vdi).await {
        tracing::warn!(%vdi, "still to be cleaned up, tried again later: {error}");
    }
}

async fn owed(registry: &Registry) -> Result<BTreeSet<VdiId>, StorageError> {
    let mut active = BTreeSet::new();
    let mut owed = BTreeSet::new();
    for (vdi, held) in registry.state.all_datapaths().await.map_err(internal)? {
        if matches!(held.state, VdiState::Activated(_)) {
            active.insert(vdi.clone());
        }
        if held.leaked {
            owed.insert(vdi);
        }
    }
    let intents = registry.state.intents().await.map_err(internal)?;
    let disown = intents.into_iter().filter(|intent| intent.operation == Operation::Disown);
    owed.extend(disown.map(|intent| intent.vdi));
    let workers = registry.all_workers().into_iter().map(|entry| entry.row().vdi.clone());
    owed.extend(workers.filter(|vdi| !active.contains(vdi)));
    Ok(owed)
}

/// When each is due.
#[derive(Debug, Default)]
struct Pace {
    owed: BTreeMap<VdiId, (Instant, Duration)>,
}

impl Pace {
    /// Those of `owed` whose turn it is; their next turns are twice as far off as the last. One
    /// that is new has its turn after `first`.
    fn take(&mut self, owed: &BTreeSet<VdiId>, now: Instant, first: Duration) -> Vec<VdiId> {
        self.owed.retain(|vdi, _| owed.contains(vdi));
        let mut due = Vec::new();
        for vdi in owed {
            let fresh = (now + first, DELAY_FIRST);
            let (at, delay) = self.owed.entry(vdi.clone()).or_insert(fresh);
            if *at <= now {
                (*at, *delay) = (now + *delay, (*delay * 2).min(DELAY_MAX));
                due.push(vdi.clone());
            }
        }
        due
    }

    /// When the next turn is.
    fn next(&self) -> Option<Instant> {
        self.owed.values().map(|(at, _)| *at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn turns_come_at_once_and_then_ever_more_seldom() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let owed = BTreeSet::from([VdiId::new("sr", "v")]);
        let mut gaps = Vec::new();
        let mut now = start;
        for _ in 0..9 {
            let first = if gaps.is_empty() { Duration::ZERO } else { DELAY_FIRST };
            assert_eq!(pace.take(&owed, now, first).len(), 1);
            let next = pace.next().expect("it is owed");
            gaps.push((next - now).as_secs());
            assert!(pace.take(&owed, next - Duration::from_millis(1), DELAY_FIRST).is_empty());
            now = next;
        }
        assert_eq!(gaps, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        pace.take(&BTreeSet::new(), now, DELAY_FIRST);
        assert_eq!(pace.next(), None, "done is forgotten");
        assert!(pace.take(&owed, now, DELAY_FIRST).is_empty(), "and begins anew");
    }

    proptest! {
        /// However the set of what is owed changes, nothing is forgotten and nothing is hurried.
        #[test]
        fn everything_owed_has_its_turn(rounds in prop::collection::vec(
            (prop::collection::btree_set(0..5u8, 0..5), 0..90u64), 1..40,
        )) {
            let (mut now, mut pace) = (Instant::now(), Pace::default());
            for (owed, seconds) in rounds {
                let vdis = owed.iter().map(|n| VdiId::new("sr", n.to_string()));
                let owed: BTreeSet<_> = vdis.collect();
                let due = pace.take(&owed, now, DELAY_FIRST);
                prop_assert!(due.iter().all(|vdi| owed.contains(vdi)));
                prop_assert_eq!(pace.owed.len(), owed.len());
                let next = pace.next();
                prop_assert!(next.is_none_or(|at| at > now && at <= now + DELAY_MAX));
                now += Duration::from_secs(seconds);
            }
        }
    }
}
