//! The scenarios on real Xen: each a script for dom0 and one for the guest, kept beside each other in
//! `xtask/xen/scenarios`. A boot takes most of a minute, so one scenario checks many things.

use std::time::Duration;

use super::{Backend, Boot, Guest};

/// A pair of scripts.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) dom0: &'static str,
    pub(crate) guest: &'static str,
    limit_seconds: u64,
}

macro_rules! scenario {
    ($name:literal, $limit_seconds:literal) => {
        Scenario {
            name: $name,
            dom0: include_str!(concat!("../../xen/scenarios/", $name, ".dom0.sh")),
            guest: include_str!(concat!("../../xen/scenarios/", $name, ".guest.sh")),
            limit_seconds: $limit_seconds,
        }
    };
}

/// One disk, one guest, verified random I/O: the default, and all that a PVH guest is asked for,
/// since QEMU's nested SVM does not last.
pub(crate) const DISK: Scenario = scenario!("disk", 300);

impl Scenario {
    pub(crate) fn boot(&self, guest: Guest, backend: Backend) -> Boot {
        Boot {
            guest,
            backend,
            dom0_script: self.dom0.to_owned(),
            guest_script: self.guest.to_owned(),
            vcpus: 1,
            limit: Duration::from_secs(self.limit_seconds),
        }
    }
}
