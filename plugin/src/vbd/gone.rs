//! Domains that have gone while VDIs are in use for them.
//!
//! XAPI drops a DP.destroy that failed, as while the daemon was away, and sends none for a datapath
//! that it has forgotten: the VDI would stay in use for ever, on this host and for all others. So
//! a use ends when its domain has been away for a while. Only a domain that was seen alive can have
//! gone: callers may name one before it is there, or one that never was. It decides; the VDI's
//! actor does it. Run by the daemon, in one task.

use super::Vbds;
use crate::state::Use;
use crate::vdi::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use zerotap_rpc_schema::StorageError;

/// How often domains are looked for.
const INTERVAL: Duration = Duration::from_secs(10);

/// Looks for ever; not at all without `patience`.
pub async fn run(vbds: Arc<Vbds>, registry: Arc<Registry>, patience: Duration) {
    if patience.is_zero() {
        return;
    }
    let mut absent = Absent::default();
    loop {
        sleep(INTERVAL.min(patience)).await;
        if let Err(error) = look(&vbds, &registry, &mut absent, patience).await {
            tracing::warn!("whose domain has gone is not known: {error}");
        }
    }
}

async fn look(
    vbds: &Vbds,
    registry: &Arc<Registry>,
    absent: &mut Absent,
    patience: Duration,
) -> Result<(), StorageError> {
    let uses = registry.uses_by_domain().await?;
    let mut lives = BTreeMap::new();
    for domid in uses.iter().filter_map(domid) {
        if lives.contains_key(&domid) {
            continue;
        }
        // While xenstored is away nothing is known.
        let Ok(alive) = vbds.store.introduced(domid).await else { return Ok(()) };
        lives.insert(domid, alive);
    }
    let Verdict { seen, over } = absent.judge(&uses, &lives, Instant::now(), patience);
    if !seen.is_empty() {
        registry.see(seen).await?;
    }
    for one in over {
        if !is_needed(vbds, &uses, &one) {
            // What it comes to is logged, and tried again where it fails.
            let _ = registry.abandon(one).await;
        }
    }
    Ok(())
}

/// Whether a device goes by this use after all: one that still has pages of the domain, which then
/// lives whatever xenstored says; or one of another domain that has no use of its own.
fn is_needed(vbds: &Vbds, uses: &[Use], one: &Use) -> bool {
    let vdi = one.vdi.base();
    let own = |domain: &str| uses.iter().any(|it| it.vdi.base() == vdi && it.domain == domain);
    let devices = vbds.statuses();
    let mut here = devices.iter().filter(|device| device.identity.vdi.base() == vdi);
    here.any(|device| {
        let domain = device.address.id.domid.to_string();
        if domain == one.domain { device.holds_guest } else { !own(&domain) }
    })
}

/// A guest's; dom0 does not go, and what is no number is another caller's affair.
fn domid(one: &Use) -> Option<u16> {
    one.domain.parse().ok().filter(|domid| *domid > 0)
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Their domains are alive, which was not known yet.
    seen: Vec<Use>,
    /// Their domains have gone.
    over: Vec<Use>,
}

/// Since when domains have been away.
#[derive(Debug, Default)]
struct Absent {
    since: BTreeMap<u16, Instant>,
}

impl Absent {
    fn judge(
        &mut self,
        uses: &[Use],
        lives: &BTreeMap<u16, bool>,
        now: Instant,
        patience: Duration,
    ) -> Verdict {
        self.since.retain(|domid, _| lives.get(domid) == Some(&false));
        let mut verdict = Verdict::default();
        for one in uses {
            let Some(domid) = domid(one) else { continue };
            match lives.get(&domid) {
                Some(true) if !one.seen => verdict.seen.push(one.clone()),
                Some(false) if one.seen => {
                    let since = *self.since.entry(domid).or_insert(now);
                    if now.duration_since(since) >= patience {
                        verdict.over.push(one.clone());
                    }
                }
                _ => {}
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdi::VdiId;
    use proptest::prelude::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn one(domain: &str, seen: bool) -> Use {
        Use { vdi: VdiId::new("sr", "v"), dp: "dp".into(), domain: domain.into(), seen }
    }

    #[test]
    fn only_a_guest_that_was_seen_can_have_gone() {
        let (mut absent, start) = (Absent::default(), Instant::now());
        let domains = ["0", "u0_x", "", "5", "70000"];
        let uses: Vec<Use> =
            domains.iter().flat_map(|domain| [one(domain, true), one(domain, false)]).collect();
        let lives = BTreeMap::from([(0, false), (5, false)]);
        assert_eq!(absent.judge(&uses, &lives, start, PATIENCE), Verdict::default());
        let verdict = absent.judge(&uses, &lives, start + PATIENCE, PATIENCE);
        assert_eq!(verdict, Verdict { seen: vec![], over: vec![one("5", true)] });
        let verdict = absent.judge(&uses, &BTreeMap::from([(5, true)]), start, PATIENCE);
        assert_eq!(verdict, Verdict { seen: vec![one("5", false)], over: vec![] });
    }

    proptest! {
        /// A use is over when its domain was away at each look of a whole patience, and only then.
        #[test]
        fn who_comes_back_is_not_away(
            looks in prop::collection::vec((0..40u64, any::<bool>()), 0..30),
        ) {
            let (mut absent, mut now) = (Absent::default(), Instant::now());
            let mut since = None;
            for (seconds, alive) in looks {
                now += Duration::from_secs(seconds);
                since = if alive { None } else { since.or(Some(now)) };
                let lives = BTreeMap::from([(5, alive)]);
                let verdict = absent.judge(&[one("5", true)], &lives, now, PATIENCE);
                let away = since.is_some_and(|since| now - since >= PATIENCE);
                prop_assert_eq!(verdict.over.len(), usize::from(away));
                prop_assert!(verdict.seen.is_empty());
            }
        }
    }
}
