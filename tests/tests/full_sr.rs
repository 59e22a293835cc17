//! An SR without a block to spare: disks whose data is all there start and stop, and go. Needs
//! root, for its small file systems.

use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;
use zerotap_tests::harness::small::Small;
use zerotap_tests::harness::{Host, eventually, uuid};

const MIB: u64 = 1 << 20;
const BYTES: u64 = 8 * MIB;

/// Takes the last blocks that a filler has left.
fn exhaust(small: &Small) {
    small.fill_but(0).unwrap();
    // XFS has no room for an inode by then.
    let Ok(mut last) = std::fs::File::create(small.dir().join("last")) else { return };
    while last.write_all(&[7; 512]).and_then(|()| last.sync_data()).is_ok() {}
}

fn is_full(dir: &Path) -> bool {
    let probe = dir.join("probe");
    let written =
        std::fs::write(&probe, [7; 4096]).and_then(|()| std::fs::File::open(&probe)?.sync_all());
    let _ = std::fs::remove_file(probe);
    written.is_err()
}

/// Its disks, as an operator sees them.
struct Site {
    host: Host,
    small: Small,
    sr: String,
}

impl Site {
    fn on(small: Small) -> Site {
        let (host, sr) = (Host::start().unwrap(), uuid().unwrap());
        host.create_sr_at(&sr, small.dir()).unwrap();
        Site { host, small, sr }
    }

    fn call(&self, method: &str, vdi: &str, more: &Value) -> anyhow::Result<Value> {
        let mut params = json!({"sr": self.sr, "vdi": vdi});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.host.rpc().raw(method, &params)
    }

    fn create(&self) -> String {
        let info = json!({"vdi": "", "name_label": "disk", "virtual_size": BYTES,
            "sm_config": {"allocation": "preallocated"}});
        let made = self.host.rpc().raw("VDI.create", &json!({"sr": self.sr, "vdi_info": info}));
        made.unwrap()["vdi"].as_str().unwrap().to_owned()
    }

    /// Which host has it active, as the record tells every host.
    fn owner(&self, vdi: &str) -> Value {
        let path = self.small.dir().join(format!("{vdi}.vdi.json"));
        let record: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        record["owner"]["host"].clone()
    }
}

fn lives(small: Small) {
    let mut site = Site::on(small);
    let vdis = [site.create(), site.create()];
    let (use_, mode) = (json!({"dp": "vbd/5/xvda", "vm": "5"}), json!(true));
    let mut attach = use_.clone();
    attach["read_write"] = mode;
    exhaust(&site.small);
    for round in 0..3 {
        for vdi in &vdis {
            assert!(is_full(site.small.dir()), "there is space: this shows nothing");
            site.call("VDI.attach3", vdi, &attach).unwrap();
            site.call("VDI.activate3", vdi, &use_).unwrap();
            assert!(site.owner(vdi).is_string(), "round {round}: other hosts are not told");
        }
        if round == 1 {
            // The next daemon has as little space.
            site.host.kill_daemon().unwrap();
            site.host.start_daemon().unwrap();
        }
        for vdi in &vdis {
            site.call("VDI.set_name_label", vdi, &json!({"new_name_label": "new"})).unwrap();
            site.call("VDI.deactivate", vdi, &use_).unwrap();
            site.call("VDI.detach", vdi, &use_).unwrap();
            assert!(site.owner(vdi).is_null(), "round {round}: other hosts may not have it");
        }
    }
    assert!(is_full(site.small.dir()), "there is space: this shows nothing");
    let rpc = site.host.rpc();
    let sr = json!({"sr": site.sr, "device_config": {"path": site.small.dir()}});
    rpc.raw("SR.detach", &json!({"sr": site.sr})).unwrap();
    rpc.raw("SR.attach", &sr).unwrap();
    for vdi in &vdis {
        site.call("VDI.destroy", vdi, &json!({})).unwrap();
    }
    // ext4 frees blocks when its journal commits.
    eventually("there is space", || Ok((!is_full(site.small.dir())).then_some(()))).unwrap();
    rpc.raw("SR.destroy", &json!({"sr": site.sr})).unwrap();
    let left = std::fs::read_dir(site.small.dir()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name != ".zerotap-reserve"), "{left:?}");
}

#[test]
fn disks_live_on_a_full_ext4() {
    lives(Small::new(80 * MIB).unwrap());
}

#[test]
fn disks_live_on_a_full_xfs() {
    lives(Small::xfs(320 * MIB).unwrap());
}
