//! What operators ask beside SMAPIv2: VBDs, workers, the host.

use crate::engine::EngineChoice;
use crate::smapi2::{Mode, params};
use crate::worker::{Counters, ImageInfo, NbdCounters, RingParameters, TransferRule};
use crate::{Histogram, smapi2::Pairs};
use serde::{Deserialize, Serialize};

/// A VBD: a VDI as one domain sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Vbd {
    /// The frontend's domain.
    pub domid: u16,
    /// The device's name in the guest, for example `xvda`.
    pub device: String,
    /// The device's number.
    pub devid: u32,
    /// The backend kind: `qdisk` or `zerotap`.
    pub kind: String,
    /// The SR's uuid; absent when the backend directory names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sr: Option<String>,
    /// The VDI's key; absent when the backend directory names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vdi: Option<String>,
    /// Read-only or read-write, as the toolstack ordered.
    pub mode: Mode,
    /// The backend's XenBus state, in words: `initialising`, `init-wait`, `connected` ...
    pub state: String,
    /// The frontend's XenBus state, in words.
    pub frontend_state: String,
    /// The worker that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Since when it is in this state, RFC 3339.
    pub since: String,
    /// The datapaths that hold the VDI, for example `vbd/5/xvda`.
    pub held_by: Vec<String>,
    /// What is wrong and what to do; absent when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// A copy of a VDI's data that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Task {
    /// What was asked: `copy` (a snapshot or a clone is made of the VDI) or `revert` (the VDI gets
    /// its snapshot's content).
    pub operation: String,
    /// The SR's uuid.
    pub sr: String,
    /// The VDI's key.
    pub vdi: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// How much of the source is behind it, bytes.
    pub done_bytes: u64,
    /// How long the source is, bytes; 0 until its data is copied, for extents that are shared are
    /// not.
    pub of_bytes: u64,
}

/// What was seen of a VDI that was taken from another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Unlocked {
    /// The uuid of the host that had it active.
    pub host: String,
    /// That host's boot.
    pub boot_id: String,
    /// Which activation of the VDI it was.
    pub epoch: u64,
    /// Since when it was active, RFC 3339.
    pub since: String,
    /// What became of the lock on its data, in words.
    pub data: String,
}

/// A VBD with all that its worker knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VbdStat {
    /// The VBD as in `VBD.list`.
    pub vbd: Vbd,
    /// The ring; absent while it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<RingParameters>,
    /// The image; absent while no worker serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageInfo>,
    /// Counters since the worker began to serve the VBD.
    pub counters: Counters,
    /// Reads, from taken off the ring to answered.
    pub read_latency: Histogram,
    /// Writes.
    pub write_latency: Histogram,
    /// Flushes and barriers.
    pub flush_latency: Histogram,
    /// How old counters and latencies are, milliseconds: the worker did not answer in time.
    /// 0 when it did.
    #[serde(default)]
    pub age_ms: u64,
    /// Discards.
    #[serde(default)]
    pub discard_latency: Histogram,
}

/// A datapath worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Worker {
    /// Its id: the name of its socket.
    pub id: String,
    /// The SR's uuid.
    pub sr: String,
    /// The VDI's key.
    pub vdi: String,
    /// Its process.
    pub pid: u32,
    /// `serving`, or `dead`.
    pub state: String,
    /// Its program's version.
    pub version: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// Resident memory, KiB.
    pub rss_kib: u64,
    /// Its VBDs as `domid/devid`.
    pub vbds: Vec<String>,
    /// Its NBD server's counters; absent when it does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd: Option<NbdCounters>,
    /// By what it does its I/O, and why; absent when the daemon never heard from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineChoice>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Trouble {
    /// What: a VDI, a VBD, a worker, xenstore.
    pub what: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

/// The daemon and its host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostStatus {
    /// The daemon's version.
    pub version: String,
    /// `xen` or `sim`.
    pub host: String,
    /// The daemon's process.
    pub pid: u32,
    /// Since when it runs, RFC 3339.
    pub since: String,
    /// The host's boot id.
    pub boot_id: String,
    /// The host's uuid: whom other hosts name as the one that has a VDI active.
    #[serde(default)]
    pub host_uuid: String,
    /// Whether xenstored answers.
    pub xenstore: bool,
    /// `kernel`: its release; `engine`: which one new workers take for I/O, `io_uring`, `aio` or
    /// `none`; `why`.
    pub engine: Pairs,
    /// Attached SRs.
    pub srs: u32,
    /// VDIs with a datapath.
    pub vdis: u32,
    /// Workers alive.
    pub workers: u32,
    /// VBDs connected.
    pub vbds: u32,
    /// NBD clients connected.
    #[serde(default)]
    pub nbd_clients: u32,
    /// What is degraded and what to do; empty when all is well.
    pub trouble: Vec<Trouble>,
}

params! {
    /// One VBD.
    pub struct VbdParams {
        /// The domain.
        pub domid: u16,
        /// The device's name in the guest, for example `xvda`.
        pub device: String,
    }
    /// `VDI.unlock`.
    pub struct VdiUnlockParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// The uuid of the host that has it active, and is dead.
        pub force_from: String,
        /// Why, for the log.
        pub reason: String,
    }
    /// `VBD.plug`: what a toolstack does, for hosts without XAPI.
    pub struct VbdPlugParams {
        /// The domain.
        pub domid: u16,
        /// The device's name in the guest, for example `xvda`.
        pub device: String,
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key; it must be activated.
        pub vdi: String,
        /// Plug it read-only.
        #[serde(default)]
        pub read_only: bool,
        /// How the guest's pages are reached, where that is not as VDI, SR and configuration say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub transfer: Option<TransferRule>,
    }
    /// `VBD.unplug`.
    pub struct VbdUnplugParams {
        /// The domain.
        pub domid: u16,
        /// The device's name in the guest, for example `xvda`.
        pub device: String,
        /// Do not wait for the guest.
        #[serde(default)]
        pub force: bool,
        /// How long the guest may take to let go, seconds; 30 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub timeout_seconds: Option<u32>,
    }
}
