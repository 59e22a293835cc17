//! The status page in a real browser: headless Chromium, on a disk whose guest works.

use anyhow::{Context as _, ensure};
use std::process::Command;
use std::time::Duration;
use zerotap_tests::harness::{DEVICE, Host, eventually, proxy};
use zerotap_tests::simguest::{Expect, Guest, Running};

const DOMID: u16 = 5;
const LOUD: &str = "NOT TESTED: the status page, for want of a browser. Install one and run this \
                    test again:\n  apt-get install -y --no-install-recommends chromium && cargo \
                    test -p zerotap-tests --test status_page";

/// The page as it stands after some seconds of the page's own time.
fn page(port: u16) -> Option<String> {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=6000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg("--dump-dom")
        .arg(format!("http://localhost:{port}/status"))
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// What stands in the element that begins so.
fn content<'a>(page: &'a str, begin: &str) -> &'a str {
    let (_, rest) = page.split_once(begin).unwrap_or_else(|| panic!("no {begin} in {page}"));
    rest.split_once('>').map(|(_, inner)| inner).unwrap_or_default()
}

/// The first disk's row.
fn cells(page: &str) -> Vec<&str> {
    let row = content(page, "<tbody id=\"disks\"").split("</tbody>").next().unwrap();
    row.split("<td").skip(1).filter_map(|it| it.split(['>', '<']).nth(1)).collect()
}

#[test]
fn the_page_shows_what_each_disk_does() {
    let host = Host::start().unwrap();
    let port = proxy::forward(host.rpc().socket()).unwrap();
    assert!(page(port).is_some(), "{LOUD}");
    let disk = host.serve(DOMID, 64 << 20).unwrap();
    let running = Running::start(host.sim().dir(), Guest::new(DOMID), Expect::Fresh).unwrap();
    disk.plug(&host.rpc()).unwrap();
    running.progresses(100, Duration::from_secs(30)).unwrap();
    // On a busy machine a disk may have answered next to nothing for as long as a page looks back.
    let page = eventually("a page of a disk at work", || {
        let page = page(port).context("it was there before")?;
        let cells = cells(&page);
        let works = cells[3..6].iter().all(|rate| rate.parse().is_ok_and(|it: f64| it > 0.0));
        ensure!(works, "rates: {cells:?}");
        Ok(Some(page))
    })
    .unwrap();

    let status = content(&page, "<div id=\"host\"");
    assert!(status.contains("1 SRs, 1 VDIs in use, 1 workers, 1 VBDs connected"), "{status}");
    let cells = cells(&page);
    assert_eq!(cells[..3], [DOMID.to_string().as_str(), DEVICE, "connected"], "{cells:?}");
    let number = |n: usize| cells[n].trim_end_matches(" ms").parse::<f64>().unwrap();
    assert!(number(6) > 0.0 && number(7) >= number(6), "latencies: {cells:?}");
    assert_eq!(cells[10], disk.vdi.vdi);
    for line in ["line0iops", "line1read", "line1write", "line2p50", "line2p99"] {
        let (_, rest) = page.split_once(&format!("id=\"{line}\"")).expect(line);
        let (_, points) = rest.split_once("points=\"").expect(line);
        let points = points.split('"').next().unwrap().split_whitespace().count();
        assert!(points >= 2, "{line} has {points} points");
    }
    running.progress.stop();
    running.join().unwrap();
    disk.unplug(&host.rpc(), false).unwrap();
}
