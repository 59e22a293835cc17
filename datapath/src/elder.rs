//! Plays a worker of an earlier protocol, so that scenarios see how a daemon treats one that has
//! disks: a debug build started with `ZEROTAP_WORKER_PROTOCOL` goes by the rules of that version.
//!
//! A release build has none of this, and `cargo xtask dist` makes sure. Asked by the worker.

use zerotap_rpc_schema::worker::{Ask, PROTOCOL};

/// The newest protocol that this worker speaks.
#[must_use]
pub(crate) fn newest() -> u32 {
    #[cfg(debug_assertions)]
    if let Ok(Ok(earlier)) = std::env::var("ZEROTAP_WORKER_PROTOCOL").map(|text| text.parse()) {
        return earlier;
    }
    PROTOCOL
}

/// What a worker that speaks nothing newer than `newest` said to an `ask` that it did not know.
#[must_use]
pub(crate) fn refusal(ask: &Ask, newest: u32) -> Option<String> {
    match ask {
        // Protocol 1 was spoken by those who did not negotiate.
        Ask::Hello { protocol } if newest == 1 && *protocol != 1 => {
            Some(format!("this worker speaks protocol 1, not {protocol}"))
        }
        Ask::Connect { journaled: Some(_), .. } if newest < 2 => {
            Some("unknown field `journaled`".to_owned())
        }
        Ask::Connect { bounds: Some(_), .. } if newest < 3 => {
            Some("unknown field `bounds`".to_owned())
        }
        Ask::Copy if newest < 4 => Some("unknown variant `copy`".to_owned()),
        _ => None,
    }
}
