//! tapdisk's statistics files, read as XenServer's tools read them.

use std::path::{Path, PathBuf};
use std::time::Duration;
use zerotap_tests::guest::destroy;
use zerotap_tests::harness::{Disk, Host, eventually};
use zerotap_tests::simguest::{Expect, Guest, Running};

const DOMID: u16 = 5;
const DEVID: u32 = 51712;
const REQUESTS: u64 = 500;

fn words(path: &Path) -> Option<Vec<u64>> {
    let bytes = std::fs::read(path).ok()?;
    Some(bytes.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect())
}

/// `vbd3-*/statistics` and `td3-*/vbd-*` of the one disk.
fn paths(host: &Host, dir: &Path, disk: &Disk) -> [PathBuf; 2] {
    let pid = disk.worker(&host.rpc()).unwrap().pid;
    [
        dir.join(format!("vbd3-{DOMID}-{DEVID}/statistics")),
        dir.join(format!("td3-{pid}/vbd-{DOMID}-{DEVID}")),
    ]
}

#[test]
fn the_files_are_where_tools_look_and_go_with_the_disk() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    // A tapdisk's own, beside ours.
    let theirs = dir.path().join("vbd3-9-51712");
    std::fs::create_dir(&theirs).unwrap();
    let lines = format!("legacy_statistics_dir = {:?}", dir.path());
    let mut host = Host::start_with(&lines).unwrap();
    let disk = host.serve(DOMID, 64 << 20).unwrap();
    let guest = Guest::new(DOMID);
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&host.rpc()).unwrap();
    running.progresses(REQUESTS, Duration::from_secs(30)).unwrap();
    let [statistics, stats] = paths(&host, dir.path(), &disk);
    let told = eventually("as many requests as were answered", || {
        let (Some(statistics), Some(stats)) = (words(&statistics), words(&stats)) else {
            return Ok(None);
        };
        let enough = statistics[4] + statistics[9] + statistics[1] >= REQUESTS && stats[3] > 0;
        Ok(enough.then_some((statistics, stats)))
    });
    let (statistics_told, stats_told) = told.unwrap();
    let now = disk.stat(&host.rpc()).unwrap().counters;
    assert_eq!((statistics_told.len(), stats_told.len()), (14, 12));
    assert_eq!(stats_told[0], 1, "the version that xentop knows");
    assert!(statistics_told[4] <= now.reads && statistics_told[9] <= now.writes);
    assert!(statistics_told[5] <= now.read_bytes / 512 && statistics_told[5] > 0);
    assert!(statistics_told[6] > 0 && statistics_told[7] > 0, "latencies: {statistics_told:?}");
    assert!(stats_told[6] <= now.writes && stats_told[8] <= now.write_bytes / 512);

    // The next daemon goes on in the same file, which readers have mapped.
    use std::os::unix::fs::MetadataExt as _;
    let inode = std::fs::metadata(&stats).unwrap().ino();
    host.kill_daemon().unwrap();
    host.start_daemon().unwrap();
    let before = words(&stats).unwrap()[3];
    eventually("the next daemon writes", || Ok((words(&stats).unwrap()[3] > before).then_some(())))
        .unwrap();
    assert_eq!(std::fs::metadata(&stats).unwrap().ino(), inode);

    running.progress.stop();
    running.join().unwrap();
    disk.unplug(&host.rpc(), false).unwrap();
    destroy(host.sim().dir(), DOMID).unwrap();
    disk.deactivate(&host.rpc()).unwrap();
    eventually("nothing of ours is left", || {
        let left = std::fs::read_dir(dir.path())?.flatten().map(|entry| entry.path());
        Ok((left.collect::<Vec<_>>() == [theirs.clone()]).then_some(()))
    })
    .unwrap();
}
