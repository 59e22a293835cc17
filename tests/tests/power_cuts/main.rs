//! The power goes under daemon, workers, SQLite, catalog and images, on a real file system: after
//! each cut every call that was answered and every byte that was flushed is there, and SQLite, the
//! catalog and the directory agree.
//!
//! XFS on a loop device, shut down so that it forgets all that was not synced. What is called,
//! written and cut short follows from a seed. `ZEROTAP_CAMPAIGN_RUNS` and `ZEROTAP_CAMPAIGN_SEED`
//! say how many and which; the datapath has a campaign of its own (`datapath/src/queue/campaign`).

mod history;
mod volume;

use history::History;
use zerotap_tests::harness::loop_device::LoopDevice;

/// Power cuts of a seed.
const CUTS: usize = 4;
/// Seeds of a plain test.
const RUNS: u64 = 3;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect(name))
}

#[test]
fn what_was_answered_survives_power_cuts() {
    let room = tempfile::tempdir().unwrap();
    let mut device = LoopDevice::new(&room.path().join("backing"), 512 << 20, 512).unwrap();
    let top = room.path().join("disk");
    device.mount_xfs(&top).unwrap();
    let first = number("ZEROTAP_CAMPAIGN_SEED").unwrap_or(1);
    let runs = number("ZEROTAP_CAMPAIGN_RUNS").unwrap_or(RUNS);
    let mut deaths = 0;
    for seed in first..first + runs {
        let mut history = History::begin(seed, &device, &top).unwrap();
        for cut in 0..CUTS {
            let lived = history.live(cut);
            lived.unwrap_or_else(|problem| panic!("seed {seed}, power cut {cut}: {problem:#}"));
        }
        deaths += history.deaths;
        drop(history);
        std::fs::remove_dir_all(top.join(seed.to_string())).unwrap();
    }
    println!("{runs} seeds from {first} on, {CUTS} power cuts each, {deaths} amid a call");
    assert!(deaths > 0, "no call was cut short");
}
