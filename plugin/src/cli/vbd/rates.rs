//! What VBDs do now: rates and latencies between two looks at their counters. Pure.

use serde::Serialize;
use zerotap_rpc_schema::Histogram;
use zerotap_rpc_schema::admin::VbdStat;

/// What one VBD did between two looks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Rates {
    pub(super) domid: u16,
    pub(super) device: String,
    pub(super) vdi: Option<String>,
    pub(super) state: String,
    pub(super) reads_per_second: f64,
    pub(super) writes_per_second: f64,
    pub(super) flushes_per_second: f64,
    pub(super) read_bytes_per_second: f64,
    pub(super) write_bytes_per_second: f64,
    /// Of all operations in that time.
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
    pub(super) in_flight: u32,
    /// Of the data that was moved in that time, what was copied, by the worker or the hypervisor;
    /// 0 to 1.
    pub(super) copied: f64,
    /// How old the figures are: its worker did not answer.
    pub(super) age_ms: u64,
}

impl Rates {
    /// Operations of any kind.
    pub(super) fn iops(&self) -> f64 {
        self.reads_per_second + self.writes_per_second + self.flushes_per_second
    }

    /// Bytes in both directions.
    pub(super) fn bytes(&self) -> f64 {
        self.read_bytes_per_second + self.write_bytes_per_second
    }
}

/// The rates of all that are in `after`; of one that was not there `before`, none yet.
pub(super) fn between(before: &[VbdStat], after: &[VbdStat], seconds: f64) -> Vec<Rates> {
    let of = |now: &VbdStat| {
        let same = |it: &&VbdStat| {
            let id = |stat: &VbdStat| (stat.vbd.domid, stat.vbd.devid);
            id(it) == id(now) && it.vbd.kind == now.vbd.kind
        };
        rates(before.iter().find(same).unwrap_or(now), now, seconds)
    };
    after.iter().map(of).collect()
}

fn rates(before: &VbdStat, now: &VbdStat, seconds: f64) -> Rates {
    // A worker that was started in between counts anew.
    let more = |now: u64, before: u64| as_float(now.saturating_sub(before));
    let (old, new) = (&before.counters, &now.counters);
    let copied = more(new.copied_bytes, old.copied_bytes)
        + more(new.grant_copied_bytes, old.grant_copied_bytes);
    let moved = more(new.mapped_bytes, old.mapped_bytes) + copied;
    let mut latency = Histogram::default();
    for (now, before) in [
        (&now.read_latency, &before.read_latency),
        (&now.write_latency, &before.write_latency),
        (&now.flush_latency, &before.flush_latency),
        (&now.discard_latency, &before.discard_latency),
    ] {
        latency.merge(&now.since(before));
    }
    Rates {
        domid: now.vbd.domid,
        device: now.vbd.device.clone(),
        vdi: now.vbd.vdi.clone(),
        state: now.vbd.state.clone(),
        reads_per_second: more(new.reads, old.reads) / seconds,
        writes_per_second: more(new.writes, old.writes) / seconds,
        flushes_per_second: more(new.flushes, old.flushes) / seconds,
        read_bytes_per_second: more(new.read_bytes, old.read_bytes) / seconds,
        write_bytes_per_second: more(new.write_bytes, old.write_bytes) / seconds,
        p50_us: latency.quantile_us(0.5),
        p99_us: latency.quantile_us(0.99),
        in_flight: new.in_flight,
        copied: if moved > 0.0 { copied / moved } else { 0.0 },
        age_ms: now.age_ms,
    }
}

#[expect(clippy::cast_precision_loss, reason = "rates are shown with three digits")]
fn as_float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::super::show::tests::stat;
    use super::*;

    #[test]
    fn rates_are_of_what_came_in_between() {
        let before = stat();
        let mut after = stat();
        after.counters.reads += 500;
        after.counters.read_bytes += 500 << 12;
        after.counters.copied_bytes += 250 << 12;
        after.counters.mapped_bytes += 250 << 12;
        (0..500).for_each(|_| after.read_latency.record(3000));
        let all = between(&[before], std::slice::from_ref(&after), 2.0);
        let [rates] = &all[..] else { panic!("{all:?}") };
        assert!((rates.iops() - 250.0).abs() < 1e-9, "{rates:?}");
        assert!((rates.bytes() - 250.0 * 4096.0).abs() < 1e-6, "{rates:?}");
        assert!((rates.copied - 0.5).abs() < 1e-9, "{rates:?}");
        assert!((2560..=3072).contains(&rates.p50_us), "not what came before: {rates:?}");
        let new = between(&[], &[after], 2.0);
        assert!(new[0].iops() < f64::EPSILON, "{new:?}");
    }
}
