//! How long a guest under load waits while its disk is copied, on a file system whose files share
//! extents. A measurement for `cargo xtask bench`, not a test.
//!
//! A clone takes its time for each extent, some 14 us on XFS, and holds writes to it back.
//! Writes of 4 KiB to what is shared make two extents more each, so that a disk which was just
//! copied is dearer to copy again.
//!
//! The file system lies in memory, beside the simulated host: a loop device on a disk does nothing
//! while it flushes, which the clone's fsync has it do, and no disk stands still for that.

use crate::bench::{self, Pattern, Plan};
use crate::blkfront::{Blkfront, Options};
use crate::guest::Domain;
use crate::harness::loop_device::LoopDevice;
use crate::harness::{Rpc, uuid};
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Copies that count, snapshots and clones in turn.
const COPIES: u32 = 11;
/// From the end of one to the next.
const INTERVAL: Duration = Duration::from_millis(100);
const DISK_BYTES: u64 = 256 << 20;
const FILE_SYSTEM_BYTES: u64 = 2 << 30;
const DOMID: u16 = 7;

/// When a request was sent, and when its answer was seen.
type Seen = (Instant, Instant);

/// The longest wait of a request that was under way during each of [`COPIES`] copies of a disk that
/// a guest writes to, milliseconds. `room` is an empty directory to mount at. Needs root.
///
/// # Errors
/// Whatever fails.
///
/// # Panics
/// When the guest's thread panics.
pub fn of_copies(rpc: &Rpc, sim_dir: &Path, room: &Path) -> anyhow::Result<Vec<f64>> {
    let mut xfs = LoopDevice::new(&sim_dir.join("xfs.img"), FILE_SYSTEM_BYTES, 512)?;
    let dir = room.join("xfs");
    xfs.mount_xfs(&dir)?;
    let sr = uuid()?;
    rpc.raw(
        "SR.create",
        &json!({"sr": sr, "name_label": "pause", "name_description": "",
            "device_config": {"path": dir}}),
    )?;
    let info = json!({"name_label": "pause", "virtual_size": DISK_BYTES});
    let info = rpc.raw("VDI.create", &json!({"sr": sr, "vdi_info": info}))?;
    let vdi = info["vdi"].as_str().context("VDI.create answers a key")?;
    // Laid out as a disk in use is: a hole would be allocated with the first write.
    std::fs::write(dir.join(format!("{vdi}.raw")), vec![0x5a; usize::try_from(DISK_BYTES)?])?;
    let mut dp = json!({"dp": "pause", "sr": sr, "vdi": vdi, "vm": DOMID.to_string()});
    dp["read_write"] = json!(true);
    rpc.raw("VDI.attach3", &dp)?;
    dp.as_object_mut().context("an object")?.remove("read_write");
    rpc.raw("VDI.activate3", &dp)?;
    let (sim_dir, (made, is_made)) = (sim_dir.to_owned(), mpsc::channel());
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let guest = std::thread::spawn(move || {
        let domain = Domain::create(&sim_dir, DOMID, 64 << 20, false)?;
        made.send(())?;
        write(domain, &is_over)
    });
    // Or there is none, and plug says so.
    let _ = is_made.recv();
    rpc.raw("VBD.plug", &json!({"domid": DOMID, "device": "xvda", "sr": sr, "vdi": vdi}))?;
    let copies = copy(rpc, &sr, &info);
    over.store(true, Ordering::Release);
    let copies = copies?;
    let seen = guest.join().expect("the guest does not panic")?;
    rpc.raw("VBD.unplug", &json!({"domid": DOMID, "device": "xvda"}))?;
    for method in ["VDI.deactivate", "VDI.detach"] {
        rpc.raw(method, &dp)?;
    }
    rpc.raw("VDI.destroy", &json!({"sr": sr, "vdi": vdi}))?;
    rpc.raw("SR.destroy", &json!({"sr": sr}))?;
    copies.iter().map(|copy| longest_wait(&seen, *copy)).collect()
}

/// Writes of 4 KiB anywhere, until it is over.
fn write(domain: Domain, over: &AtomicBool) -> anyhow::Result<Vec<Seen>> {
    let plan = Plan {
        pattern: Pattern::RandWrite,
        block_bytes: 4096,
        depth: 8,
        time: Duration::MAX,
        spin: Duration::ZERO,
        one_page: false,
    };
    let mut front = Blkfront::connect(domain, Options { checked: false, ..Options::default() })?;
    let mut seen = Vec::new();
    bench::watch(&mut front, &plan, |sent, answered| {
        seen.push((sent, answered));
        !over.load(Ordering::Acquire)
    })?;
    front.close()?;
    Ok(seen)
}

/// Copies the disk and throws the copies away; from when to when each call lasted.
fn copy(rpc: &Rpc, sr: &str, info: &Value) -> anyhow::Result<Vec<Seen>> {
    let mut calls = Vec::new();
    for number in 0..COPIES {
        std::thread::sleep(INTERVAL);
        let method = ["VDI.snapshot", "VDI.clone"][usize::try_from(number % 2)?];
        let started = Instant::now();
        let made = rpc.raw(method, &json!({"sr": sr, "vdi_info": info}))?;
        calls.push((started, Instant::now()));
        rpc.raw("VDI.destroy", &json!({"sr": sr, "vdi": made["vdi"]}))?;
    }
    Ok(calls)
}

fn longest_wait(seen: &[Seen], (begun, ended): Seen) -> anyhow::Result<f64> {
    let during = seen.iter().filter(|(sent, answered)| *sent <= ended && *answered >= begun);
    let longest = during.map(|(sent, answered)| answered.duration_since(*sent)).max();
    let longest = longest.context("the guest had ended before the copies were made")?;
    ensure!(!longest.is_zero(), "nothing was measured");
    Ok(longest.as_secs_f64() * 1e3)
}
