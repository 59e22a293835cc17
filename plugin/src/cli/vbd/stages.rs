//! Where a disk's requests spend their time, and what that means. Pure.

use super::super::duration;
use zerotap_rpc_schema::worker::Counters;

/// A stage of a request's life.
struct Stage {
    name: &'static str,
    us: fn(&Counters) -> u64,
    /// What it means when most of the time goes there.
    meaning: &'static str,
}

const STAGES: [Stage; 5] = [
    Stage {
        name: "ring",
        us: |it| it.ring_wait_us,
        meaning: "requests wait in the ring: the worker has more to do than its CPU can. Give dom0 \
                  more CPUs, or the guest's disk more queues",
    },
    Stage {
        name: "held",
        us: |it| it.held_us,
        meaning: "requests wait for barriers, or for buffers: the guest asks for barriers, or its \
                  requests are not aligned to the device's sectors",
    },
    Stage {
        name: "pages",
        us: |it| it.reach_us,
        meaning: "the guest's pages are mapped or copied anew for each request: a frontend with \
                  persistent grants spares that",
    },
    Stage {
        name: "device",
        us: |it| it.device_us,
        meaning: "the storage below is what takes long: see what else uses it, and how it is \
                  (iostat -x in dom0, the SR's server)",
    },
    Stage {
        name: "release",
        us: |it| it.release_us,
        meaning: "answers wait for other requests whose pages are unmapped with theirs: a frontend \
                  with persistent grants spares that",
    },
];

/// Shares of the time between two looks, and what takes most of it; nothing when nothing was done,
/// or the worker does not tell.
pub(super) fn rows(now: &Counters, before: &Counters) -> Vec<(&'static str, String)> {
    let spent = |stage: &Stage| (stage.us)(now).saturating_sub((stage.us)(before));
    let total: u64 = STAGES.iter().map(spent).sum();
    let answered = |it: &Counters| it.reads + it.writes + it.flushes + it.discards;
    let requests = answered(now).saturating_sub(answered(before));
    let Some(mean) = total.checked_div(requests).filter(|_| total > 0) else { return Vec::new() };
    let share = |stage: &Stage| {
        let percent = u128::from(spent(stage)) * 100 / u128::from(total);
        format!("{} {percent}%", stage.name)
    };
    let shares: Vec<String> = STAGES.iter().map(share).collect();
    let most = STAGES.iter().max_by_key(|stage| spent(stage)).expect("five stages");
    let time = format!("{} of {} a request", shares.join(", "), duration::latency(mean));
    vec![("Time goes to", time), ("Most of it", format!("{}: {}", most.name, most.meaning))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_most_is_named_and_explained() {
        let before = Counters { reads: 10, device_us: 1 << 40, ..Counters::default() };
        let now = Counters {
            reads: 20,
            ring_wait_us: 600,
            reach_us: 100,
            device_us: (1 << 40) + 300,
            ..Counters::default()
        };
        let rows = rows(&now, &before);
        let wanted = "ring 60%, held 0%, pages 10%, device 30%, release 0% of 100 us a request";
        assert_eq!(rows[0], ("Time goes to", wanted.to_owned()));
        assert!(rows[1].1.starts_with("ring: requests wait in the ring"), "{rows:?}");
        assert!(super::rows(&before, &before).is_empty(), "nothing was done");
        let old = Counters { reads: 5, ..Counters::default() };
        assert!(super::rows(&old, &Counters::default()).is_empty(), "an older worker");
    }
}
