//! What goes into the backend's machine and what comes out.

use super::super::frontend::Fault;
use super::super::xenbus::State;
use zerotap_rpc_schema::worker::{ImageInfo, Journaled, RingParameters, TransferRule};

/// Both directories of the device, as they are now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight {
    /// Ours; `None` once the toolstack has removed it.
    pub backend: Option<BackendSight>,
    /// Whether xenstored knows the guest's domain.
    pub alive: bool,
    /// The guest's `state`; `None` when it is not there.
    pub frontend_state: Option<String>,
    /// The ring that the guest has published; `None` unless [`Backend::wants_ring`].
    pub ring: Option<Result<RingParameters, Fault>>,
}

/// What matters in the backend's directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackendSight {
    /// `state`, raw: what a publication insists on finding unchanged.
    pub state: Option<String>,
    /// `online`: 0 when the toolstack takes the device away.
    pub online: bool,
    /// Whether the device may be offered: the toolstack's script is done, or none is needed.
    pub ready: bool,
    /// `sectors`: the capacity that the guest was told of.
    pub sectors: Option<u64>,
    /// What is in the drive; a disk always has its own.
    pub medium: Medium,
}

/// What is in a CD drive. Source: xenopsd's `qemu_media_change` (xen-api
/// ocaml/xenopsd/xc/device.ml), which rewrites `params`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Medium {
    /// The VDI that the device began with.
    #[default]
    Here,
    /// Nothing.
    Ejected,
    /// Another VDI: this device is over once the guest's ring was let go, and one with that VDI
    /// begins.
    Another,
}

/// The worker that serves the VDI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its process.
    pub pid: u32,
    /// The image, as it found it.
    pub image: ImageInfo,
    /// Whether it can only read.
    pub read_only: bool,
    /// The most segments of an indirect request.
    pub indirect_segments_max: u32,
    /// The highest ring order.
    pub ring_page_order_max: u32,
    /// The most queues that are worth having.
    pub queues_max: u32,
    /// How it reaches guests' pages; none when it knows no rules.
    pub transfer: Option<TransferRule>,
    /// The ring of this VBD that it serves already.
    pub ring: Option<RingParameters>,
    /// Somebody has told it to let go of that one.
    pub draining: bool,
    /// It keeps no journals, and has served this VBD's ring to its end, every request answered.
    pub answered_all: bool,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Both directories were read.
    Seen(Sight),
    /// A worker is ready.
    WorkerReady(Worker),
    /// The worker died, or there is none; why, and what is done about it, for people. May come
    /// again with other words.
    WorkerDied(String),
    /// The worker is about to be ended; it must let go of its rings first.
    WorkerLeaves,
    /// The answer to [`Action::Connect`].
    Connected(Result<(), ConnectError>),
    /// The answer to [`Action::Disconnect`]: the worker holds nothing of the guest any more.
    Disconnected {
        /// Whether it answered all that it had taken: false when it died, or may have left
        /// something to the next worker.
        drained: bool,
    },
    /// The answer to [`Action::Publish`].
    Published(Result<(), PublishError>),
    /// The guest broke the ring's rules; the worker stopped serving it.
    RingBroken,
    /// The guest's writes wait for space, or not any more.
    Short(bool),
    /// The operator wants the device gone, whatever the guest thinks.
    Forced,
}

/// Why a ring was not connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectError {
    /// The worker said no, and why.
    Refused(String),
    /// It died meanwhile, or has let go again: another try may do better.
    Again,
}

/// Why a publication failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishError {
    /// `state` was not what was seen: look again.
    Changed,
    /// xenstored said no, or is away.
    Failed(String),
}

/// What to do. Each is answered by an event, but for the last three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Have the worker serve the ring, of which nothing was taken yet, or of which an earlier
    /// worker may have taken requests.
    Connect(RingParameters, Journaled),
    /// Have the worker finish and let go of the ring.
    Disconnect,
    /// Write into the backend's directory, provided that `state` still is `from`.
    Publish {
        /// What `state` was.
        from: String,
        /// What to write.
        what: Publication,
    },
    /// Write into the error node what the guest did wrong; empty: remove the node.
    Complain(String),
    /// Remove both directories: the domain is gone, and no toolstack knows this kind.
    RemoveDirectories,
    /// The device is gone and nothing is held: forget it.
    End,
}

/// What is written, each in one transaction with the state that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publication {
    /// What a frontend has to know before it makes its ring; then `InitWait`.
    Offers(Worker),
    /// What a frontend has to know before it makes its disk; then `Connected`. Written over
    /// `Connected` it makes the frontend read `sectors` anew: the image has grown.
    Properties(Worker),
    /// Written over `Connected`, once the ring was let go with every request answered: the disk has
    /// no sectors until there is a medium again. The guest fails what is asked of it meanwhile.
    NoMedium,
    /// A state and nothing else.
    State(State),
}

impl Publication {
    /// The state that it leads to.
    #[must_use]
    pub fn state(&self) -> State {
        match self {
            Publication::Offers(_) => State::InitWait,
            Publication::Properties(_) | Publication::NoMedium => State::Connected,
            Publication::State(state) => *state,
        }
    }
}
