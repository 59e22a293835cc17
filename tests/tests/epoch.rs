//! Disks that forget: what a guest writes between VDI.epoch_begin with `persistent=false` and
//! VDI.epoch_end is gone afterwards, and only that.

use serde_json::{Value, json};
use zerotap_rpc_schema::smapi2::{Mode, VdiState};
use zerotap_tests::guest::destroy;
use zerotap_tests::harness::{Host, Vdi};
use zerotap_tests::simguest::{Ended, Expect, Guest, Running};
use zerotap_tests::storage_script::StorageScript;
use zerotap_tests::workload::Plan;

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;

fn epoch(host: &Host, vdi: &Vdi, persistent: Option<bool>) -> anyhow::Result<Value> {
    let mut params = json!({"sr": vdi.sr, "vdi": vdi.vdi, "vm": "5"});
    match persistent {
        Some(persistent) => {
            params["persistent"] = json!(persistent);
            host.rpc().raw("VDI.epoch_begin", &params)
        }
        None => host.rpc().raw("VDI.epoch_end", &params),
    }
}

fn files(vdi: &Vdi) -> usize {
    std::fs::read_dir(&vdi.sr_dir).unwrap().count()
}

fn data(vdi: &Vdi) -> Vec<u8> {
    std::fs::read(vdi.sr_dir.join(format!("{}.raw", vdi.vdi))).unwrap()
}

fn uri_of(host: &Host, vdi: &Vdi) -> String {
    let info = json!({"sr": vdi.sr, "vdi": vdi.vdi, "dp": "vbd/5/xvda", "vm": "5"});
    let backend = host.rpc().raw("DP.attach_info", &info).unwrap();
    backend["implementations"][0][1]["params"].as_str().unwrap().to_owned()
}

/// A guest that boots from the attached VDI, finds nothing on it, writes, and shuts down.
fn boot(host: &Host, vdi: &Vdi) -> Ended {
    let plan = Plan { requests_max: 400, ..Plan::default() };
    let guest = Guest { plan, ..Guest::new(DOMID) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    // As xenopsd does it: what the attach answered goes into the backend directory.
    let params = uri_of(host, vdi);
    let (sr, key) = params.strip_prefix("zerotap:").unwrap().split_once('/').unwrap();
    let plug = json!({"domid": DOMID, "device": "xvda", "sr": sr, "vdi": key});
    host.rpc().raw("VBD.plug", &plug).unwrap();
    let ended = running.join().unwrap();
    assert_eq!(ended.report.errors, 0);
    host.rpc().raw("VBD.unplug", &json!({"domid": DOMID, "device": "xvda"})).unwrap();
    destroy(host.sim().dir(), DOMID).unwrap();
    ended
}

#[test]
fn what_a_guest_writes_is_forgotten_when_it_has_ended() {
    let mut host = Host::start().unwrap();
    let vdi = host.create_vdi(16 * MIB).unwrap();
    let before = (data(&vdi), files(&vdi));
    for _ in 0..2 {
        epoch(&host, &vdi, Some(false)).unwrap();
        let disk = vdi.serve(&host.rpc(), DOMID, false).unwrap();
        assert_eq!(vdi.stat(&host.rpc()).unwrap().superstate, VdiState::Activated(Mode::ReadWrite));
        boot(&host, &vdi);
        let scan = host.rpc().raw("SR.scan2", &json!({"sr": vdi.sr})).unwrap();
        assert_eq!(scan[0].as_array().unwrap().len(), 1, "the copy is no VDI of XAPI's");
        for call in ["VDI.epoch_end", "VDI.destroy"] {
            let params = json!({"sr": vdi.sr, "vdi": vdi.vdi, "vm": "5"});
            let mut params = params;
            if call == "VDI.destroy" {
                params.as_object_mut().unwrap().remove("vm");
            }
            let error = host.rpc().fails(call, &params);
            assert_eq!(error.storage.unwrap().code(), 24, "{call}: it is in use");
        }
        // The daemon's death changes nothing of it.
        host.kill_daemon().unwrap();
        host.start_daemon().unwrap();
        disk.deactivate(&host.rpc()).unwrap();
        disk.detach(&host.rpc()).unwrap();
        epoch(&host, &vdi, None).unwrap();
        epoch(&host, &vdi, None).expect("it may be repeated");
        assert!(data(&vdi) == before.0, "not one byte was kept");
        assert_eq!(files(&vdi), before.1);
    }

    // A guest that dies is not followed by an end, and what it wrote is not kept either.
    epoch(&host, &vdi, Some(false)).unwrap();
    let disk = vdi.serve(&host.rpc(), DOMID, false).unwrap();
    boot(&host, &vdi);
    let destroy =
        json!({"sr": vdi.sr, "vdi": vdi.vdi, "dp": disk.dp, "vm": "", "allow_leak": false});
    host.rpc().raw("DP.destroy2", &destroy).unwrap();
    epoch(&host, &vdi, Some(true)).unwrap();
    assert_eq!(files(&vdi), before.1);
    let disk = vdi.serve(&host.rpc(), DOMID, false).unwrap();
    let mut ended = boot(&host, &vdi);
    disk.deactivate(&host.rpc()).unwrap();
    disk.detach(&host.rpc()).unwrap();
    epoch(&host, &vdi, None).unwrap();
    ended.model.check_image(&vdi.image().unwrap()).expect("a disk that does not forget");
}

#[test]
fn a_use_from_before_stays_where_it_is_and_a_vdi_goes_with_its_copy() {
    let host = Host::start().unwrap();
    let vdi = host.create_vdi(MIB).unwrap();
    let alone = files(&vdi);
    let backup = vdi.serve(&host.rpc(), 0, true).unwrap();
    epoch(&host, &vdi, Some(false)).expect("a reader is not in the way");
    backup.activate(&host.rpc()).unwrap();
    let guest = vdi.serve(&host.rpc(), DOMID, false).expect("nor a writer in the reader's");
    for disk in [&backup, &guest] {
        disk.deactivate(&host.rpc()).unwrap();
        disk.detach(&host.rpc()).unwrap();
    }
    assert_eq!(vdi.stat(&host.rpc()).unwrap().superstate, VdiState::Detached);
    assert_eq!(files(&vdi), alone + 2);
    vdi.destroy(&host.rpc()).unwrap();
    assert_eq!(files(&vdi), alone - 2);
}

/// xapi-storage-script opens and closes disks of plugins that are NONPERSISTENT.
#[test]
fn through_the_executables() {
    let host = Host::start().unwrap();
    let script = StorageScript::install(&host).unwrap();
    let vdi = host.create_vdi(MIB).unwrap();
    let alone = files(&vdi);
    let uri = format!("zerotap://{}/{}", vdi.sr, vdi.vdi);
    let call = |method: &str, more: Value| {
        let mut arguments = json!({"dbg": "t", "uri": uri});
        arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        script.call(method, &arguments).unwrap()
    };
    call("Datapath.open", json!({"persistent": false}));
    let attached = call("Datapath.attach", json!({"domain": "5"}));
    call("Datapath.activate", json!({"domain": "5"}));
    let socket = attached["implementations"][1][1]["uri"].as_str().unwrap().to_owned();
    let socket = socket.split(':').nth(2).unwrap();
    assert!(std::path::Path::new(socket).exists(), "the answer is where the disk is served");
    call("Datapath.deactivate", json!({"domain": ""}));
    call("Datapath.detach", json!({"domain": ""}));
    assert_eq!(files(&vdi), alone + 2);
    call("Datapath.close", json!({}));
    assert_eq!(files(&vdi), alone);
    call("Datapath.open", json!({"persistent": true}));
    call("Datapath.close", json!({}));
    assert_eq!(files(&vdi), alone);
}
