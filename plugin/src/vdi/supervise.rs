//! The supervisor: has another worker started where one died while its VDI is active.
//!
//! At once, as a rule. A worker that dies again and again, or does not start, is tried ever more
//! seldom, and people are told why. It decides when; the VDI's actor does it. Run by the daemon, in
//! one task.

use crate::vdi::{Registry, VdiId};
use crate::worker::set::Entry;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use zerotap_rpc_schema::StorageError;

/// Whoever served for so long is not counted among those that die at once.
const STEADY: Duration = Duration::from_secs(1);
/// The pause after the second failure in a row; twice as long after each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long the task sleeps when nothing is to be done: until it is woken.
const IDLE: Duration = Duration::from_secs(24 * 3600);

/// A VDI whose worker died.
#[derive(Debug, Default)]
struct Case {
    /// The worker.
    worker: String,
    /// How it ended.
    why: String,
    failures: u32,
    /// When another is started; `None` while one is, or serves.
    due: Option<Instant>,
}

impl Case {
    /// A death, or a start that came to nothing.
    fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + pause(self.failures));
    }

    /// A worker of whom it was not known yet died.
    fn died(&mut self, worker: &str, why: &str, served: Option<Duration>, now: Instant) {
        if self.worker == worker {
            return;
        }
        (self.worker, self.why) = (worker.to_owned(), why.to_owned());
        if served.is_none_or(|served| served >= STEADY) {
            self.failures = 0;
        }
        self.failed(now);
    }
}

/// None after the first failure.
fn pause(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => PAUSE_FIRST.saturating_mul(1 << (more - 2).min(16)).min(PAUSE_MAX),
    }
}

/// Runs for ever; deals at once with what an earlier daemon left.
pub async fn run(registry: Arc<Registry>) {
    let mut cases: BTreeMap<VdiId, Case> = BTreeMap::new();
    let mut starts: JoinSet<(VdiId, Result<(), StorageError>)> = JoinSet::new();
    loop {
        look(&registry, &mut cases).await;
        let now = Instant::now();
        for (vdi, case) in &mut cases {
            if case.due.is_some_and(|due| due <= now) {
                case.due = None;
                let (registry, vdi) = (Arc::clone(&registry), vdi.clone());
                starts.spawn(async move {
                    let revived = registry.revive(&vdi).await;
                    (vdi, revived)
                });
            }
        }
        let wake = cases.values().filter_map(|case| case.due).min();
        tokio::select! {
            () = registry.workers.death() => {}
            Some(Ok((vdi, revived))) = starts.join_next() => {
                if let (Err(problem), Some(case)) = (revived, cases.get_mut(&vdi)) {
                    case.failed(Instant::now());
                    tell(&registry, &vdi, case, Some(&problem.to_string())).await;
                }
            }
            () = sleep_until(wake.unwrap_or_else(|| now + IDLE)) => {}
        }
    }
}

/// Takes note of deaths, and forgets VDIs that are not served any more.
async fn look(registry: &Registry, cases: &mut BTreeMap<VdiId, Case>) {
    let now = Instant::now();
    let entries = registry.all_workers();
    cases.retain(|vdi, _| entries.iter().any(|entry| entry.row().vdi == *vdi));
    for entry in entries {
        let Entry::Dead { row, why, ended: true, served } = entry else { continue };
        let case = cases.entry(row.vdi.clone()).or_default();
        let before = case.due;
        case.died(&row.id, &why, served, now);
        if case.due != before && case.failures > 1 {
            tell(registry, &row.vdi, case, None).await;
        }
    }
}

async fn tell(registry: &Registry, vdi: &VdiId, case: &Case, problem: Option<&str>) {
    let Case { why, failures, .. } = case;
    let seconds = pause(*failures).as_secs_f32();
    let words = match problem {
        None => format!(
            "its worker died at once ({why}), {failures} times in a row: another is started in \
             {seconds} s, its guests wait. The daemon's log has the worker's last words"
        ),
        Some(problem) => format!(
            "its worker died ({why}) and no other could be started ({problem}): tried again in \
             {seconds} s, its guests wait. VDI.activate3 tries at once"
        ),
    };
    tracing::error!(%vdi, worker = case.worker, "{words}");
    registry.workers.explain(vdi, words).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_with_a_worker_that_serves() {
        let (now, mut case) = (Instant::now(), Case::default());
        let mut pauses = Vec::new();
        for n in 0..13 {
            case.died(&format!("w{n}"), "signal 9 ended it", Some(Duration::ZERO), now);
            pauses.push((case.due.expect("it is missed") - now).as_millis());
        }
        let doubled = [0, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200];
        assert_eq!(pauses[..11], doubled);
        assert_eq!(pauses[11..], [60_000, 60_000]);
        // The same death is no other death.
        case.died("w12", "", Some(Duration::ZERO), now);
        assert_eq!(case.failures, 13);
        case.died("w13", "", Some(STEADY), now);
        assert_eq!(case.due, Some(now));
        case.failed(now);
        assert_eq!(case.due, Some(now + PAUSE_FIRST), "a start that fails counts as well");
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }
}
