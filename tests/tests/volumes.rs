//! SRs and VDIs without guests: sizes, records, space, foreign files, clear refusals.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::smapi2::{
    NoParams, Pairs, SrParams, VdiCreateParams, VdiInfo, VdiParams, VdiResizeParams,
};
use zerotap_rpc_schema::table;
use zerotap_tests::harness::{Host, RpcError, Vdi, uuid};

const MIB: i64 = 1 << 20;

/// The text for people, which must be there and name what it is about.
fn text(error: &RpcError) -> String {
    match &error.storage {
        Some(StorageError::Backend((code, params))) => {
            assert!(code.starts_with("SR_BACKEND_FAILURE_"), "{code}");
            assert!(params.iter().any(|param| !param.is_empty()), "{params:?} say nothing");
            params.join(" ")
        }
        Some(other) => other.to_string(),
        None => panic!("{error} is no storage error"),
    }
}

#[test]
fn a_vdi_is_made_listed_changed_and_removed() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let (sr, dir) = host.create_sr().unwrap();
    let made = host.create_vdi_in(&sr, 5 * MIB).unwrap();
    assert!(made.virtual_size >= 5 * MIB && !made.vdi.is_empty());
    let vdi = Vdi { sr: sr.clone(), vdi: made.vdi.clone(), sr_dir: dir };
    assert_eq!(std::fs::metadata(vdi.image().unwrap()).unwrap().size(), 5 << 20);

    let (all, info) = rpc.call::<table::SrScan2>(&sr_params(&sr)).unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!((&all[0].vdi, all[0].virtual_size), (&made.vdi, made.virtual_size));
    assert!(info.total_space > 0 && info.free_space > 0);

    let name = json!({"sr": sr, "vdi": made.vdi, "new_name_label": "a \"new\" näme\n"});
    rpc.raw("VDI.set_name_label", &name).unwrap();
    let config = json!({"sr": sr, "vdi": made.vdi, "key": "k", "value": "v"});
    rpc.raw("VDI.add_to_sm_config", &config).unwrap();
    let resize = VdiResizeParams {
        dbg: String::new(),
        sr: sr.clone(),
        vdi: made.vdi.clone(),
        new_size: 9 * MIB,
    };
    assert_eq!(rpc.call::<table::VdiResize>(&resize).unwrap(), 9 * MIB);
    let stat = rpc.call::<table::VdiStat>(&vdi.params()).unwrap();
    assert_eq!(stat.name_label, "a \"new\" näme\n");
    assert_eq!((stat.virtual_size, stat.sm_config.get("k")), (9 * MIB, Some(&"v".to_owned())));
    let shrink = VdiResizeParams { new_size: MIB, ..resize };
    assert!(rpc.call::<table::VdiResize>(&shrink).is_err(), "a VDI never shrinks");

    vdi.destroy(&rpc).unwrap();
    vdi.destroy(&rpc).expect("what is gone is destroyed already");
    assert!(rpc.call::<table::SrScan2>(&sr_params(&sr)).unwrap().0.is_empty());
    let left: Vec<_> = std::fs::read_dir(&vdi.sr_dir).unwrap().flatten().collect();
    let of_it = |name: &std::ffi::OsStr| name.to_string_lossy().contains(&vdi.vdi);
    assert!(!left.iter().any(|entry| of_it(&entry.file_name())), "{left:?}");
}

fn sr_params(sr: &str) -> SrParams {
    SrParams { dbg: String::new(), sr: sr.to_owned() }
}

#[test]
fn impossible_sizes_are_refused() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let (sr, _) = host.create_sr().unwrap();
    let free = rpc.call::<table::SrStat>(&sr_params(&sr)).unwrap().free_space;
    for size in [0, -1, i64::MIN, i64::MAX, free.saturating_mul(2)] {
        let mut info = VdiInfo::new("impossible", size);
        info.sm_config = Pairs::from([("allocation".to_owned(), "preallocated".to_owned())]);
        let params = VdiCreateParams { dbg: String::new(), sr: sr.clone(), vdi_info: info };
        let error = rpc.fails("VDI.create", &serde_json::to_value(params).unwrap());
        assert!(!text(&error).is_empty(), "size {size}");
    }
    let made = host.create_vdi_in(&sr, MIB).unwrap();
    for size in [0, -1, i64::MAX] {
        let params = json!({"sr": sr, "vdi": made.vdi, "new_size": size});
        text(&rpc.fails("VDI.resize", &params));
    }
    let stat = rpc.call::<table::VdiStat>(&VdiParams {
        dbg: String::new(),
        sr: sr.clone(),
        vdi: made.vdi,
    });
    assert_eq!(stat.unwrap().virtual_size, made.virtual_size);
    assert_eq!(rpc.call::<table::SrScan2>(&sr_params(&sr)).unwrap().0.len(), 1);
}

#[test]
fn the_unknown_is_named() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.create_vdi(MIB).unwrap();
    let unknown = uuid().unwrap();
    for method in ["SR.stat", "SR.scan2", "SR.destroy"] {
        let error = rpc.fails(method, &json!({"sr": unknown}));
        assert_eq!(error.storage, Some(StorageError::SrNotAttached(unknown.clone())), "{method}");
    }
    for (method, params) in [
        ("VDI.stat", json!({"sr": vdi.sr, "vdi": unknown})),
        ("VDI.resize", json!({"sr": vdi.sr, "vdi": unknown, "new_size": MIB})),
        (
            "VDI.attach3",
            json!({"dp": "d", "sr": vdi.sr, "vdi": unknown, "vm": "1", "read_write": true}),
        ),
    ] {
        let error = rpc.fails(method, &params);
        assert_eq!(error.storage, Some(StorageError::VdiDoesNotExist(unknown.clone())), "{method}");
    }
    // Clean-up of the unknown succeeds: whoever asks gets the state that is asked for.
    rpc.raw("SR.detach", &json!({"sr": unknown})).unwrap();
    rpc.raw("VDI.destroy", &json!({"sr": vdi.sr, "vdi": unknown})).unwrap();
    for method in ["VDI.deactivate", "VDI.detach"] {
        let params = json!({"dp": "d", "sr": vdi.sr, "vdi": unknown, "vm": "1"});
        rpc.raw(method, &params).unwrap();
    }
    let never = json!({"dp": "d", "sr": vdi.sr, "vdi": vdi.vdi, "vm": "1"});
    assert!(rpc.fails("VDI.activate3", &never).storage.is_some(), "activate before attach");
}

#[test]
fn keys_do_not_lead_out_of_the_sr() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.create_vdi(MIB).unwrap();
    let outside = host.data().join("outside.json");
    std::fs::write(&outside, "{}").unwrap();
    for key in ["../outside", "../../etc/passwd", "/etc/passwd", "", ".", "..", "a\u{0}b", "a/b"] {
        rpc.fails("VDI.stat", &json!({"sr": vdi.sr, "vdi": key}));
        let _ = rpc.raw("VDI.destroy", &json!({"sr": vdi.sr, "vdi": key}));
    }
    assert!(outside.exists() && vdi.image().unwrap().exists());
}

/// The record of a VDI: the small file beside its image.
fn record(vdi: &Vdi) -> std::path::PathBuf {
    let image = vdi.image().unwrap();
    let names = std::fs::read_dir(&vdi.sr_dir).unwrap().flatten().map(|entry| entry.path());
    let mut all = names.chain(
        std::fs::read_dir(&vdi.sr_dir)
            .unwrap()
            .flatten()
            .filter_map(|entry| std::fs::read_dir(entry.path()).ok())
            .flat_map(|dir| dir.flatten().map(|entry| entry.path())),
    );
    all.find(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        *path != image && name.contains(&vdi.vdi) && name.ends_with(".json")
    })
    .expect("a record")
}

#[test]
fn a_record_cut_short_is_an_error_and_no_lie() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.create_vdi(MIB).unwrap();
    let good = host.create_vdi_in(&vdi.sr, MIB).unwrap();
    let record = record(&vdi);
    let whole = std::fs::read(&record).unwrap();
    for length in [0, 1, whole.len() / 2, whole.len() - 2] {
        std::fs::write(&record, &whole[..length]).unwrap();
        // A listing without the VDI would make XAPI forget it.
        let error = rpc.fails("SR.scan2", &json!({"sr": vdi.sr}));
        assert!(text(&error).contains(&vdi.vdi), "{error}");
        text(&rpc.fails("VDI.stat", &json!({"sr": vdi.sr, "vdi": vdi.vdi})));
        rpc.raw("VDI.stat", &json!({"sr": vdi.sr, "vdi": good.vdi})).expect("the others go on");
    }
    std::fs::write(&record, whole).unwrap();
    assert_eq!(rpc.call::<table::SrScan2>(&sr_params(&vdi.sr)).unwrap().0.len(), 2);
}

#[test]
fn a_vanished_or_shrunk_image_is_not_served() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.create_vdi(4 * MIB).unwrap();
    let image = vdi.image().unwrap();
    let aside = image.with_extension("aside");
    let serve = || vdi.serve(&rpc, 5, false).map(drop);

    std::fs::rename(&image, &aside).unwrap();
    let error = serve().expect_err("there is no image");
    text(error.downcast_ref().expect("an answer"));
    std::fs::rename(&aside, &image).unwrap();

    std::fs::File::options().write(true).open(&image).unwrap().set_len(1 << 20).unwrap();
    let error = serve().expect_err("the image is too short");
    text(error.downcast_ref().expect("an answer"));
    std::fs::File::options().write(true).open(&image).unwrap().set_len(4 << 20).unwrap();

    let disk = vdi.serve(&rpc, 5, false).expect("all is well again");
    disk.remove(&rpc).unwrap();
}

#[test]
fn foreign_files_are_left_alone_and_named() {
    let host = Host::start().unwrap();
    let rpc = host.rpc();
    let vdi = host.create_vdi(MIB).unwrap();
    let foreign = vdi.sr_dir.join("my-holiday.jpg");
    std::fs::write(&foreign, b"precious").unwrap();
    std::fs::create_dir(vdi.sr_dir.join("lost+found")).unwrap();
    let (all, _) = rpc.call::<table::SrScan2>(&sr_params(&vdi.sr)).unwrap();
    assert_eq!(all.len(), 1);
    let no_params = NoParams { dbg: String::new() };
    let diagnostics = rpc.call::<table::QueryDiagnostics>(&no_params).unwrap();
    assert!(diagnostics.contains("my-holiday.jpg"), "{diagnostics}");
    vdi.destroy(&rpc).unwrap();
    rpc.call::<table::SrDestroy>(&sr_params(&vdi.sr)).unwrap();
    assert_eq!(std::fs::read(&foreign).unwrap(), b"precious");
}

#[test]
fn a_second_sr_in_the_same_place_is_refused() {
    let host = Host::start().unwrap();
    let (sr, dir) = host.create_sr().unwrap();
    let error = host.create_sr_at(&uuid().unwrap(), &dir).expect_err("taken");
    text(error.downcast_ref().expect("an answer"));
    host.create_sr_at(&sr, &dir).expect("it is the one that is there");
    let nowhere = host.data().join("no/such/dir");
    let error = host.create_sr_at(&uuid().unwrap(), &nowhere).expect_err("no directory");
    assert!(text(error.downcast_ref().unwrap()).contains("no/such/dir"));
    let error = host.create_sr_at(&uuid().unwrap(), Path::new("relative")).expect_err("relative");
    text(error.downcast_ref().unwrap());
}

#[test]
fn an_sr_outlives_detach_and_the_daemon() {
    let mut host = Host::start().unwrap();
    let vdi = host.create_vdi(MIB).unwrap();
    let attach = json!({"sr": vdi.sr, "device_config": {"path": vdi.sr_dir}});
    host.rpc().raw("SR.detach", &json!({"sr": vdi.sr})).unwrap();
    assert_eq!(host.rpc().raw("SR.list", &json!({})).unwrap(), json!([]));
    host.rpc().raw("SR.attach", &attach).unwrap();
    host.rpc().raw("SR.attach", &attach).expect("attached already");
    assert_eq!(host.rpc().call::<table::SrScan2>(&sr_params(&vdi.sr)).unwrap().0.len(), 1);
    for restart in 0..2 {
        if restart == 0 {
            host.kill_daemon().unwrap();
        } else {
            assert!(host.stop_daemon().unwrap().success());
        }
        host.start_daemon().unwrap();
        assert_eq!(host.rpc().raw("SR.list", &json!({})).unwrap(), json!([vdi.sr]));
    }
    let found = host.rpc().raw("SR.probe", &json!({"device_config": {"path": vdi.sr_dir}}));
    assert!(found.unwrap().to_string().contains(&vdi.sr));
    let busy = host.rpc().fails("SR.destroy", &json!({"sr": vdi.sr}));
    assert!(!text(&busy).is_empty(), "an SR with volumes is not destroyed");
}

#[test]
fn a_probe_tells_what_is_there_and_changes_nothing() {
    let host = Host::start().unwrap();
    let probe = |config: Value| host.rpc().raw("SR.probe", &json!({"device_config": config}));
    let dir = host.data().join("place");
    let config = json!({"path": dir});
    assert_eq!(probe(config.clone()).unwrap(), json!(["Probe", []]), "no such directory");
    std::fs::write(&dir, "").unwrap();
    assert_eq!(probe(config.clone()).unwrap(), json!(["Probe", []]), "a file");
    std::fs::remove_file(&dir).unwrap();
    std::fs::create_dir(&dir).unwrap();
    let empty = json!({"configuration": config, "complete": true, "extra_info": {}});
    assert_eq!(probe(config.clone()).unwrap(), json!(["Probe", [empty]]), "one may be made");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);

    let sr = uuid().unwrap();
    host.create_sr_at(&sr, &dir).unwrap();
    let names = || std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let (stat, before) = (host.rpc().raw("SR.stat", &json!({"sr": sr})).unwrap(), names());
    for attached in [true, false] {
        let found = probe(config.clone()).unwrap()[1][0].clone();
        assert_eq!((&found["complete"], &found["configuration"]), (&json!(true), &config));
        assert_eq!(found["sr"]["sr_uuid"], json!(sr), "attached: {attached}");
        assert_eq!(found["sr"]["name_label"], stat["name_label"]);
        assert_eq!(names(), before);
        host.rpc().raw("SR.detach", &json!({"sr": sr})).unwrap();
    }
    std::fs::write(dir.join("zerotap-sr.json"), "{\"version\"").unwrap();
    let damaged = host.rpc().fails("SR.probe", &json!({"device_config": config}));
    assert!(text(&damaged).contains("zerotap-sr.json"), "an SR is there, whatever its record says");

    for (config, code) in [
        (json!({}), 90),
        (json!({"path": "relative"}), 91),
        (json!({"path": dir, "server": "nfs"}), 91),
    ] {
        let refused = host.rpc().fails("SR.probe", &json!({"device_config": config}));
        assert_eq!(refused.storage.expect("SMAPIv2's").code(), code, "{config}");
    }
}

/// XAPI forgets a VDI by itself and tells nobody; then it scans, or introduces it again.
#[test]
fn a_volume_is_introduced_wherever_it_comes_from() {
    let (host, other) = (Host::start().unwrap(), Host::start().unwrap());
    let vdi = host.create_vdi(MIB).unwrap();
    let attach = json!({"sr": vdi.sr, "device_config": {"path": vdi.sr_dir}});
    other.rpc().raw("SR.attach", &attach).unwrap();
    let late = other.create_vdi_in(&vdi.sr, MIB).unwrap();
    let record = || std::fs::read(vdi.sr_dir.join(format!("{}.vdi.json", late.vdi))).unwrap();
    let before = record();
    let introduce = |location: &str| {
        json!({"sr": vdi.sr, "uuid": uuid().unwrap(), "sm_config": {"k": "v"},
            "location": location})
    };
    for _ in 0..2 {
        let found = host.rpc().raw("VDI.introduce", &introduce(&late.vdi)).unwrap();
        assert_eq!(found, serde_json::to_value(&late).unwrap(), "as the other host made it");
    }
    assert_eq!(record(), before, "nothing of it changes");
    let (listed, _) = host.rpc().call::<table::SrScan2>(&sr_params(&vdi.sr)).unwrap();
    assert!(listed.contains(&late));
    for nowhere in ["", "..", "../zerotap-sr", "no such key"] {
        let refused = host.rpc().fails("VDI.introduce", &introduce(nowhere)).storage;
        assert_eq!(refused, Some(StorageError::VdiDoesNotExist(nowhere.into())));
    }
    std::fs::write(vdi.sr_dir.join(format!("{}.vdi.json", late.vdi)), "{").unwrap();
    let damaged = host.rpc().fails("VDI.introduce", &introduce(&late.vdi));
    assert!(text(&damaged).contains(&late.vdi));
}

#[test]
fn many_volumes_are_all_listed() {
    let host = Host::start().unwrap();
    let (sr, _) = host.create_sr().unwrap();
    let make = |_| host.create_vdi_in(&sr, MIB).unwrap().vdi;
    let made: BTreeSet<String> = (0..100).map(make).collect();
    let (all, _) = host.rpc().call::<table::SrScan2>(&sr_params(&sr)).unwrap();
    assert_eq!(all.into_iter().map(|info| info.vdi).collect::<BTreeSet<_>>(), made);
}
