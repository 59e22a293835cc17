//! `zerotap vbd show`: all that is known of one VBD, with rates from two samples.

use super::super::context::{Context, json, write};
use super::super::failure::Failure;
use super::super::{duration, size, table};
use super::stages;
use jiff::Timestamp;
use std::time::{Duration, Instant};
use zerotap_rpc_schema::Histogram;
use zerotap_rpc_schema::admin::{Vbd, VbdParams, VbdStat, Worker};
use zerotap_rpc_schema::table::{VbdStatMethod, WorkerList};
use zerotap_rpc_schema::worker::{Abi, Counters, Discard, ImageInfo, RingParameters};

/// Counters some time ago.
struct Earlier {
    counters: Counters,
    seconds: f64,
}

pub(super) async fn run(
    params: &VbdParams,
    interval: u16,
    context: &Context,
) -> Result<(), Failure> {
    let first = context.call::<VbdStatMethod>(params).await?;
    if context.json {
        return write(&json(&first));
    }
    let workers = context.ask::<WorkerList>().await?;
    if interval == 0 || first.ring.is_none() {
        let now = Timestamp::now();
        return write(&render(&first, None, start_of(&workers, &first, now).as_ref(), now));
    }
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(interval.into())).await;
    let stat = context.call::<VbdStatMethod>(params).await?;
    let earlier = Earlier { counters: first.counters, seconds: start.elapsed().as_secs_f64() };
    let now = Timestamp::now();
    write(&render(&stat, Some(&earlier), start_of(&workers, &stat, now).as_ref(), now))
}

/// The counters at the start of the VBD's worker, which were zero, for rates over its life. The
/// VBD's own `since` will not do: a worker goes on counting when a frontend connects again.
fn start_of(workers: &[Worker], stat: &VbdStat, now: Timestamp) -> Option<Earlier> {
    let id = stat.vbd.worker.as_ref()?;
    let worker = workers.iter().find(|worker| worker.id == *id)?;
    let seconds = duration::seconds_since(&worker.since, now).filter(|&seconds| seconds > 0)?;
    let seconds = u32::try_from(seconds).ok()?.into();
    Some(Earlier { counters: Counters::default(), seconds })
}

fn render(
    stat: &VbdStat,
    earlier: Option<&Earlier>,
    start: Option<&Earlier>,
    now: Timestamp,
) -> String {
    let mut rows = identity(&stat.vbd, now);
    if let Some(trouble) = &stat.vbd.trouble {
        rows.push(("Trouble", trouble.clone()));
    }
    if let Some(image) = &stat.image {
        rows.push(("Image", image_text(image)));
    }
    if let Some(ring) = &stat.ring {
        rows.push(("Ring", ring_text(ring)));
    }
    rows.extend(figures(&stat.counters));
    let nothing = Counters::default();
    let before = earlier.map_or(&nothing, |earlier| &earlier.counters);
    rows.extend(stages::rows(&stat.counters, before));
    table::properties(&rows) + "\n" + &requests(stat, earlier, start)
}

fn identity(vbd: &Vbd, now: Timestamp) -> Vec<(&'static str, String)> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let since = duration::since(&vbd.since, now);
    vec![
        ("VBD", format!("{} of domain {}, {}, {}", vbd.device, vbd.domid, vbd.mode, vbd.kind)),
        ("Device number", vbd.devid.to_string()),
        ("State", format!("{} since {since}", vbd.state)),
        ("Frontend", vbd.frontend_state.clone()),
        ("SR", text(&vbd.sr)),
        ("VDI", text(&vbd.vdi)),
        ("Held by", vbd.held_by.join(" ")),
        ("Worker", text(&vbd.worker)),
    ]
}

fn image_text(image: &ImageInfo) -> String {
    let capacity = size::human(image.sectors.saturating_mul(512));
    let (logical, physical) = (image.sector_bytes, image.physical_sector_bytes);
    let discard = match image.discard {
        Some(Discard { granularity_bytes, .. }) => {
            format!("discards units of {granularity_bytes} B")
        }
        None => "does not discard".to_owned(),
    };
    let told = match image.emulated_sector_bytes {
        Some(told) => format!(", told as {told} B"),
        None => String::new(),
    };
    format!("{capacity}, sectors of {logical} B (physical {physical} B){told}, {discard}")
}

fn ring_text(ring: &RingParameters) -> String {
    let pages = match ring.queues.iter().map(|queue| queue.ring_refs.len()).max() {
        None | Some(1) => "1 page".to_owned(),
        Some(pages) => format!("{pages} pages"),
    };
    let ports: Vec<String> = ring.queues.iter().map(|queue| queue.port.to_string()).collect();
    let ports = ports.join(", ");
    let (pages, ports) = match ring.queues.len() {
        1 => (pages, format!("event channel {ports}")),
        queues => (format!("{queues} queues of {pages}"), format!("event channels {ports}")),
    };
    let protocol = match ring.protocol {
        Abi::X86_64 => "x86_64-abi",
        Abi::X86_32 => "x86_32-abi",
    };
    let grants = if ring.persistent { "persistent grants" } else { "grants mapped per sweep" };
    format!("{pages}, {ports}, {protocol}, {grants}")
}

fn figures(counters: &Counters) -> Vec<(&'static str, String)> {
    vec![
        ("In flight", format!("{} requests", counters.in_flight)),
        ("Bytes mapped", size::human(counters.mapped_bytes)),
        ("Bytes copied", size::human(counters.copied_bytes)),
        ("Bytes grant-copied", size::human(counters.grant_copied_bytes)),
        (
            "Ways to pages",
            format!(
                "{} requests standing, {} mapped, {} grant-copied",
                counters.standing_requests,
                counters.mapped_requests,
                counters.grant_copied_requests
            ),
        ),
        (
            "Pages mapped",
            format!(
                "{}, of them {} persistent; {} map calls",
                counters.mapped_pages, counters.persistent_pages, counters.map_calls
            ),
        ),
        ("Mapping took", mean(counters.map_ns, counters.map_call_pages, "page")),
        ("Copying took", mean(counters.grant_copy_ns, counters.grant_copy_pieces, "piece")),
        ("Events", format!("{} received, {} sent", counters.events, counters.notifications)),
        ("Sweeps", counters.sweeps.to_string()),
        (
            "Looked",
            format!(
                "{} times with success, {} in vain; {} ms",
                counters.look_hits,
                counters.look_misses,
                counters.look_us / 1000
            ),
        ),
        ("Refused", format!("{} requests", counters.refused)),
        ("I/O errors", format!("{} requests", counters.io_errors)),
        ("No space", no_space(counters)),
    ]
}

fn no_space(counters: &Counters) -> String {
    let waited = format!("{} writes waited", counters.space_waits);
    match counters.waiting_for_space {
        0 => waited,
        now => {
            format!("{waited}, {now} wait since {} s", counters.waiting_for_space_ms / 1000)
        }
    }
}

/// What a way costs here, which is what the choice goes by.
#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn mean(ns: u64, count: u64, what: &str) -> String {
    if count == 0 {
        return String::new();
    }
    format!("{:.1} us a {what}, of {count}", ns as f64 / 1000.0 / count as f64)
}

/// One kind of request: how many, how many bytes, how fast answered.
struct Kind<'a> {
    name: &'static str,
    count: fn(&Counters) -> u64,
    bytes: fn(&Counters) -> u64,
    latency: &'a Histogram,
}

fn requests(stat: &VbdStat, earlier: Option<&Earlier>, start: Option<&Earlier>) -> String {
    let kinds = [
        Kind {
            name: "read",
            count: |counters| counters.reads,
            bytes: |counters| counters.read_bytes,
            latency: &stat.read_latency,
        },
        Kind {
            name: "write",
            count: |counters| counters.writes,
            bytes: |counters| counters.write_bytes,
            latency: &stat.write_latency,
        },
        Kind {
            name: "flush",
            count: |counters| counters.flushes,
            bytes: |_| 0,
            latency: &stat.flush_latency,
        },
        Kind {
            name: "discard",
            count: |counters| counters.discards,
            bytes: |counters| counters.discard_bytes,
            latency: &stat.discard_latency,
        },
    ];
    let rows: Vec<_> = kinds.iter().map(|kind| kind.row(&stat.counters, earlier, start)).collect();
    let header =
        ["", "IOPS", "MiB/s", "AVG IOPS", "AVG MiB/s", "P50", "P99", "MAX", "COUNT", "BYTES"];
    table::columns(&header, &[1, 2, 3, 4, 5, 6, 7, 8, 9], &rows)
}

impl Kind<'_> {
    fn row(
        &self,
        counters: &Counters,
        earlier: Option<&Earlier>,
        start: Option<&Earlier>,
    ) -> Vec<String> {
        let (iops, mib) = self.rates(counters, earlier);
        let (iops_average, mib_average) = self.rates(counters, start);
        let quantile = |fraction| duration::latency(self.latency.quantile_us(fraction));
        let mut row = vec![self.name.to_owned(), iops, mib, iops_average, mib_average];
        if self.latency.count() > 0 {
            row.extend([quantile(0.5), quantile(0.99), duration::latency(self.latency.max_us)]);
        } else {
            row.extend(["", "", ""].map(str::to_owned));
        }
        row.extend([(self.count)(counters).to_string(), size::human((self.bytes)(counters))]);
        row
    }

    /// IOPS and MiB/s since `earlier`. Counters start anew with a worker, hence the saturation.
    #[expect(clippy::cast_precision_loss, reason = "rates are shown with three digits")]
    fn rates(&self, counters: &Counters, earlier: Option<&Earlier>) -> (String, String) {
        let Some(earlier) = earlier else { return (String::new(), String::new()) };
        let count = (self.count)(counters).saturating_sub((self.count)(&earlier.counters));
        let bytes = (self.bytes)(counters).saturating_sub((self.bytes)(&earlier.counters));
        let mib = bytes as f64 / f64::from(1 << 20) / earlier.seconds;
        (format!("{:.0}", count as f64 / earlier.seconds), format!("{mib:.1}"))
    }
}

#[cfg(test)]
pub(in crate::cli::vbd) mod tests {
    use super::super::tests::vbd;
    use super::*;
    use zerotap_rpc_schema::worker::QueueParameters;

    pub(in crate::cli::vbd) fn stat() -> VbdStat {
        let mut read_latency = Histogram::default();
        (0..3000).for_each(|_| read_latency.record(100));
        VbdStat {
            vbd: vbd(),
            ring: Some(RingParameters {
                queues: vec![QueueParameters { ring_refs: vec![8, 9], port: 7 }],
                protocol: Abi::X86_64,
                persistent: true,
            }),
            image: Some(ImageInfo {
                sectors: 1 << 19,
                sector_bytes: 512,
                physical_sector_bytes: 4096,
                emulated_sector_bytes: None,
                memory_align_bytes: 512,
                discard: Some(Discard { granularity_bytes: 4096, alignment_bytes: 0 }),
            }),
            counters: Counters {
                reads: 3000,
                read_bytes: 3000 << 12,
                mapped_bytes: 3000 << 12,
                in_flight: 32,
                grant_copied_bytes: 8192,
                standing_requests: 2998,
                grant_copied_requests: 2,
                grant_copy_ns: 10_000,
                grant_copy_pieces: 4,
                ..Counters::default()
            },
            read_latency,
            write_latency: Histogram::default(),
            flush_latency: Histogram::default(),
            age_ms: 0,
            discard_latency: Histogram::default(),
        }
    }

    fn start() -> Earlier {
        Earlier { counters: Counters::default(), seconds: 10.0 }
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:10Z".parse().expect("a time")
    }

    #[test]
    fn two_samples_make_rates() {
        let counters = Counters { reads: 1000, read_bytes: 1000 << 12, ..Counters::default() };
        let text =
            render(&stat(), Some(&Earlier { counters, seconds: 2.0 }), Some(&start()), now());
        let read = text.lines().find(|line| line.starts_with("read")).expect("a line of reads");
        let cells: Vec<&str> = read.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
        assert_eq!(cells[..5], ["read", "1000", "3.9", "300", "1.2"], "{text}");
        assert_eq!(cells[7..], ["100 us", "3000", "11.7 MiB"], "{text}");
    }

    #[test]
    fn what_an_operator_asks_first_is_there() {
        let text = render(&stat(), None, None, now());
        for line in [
            "VBD                 xvda of domain 5, RW, zerotap\n",
            "State               connected since 2026-01-01T00:00:00Z (10s ago)\n",
            "Held by             vbd/5/xvda\n",
            "Image               256 MiB, sectors of 512 B (physical 4096 B), \
             discards units of 4096 B\n",
            "Ring                2 pages, event channel 7, x86_64-abi, persistent grants\n",
            "In flight           32 requests\n",
            "Bytes mapped        11.7 MiB\n",
            "Bytes copied        0 B\n",
            "Bytes grant-copied  8 KiB\n",
            "Ways to pages       2998 requests standing, 0 mapped, 2 grant-copied\n",
            "Copying took        2.5 us a piece, of 4\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert!(!text.contains("Trouble"), "{text}");
    }

    #[test]
    fn trouble_is_told() {
        let mut stat = stat();
        stat.vbd.trouble = Some("broken ring: restart the guest".into());
        assert!(render(&stat, None, None, now()).contains("broken ring: restart the guest\n"));
    }

    #[test]
    fn averages_are_over_the_life_of_the_worker() {
        let worker = Worker {
            id: "w1".into(),
            sr: "s".into(),
            vdi: "v".into(),
            pid: 1,
            state: "serving".into(),
            version: String::new(),
            since: "2026-01-01T00:00:04Z".into(),
            rss_kib: 0,
            vbds: vec![],
            nbd: None,
            engine: None,
        };
        let start = start_of(std::slice::from_ref(&worker), &stat(), now()).expect("a worker");
        assert!((start.seconds - 6.0).abs() < f64::EPSILON);
        assert!(start_of(&[Worker { id: "w2".into(), ..worker }], &stat(), now()).is_none());
    }
}
