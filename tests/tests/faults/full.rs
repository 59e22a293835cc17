//! A full disk under the state database: calls say so and change nothing, and go on as soon as
//! there is space.

use crate::life::{Life, Stage};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;
use zerotap_tests::harness::Host;
use zerotap_tests::harness::loop_device::LoopDevice;

/// Blocks that are left free, so that another commit fails each time.
const BLOCKS_LEFT: [u64; 8] = [0, 2, 5, 8, 11, 14, 18, 23];
const BLOCK: u64 = 4096;

/// Fills a file system but for so many blocks.
fn fill(filler: &Path, blocks_left: u64) {
    let mut file = std::fs::File::create(filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    file.sync_all().unwrap();
    let bytes = file.metadata().unwrap().len();
    file.set_len(bytes.saturating_sub(blocks_left * BLOCK)).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_full_disk_under_the_state_database() {
    let room = tempfile::tempdir().unwrap();
    let mut device = LoopDevice::new(&room.path().join("backing"), 16 << 20, 512).unwrap();
    let mounted = room.path().join("state");
    device.mount(&mounted).unwrap();
    let filler = mounted.join("filler");
    let mut host = Host::start_with_state(&mounted.join("state.db")).unwrap();
    let mut refused = 0;
    for blocks_left in BLOCKS_LEFT {
        let life = Life::at(&host, Stage::Vdi);
        let rpc = host.rpc();
        let calls: [(&str, Value); 4] = [
            ("VDI.attach3", life.dp(json!({"vm": "5", "read_write": true}))),
            ("VDI.activate3", life.dp(json!({"vm": "5"}))),
            ("VDI.deactivate", life.dp(json!({"vm": "5"}))),
            ("VDI.detach", life.dp(json!({"vm": "5"}))),
        ];
        fill(&filler, blocks_left);
        let failed = calls.iter().cycle().take(100).find_map(|(method, params)| {
            let error = rpc.raw(method, params).err()?;
            Some((*method, params, format!("{error:#}")))
        });
        let Some((method, params, error)) = failed else {
            std::fs::remove_file(&filler).unwrap();
            life.end(&host).unwrap();
            continue;
        };
        refused += 1;
        let told = error.contains("state database") && error.contains("full");
        assert!(told, "{method}, {blocks_left} blocks left: {error}");
        let listed = rpc.raw("SR.list", &json!({})).unwrap();
        assert_eq!(listed, json!([life.sr]), "what needs no disk goes on");
        std::fs::remove_file(&filler).unwrap();
        rpc.raw(method, params).unwrap_or_else(|e| panic!("{method}, with space again: {e:#}"));
        life.check(&host).unwrap_or_else(|e| panic!("{method}, {blocks_left} blocks left: {e:#}"));
        // What was left undone for want of space is made good by the next start.
        host.kill_daemon().unwrap();
        host.start_daemon().unwrap();
        life.check(&host).unwrap_or_else(|e| panic!("{method}, {blocks_left}, again: {e:#}"));
        life.end(&host).unwrap_or_else(|e| panic!("{method}, {blocks_left} blocks left: {e:#}"));
    }
    assert!(refused > BLOCKS_LEFT.len() / 2, "{refused} refusals: the disk was not full");
    host.kill_daemon().unwrap();
}
