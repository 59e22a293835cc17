//! How a boot ended, judged from what dom0 reported and what Xen's console said.

use std::fmt;

use super::Guest;
use super::qemu::Run;

/// The end of one boot. Only `Passed` is a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Both scripts exited 0.
    Passed,
    /// A script exited otherwise, or dom0 never came to its end.
    Failed(String),
    /// QEMU's nested SVM broke a PVH guest. It says nothing about us either way: try again.
    EmulatorFault,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed(why) => write!(f, "FAILED: {why}"),
            Self::EmulatorFault => f.write_str("not judged: the emulator broke the guest"),
        }
    }
}

/// Judges a boot of one kind of guest.
pub(crate) fn judge(guest: Guest, run: &Run) -> Outcome {
    let verdict = |name: &str| -> Vec<&str> {
        run.report
            .lines()
            .filter_map(|line| line.trim().strip_prefix("verdict ")?.strip_prefix(name))
            .map(str::trim)
            .collect()
    };
    let (dom0, guests) = (verdict("dom0"), verdict("guest"));
    let guests_passed = !guests.is_empty() && guests.iter().all(|&status| status == "0");
    if dom0 == ["0"] && guests_passed {
        return Outcome::Passed;
    }
    // A guest that lived long enough to say that its script failed was not killed by the emulator.
    let guest_failed = guests.iter().any(|status| status.parse().is_ok_and(|code: u8| code != 0));
    if guest == Guest::Pvh && !guest_failed && run.console.lines().any(is_emulator_fault) {
        return Outcome::EmulatorFault;
    }
    Outcome::Failed(reason(&dom0, &guests, run.timed_out))
}

fn reason(dom0: &[&str], guests: &[&str], timed_out: bool) -> String {
    if timed_out {
        return "the machine was still running at the time limit".to_owned();
    }
    if dom0.is_empty() {
        return "dom0 ended before its script did".to_owned();
    }
    if guests.is_empty() {
        return format!("dom0's script exited {}; no guest was waited for", dom0.join(", "));
    }
    format!("dom0's script exited {}, the guest's {}", dom0.join(", "), guests.join(", "))
}

/// Xen says `d1v0 Triple fault - invoking HVM shutdown action 1`. Where the guest's kernel lives a
/// little longer it finds its entry stack overrun instead: page faults on a GS base that nested SVM
/// lost. Both were seen with the kernel's own back end.
fn is_emulator_fault(line: &str) -> bool {
    (line.contains("(XEN)") && line.contains("Triple fault"))
        || line.contains("BUG: ENTRY_TRAMPOLINE stack guard page was hit")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: &str = "(XEN) [   60.1] d1v0 Triple fault - invoking HVM shutdown action 1\r\n";

    fn ended(report: &str, console: &str, timed_out: bool) -> Run {
        Run { report: report.to_owned(), console: console.to_owned(), timed_out }
    }

    #[test]
    fn both_verdicts_make_a_pass() {
        let passes = |report| judge(Guest::Pv, &ended(report, "", false)) == Outcome::Passed;
        assert!(passes("verdict guest 0\r\nverdict dom0 0\r\n"));
        assert!(!passes("verdict dom0 0\n"));
        assert!(!passes("verdict guest 0\n"));
        assert!(!passes("verdict guest 0\nverdict guest 1\nverdict dom0 0\n"));
        assert!(!passes("verdict guest none\nverdict dom0 0\n"));
    }

    #[test]
    fn an_emulator_fault_is_no_verdict() {
        let dead = "verdict guest none\nverdict dom0 1\n";
        assert_eq!(judge(Guest::Pvh, &ended(dead, FAULT, false)), Outcome::EmulatorFault);
        assert_eq!(judge(Guest::Pvh, &ended("", FAULT, true)), Outcome::EmulatorFault);
        assert!(matches!(judge(Guest::Pvh, &ended(dead, "", false)), Outcome::Failed(_)));
        assert!(matches!(judge(Guest::Pv, &ended(dead, FAULT, false)), Outcome::Failed(_)));
    }

    #[test]
    fn a_guest_that_failed_by_itself_is_a_failure_even_beside_a_fault() {
        let report = "verdict guest 3\nverdict dom0 1\n";
        assert!(matches!(judge(Guest::Pvh, &ended(report, FAULT, false)), Outcome::Failed(_)));
    }

    #[test]
    fn a_time_limit_is_named() {
        let Outcome::Failed(why) = judge(Guest::Pv, &ended("", "", true)) else {
            panic!("must fail")
        };
        assert!(why.contains("time limit"), "{why}");
    }
}
