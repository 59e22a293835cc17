//! How long an answer may take: the daemon answers by then, and its clients wait as long.

use crate::smapi3::PREFIX;
use std::time::Duration;

/// The deadline of nearly all calls. What was asked for goes on, and may be asked for again.
const CALL: Duration = Duration::from_secs(120);
/// The same for calls that move data, or wait for a guest as long as the caller says.
const LONG_CALL: Duration = Duration::from_secs(24 * 3600);
/// The calls that [`LONG_CALL`] is for.
const LONG_CALLS: &[&str] = &[
    "VDI.create",
    "VDI.clone",
    "VDI.snapshot",
    "VDI.revert",
    "VDI.resize",
    "VDI.epoch_begin",
    "VBD.unplug",
    "Volume.create",
    "Volume.clone",
    "Volume.snapshot",
    "Volume.revert",
    "Volume.resize",
    "Datapath.open",
];

/// How long `method` may take to answer.
#[must_use]
pub fn deadline_of(method: &str) -> Duration {
    let name = method.strip_prefix(PREFIX).unwrap_or(method);
    if LONG_CALLS.contains(&name) { LONG_CALL } else { CALL }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_long_call_is_a_method() {
        let names: Vec<_> = crate::names().collect();
        for long in LONG_CALLS {
            let of_scripts = format!("{PREFIX}{long}");
            assert!(names.contains(long) || names.contains(&of_scripts.as_str()), "{long}");
        }
        assert_eq!(deadline_of("SMAPIv3.Volume.clone"), LONG_CALL);
        assert_eq!(deadline_of("SR.list"), CALL);
    }
}
