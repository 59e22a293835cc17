//! The scenarios on real Xen: each a script for dom0 and one for the guest, kept beside each other
//! in
//! `xtask/xen/scenarios`. A boot takes a minute, so one scenario checks many things.

use std::time::Duration;

use super::{Backend, Boot, Guest};

/// A pair of scripts.
pub(crate) struct Scenario {
    pub(crate) dom0: &'static str,
    pub(crate) guest: &'static str,
}

/// One guest, one disk, verified random I/O: what `cargo xtask xen` does when it is told nothing.
pub(crate) const DISK: Scenario = Scenario {
    dom0: include_str!("../../xen/scenarios/disk.dom0.sh"),
    guest: include_str!("../../xen/scenarios/disk.guest.sh"),
};

/// Everything that befalls a disk: data, file system, reboot, replug, unplug under I/O, read-only,
/// growth, workers that die and are upgraded, a guest that is saved and restored.
pub(crate) const LIFE: Scenario = Scenario {
    dom0: include_str!("../../xen/scenarios/life.dom0.sh"),
    guest: include_str!("../../xen/scenarios/life.guest.sh"),
};

/// A boot that the test run makes: some parts of the `LIFE` scenario.
pub(crate) struct Trial {
    pub(crate) name: &'static str,
    pub(crate) guest: Guest,
    pub(crate) parts: &'static str,
}

/// PVH guests get a boot for each part: QEMU's nested SVM may break one at any time, and the less a
/// boot does, the more often it comes to its end.
pub(crate) const TRIALS: &[Trial] = &[
    Trial { name: "xen pv", guest: Guest::Pv, parts: "data plug grow kill move" },
    Trial { name: "xen pvh data", guest: Guest::Pvh, parts: "data" },
    Trial { name: "xen pvh plug", guest: Guest::Pvh, parts: "plug" },
    Trial { name: "xen pvh kill", guest: Guest::Pvh, parts: "kill" },
];

impl Trial {
    pub(crate) fn boot(&self, backend: Backend) -> Boot {
        const LIMIT: Duration = Duration::from_secs(1800);
        Boot {
            guest: self.guest,
            backend,
            dom0_script: format!("PARTS='{}'\n{}", self.parts, LIFE.dom0),
            guest_script: LIFE.guest.to_owned(),
            vcpus: 1,
            keeps_grants: true,
            qemu: false,
            limit: LIMIT,
        }
    }
}
