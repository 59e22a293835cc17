//! What is counted, for those who watch over hosts: `GET /metrics`, in OpenMetrics' text format.
//!
//! Counts only calls itself; the rest is looked up where it is. The metrics are told of in
//! docs/observability.md, and a test compares.

pub mod asked;
pub mod calls;
pub mod legacy;
pub mod look;
pub mod text;

use crate::rpc::Core;
use crate::worker::process::rss_kib;
use look::{Look, SrLook, VbdLook, WorkerLook};
use text::{Labels, Text, seconds};
use zerotap_rpc_schema::worker::{Counters, NbdCounters, VbdCounters};

type Row<T> = (&'static str, &'static str, fn(&T) -> u64);

const VBD_COUNTERS: &[Row<Counters>] = &[
    ("reads", "Reads answered with success.", |it| it.reads),
    ("writes", "Writes answered with success.", |it| it.writes),
    ("flushes", "Flushes and barriers without data answered with success.", |it| it.flushes),
    ("discards", "Discards answered with success.", |it| it.discards),
    ("discarded_bytes", "Bytes that the guest discarded.", |it| it.discard_bytes),
    ("read_bytes", "Bytes that the guest read.", |it| it.read_bytes),
    ("written_bytes", "Bytes that the guest wrote.", |it| it.write_bytes),
    ("refused", "Requests refused: malformed, out of range or forbidden.", |it| it.refused),
    ("io_errors", "Requests that the image failed.", |it| it.io_errors),
    ("space_waits", "Writes that found no space and waited for it.", |it| it.space_waits),
    ("mapped_bytes", "Data that the device reached in the guest's pages.", |it| it.mapped_bytes),
    ("copied_bytes", "Data that took a bounce buffer.", |it| it.copied_bytes),
    ("grant_copied_bytes", "Data that the hypervisor copied.", |it| it.grant_copied_bytes),
    ("grant_copy_calls", "Calls that had it copy.", |it| it.grant_copy_calls),
    ("purged_pages", "Persistent pages unmapped to make room, or unused.", |it| it.purged_pages),
    ("map_calls", "Calls that mapped pages of the guest.", |it| it.map_calls),
    ("events", "Events from the guest.", |it| it.events),
    ("notifications", "Events to the guest.", |it| it.notifications),
    ("sweeps", "Times that requests were taken off a ring.", |it| it.sweeps),
    ("look_hits", "Times that a queue looked before it slept and found work.", |it| it.look_hits),
    ("look_misses", "Times that it looked in vain.", |it| it.look_misses),
];

const VBD_GAUGES: &[Row<Counters>] = &[
    ("in_flight", "Requests taken and not answered.", |it| it.in_flight.into()),
    ("waiting_for_space", "Writes that wait for space.", |it| it.waiting_for_space.into()),
    ("mapped_pages", "Pages of the guest mapped, the rings' left out.", |it| {
        it.mapped_pages.into()
    }),
    ("persistent_pages", "Of those, pages of persistent grants.", |it| it.persistent_pages.into()),
];

const NBD_COUNTERS: &[Row<NbdCounters>] = &[
    ("reads", "Reads of NBD clients answered with success.", |it| it.reads),
    ("writes", "Writes of NBD clients answered with success.", |it| it.writes),
    ("read_bytes", "Bytes that NBD clients read.", |it| it.read_bytes),
    ("written_bytes", "Bytes that NBD clients wrote.", |it| it.write_bytes),
    ("refused", "Requests of NBD clients refused.", |it| it.refused),
    ("io_errors", "Requests of NBD clients that the image failed.", |it| it.io_errors),
];

/// The text of `GET /metrics`.
pub async fn render(core: &Core) -> String {
    let look = Look::take(core).await;
    let mut text = Text::default();
    daemon(core, &mut text);
    calls(core, &mut text);
    srs(&look.srs, &mut text);
    workers(core, &look.workers, &mut text);
    vbds(&look.vbds, &mut text);
    text.end()
}

fn daemon(core: &Core, text: &mut Text) {
    let version = Labels::of(&[("version", env!("CARGO_PKG_VERSION")), ("host", &core.host)]);
    text.gauges("zerotap_build_info", "The daemon.", [(version, 1)]);
    let rss = rss_kib(std::process::id()) * 1024;
    let alone = Labels::default;
    text.gauges("zerotap_resident_bytes", "The daemon's memory.", [(alone(), rss)]);
    let alive = u8::from(core.vbds.xenstore_alive());
    text.gauges("zerotap_xenstore_up", "Whether xenstored answers.", [(alone(), alive)]);
    let commits = core.registry.commits();
    text.counters(
        "zerotap_state_writes",
        "Writes given to the state database; those that come together share a commit.",
        [(alone(), commits.orders)],
    );
    text.counters(
        "zerotap_state_commit_failures",
        "Commits to the state database that failed.",
        [(alone(), commits.failed)],
    );
    text.histograms(
        "zerotap_state_commit_duration_seconds",
        "How long commits to the state database (SQLite) took.",
        [(alone(), &commits.duration)],
    );
}

fn calls(core: &Core, text: &mut Text) {
    let all = core.calls.all();
    let method = |method: &str| Labels::of(&[("method", method)]);
    let outcomes = all.iter().flat_map(|(name, calls)| {
        let ends =
            [("ok", calls.succeeded), ("error", calls.failed), ("abandoned", calls.abandoned)];
        ends.map(|(outcome, count)| (method(name).with("outcome", outcome), count))
    });
    text.counters("zerotap_rpc_calls", "Calls, by how they ended.", outcomes);
    let durations = all.iter().map(|(name, calls)| (method(name), &calls.duration));
    text.histograms("zerotap_rpc_call_duration_seconds", "How long calls took.", durations);
}

fn srs(srs: &[SrLook], text: &mut Text) {
    let labels = |sr: &SrLook| Labels::of(&[("sr", &sr.uuid)]);
    let fresh = |sr: &SrLook| u8::from(sr.told.as_ref().is_some_and(|told| told.fresh));
    let up = srs.iter().map(|sr| (labels(sr), fresh(sr)));
    text.gauges("zerotap_sr_up", "Whether the SR's file system answered in time.", up);
    let told = || srs.iter().filter_map(|sr| Some((labels(sr), &sr.told.as_ref()?.value)));
    let size = told().map(|(labels, info)| (labels, info.total_space));
    text.gauges("zerotap_sr_size_bytes", "The size of the SR's file system.", size);
    let free = told().map(|(labels, info)| (labels, info.free_space));
    text.gauges("zerotap_sr_free_bytes", "What is free of it.", free);
}

fn workers(core: &Core, workers: &[WorkerLook], text: &mut Text) {
    let labels = |it: &WorkerLook| Labels::of(&[("sr", &it.row.vdi.sr), ("vdi", &it.row.vdi.vdi)]);
    let up = workers.iter().map(|it| (labels(it), u8::from(it.up)));
    text.gauges("zerotap_worker_up", "Whether the VDI's worker serves it.", up);
    let fresh = |it: &WorkerLook| it.told.as_ref().is_some_and(|told| told.fresh);
    let stale = workers.iter().map(|it| (labels(it), u8::from(!fresh(it))));
    let help = "1 when the worker did not answer in time: its figures are what it told last.";
    text.gauges("zerotap_worker_stale", help, stale);
    let aged = workers.iter().filter_map(|it| Some((it, it.told.as_ref()?.age)));
    let age = aged
        .map(|(it, age)| (labels(it), seconds(u64::try_from(age.as_micros()).unwrap_or(u64::MAX))));
    text.gauges("zerotap_worker_figures_age_seconds", "How old the worker's figures are.", age);
    let rss = workers.iter().map(|it| (labels(it), rss_kib(it.row.pid) * 1024));
    text.gauges("zerotap_worker_resident_bytes", "The worker's memory.", rss);
    let lives = core.registry.lives();
    let of = |vdi: &crate::vdi::VdiId| Labels::of(&[("sr", &vdi.sr), ("vdi", &vdi.vdi)]);
    let starts = lives.iter().map(|(vdi, lives)| (of(vdi), lives.starts));
    text.counters("zerotap_worker_starts", "Workers started while the VDI was active.", starts);
    let deaths = lives.iter().map(|(vdi, lives)| (of(vdi), lives.deaths));
    text.counters("zerotap_worker_deaths", "Workers that died while the VDI was active.", deaths);
    let nbd = || workers.iter().filter_map(|it| Some((labels(it), &it.told.as_ref()?.value.nbd)));
    let clients = nbd().map(|(labels, nbd)| (labels, nbd.clients));
    text.gauges("zerotap_nbd_clients", "NBD clients connected.", clients);
    for (name, help, of) in NBD_COUNTERS {
        let series = nbd().map(|(labels, nbd)| (labels, of(nbd)));
        text.counters(&format!("zerotap_nbd_{name}"), help, series);
    }
}

fn vbds(vbds: &[VbdLook], text: &mut Text) {
    let labels = |it: &VbdLook| {
        let (id, vdi) = (it.status.address.id, &it.status.identity.vdi);
        Labels::of(&[
            ("domid", &id.domid.to_string()),
            ("device", &it.status.device()),
            ("sr", &vdi.sr),
            ("vdi", &vdi.vdi),
        ])
    };
    let connected = vbds.iter().map(|it| (labels(it), u8::from(it.status.ring.is_some())));
    text.gauges("zerotap_vbd_connected", "Whether the VBD's rings are served.", connected);
    let trouble = vbds.iter().map(|it| (labels(it), u8::from(it.status.trouble.is_some())));
    text.gauges("zerotap_vbd_trouble", "Whether something is wrong with it.", trouble);
    let told = |it| Some((labels(it), &it.counters.as_ref()?.value));
    let counted = || vbds.iter().filter_map(told);
    for (name, help, of) in VBD_COUNTERS {
        let series = counted().map(|(labels, it)| (labels, of(&it.counters)));
        text.counters(&format!("zerotap_vbd_{name}"), help, series);
    }
    for (name, help, of) in VBD_GAUGES {
        let series = counted().map(|(labels, it)| (labels, of(&it.counters)));
        text.gauges(&format!("zerotap_vbd_{name}"), help, series);
    }
    let stages = counted().flat_map(|(labels, it)| {
        let it = &it.counters;
        let stages = [
            ("ring", it.ring_wait_us),
            ("held", it.held_us),
            ("pages", it.reach_us),
            ("device", it.device_us),
            ("release", it.release_us),
        ];
        stages.map(|(stage, us)| (labels.with("stage", stage), seconds(us)))
    });
    text.counters("zerotap_vbd_stage_seconds", "Where requests' time went.", stages);
    let durations = counted().flat_map(|(labels, it): (Labels, &VbdCounters)| {
        let operations = [
            ("read", &it.read_latency),
            ("write", &it.write_latency),
            ("flush", &it.flush_latency),
            ("discard", &it.discard_latency),
        ];
        operations.map(|(name, latency)| (labels.with("operation", name), latency))
    });
    let help = "From a request's leaving the ring to its answer.";
    text.histograms("zerotap_vbd_request_duration_seconds", help, durations);
}
