//! The SMAPIv3 executables, driven as XAPI's xapi-storage-script drives them, over a real daemon.

use anyhow::Context as _;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use zerotap_rpc_schema::smapi2::{Mode, VdiState};
use zerotap_rpc_schema::smapi3::table::SCRIPTS;
use zerotap_tests::guest::destroy;
use zerotap_tests::harness::{Disk, Host, Vdi, uuid};
use zerotap_tests::simguest::{Expect, Guest, Running};
use zerotap_tests::storage_script::{StorageScript, judge, run, smapi};
use zerotap_tests::workload::{Outcome, Plan};

const MIB: i64 = 1 << 20;
const DOMID: u16 = 5;

/// An SR that xapi has created, detached and plugged: SR.create, SR.detach, SR.attach, SR.stat.
fn plug_pbd(host: &Host, script: &StorageScript) -> anyhow::Result<(String, std::path::PathBuf)> {
    let (sr, dir) = (uuid()?, host.data().join("sr"));
    std::fs::create_dir(&dir)?;
    let configuration = json!({"path": dir});
    let place = json!({"dbg": "p", "configuration": configuration});
    assert_eq!(script.call("SR.probe", &place)?[0]["complete"], true);
    let created = script.call(
        "SR.create",
        &json!({"dbg": "c", "uuid": sr, "configuration": configuration, "name": "disks",
            "description": "of a test"}),
    )?;
    script.call("SR.detach", &json!({"dbg": "d", "sr": sr}))?;
    let handle = script.call("SR.attach", &json!({"dbg": "a", "configuration": created}))?;
    let stat = script.call("SR.stat", &json!({"dbg": "s", "sr": handle}))?;
    assert_eq!((&stat["uuid"], &stat["name"]), (&json!(sr), &json!("disks")));
    let probed = script.call("SR.probe", &place)?;
    assert_eq!(probed[0]["configuration"]["sr_uuid"], json!(sr), "xapi needs it of an SR there");
    let again = json!({"dbg": "a", "configuration": probed[0]["configuration"]});
    assert_eq!(script.call("SR.attach", &again)?, handle, "attach may be repeated");
    Ok((handle.as_str().context("a handle is a string")?.to_owned(), dir))
}

/// VDI.create: Volume.create, then its type is set.
fn create_vdi(script: &StorageScript, sr: &str, size: i64) -> anyhow::Result<Value> {
    let volume = script.call(
        "Volume.create",
        &json!({"dbg": "c", "sr": sr, "name": "root", "description": "",
            "size": size, "sharable": false}),
    )?;
    let key = &volume["key"];
    let set = json!({"dbg": "s", "sr": sr, "key": key, "k": "vdi-type", "v": "system"});
    script.call("Volume.set", &set)?;
    Ok(volume)
}

#[test]
fn a_guests_disk_from_probe_to_destroy() {
    let host = Host::start().unwrap();
    let script = StorageScript::install(&host).unwrap();
    script.register_datapath().unwrap();
    let (sr, dir) = plug_pbd(&host, &script).unwrap();
    let volume = create_vdi(&script, &sr, 64 * MIB).unwrap();
    let key = volume["key"].as_str().unwrap().to_owned();
    assert_eq!(volume["virtual_size"], 64 * MIB);
    let listed = script.call("SR.ls", &json!({"dbg": "l", "sr": sr})).unwrap();
    assert_eq!(
        (listed[0]["key"].as_str(), &listed[0]["keys"]["vdi-type"]),
        (Some(key.as_str()), &json!("system"))
    );

    // VM start: attach, activate, then the device.
    let domain = DOMID.to_string();
    let attached = script.datapath("Datapath.attach", &sr, &key, &domain).unwrap();
    assert_eq!(attached["implementations"][0][0], "XenDisk", "without it a guest has no disk");
    assert_eq!(attached["implementations"][0][1]["backend_type"], "qdisk");
    script.datapath("Datapath.activate", &sr, &key, &domain).unwrap();
    script.datapath("Datapath.activate", &sr, &key, &domain).expect("activate may be repeated");
    let again = script.datapath("Datapath.attach", &sr, &key, &domain).unwrap();
    assert_eq!(again, attached, "xapi attaches once more only to read the answer");
    let vdi = Vdi { sr: sr.clone(), vdi: key.clone(), sr_dir: dir.clone() };
    let dp = format!("smapi3/{DOMID}");
    let disk = Disk { vdi, dp, domid: DOMID, read_only: false };
    let plan = Plan { requests_max: 1000, ..Plan::default() };
    let guest = Guest { plan, ..Guest::new(DOMID) };
    let running = Running::start(host.sim().dir(), guest, Expect::Fresh).unwrap();
    disk.plug(&host.rpc()).unwrap();
    let mut ended = running.join().unwrap();
    assert_eq!((ended.outcome, ended.report.requests), (Outcome::Finished, 1000));
    disk.unplug(&host.rpc(), false).unwrap();
    destroy(host.sim().dir(), DOMID).unwrap();

    // Shutdown: always both, whatever was done before; and once more for a domain that is gone.
    for domain in [domain.as_str(), "", "5"] {
        script.datapath("Datapath.deactivate", &sr, &key, domain).unwrap();
        script.datapath("Datapath.detach", &sr, &key, domain).unwrap();
    }
    let image = disk.vdi.image().unwrap();
    ended.model.check_image(&image).unwrap();
    let volume = json!({"dbg": "v", "sr": sr, "key": key});
    script.call("Volume.stat", &volume).unwrap();
    script.call("Volume.destroy", &volume).unwrap();
    assert!(!image.exists());
    let sr = json!({"dbg": "d", "sr": sr});
    script.call("SR.destroy", &sr).unwrap();
    script.call("SR.detach", &sr).expect("detach of what is not attached");
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
}

#[test]
fn a_domain_is_a_hint() {
    let host = Host::start().unwrap();
    let script = StorageScript::install(&host).unwrap();
    let (sr, dir) = plug_pbd(&host, &script).unwrap();
    let key = create_vdi(&script, &sr, MIB).unwrap()["key"].as_str().unwrap().to_owned();
    let vdi = Vdi { sr: sr.clone(), vdi: key.clone(), sr_dir: dir };
    let state = || vdi.stat(&host.rpc()).unwrap().superstate;
    let call = |what: &str, domain: &str| {
        script.datapath(&format!("Datapath.{what}"), &sr, &key, domain).unwrap()
    };
    call("attach", "5");
    call("activate", "5");
    for stranger in ["6", "u0_xenopsd_task_1_2", "0"] {
        call("deactivate", stranger);
        call("detach", stranger);
    }
    assert_eq!(state(), VdiState::Activated(Mode::ReadWrite), "the guest keeps its disk");
    // xenopsd does not know any more which domain it was.
    call("deactivate", "");
    call("detach", "");
    assert_eq!(state(), VdiState::Detached);
    // dom0's use is not taken for the guest's that is gone.
    call("attach", "u0_xenopsd_task_1_2");
    call("activate_readonly", "u0_xenopsd_task_1_2");
    call("activate_readonly", "u0_xenopsd_task_1_2");
    call("deactivate", "");
    assert_eq!(state(), VdiState::Activated(Mode::ReadOnly));
    call("deactivate", "u0_xenopsd_task_1_2");
    call("detach", "u0_xenopsd_task_1_2");
    assert_eq!(state(), VdiState::Detached);
}

/// Datapath.attach does not tell who will only read; activate does.
#[test]
fn readers_share_a_volume_and_a_writer_is_told_of_them() {
    let host = Host::start().unwrap();
    let script = StorageScript::install(&host).unwrap();
    let (sr, _) = plug_pbd(&host, &script).unwrap();
    let key = create_vdi(&script, &sr, MIB).unwrap()["key"].as_str().unwrap().to_owned();
    let call =
        |what: &str, domain: &str| script.datapath(&format!("Datapath.{what}"), &sr, &key, domain);
    for domain in ["5", "6"] {
        call("attach", domain).unwrap();
        call("activate_readonly", domain).unwrap();
    }
    call("attach", "7").unwrap();
    let refused = call("activate", "7").unwrap_err().to_string();
    assert!(refused.contains("SR_BACKEND_FAILURE_24") && refused.contains("smapi3/"), "{refused}");
    for domain in ["5", "6"] {
        call("deactivate", domain).unwrap();
        call("detach", domain).unwrap();
    }
    call("activate", "7").expect("it is still attached");
    call("attach", "8").unwrap();
    let refused = call("activate", "8").unwrap_err().to_string();
    assert!(refused.contains("smapi3/7"), "{refused}");
}

#[test]
fn every_edit_of_a_volume_and_an_sr_is_seen() {
    let host = Host::start().unwrap();
    let script = StorageScript::install(&host).unwrap();
    let (sr, _) = plug_pbd(&host, &script).unwrap();
    let key = create_vdi(&script, &sr, MIB).unwrap()["key"].clone();
    let call = |method: &str, more: Value| {
        let mut arguments = json!({"dbg": "t\n{\"traceparent\": \"00-a\"}", "sr": sr});
        let object = arguments.as_object_mut().unwrap();
        if method.starts_with("Volume") {
            object.insert("key".into(), key.clone());
        }
        object.extend(more.as_object().unwrap().clone());
        script.call(method, &arguments).unwrap()
    };
    call("Volume.set_name", json!({"new_name": "data\u{1}\n\"'"}));
    call("Volume.set_description", json!({"new_description": "ä"}));
    call("Volume.set", json!({"k": "_sm_config_base_mirror", "v": "m"}));
    call("Volume.set", json!({"k": "tagsgold", "v": ""}));
    call("Volume.set", json!({"k": "anything", "v": "else"}));
    call("Volume.resize", json!({"new_size": 2 * MIB}));
    let volume = call("Volume.stat", json!({}));
    assert_eq!((&volume["name"], &volume["description"]), (&json!("data\u{1}\n\"'"), &json!("ä")));
    assert_eq!(volume["virtual_size"], 2 * MIB);
    let expected = json!({"vdi-type": "system", "_sm_config_base_mirror": "m", "tagsgold": "",
        "anything": "else"});
    assert_eq!(volume["keys"], expected);
    let v2 = host.rpc().raw("VDI.stat", &json!({"sr": sr, "vdi": key})).unwrap();
    assert_eq!((&v2["ty"], &v2["sm_config"]), (&json!("system"), &json!({"base_mirror": "m"})));
    for k in ["_sm_config_base_mirror", "tagsgold", "anything", "never there"] {
        call("Volume.unset", json!({"k": k}));
    }
    assert_eq!(call("Volume.stat", json!({}))["keys"], json!({"vdi-type": "system"}));
    call("SR.set_name", json!({"new_name": "new"}));
    call("SR.set_description", json!({"new_description": "newer"}));
    let stat = call("SR.stat", json!({}));
    assert_eq!((&stat["name"], &stat["description"]), (&json!("new"), &json!("newer")));
    assert_eq!(script.call("Plugin.ls", &json!({"dbg": ""})).unwrap(), json!([sr]));
    let report = script.call("Plugin.diagnostics", &json!({"dbg": ""})).unwrap();
    assert!(report.as_str().unwrap().contains(&sr), "{report}");
}

/// A snapshot as XAPI takes it: the volume, then what it remembers of it, key by key.
#[test]
fn a_snapshot_and_its_clone_are_volumes_of_their_own() {
    let host = Host::start().unwrap();
    let script = StorageScript::install(&host).unwrap();
    let (sr, dir) = plug_pbd(&host, &script).unwrap();
    let key = create_vdi(&script, &sr, MIB).unwrap()["key"].clone();
    let call = |method: &str, key: &Value, more: &[(&str, &str)]| {
        let mut arguments = json!({"dbg": "t", "sr": sr, "key": key});
        for (name, value) in more {
            arguments[*name] = json!(value);
        }
        script.call(method, &arguments).unwrap()
    };
    let data = |key: &Value| dir.join(format!("{}.raw", key.as_str().unwrap()));
    std::fs::write(data(&key), vec![9; 1 << 20]).unwrap();
    let snapshot = call("Volume.snapshot", &key, &[])["key"].clone();
    for (k, v) in [
        ("snapshot_time", "20261231T23:59:59Z"),
        ("is_a_snapshot", "true"),
        ("snapshot_of", key.as_str().unwrap()),
    ] {
        call("Volume.set", &snapshot, &[("k", k), ("v", v)]);
    }
    let told = host.rpc().raw("VDI.stat", &json!({"sr": sr, "vdi": snapshot})).unwrap();
    assert_eq!((&told["is_a_snapshot"], &told["snapshot_of"]), (&json!(true), &key));
    let clone = call("Volume.clone", &snapshot, &[]);
    assert_eq!((&clone["read_write"], &clone["virtual_size"]), (&json!(true), &json!(MIB)));
    assert!(clone["keys"].get("is_a_snapshot").is_none(), "{clone}");
    std::fs::write(data(&key), vec![7; 1 << 20]).unwrap();
    call("Volume.revert", &key, &[("snapshot", snapshot.as_str().unwrap())]);
    assert_eq!(std::fs::read(data(&key)).unwrap(), vec![9; 1 << 20]);
    call("Volume.destroy", &key, &[]);
    call("Volume.destroy", &snapshot, &[]);
    assert_eq!(std::fs::read(data(&clone["key"])).unwrap(), vec![9; 1 << 20]);
}

#[test]
fn every_failure_is_one_that_xapi_can_show() {
    let mut host = Host::start().unwrap();
    let script = StorageScript::install(&host).unwrap();
    let (sr, dir) = plug_pbd(&host, &script).unwrap();
    let key = create_vdi(&script, &sr, MIB).unwrap()["key"].clone();
    let uri = script.uri(&sr, key.as_str().unwrap()).unwrap();
    let secret = "hunter2-hunter2";
    let cases = [
        ("SR.stat", json!({"dbg": "", "sr": "nobody"}), 47, "nobody"),
        ("SR.destroy", json!({"dbg": "", "sr": sr}), 39, "VDIs"),
        ("SR.attach", json!({"dbg": "", "configuration": {"path": "/nowhere"}}), 47, "/nowhere"),
        ("SR.attach", json!({"dbg": "", "configuration": {"path": dir, "pin": secret}}), 91, "pin"),
        ("SR.attach", json!({"dbg": "", "configuration": {"pin": [secret]}}), 143, "configuration"),
        ("SR.attach", json!({"dbg": ""}), 143, "configuration"),
        ("SR.attach", json!([secret]), 143, "object"),
        ("Volume.stat", json!({"dbg": "", "sr": sr, "key": "none"}), 144, "none"),
        ("Volume.stat", json!({"dbg": "", "sr": [secret], "key": "none"}), 143, "`sr`"),
        ("Volume.resize", json!({"sr": sr, "key": key, "new_size": 1.0}), 143, "`new_size`"),
        ("Volume.resize", json!({"sr": sr, "key": key, "new_size": 4096}), 110, "only grows"),
        ("Datapath.attach", json!({"uri": "file://x/y", "domain": "5"}), 143, "zerotap://"),
        ("Datapath.activate", json!({"uri": uri, "domain": "5"}), 24, ""),
    ];
    for (method, arguments, number, part) in cases {
        let error = script.fails(method, &arguments);
        assert_eq!(error.code, format!("SR_BACKEND_FAILURE_{number}"), "{method} {arguments}");
        assert!(error.params[1].contains(part), "{method}: {error}");
        assert!(!error.to_string().contains(secret), "a secret is in XAPI's log: {error}");
    }
    for method in ["Volume.compose", "Volume.copy", "Data.mirror", "Datapath.import_activate"] {
        let missing = script.call(method, &json!({})).unwrap_err();
        assert!(missing.to_string().contains("SCRIPT_MISSING"), "{missing}");
    }
    host.stop_daemon().unwrap();
    script.register_datapath().expect("a datapath plugin is asked once, daemon or no daemon");
    let error = script.fails("SR.stat", &json!({"dbg": "", "sr": sr}));
    assert_eq!(error.code, "SR_BACKEND_FAILURE_47");
    assert!(error.params[1].contains("systemctl start zerotap"), "{error}");
}

#[test]
fn a_daemon_that_is_restarted_is_waited_for() {
    let mut host = Host::start().unwrap();
    let script = StorageScript::install(&host).unwrap();
    let (sr, _) = plug_pbd(&host, &script).unwrap();
    host.kill_daemon().unwrap();
    let asked = std::thread::spawn({
        let (script, sr) = (script.clone(), sr.clone());
        move || script.call("SR.stat", &json!({"dbg": "", "sr": sr}))
    });
    host.start_daemon().unwrap();
    assert_eq!(asked.join().unwrap().unwrap()["uuid"], json!(sr));
}

#[test]
fn by_position_as_static_vdis_calls() {
    let host = Host::start().unwrap();
    let script = StorageScript::install(&host).unwrap();
    let (sr, dir) = plug_pbd(&host, &script).unwrap();
    let volume = create_vdi(&script, &sr, MIB).unwrap();
    let (key, uri) = (volume["key"].as_str().unwrap(), volume["uri"][0].as_str().unwrap());
    let call = |method: &str, words: &[&str]| {
        let mut command = script.command(&script.find(method).unwrap());
        judge(method, &run(command.args(words), b"").unwrap())
    };
    assert!(script.root().join("volume/org.xen.xapi.storage.zerotap/Plugin.Query").exists());
    assert_eq!(call("Plugin.query", &["dbg"]).unwrap()["plugin"], "zerotap");
    let path = dir.to_str().unwrap();
    assert_eq!(call("SR.attach", &["dbg", "--configuration", "path", path]).unwrap(), json!(sr));
    assert_eq!(call("Volume.stat", &["dbg", &sr, key]).unwrap()["uri"][0], json!(uri));
    for method in ["attach", "activate", "deactivate", "detach"] {
        call(&format!("Datapath.{method}"), &["dbg", uri, "0"]).unwrap();
    }
    let wrong = call("Volume.stat", &["dbg", &sr]).unwrap_err();
    assert!(wrong.to_string().contains("`key` is missing"), "{wrong}");
}

#[test]
fn python_runs_what_the_kernel_runs() {
    let host = Host::start().unwrap();
    let script = StorageScript::install(&host).unwrap();
    let (sr, _) = plug_pbd(&host, &script).unwrap();
    // What xen-api's observer does with a script, as its main module.
    let observer = "import runpy, sys; sys.argv = sys.argv[1:]; \
                    runpy.run_path(sys.argv[0], run_name='__main__')";
    let mut command = script.command(Path::new("python3"));
    command.arg("-c").arg(observer).arg(script.find("SR.stat").unwrap()).arg("--json");
    let arguments = json!({"dbg": "traced", "sr": sr}).to_string();
    let output = run(&mut command, arguments.as_bytes()).expect("python3 is installed");
    let stat = judge("SR.stat", &output);
    let stat = stat.unwrap_or_else(|e| panic!("{e:#} {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(stat["uuid"], json!(sr));
}

/// The methods that have a file, sorted.
fn files(root: &Path) -> BTreeSet<String> {
    let dirs = ["volume/org.xen.xapi.storage.zerotap", "datapath/zerotap"];
    let entries = dirs.iter().flat_map(|dir| std::fs::read_dir(root.join(dir)).unwrap().flatten());
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name != "zerotap").collect()
}

#[test]
fn what_is_installed_is_what_works() {
    let host = Host::start().unwrap();
    let script = StorageScript::install(&host).unwrap();
    let expected: BTreeSet<String> =
        SCRIPTS.iter().map(|script| script.name.replace("query", "Query")).collect();
    assert_eq!(files(script.root()), expected);
    let told: BTreeSet<String> = serde_json::from_value(
        script.call("Plugin.query", &json!({"dbg": ""})).unwrap()["features"].clone(),
    )
    .unwrap();
    let believed: BTreeSet<String> = script.features().unwrap().into_iter().collect();
    assert_eq!(told, believed, "XAPI adds what the files promise");
    // Every executable answers something that can be read, whatever it is given.
    for method in SCRIPTS.iter().map(|script| script.name) {
        if !["Plugin.query", "Plugin.ls", "Plugin.diagnostics"].contains(&method) {
            assert_eq!(script.fails(method, &json!({})).code, "SR_BACKEND_FAILURE_143", "{method}");
        }
    }
    // Installed again over itself, and taken away; the watched directories stay.
    smapi("install", script.root()).unwrap();
    assert_eq!(files(script.root()), expected);
    smapi("remove", script.root()).unwrap();
    smapi("remove", script.root()).expect("there is nothing left to remove");
    for dir in ["volume", "datapath"] {
        assert_eq!(std::fs::read_dir(script.root().join(dir)).unwrap().count(), 0);
    }
    assert_eq!(std::fs::read_dir(script.root()).unwrap().count(), 2);
    let foreign = script.root().join("datapath/zerotap");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("precious"), "").unwrap();
    for verb in ["install", "remove"] {
        let refused = smapi(verb, script.root()).unwrap_err().to_string();
        assert!(refused.contains("was not made by"), "{refused}");
    }
    assert!(foreign.join("precious").exists());
}

#[test]
fn a_type_that_the_queue_serves_gets_no_executables() {
    let host = Host::start().unwrap();
    let (room, config) = (tempfile::tempdir().unwrap(), host.data().join("queue.toml"));
    let install = |root: &Path| {
        let (root, config) = (root.display().to_string(), config.display().to_string());
        let words = ["smapi", "install", "--root", &root, "--config", &config];
        host.zerotap(&words).unwrap().output().unwrap()
    };
    let text = format!("[message_switch]\nenabled = true\nstorage_scripts = {:?}\n", room.path());
    std::fs::write(&config, text).unwrap();
    let refused = install(room.path());
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("enabled = false"), "{said}");
    assert_eq!(std::fs::read_dir(room.path()).unwrap().count(), 0);
    // Another root is another matter, as that of a package which is being built.
    assert!(install(&room.path().join("other")).status.success());
    std::fs::write(&config, "").unwrap();
    assert!(install(room.path()).status.success());
}

#[test]
fn an_install_leaves_no_gap() {
    let host = Host::start().unwrap();
    let script = StorageScript::install(&host).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let calls = std::thread::spawn({
        let (script, stop) = (script.clone(), std::sync::Arc::clone(&stop));
        move || {
            let mut calls = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                script.call("Plugin.ls", &json!({"dbg": ""})).unwrap();
                calls += 1;
            }
            calls
        }
    });
    for _ in 0..3 {
        smapi("install", script.root()).unwrap();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(calls.join().unwrap() > 0);
}

/// The cost of an executable alone, without the daemon: `cargo test -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_an_executable() {
    let host = Host::start().unwrap();
    let script = StorageScript::install(&host).unwrap();
    let path = script.find("Plugin.ls").unwrap();
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let time = |mut command: Command| {
        let start = Instant::now();
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        start.elapsed()
    };
    let ours = (0..200).map(|_| {
        let mut command = script.command(&path);
        command.arg("dbg");
        time(command)
    });
    let ours = median(ours.collect());
    let nothing = median((0..200).map(|_| time(Command::new("/bin/true"))).collect());
    let rpc = host.rpc();
    let call = |_| {
        let start = Instant::now();
        rpc.raw("SMAPIv3.Plugin.ls", &json!({})).unwrap();
        start.elapsed()
    };
    let daemon = median((0..200).map(call).collect());
    println!("executable {ours:?}, /bin/true {nothing:?}, the daemon's answer {daemon:?}");
}
