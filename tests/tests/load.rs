//! The load campaign, short: `cargo xtask load` runs it long.

use std::time::Duration;
use zerotap_tests::load::{Plan, run};

#[test]
fn many_disks_live_through_faults_and_leave_nothing_behind() {
    let plan = Plan { disks: 8, time: Duration::from_secs(15), seed: 1 };
    let tally = run(&plan, |line| println!("{line}")).unwrap();
    println!("{tally:?}");
    assert!(tally.requests > 1000 && tally.calls > 100, "{tally:?}");
    assert!(tally.faults.values().sum::<u64>() > 10, "{tally:?}");
}
