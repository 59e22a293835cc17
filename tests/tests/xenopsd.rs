//! A guest's disk as xenopsd gives it, moves it and takes it away: the storage calls and the keys
//! in xenstore, in its order (xen-api `ocaml/xenopsd/xc/{device,xenops_server_xen,storage}.ml`).

use serde_json::{Value, json};
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::smapi2::{Mode, VdiState};
use zerotap_tests::guest::{Domain, destroy};
use zerotap_tests::harness::{Disk, Host, Vdi, eventually};
use zerotap_tests::simguest::{Ended, Expect, Guest, live};
use zerotap_tests::workload::{Plan, Progress};
use zerotap_tests::xenopsd::add_vbd;
use zerotap_tests::xenstore::Client;

const MIB: i64 = 1 << 20;
const DEVID: u32 = 51712;

/// A storage call for the disk.
fn call(host: &Host, method: &str, disk: &Disk, more: &Value) -> Value {
    let mut params = json!({"dbg": "VM.start", "sr": disk.vdi.sr, "vdi": disk.vdi.vdi});
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    host.rpc().raw(method, &params).unwrap()
}

fn of_dp(disk: &Disk) -> Value {
    json!({"dp": disk.dp, "vm": disk.domid.to_string()})
}

fn attach(host: &Host, disk: &Disk) -> Value {
    let mut params = of_dp(disk);
    params["read_write"] = json!(true);
    call(host, "VDI.attach3", disk, &params)
}

fn disk(vdi: &Vdi, domid: u16) -> Disk {
    Disk { vdi: vdi.clone(), dp: format!("vbd/{domid}/xvda"), domid, read_only: false }
}

/// `params_of_backend` and `Device.Vbd.add`: what the attach answered, in the back end's directory.
fn add(dom0: &mut Client, domid: u16, answer: &Value) -> String {
    let implementations = answer["implementations"].as_array().unwrap();
    let of = |kind: &str| {
        let found = implementations.iter().find(|one| one[0] == kind);
        found.unwrap_or_else(|| panic!("an implementation of kind {kind}: {answer}"))[1].clone()
    };
    let (xen, nbd) = (of("XenDisk"), of("Nbd"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let kind = text(&xen["backend_type"]);
    let mut keys = vec![
        ("params".to_owned(), text(&nbd["uri"])),
        ("qemu-params".to_owned(), text(&xen["params"])),
        ("sm-data/backend-kind".to_owned(), kind.clone()),
    ];
    for (key, value) in xen["extra"].as_object().unwrap() {
        keys.push((format!("sm-data/{key}"), text(value)));
    }
    let keys: Vec<(&str, &str)> = keys.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    add_vbd(dom0, (domid, DEVID), &kind, "w", &keys).unwrap()
}

fn reaches(dom0: &mut Client, backend: &str, state: &str) {
    let path = format!("{backend}/state");
    eventually(&format!("state {state}"), || Ok((dom0.read(&path)? == state).then_some(())))
        .unwrap();
}

/// The guest's life on a device that the hotplug script finishes.
fn run(host: &Host, disk: &Disk, answer: &Value, expect: Expect) -> (String, Ended) {
    let mut dom0 = host.sim().toolstack().unwrap();
    let domain = Domain::create(host.sim().dir(), disk.domid, 64 << 20, true).unwrap();
    let backend = add(&mut dom0, disk.domid, answer);
    eventually("the VBD is ours", || {
        let listed = host.rpc().raw("VBD.list", &json!({}))?;
        let mut vbds = listed.as_array().into_iter().flatten();
        Ok(vbds.any(|vbd| vbd["domid"] == disk.domid).then_some(()))
    })
    .unwrap();
    assert_eq!(dom0.read(&format!("{backend}/state")).unwrap(), "1", "not before the script");
    let socket = dom0.read(&format!("{backend}/params")).unwrap();
    let socket = socket.split(':').nth(2).unwrap().to_owned();
    // `scripts/block` writes the real path of the socket, then that it is done.
    let socket = std::fs::canonicalize(socket).expect("the disk is served by then");
    dom0.write(&format!("{backend}/physical-device-path"), socket.display()).unwrap();
    dom0.write(&format!("{backend}/hotplug-status"), "connected").unwrap();
    reaches(&mut dom0, &backend, "2");
    let worker = disk.worker(&host.rpc()).unwrap();
    let told = dom0.read(&format!("{backend}/kthread-pid")).unwrap();
    assert_eq!(told, worker.pid.to_string(), "rrdp-iostat and the scheduler look it up");
    let uuid = dom0.read(&format!("{backend}/sm-data/vdi-uuid")).unwrap();
    assert_eq!(uuid, disk.vdi.vdi, "rrdp-iostat looks it up");
    let plan = Plan { requests_max: 300, ..Plan::default() };
    let guest = Guest { plan, ..Guest::new(disk.domid) };
    let ended = live(domain, &guest, expect, &Progress::default()).unwrap();
    assert_eq!(ended.report.errors, 0);
    (backend, ended)
}

/// `Device.Vbd.clean_shutdown` and `release`: the toolstack closes, waits, and tidies up.
fn take_away(host: &Host, disk: &Disk, backend: &str) {
    let mut dom0 = host.sim().toolstack().unwrap();
    dom0.transaction(|tx| {
        tx.write(&format!("{backend}/online"), "0")?;
        // Closing is asked for by state; a back end that is closed already stays so.
        let state = format!("{backend}/state");
        if tx.read(&state)? == "6" { Ok(()) } else { tx.write(&state, "5") }
    })
    .unwrap();
    reaches(&mut dom0, backend, "6");
    dom0.remove(&format!("{backend}/hotplug-status")).unwrap();
    for path in [backend, &format!("/local/domain/{}/device/vbd/{DEVID}", disk.domid)] {
        dom0.remove(path).unwrap();
    }
    eventually("the VBD is forgotten", || {
        let listed = host.rpc().raw("VBD.list", &json!({}))?;
        let mut vbds = listed.as_array().into_iter().flatten();
        Ok(vbds.all(|vbd| vbd["domid"] != disk.domid).then_some(()))
    })
    .unwrap();
}

fn destroy_dp(host: &Host, disk: &Disk, vm: &str) {
    let more = json!({"dp": disk.dp, "vm": vm, "allow_leak": false});
    assert_eq!(call(host, "DP.destroy2", disk, &more), Value::Null);
}

fn state(host: &Host, disk: &Disk) -> VdiState {
    disk.vdi.stat(&host.rpc()).unwrap().superstate
}

#[test]
fn a_vm_starts_reboots_and_is_shut_down() {
    let host = Host::start().unwrap();
    let vdi = host.create_vdi(8 * MIB).unwrap();
    let mut expect = Expect::Fresh;
    for domid in [5, 6] {
        let disk = disk(&vdi, domid);
        call(&host, "VDI.epoch_begin", &disk, &json!({"vm": "5", "persistent": true}));
        let answer = attach(&host, &disk);
        call(&host, "VDI.activate3", &disk, &of_dp(&disk));
        assert_eq!(call(&host, "DP.attach_info", &disk, &of_dp(&disk)), answer, "final at attach");
        let (backend, ended) = run(&host, &disk, &answer, expect);
        take_away(&host, &disk, &backend);
        destroy(host.sim().dir(), domid).unwrap();
        // xenopsd has forgotten the domain by then; and it may ask twice.
        for vm in ["", "5"] {
            destroy_dp(&host, &disk, vm);
        }
        call(&host, "VDI.epoch_end", &disk, &json!({"vm": "5"}));
        assert_eq!(state(&host, &disk), VdiState::Detached);
        expect = Expect::Known(ended.model);
    }
    let Expect::Known(mut model) = expect else { unreachable!("two guests have lived") };
    model.check_image(&vdi.image().unwrap()).unwrap();
}

#[test]
fn a_datapath_is_destroyed_in_any_state_it_is_in() {
    let host = Host::start().unwrap();
    let vdi = host.create_vdi(MIB).unwrap();
    let disk = disk(&vdi, 5);
    destroy_dp(&host, &disk, "5");
    attach(&host, &disk);
    destroy_dp(&host, &disk, "5");
    assert_eq!(state(&host, &disk), VdiState::Detached);
    attach(&host, &disk);
    call(&host, "VDI.activate3", &disk, &of_dp(&disk));
    disk.kill_worker(&host.rpc()).unwrap();
    destroy_dp(&host, &disk, "5");
    assert_eq!(state(&host, &disk), VdiState::Detached);
    vdi.destroy(&host.rpc()).unwrap();
    destroy_dp(&host, &disk, "5");
}

/// Attached twice, active once: the destination attaches while the source serves, and activates
/// once that has let go; the guest's second connect finds every byte.
fn migrate(source: &Host, destination: &Host, vdi: &Vdi) -> StorageError {
    let (old, new) = (disk(vdi, 5), disk(vdi, 9));
    let answer = attach(source, &old);
    call(source, "VDI.activate3", &old, &of_dp(&old));
    let (backend, ended) = run(source, &old, &answer, Expect::Fresh);
    let arrived = attach(destination, &new);
    let mut early = of_dp(&new);
    early["sr"] = json!(vdi.sr);
    early["vdi"] = json!(vdi.vdi);
    let refused = destination.rpc().fails("VDI.activate3", &early).storage.expect("SMAPIv2's");
    call(source, "VDI.deactivate", &old, &of_dp(&old));
    call(destination, "VDI.activate3", &new, &of_dp(&new));
    call(source, "VDI.detach", &old, &of_dp(&old));
    let (there, mut ended) = run(destination, &new, &arrived, Expect::Known(ended.model));
    take_away(source, &old, &backend);
    destroy_dp(source, &old, "");
    assert_eq!(state(destination, &new), VdiState::Activated(Mode::ReadWrite));
    take_away(destination, &new, &there);
    destroy_dp(destination, &new, "9");
    ended.model.check_image(&vdi.image().unwrap()).unwrap();
    vdi.destroy(&destination.rpc()).unwrap();
    refused
}

#[test]
fn a_vm_migrates_to_a_host_that_sees_the_same_sr() {
    let (source, destination) = (Host::start().unwrap(), Host::start().unwrap());
    let vdi = source.create_vdi(8 * MIB).unwrap();
    let config = json!({"sr": vdi.sr, "device_config": {"path": vdi.sr_dir}});
    destination.rpc().raw("SR.attach", &config).unwrap();
    let refused = migrate(&source, &destination, &vdi);
    assert!(matches!(refused, StorageError::ActivatedOnAnotherHost(_)), "{refused}");
}

#[test]
fn a_vm_migrates_within_its_host() {
    let host = Host::start().unwrap();
    let vdi = host.create_vdi(8 * MIB).unwrap();
    let refused = migrate(&host, &host, &vdi);
    assert_eq!(refused.code(), 24);
    assert!(refused.to_string().contains("vbd/5/xvda of domain 5"), "who has it: {refused}");
}

/// dom0 has a look at a disk beside its guest (a backup, pygrub) and is in nobody's way.
#[test]
fn dom0_is_a_second_user() {
    let host = Host::start().unwrap();
    let vdi = host.create_vdi(MIB).unwrap();
    let guest = disk(&vdi, 5);
    let answer = attach(&host, &guest);
    call(&host, "VDI.activate3", &guest, &of_dp(&guest));
    let worker = guest.worker(&host.rpc()).unwrap().pid;
    let dom0 = Disk { dp: "xenopsd/task/1".into(), domid: 0, ..guest.clone() };
    let mut reads = of_dp(&dom0);
    reads["read_write"] = json!(false);
    assert_eq!(call(&host, "VDI.attach3", &dom0, &reads), answer, "the same disk, the same answer");
    call(&host, "VDI.activate_readonly", &dom0, &of_dp(&dom0));
    destroy_dp(&host, &dom0, "0");
    assert_eq!(guest.worker(&host.rpc()).unwrap().pid, worker, "the guest's goes on");
    // The guest ends while dom0 looks: it is not kept waiting, and dom0 goes on.
    call(&host, "VDI.attach3", &dom0, &reads);
    call(&host, "VDI.activate_readonly", &dom0, &of_dp(&dom0));
    destroy_dp(&host, &guest, "5");
    assert_eq!(state(&host, &guest), VdiState::Activated(Mode::ReadOnly));
    assert_eq!(guest.worker(&host.rpc()).unwrap().pid, worker, "what dom0 has open stays open");
    destroy_dp(&host, &dom0, "0");
    vdi.destroy(&host.rpc()).unwrap();
}

/// Guests that know of each other, as in a cluster.
#[test]
fn a_sharable_disk_has_many_writers() {
    let host = Host::start().unwrap();
    let (sr, sr_dir) = host.create_sr().unwrap();
    let info = json!({"name_label": "quorum", "virtual_size": MIB, "sharable": true});
    let made = host.rpc().raw("VDI.create", &json!({"sr": sr, "vdi_info": info})).unwrap();
    let vdi = Vdi { sr, vdi: made["vdi"].as_str().unwrap().into(), sr_dir };
    for disk in [5, 6].map(|domid| disk(&vdi, domid)) {
        attach(&host, &disk);
        call(&host, "VDI.activate3", &disk, &of_dp(&disk));
    }
    let dps = vdi.stat(&host.rpc()).unwrap().dps;
    assert!(dps.values().all(|state| *state == VdiState::Activated(Mode::ReadWrite)), "{dps:?}");
    assert_eq!(dps.len(), 2);
}
