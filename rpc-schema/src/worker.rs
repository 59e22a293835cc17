//! The control protocol between the daemon and a datapath worker.
//!
//! A unix stream socket on which the worker listens; one JSON object a line, at most
//! [`LINE_BYTES_MAX`] long, a newline at its end. The daemon numbers its requests, the worker
//! answers each with the same number, not always in order (a disconnect waits until the disk has
//! drained).
//! `Connect` and `Copy` carry descriptors (SCM_RIGHTS) with the first byte of its line.
//! The daemon opens with [`Ask::Hello`] and the newest protocol that it speaks. The worker answers
//! with the newest that both speak; one of protocol 1 refuses all but that, and is asked again.
//! Protocol 2 has journals, 3 has bounds, 4 makes copies of the image.

pub use crate::counters::{Counters, VbdCounters};
use crate::engine::{EngineChoice, EngineKind};
pub use crate::nbd::NbdCounters;
use serde::{Deserialize, Serialize};

/// The version of this protocol.
pub const PROTOCOL: u32 = 4;
/// The oldest version that daemon and worker still speak: they are not upgraded together.
pub const PROTOCOL_OLDEST: u32 = 1;
/// The longest line that either side accepts, newline included.
pub const LINE_BYTES_MAX: usize = 256 * 1024;
/// The most disks (VBDs) that one worker serves of its VDI.
pub const VBDS_MAX: usize = 16;
/// Bytes of a ring's journal before its first place.
pub const JOURNAL_HEADER_BYTES: usize = 128;
/// Bytes of a place in it.
pub const JOURNAL_PLACE_BYTES: usize = 128;
/// The most queues of a VBD: four CPUs of the host keep any device busy.
pub const QUEUES_MAX: usize = 4;
/// The most descriptors that a line carries: an event channel and a journal a queue.
pub const DESCRIPTORS_MAX: usize = 2 * QUEUES_MAX;

/// A VBD of this host: which domain's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VbdId {
    /// The frontend's domain.
    pub domid: u16,
    /// The virtual device's number, for example 51712 for `xvda`.
    pub devid: u32,
}

impl std::fmt::Display for VbdId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.domid, self.devid)
    }
}

/// The layout of the ring's entries, as the frontend's `protocol` key names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Abi {
    /// 112-byte entries. Also Arm's layout.
    #[serde(rename = "x86_64-abi")]
    X86_64,
    /// 108-byte entries. What an absent key means on x86.
    #[serde(rename = "x86_32-abi")]
    X86_32,
}

/// One queue of a VBD: a ring of its own and how its ends wake each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct QueueParameters {
    /// Grant references of the ring's pages: 1, 2, 4, 8 or 16.
    pub ring_refs: Vec<u32>,
    /// The frontend's event channel port.
    pub port: u32,
}

/// Bytes of the journal of a ring of `pages` pages: a place for each entry, 32 of which go into a
/// page, in whole pages.
#[must_use]
pub fn journal_bytes(pages: usize) -> usize {
    (JOURNAL_HEADER_BYTES + 32 * pages * JOURNAL_PLACE_BYTES).next_multiple_of(4096)
}

/// What a journal is handed over for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Journaled {
    /// The frontend has just made its rings: nothing was taken of them.
    Begin,
    /// The frontend is in the middle of its life: what an earlier worker took of its rings and did
    /// not answer stands in the journals.
    Resume,
}

/// What a frontend published, validated by the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RingParameters {
    /// Its queues: 1 to [`QUEUES_MAX`].
    pub queues: Vec<QueueParameters>,
    /// The entries' layout.
    pub protocol: Abi,
    /// Whether the frontend keeps its grants (both ends must have offered it).
    pub persistent: bool,
}

/// How a guest's pages are reached, as far as the administrator decides it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TransferRule {
    /// By what is cheapest: pages that stay mapped, else mapped for the request or copied.
    #[default]
    Auto,
    /// Never copied by the hypervisor where they may be mapped.
    Map,
    /// Never mapped: the hypervisor copies.
    Copy,
}

/// What a guest may ask of what a worker can, as far as an administrator bounds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// Barriers.
    pub barrier: bool,
    /// Segments of an indirect request; none at all with 0.
    pub indirect_segments_max: u32,
}

impl Default for Bounds {
    /// None.
    fn default() -> Self {
        Bounds { barrier: true, indirect_segments_max: u32::MAX }
    }
}

/// Not the name of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoTransferRule;

impl std::fmt::Display for NoTransferRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("transfer is auto, map or copy")
    }
}

impl std::error::Error for NoTransferRule {}

impl std::str::FromStr for TransferRule {
    type Err = NoTransferRule;

    fn from_str(word: &str) -> Result<Self, NoTransferRule> {
        let rules = [TransferRule::Auto, TransferRule::Map, TransferRule::Copy];
        rules.into_iter().find(|rule| rule.to_string() == word).ok_or(NoTransferRule)
    }
}

impl std::fmt::Display for TransferRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TransferRule::Auto => "auto",
            TransferRule::Map => "map",
            TransferRule::Copy => "copy",
        })
    }
}

/// What the daemon asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// First on every connection. Answer: [`Answer::Hello`].
    Hello {
        /// The newest that the daemon speaks.
        protocol: u32,
    },
    /// Serve a VBD. Carries a descriptor a queue: an event channel device of its own
    /// (`/dev/xen/evtchn`, or the simulated host's directory). After those, where it is
    /// `journaled`, one more a queue: its journal, a file in memory of [`journal_bytes`]. Answer:
    /// [`Answer::Done`], once the rings are mapped, the ports are bound and requests are taken.
    Connect {
        /// Which disk.
        vbd: VbdId,
        /// Refuse writes, whatever the frontend believes.
        read_only: bool,
        /// Take discards. Only for a worker whose image has [`ImageInfo::discard`].
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        discard: bool,
        /// The frontend's rings.
        ring: RingParameters,
        /// How its pages are reached; absent: as the worker was told when it started. A worker may
        /// be older than its daemon and not know this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        transfer: Option<TransferRule>,
        /// What was not offered is refused. Since protocol 3.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bounds: Option<Bounds>,
        /// Whether there are journals, and what for. Since protocol 2.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        journaled: Option<Journaled>,
    },
    /// Stop taking requests, finish those taken, unmap, unbind. Answer: [`Answer::Done`], once the
    /// worker holds nothing of the guest any more. Succeeds for a VBD that is not connected.
    Disconnect {
        /// Which disk.
        vbd: VbdId,
        /// What waits for space stays unanswered in the journals, for the next worker, which
        /// [`Answer::Left`] tells of; otherwise it is answered with an error. Only for a worker
        /// whose Hello says that it `leaves`.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        leave: bool,
    },
    /// Answer: [`Answer::Stat`].
    Stat,
    /// The image has grown: let all whom it serves reach that far. Answer: [`Answer::Done`]. Only
    /// for a worker whose Hello says that it `resizes`.
    Resize {
        /// The new capacity in 512-byte sectors; never fewer than before.
        sectors: u64,
    },
    /// Make a copy of the image as it is at one moment, while it is in use. Carries the descriptor
    /// of an empty file, to be written, with which the image's file can share extents. Answer:
    /// [`Answer::Done`], once the content is there; it is not durable yet. Since protocol 4.
    Copy,
    /// Disconnect all, flush the image, exit 0. Answer: [`Answer::Done`], just before. Where there
    /// are journals, what waits for space is left in them.
    Shutdown,
}

/// A line from the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The daemon's number for this request.
    pub id: u64,
    /// What it asks.
    pub ask: Ask,
}

/// How an image forgets ranges. Only whole units are forgotten: what a request has beyond them
/// stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Discard {
    /// A unit's length, bytes.
    pub granularity_bytes: u32,
    /// Where the first unit begins, bytes.
    pub alignment_bytes: u32,
}

/// The image as the worker found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImageInfo {
    /// Capacity in 512-byte sectors, whatever `sector_bytes` says.
    pub sectors: u64,
    /// The logical sector: 512 or 4096 bytes.
    pub sector_bytes: u32,
    /// The physical sector, bytes.
    pub physical_sector_bytes: u32,
    /// What else a guest may be told that its sectors are, in bytes: the worker then reads, changes
    /// and writes back what is less than a sector. Absent where there is no choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulated_sector_bytes: Option<u32>,
    /// What direct I/O wants of a buffer's address and length, bytes.
    pub memory_align_bytes: u32,
    /// Absent where ranges cannot be forgotten, or must not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<Discard>,
}

/// What the worker answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Ask::Hello`].
    Hello {
        /// The newest that both speak.
        protocol: u32,
        /// The worker's version.
        version: String,
        /// Its process id.
        pid: u32,
        /// What it serves.
        image: ImageInfo,
        /// The most segments that an indirect request may have.
        indirect_segments_max: u32,
        /// The highest ring order that it maps.
        ring_page_order_max: u32,
        /// The most queues that are worth having: no more than the host has CPUs.
        queues_max: u32,
        /// The VBDs that are connected, for a daemon that came back.
        connected: Vec<Connected>,
        /// Whether it knows [`Ask::Resize`]: a worker may be older than its daemon.
        #[serde(default)]
        resizes: bool,
        /// How it reaches guests' pages, unless a VBD has a rule of its own; absent from one that
        /// knows no rules.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        transfer: Option<TransferRule>,
        /// By what it does its I/O.
        #[serde(default = "engine_of_old")]
        engine: EngineChoice,
        /// Whether it can leave requests to the next worker: see [`Ask::Disconnect`].
        #[serde(default)]
        leaves: bool,
    },
    /// The request took effect.
    Done,
    /// To [`Ask::Disconnect`]: it took effect, and there are requests that the next worker has to
    /// answer.
    Left,
    /// To [`Ask::Stat`]: every VBD that is or was connected since the worker started.
    Stat {
        /// One a VBD.
        vbds: Vec<VbdCounters>,
        /// The NBD server's.
        #[serde(default)]
        nbd: NbdCounters,
    },
    /// The request did not take effect.
    Error {
        /// What was asked, what is wrong.
        text: String,
    },
}

/// Workers that do not tell know of no other.
fn engine_of_old() -> EngineChoice {
    EngineChoice { kind: EngineKind::IoUring, why: "an older worker has no other".into() }
}

/// A line from the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's number.
    pub id: u64,
    /// The answer.
    pub answer: Answer,
}

/// A VBD that a worker serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// Which disk.
    pub vbd: VbdId,
    /// With which ring.
    pub ring: RingParameters,
    /// Set once the frontend broke the ring's protocol: it is served no longer.
    pub broken: bool,
    /// It was told to let go of it, and has not finished: a worker may be older and not tell.
    #[serde(default)]
    pub draining: bool,
}
