//! Changes of state as they happen: what `Event.subscribe` sends.

use crate::smapi2::VdiState;
use serde::{Deserialize, Serialize};

/// The notification that carries an [`Event`] as its `result`.
pub const NOTIFICATION: &str = "Event.changed";

/// Something changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// When, RFC 3339 with milliseconds.
    pub at: String,
    /// What.
    #[serde(flatten)]
    pub change: Change,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Change {
    /// An SR was attached to this host, or detached.
    Sr {
        /// Its uuid.
        sr: String,
        /// `attached`, or `detached`.
        state: String,
    },
    /// A use of a VDI changed its state.
    Datapath {
        /// The SR's uuid.
        sr: String,
        /// The VDI's key.
        vdi: String,
        /// The use.
        dp: String,
        /// Its domain, as the caller told it.
        domain: String,
        /// Its state before.
        from: VdiState,
        /// Its state now.
        to: VdiState,
    },
    /// A VBD is not as it was. Its last event has the state `gone`.
    Vbd {
        /// The frontend's domain.
        domid: u16,
        /// The device's name in the guest.
        device: String,
        /// The SR's uuid.
        sr: String,
        /// The VDI's key.
        vdi: String,
        /// The backend's XenBus state, in words.
        state: String,
        /// The frontend's XenBus state, in words.
        frontend_state: String,
        /// The worker that serves it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        worker: Option<String>,
        /// What is wrong and what to do.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trouble: Option<String>,
    },
    /// A worker started, was adopted from a daemon before this one, was stopped, or died.
    Worker {
        /// The SR's uuid.
        sr: String,
        /// The VDI's key.
        vdi: String,
        /// Its id.
        worker: String,
        /// Its process.
        pid: u32,
        /// `started`, `adopted`, `stopped` or `died`.
        state: String,
        /// How it died.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// This reader was too slow for so many events: it does not know of them. See how all is.
    Lagged {
        /// How many.
        missed: u64,
    },
}
