//! What a worker counts of each VBD. It only adds up: what is told is the daemon's business.

use crate::latency::Histogram;
use crate::worker::VbdId;
use serde::{Deserialize, Serialize};

/// Counters of one VBD since its worker began to serve it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Counters {
    /// Reads, writes and flushes answered with success.
    pub reads: u64,
    /// See `reads`.
    pub writes: u64,
    /// See `reads`; barriers without data too, those with data are writes.
    pub flushes: u64,
    /// Bytes that the guest read.
    pub read_bytes: u64,
    /// Bytes that the guest wrote.
    pub write_bytes: u64,
    /// Discards answered with success.
    #[serde(default)]
    pub discards: u64,
    /// Bytes that were forgotten: whole units only, see `Discard`.
    #[serde(default)]
    pub discard_bytes: u64,
    /// Requests answered with an error because they were malformed, out of range or forbidden.
    pub refused: u64,
    /// Requests answered with an error because the image failed.
    pub io_errors: u64,
    /// Requests taken and not answered yet.
    pub in_flight: u32,
    /// Data bytes whose pages the device reached through a mapping.
    pub mapped_bytes: u64,
    /// Data bytes that the worker copied: direct I/O does not take them where they stand.
    pub copied_bytes: u64,
    /// Data bytes that the hypervisor copied (GRANT_COPY).
    #[serde(default)]
    pub grant_copied_bytes: u64,
    /// Requests whose pages stood, mapped already.
    #[serde(default)]
    pub standing_requests: u64,
    /// Requests whose pages were mapped for them.
    #[serde(default)]
    pub mapped_requests: u64,
    /// Requests whose pages the hypervisor copied.
    #[serde(default)]
    pub grant_copied_requests: u64,
    /// Pages mapped now, the ring's own left out.
    pub mapped_pages: u32,
    /// Of those, pages of persistent grants.
    pub persistent_pages: u32,
    /// Pages of persistent grants that were unmapped to make room, or because they went unused.
    #[serde(default)]
    pub purged_pages: u64,
    /// Map calls made.
    pub map_calls: u64,
    /// Nanoseconds in mapping and unmapping pages that do not stand, and how many those were.
    #[serde(default)]
    pub map_ns: u64,
    /// See `map_ns`.
    #[serde(default)]
    pub map_call_pages: u64,
    /// Calls that had the hypervisor copy data, each for many requests.
    #[serde(default)]
    pub grant_copy_calls: u64,
    /// Nanoseconds in those calls, and the pieces of pages that they copied.
    #[serde(default)]
    pub grant_copy_ns: u64,
    /// See `grant_copy_ns`.
    #[serde(default)]
    pub grant_copy_pieces: u64,
    /// Events received from the guest.
    pub events: u64,
    /// Events sent to the guest.
    pub notifications: u64,
    /// Times that a sweep took requests off the ring.
    pub sweeps: u64,
    /// Times that a queue looked for something to do before it slept, and found something.
    #[serde(default)]
    pub look_hits: u64,
    /// The same, in vain.
    #[serde(default)]
    pub look_misses: u64,
    /// Microseconds of processor time that these took.
    #[serde(default)]
    pub look_us: u64,
    /// Microseconds that requests, answered with success later, were seen in the ring and not
    /// taken, all added up: latencies leave them out.
    #[serde(default)]
    pub ring_wait_us: u64,
    /// Of the latencies of all requests: waiting for a barrier, behind one, for a buffer or for
    /// space.
    #[serde(default)]
    pub held_us: u64,
    /// Of the latencies: while the guest's pages were mapped, or data copied from them.
    #[serde(default)]
    pub reach_us: u64,
    /// Of the latencies: with the device, flushes included.
    #[serde(default)]
    pub device_us: u64,
    /// Of the latencies: done, while pages were given back, or what was read copied to them.
    #[serde(default)]
    pub release_us: u64,
    /// Times that a write found no space and waited for it.
    #[serde(default)]
    pub space_waits: u64,
    /// Writes that wait for space now: part of `in_flight`.
    #[serde(default)]
    pub waiting_for_space: u32,
    /// Since how many milliseconds there have been such writes.
    #[serde(default)]
    pub waiting_for_space_ms: u64,
}

impl Counters {
    /// Adds what another queue, or an earlier connection, counted.
    pub fn merge(&mut self, other: &Counters) {
        let Counters {
            reads,
            writes,
            flushes,
            read_bytes,
            write_bytes,
            discards,
            discard_bytes,
            refused,
            io_errors,
            in_flight,
            mapped_bytes,
            copied_bytes,
            grant_copied_bytes,
            standing_requests,
            mapped_requests,
            grant_copied_requests,
            mapped_pages,
            persistent_pages,
            purged_pages,
            map_calls,
            map_ns,
            map_call_pages,
            grant_copy_calls,
            grant_copy_ns,
            grant_copy_pieces,
            events,
            notifications,
            sweeps,
            look_hits,
            look_misses,
            look_us,
            ring_wait_us,
            held_us,
            reach_us,
            device_us,
            release_us,
            space_waits,
            waiting_for_space,
            waiting_for_space_ms,
        } = other;
        self.reads += reads;
        self.writes += writes;
        self.flushes += flushes;
        self.read_bytes += read_bytes;
        self.write_bytes += write_bytes;
        self.discards += discards;
        self.discard_bytes += discard_bytes;
        self.refused += refused;
        self.io_errors += io_errors;
        self.in_flight += in_flight;
        self.mapped_bytes += mapped_bytes;
        self.copied_bytes += copied_bytes;
        self.grant_copied_bytes += grant_copied_bytes;
        self.standing_requests += standing_requests;
        self.mapped_requests += mapped_requests;
        self.grant_copied_requests += grant_copied_requests;
        self.mapped_pages += mapped_pages;
        self.persistent_pages += persistent_pages;
        self.purged_pages += purged_pages;
        self.map_calls += map_calls;
        self.map_ns += map_ns;
        self.map_call_pages += map_call_pages;
        self.grant_copy_calls += grant_copy_calls;
        self.grant_copy_ns += grant_copy_ns;
        self.grant_copy_pieces += grant_copy_pieces;
        self.events += events;
        self.notifications += notifications;
        self.sweeps += sweeps;
        self.look_hits += look_hits;
        self.look_misses += look_misses;
        self.look_us += look_us;
        self.ring_wait_us += ring_wait_us;
        self.held_us += held_us;
        self.reach_us += reach_us;
        self.device_us += device_us;
        self.release_us += release_us;
        self.space_waits += space_waits;
        self.waiting_for_space += waiting_for_space;
        self.waiting_for_space_ms = self.waiting_for_space_ms.max(*waiting_for_space_ms);
    }
}

/// Counters and latencies of one VBD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VbdCounters {
    /// Which disk.
    pub vbd: VbdId,
    /// Set once the frontend broke the ring's protocol.
    pub broken: bool,
    /// What was counted.
    pub counters: Counters,
    /// From taking a read off the ring to pushing its answer.
    pub read_latency: Histogram,
    /// The same for writes.
    pub write_latency: Histogram,
    /// The same for flushes and barriers.
    pub flush_latency: Histogram,
    /// The same for discards.
    #[serde(default)]
    pub discard_latency: Histogram,
}

impl VbdCounters {
    /// Of a VBD that nothing was counted of.
    #[must_use]
    pub fn new(vbd: VbdId) -> Self {
        VbdCounters {
            vbd,
            broken: false,
            counters: Counters::default(),
            read_latency: Histogram::default(),
            write_latency: Histogram::default(),
            flush_latency: Histogram::default(),
            discard_latency: Histogram::default(),
        }
    }

    /// Adds what another queue, or an earlier connection, counted.
    pub fn merge(&mut self, other: &VbdCounters) {
        self.broken |= other.broken;
        self.counters.merge(&other.counters);
        self.read_latency.merge(&other.read_latency);
        self.write_latency.merge(&other.write_latency);
        self.flush_latency.merge(&other.flush_latency);
        self.discard_latency.merge(&other.discard_latency);
    }
}
