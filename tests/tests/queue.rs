//! XAPI's way in: a strict message switch, callers as XAPI is one, the real daemon behind the
//! queue. Every scenario ends with no violation of the protocol and no message left.

use serde_json::{Value, json};
use zerotap_tests::harness::small::Small;
use zerotap_tests::harness::{Host, eventually, uuid};
use zerotap_tests::message_switch::{Caller, Switch};

const MIB: i64 = 1 << 20;

/// A host whose daemon serves the queue of a switch.
struct Site {
    switch: Switch,
    host: Host,
    sr: String,
}

impl Site {
    fn start() -> Site {
        Site::start_with("")
    }

    fn start_with(lines: &str) -> Site {
        let room = tempfile::tempdir().unwrap().keep();
        let switch = Switch::start(&room.join("switch")).unwrap();
        let socket = switch.socket().display().to_string();
        let text = format!(
            "{lines}\n[message_switch]\nenabled = true\nsocket = {socket:?}\n\
             storage_scripts = {:?}\n",
            room.display().to_string()
        );
        let host = Host::start_with(&text).unwrap();
        let (sr, _) = host.create_sr().unwrap();
        let site = Site { switch, host, sr };
        site.served();
        site
    }

    /// Waits until the daemon takes calls from the switch.
    fn served(&self) {
        eventually("the queue is served", || {
            let mut caller = self.switch.caller()?;
            Ok(caller.call("SR.list", &json!({"dbg": "t"})).ok().map(drop))
        })
        .unwrap();
    }

    fn caller(&self) -> Caller {
        self.switch.caller().unwrap()
    }

    fn create(&self, caller: &mut Caller) -> String {
        let info = json!({"vdi": "", "name_label": "disk", "virtual_size": MIB});
        let params = json!({"dbg": "t", "sr": self.sr, "vdi_info": info});
        let made = caller.result("VDI.create", &params).unwrap();
        made["vdi"].as_str().unwrap().to_owned()
    }

    fn dp(&self, vdi: &str, dp: &str) -> Value {
        json!({"dbg": "t", "dp": dp, "sr": self.sr, "vdi": vdi, "vm": "5"})
    }

    fn attach(&self, vdi: &str, dp: &str) -> Value {
        let mut params = self.dp(vdi, dp);
        params["read_write"] = json!(true);
        params
    }

    fn vdi(&self, vdi: &str) -> Value {
        json!({"dbg": "t", "sr": self.sr, "vdi": vdi})
    }

    /// The VDI's superstate, asked at the other door.
    fn superstate(&self, vdi: &str) -> Value {
        let stat = self.host.rpc().raw("DP.stat_vdi", &json!({"sr": self.sr, "vdi": vdi}));
        stat.unwrap()["superstate"].clone()
    }

    fn vdis(&self) -> usize {
        let scan = self.host.rpc().raw("SR.scan2", &json!({"sr": self.sr})).unwrap();
        scan[0].as_array().unwrap().len()
    }

    /// Waits until every message is acknowledged: before that, one that is delivered again is the
    /// same delivery.
    fn acknowledged(&self) {
        eventually("every message is acknowledged", || {
            Ok((self.switch.waiting() == 0).then_some(()))
        })
        .unwrap();
    }

    /// Nothing is left, and nothing was done that the genuine switch would not take.
    fn end(self) {
        self.acknowledged();
        self.switch.check().unwrap();
    }
}

#[test]
fn a_disks_life() {
    let site = Site::start();
    let mut caller = site.caller();
    let about = caller.result("Query.query", &json!({"dbg": "t\n{\"trace\":1}"})).unwrap();
    assert_eq!(about["driver"], "zerotap");
    assert_eq!(about["required_api_version"], "5.0");
    assert_eq!(about["smapi_version"], "SMAPIv3");
    assert_eq!(caller.result("SR.list", &json!({"dbg": "t"})).unwrap(), json!([site.sr]));
    let vdi = site.create(&mut caller);
    let dp = site.dp(&vdi, "vbd/5/xvda");
    let backend = caller.result("VDI.attach3", &site.attach(&vdi, "vbd/5/xvda")).unwrap();
    assert_eq!(backend["implementations"][0][0], "XenDisk");
    assert_eq!(caller.result("DP.attach_info", &dp).unwrap(), backend);
    assert_eq!(caller.result("VDI.activate3", &dp).unwrap(), Value::Null);
    assert_eq!(site.superstate(&vdi), json!(["Activated", "RW"]));
    assert_eq!(caller.result("VDI.deactivate", &dp).unwrap(), Value::Null);
    assert_eq!(caller.result("VDI.detach", &dp).unwrap(), Value::Null);
    let scan = caller.result("SR.scan2", &json!({"dbg": "t", "sr": site.sr})).unwrap();
    assert_eq!(scan[0][0]["vdi"], json!(vdi));
    assert_eq!(scan[1]["health"], "Healthy");
    assert_eq!(caller.result("VDI.destroy", &site.vdi(&vdi)).unwrap(), Value::Null);
    assert_eq!(site.vdis(), 0);
    site.end();
}

#[test]
fn a_message_delivered_twice_is_done_once() {
    let mut site = Site::start();
    let mut caller = site.caller();
    let info = json!({"vdi": "", "name_label": "once", "virtual_size": MIB});
    let id =
        caller.post("VDI.create", &json!({"dbg": "t", "sr": site.sr, "vdi_info": info})).unwrap();
    let made = caller.answer(id).unwrap().unwrap();
    let vdi = made["vdi"].as_str().unwrap();
    let attach = caller.post("VDI.attach3", &site.attach(vdi, "a")).unwrap();
    let attached = caller.raw_answer(attach).unwrap();
    caller.result("VDI.detach", &site.dp(vdi, "a")).unwrap();
    for restarted in [false, true] {
        site.acknowledged();
        if restarted {
            site.host.kill_daemon().unwrap();
            site.host.start_daemon().unwrap();
        }
        site.switch.deliver_again(&[id, attach]);
        assert_eq!(caller.raw_answer(attach).unwrap(), attached);
        assert_eq!(caller.answer(id).unwrap().unwrap(), made);
        assert_eq!(site.vdis(), 1);
        assert_eq!(site.superstate(vdi), "Detached", "an old attach must not come alive again");
    }
    site.end();
}

#[test]
fn ten_at_once_newest_first_are_begun_in_order() {
    let site = Site::start();
    let mut caller = site.caller();
    let vdi = site.create(&mut caller);
    site.switch.hold(true);
    let dp = site.dp(&vdi, "x");
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(caller.post("VDI.attach3", &site.attach(&vdi, "x")).unwrap());
        ids.push(caller.post("VDI.activate3", &dp).unwrap());
        ids.push(caller.post("VDI.deactivate", &dp).unwrap());
        ids.push(caller.post("VDI.detach", &dp).unwrap());
    }
    ids.push(caller.post("VDI.attach3", &site.attach(&vdi, "y")).unwrap());
    ids.push(caller.post("VDI.activate3", &site.dp(&vdi, "y")).unwrap());
    assert_eq!(ids.len(), 10);
    site.switch.hold(false);
    for id in ids {
        caller.answer(id).unwrap().expect("in any other order one of them would be refused");
    }
    assert_eq!(site.superstate(&vdi), json!(["Activated", "RW"]));
    caller.result("VDI.deactivate", &site.dp(&vdi, "y")).unwrap();
    site.end();
}

/// Also calls whose effect is not the same when they are done twice.
#[test]
fn ten_delivered_ten_times_more_newest_first_are_done_once() {
    let site = Site::start();
    let mut caller = site.caller();
    let vdi = site.create(&mut caller);
    let source = caller.result("VDI.stat", &site.vdi(&vdi)).unwrap();
    let copy = json!({"dbg": "t", "sr": site.sr, "vdi_info": source});
    let info = json!({"vdi": "", "name_label": "new", "virtual_size": MIB});
    let create = json!({"dbg": "t", "sr": site.sr, "vdi_info": info});
    let (attach, dp) = (site.attach(&vdi, "x"), site.dp(&vdi, "x"));
    site.switch.hold(true);
    let ids: Vec<i64> = [
        ("VDI.attach3", &attach),
        ("VDI.activate3", &dp),
        ("VDI.create", &create),
        ("VDI.deactivate", &dp),
        ("VDI.detach", &dp),
        ("VDI.snapshot", &copy),
        ("VDI.attach3", &attach),
        ("VDI.clone", &copy),
        ("VDI.create", &create),
        ("VDI.detach", &dp),
    ]
    .into_iter()
    .map(|(method, params)| caller.post(method, params).unwrap())
    .collect();
    site.switch.hold(false);
    let answers: Vec<_> = ids.iter().map(|id| caller.raw_answer(*id).unwrap()).collect();
    for answer in &answers {
        let answer: Value = serde_json::from_str(answer).unwrap();
        assert_eq!(answer["error"], Value::Null, "in order none of them is refused");
    }
    for round in 0..10 {
        site.acknowledged();
        assert_eq!(site.superstate(&vdi), "Detached");
        assert_eq!(site.vdis(), 5, "two new ones, a snapshot and a clone");
        site.switch.deliver_again(&ids);
        for (id, answer) in ids.iter().zip(&answers) {
            assert_eq!(caller.raw_answer(*id).unwrap(), *answer, "round {round}");
        }
    }
    site.end();
}

#[test]
fn what_makes_no_sense_gets_a_proper_envelope() {
    let site = Site::start();
    let mut caller = site.caller();
    for method in ["VDI.fly", "VDI.Attach3", ""] {
        let error = caller.call(method, &json!({"dbg": "t"})).unwrap().expect_err("unknown");
        assert_eq!(error, json!(["Unimplemented", method]));
    }
    for garbage in ["", "{", "\u{0}", "[]", "{\"method\":1}", &"[".repeat(10_000)] {
        let id = caller.post_raw(garbage).unwrap();
        let error = caller.answer(id).unwrap().expect_err("garbage");
        assert_eq!(error[0], "Internal_error", "{garbage}: {error}");
    }
    let error = caller.call("SR.stat", &json!({"dbg": "t"})).unwrap().expect_err("no sr");
    assert_eq!(error[1][0], "SR_BACKEND_FAILURE_143", "{error}");
    let odd = json!({"DBG": "t", "Sr": site.sr, "unheard_of": [1.5]});
    caller.result("SR.stat", &odd).expect("upstream's reader takes that");
    let id =
        caller.post_raw(&json!({"jsonrpc": "2.0", "id": "x", "method": "SR.list"}).to_string());
    assert!(caller.answer(id.unwrap()).unwrap().is_ok());
    site.end();
}

#[test]
fn the_switch_is_killed_in_the_middle_of_calls() {
    let mut site = Site::start();
    for keep in [true, false, true] {
        let mut caller = site.caller();
        let vdi = site.create(&mut caller);
        caller.result("VDI.attach3", &site.attach(&vdi, "vbd/5/xvda")).unwrap();
        let dp = site.dp(&vdi, "vbd/5/xvda");
        caller.post("VDI.activate3", &dp).unwrap();
        site.switch.restart(keep).unwrap();
        site.served();
        let mut caller = site.caller();
        caller.result("VDI.activate3", &dp).expect("asked again, it is so");
        assert_eq!(site.superstate(&vdi), json!(["Activated", "RW"]));
        caller.result("VDI.deactivate", &dp).unwrap();
        caller.result("VDI.detach", &dp).unwrap();
        assert_eq!(site.superstate(&vdi), "Detached");
        caller.result("VDI.destroy", &site.vdi(&vdi)).unwrap();
    }
    assert_eq!(site.vdis(), 0);
    site.end();
}

#[test]
fn the_daemon_is_killed_in_the_middle_of_calls() {
    let mut site = Site::start();
    let mut caller = site.caller();
    let vdi = site.create(&mut caller);
    let dp = site.dp(&vdi, "vbd/5/xvda");
    let info = json!({"vdi": "", "name_label": "one only", "virtual_size": MIB});
    for round in 0..3 {
        let create = json!({"dbg": "t", "sr": site.sr, "vdi_info": info});
        let ids = [
            caller.post("VDI.create", &create).unwrap(),
            caller.post("VDI.attach3", &site.attach(&vdi, "vbd/5/xvda")).unwrap(),
            caller.post("VDI.activate3", &dp).unwrap(),
        ];
        // Each round it is somewhere else.
        for _ in 0..4 * round {
            site.host.rpc().raw("SR.list", &json!({})).unwrap();
        }
        site.host.kill_daemon().unwrap();
        site.host.start_daemon().unwrap();
        let made = caller.answer(ids[0]).unwrap().expect("answered by the next daemon");
        caller.answer(ids[1]).unwrap().expect("idempotent");
        caller.answer(ids[2]).unwrap().expect("idempotent");
        assert_eq!(site.superstate(&vdi), json!(["Activated", "RW"]));
        assert_eq!(site.vdis(), 2, "a message makes one volume, however often it comes");
        let made = made["vdi"].as_str().unwrap();
        caller.result("VDI.destroy", &site.vdi(made)).unwrap();
        let destroy = json!({"dbg": "t", "dp": "vbd/5/xvda", "sr": site.sr, "vdi": vdi,
            "vm": "5", "allow_leak": false});
        caller.result("DP.destroy2", &destroy).unwrap();
    }
    site.end();
}

#[test]
fn a_caller_that_hangs_up_changes_nothing() {
    let site = Site::start();
    let mut caller = site.caller();
    let vdi = site.create(&mut caller);
    let dp = site.dp(&vdi, "vbd/5/xvda");
    let mut hasty = site.caller();
    hasty.post("VDI.attach3", &site.attach(&vdi, "vbd/5/xvda")).unwrap();
    hasty.post("VDI.activate3", &dp).unwrap();
    drop(hasty);
    eventually("what was asked for is done", || {
        Ok((site.superstate(&vdi) == json!(["Activated", "RW"])).then_some(()))
    })
    .unwrap();
    caller.result("VDI.deactivate", &dp).unwrap();
    site.end();
}

#[test]
fn a_caller_of_any_name_is_answered_and_harms_nobody() {
    let site = Site::start();
    let mut odd = Caller::connect_as(site.switch.socket(), "my tool/%20\u{e4}\n?#:7").unwrap();
    for caller in [&mut odd, &mut site.caller()] {
        assert_eq!(caller.result("SR.list", &json!({"dbg": "t"})).unwrap(), json!([site.sr]));
    }
    drop(odd);
    site.end();
}

/// After a boot processes and messages are numbered anew: who says what was said before means it.
#[test]
fn what_was_done_in_another_boot_is_done_anew() {
    let mut site = Site::start();
    let info = json!({"vdi": "", "name_label": "disk", "virtual_size": MIB});
    let params = json!({"dbg": "t", "sr": site.sr, "vdi_info": info});
    let text = json!({"method": "VDI.create", "params": [params], "id": 1}).to_string();
    let (_, dir) = site.host.create_sr().unwrap();
    let dir = dir.with_file_name(format!("sr-{}", site.sr));
    let attach = json!({"sr": site.sr, "device_config": {"path": dir}});
    let mut made = Vec::new();
    for boot in ["second", "third"] {
        site.host.kill_daemon().unwrap();
        site.host.write_boot_id(boot).unwrap();
        site.switch.restart(false).unwrap();
        site.host.start_daemon().unwrap();
        site.host.rpc().raw("SR.attach", &attach).unwrap();
        let mut caller = Caller::connect_as(site.switch.socket(), "xapi:1970").unwrap();
        let id = eventually("there is a queue", || Ok(caller.post_raw(&text).ok())).unwrap();
        made.push((id, caller.answer(id).unwrap().unwrap()["vdi"].clone()));
    }
    assert_eq!(made[0].0, made[1].0, "the messages have one number");
    assert_ne!(made[0].1, made[1].1, "and made two volumes");
    assert_eq!(site.vdis(), 2);
    site.end();
}

/// Needs root, for a file system that stands still.
#[test]
fn who_asks_for_srs_waits_for_nobody() {
    let site = Site::start();
    let small = Small::new(32 << 20).unwrap();
    let stuck = uuid().unwrap();
    site.host.create_sr_at(&stuck, small.dir()).unwrap();
    let made = (0..8).map(|_| site.host.create_vdi_in(&stuck, 4096).unwrap().vdi);
    let vdis: Vec<String> = made.collect();
    small.freeze().unwrap();
    let mut hasty = site.caller();
    let mut ids = Vec::new();
    for _ in 0..60 {
        for vdi in &vdis {
            let name = json!({"dbg": "t", "sr": stuck, "vdi": vdi, "new_name_label": "new"});
            ids.push(hasty.post("VDI.set_name_label", &name).unwrap());
        }
    }
    let mut caller = site.caller();
    let listed = caller.result("SR.list", &json!({"dbg": "t"})).unwrap();
    assert!(listed.as_array().unwrap().contains(&json!(stuck)));
    caller.result("Query.query", &json!({"dbg": "t"})).unwrap();
    assert!(site.switch.waiting() >= ids.len(), "all the others wait");
    small.thaw().unwrap();
    for id in ids {
        hasty.answer(id).unwrap().unwrap();
    }
    site.host.rpc().raw("SR.detach", &json!({"sr": stuck})).unwrap();
    site.end();
}

#[test]
fn an_unknown_sr_is_told_as_upstream_tells_it() {
    let site = Site::start();
    let mut caller = site.caller();
    let sr = uuid().unwrap();
    let error = caller.call("SR.scan2", &json!({"dbg": "t", "sr": sr})).unwrap();
    assert_eq!(error.expect_err("not attached"), json!(["Sr_not_attached", sr]));
    site.end();
}

/// What upstream's `storage_test` does with old calls and seven nasty names, in its order.
#[test]
fn upstreams_suite_of_old_calls() {
    let site = Site::start();
    let mut caller = site.caller();
    let long = "0".repeat(128);
    for name in ["", ".", "..", "/", "!", "plain", &long] {
        let info = json!({"vdi": "", "name_label": name, "virtual_size": MIB});
        let create = json!({"dbg": "t", "sr": site.sr, "vdi_info": info});
        let made = caller.result("VDI.create", &create).unwrap();
        assert_eq!(made["name_label"], name);
        assert!(made["virtual_size"].as_i64().unwrap() >= MIB);
        let vdi = made["vdi"].as_str().unwrap();
        let dp = json!({"dbg": "t", "dp": name_of(name), "sr": site.sr, "vdi": vdi});
        let mut attach = dp.clone();
        attach["read_write"] = json!(true);
        let info = caller.result("VDI.attach", &attach).unwrap();
        assert_eq!(info["params"], format!("zerotap:{}/{vdi}", site.sr));
        assert_eq!((&info["o_direct"], &info["o_direct_reason"]), (&json!(true), &json!("")));
        let backend = caller.result("VDI.attach2", &attach).unwrap();
        assert_eq!(backend["implementations"][0][1]["params"], info["params"]);
        caller.result("VDI.activate", &dp).unwrap();
        let mut dp = dp;
        dp["vm"] = json!("0");
        let socket = caller.result("DATA.get_nbd_server", &dp).unwrap();
        assert_eq!(caller.result("DATA.MIRROR.get_nbd_server", &dp).unwrap(), socket);
        assert!(std::path::Path::new(socket.as_str().unwrap()).exists(), "{socket}");
        caller.result("VDI.deactivate", &dp).unwrap();
        caller.result("VDI.detach", &dp).unwrap();
        let named = json!({"dbg": "t", "sr": site.sr, "name": name});
        assert_eq!(caller.result("VDI.get_by_name", &named).unwrap()["vdi"], vdi);
        caller.result("VDI.destroy", &site.vdi(vdi)).unwrap();
        let gone = caller.call("VDI.get_by_name", &named).unwrap().expect_err("gone");
        assert_eq!(gone, json!(["Vdi_does_not_exist", name]));
    }
    site.end();
}

fn name_of(name: &str) -> String {
    format!("storage_test/{}", name.len())
}

#[test]
fn rows_that_xapi_sends_seldom() {
    let site = Site::start();
    let mut caller = site.caller();
    let vdi = site.create(&mut caller);
    let with = |more: Value| {
        let mut params = site.vdi(&vdi);
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    let null = |caller: &mut Caller, method: &str, params: &Value| {
        assert_eq!(caller.result(method, params).unwrap(), Value::Null, "{method}");
    };
    null(&mut caller, "VDI.epoch_begin", &with(json!({"vm": "5", "persistent": true})));
    null(&mut caller, "VDI.epoch_end", &with(json!({"vm": "5"})));
    null(&mut caller, "VDI.epoch_begin", &with(json!({"vm": "5", "persistent": false})));
    assert_eq!(site.vdis(), 1, "what is to be forgotten is no VDI");
    null(&mut caller, "VDI.epoch_end", &with(json!({"vm": "5"})));
    let source = caller.result("VDI.stat", &site.vdi(&vdi)).unwrap();
    let snapshot = json!({"dbg": "t", "sr": site.sr, "vdi_info": source});
    let snapshot = caller.result("VDI.snapshot", &snapshot).unwrap();
    let revert = json!({"dbg": "t", "sr": site.sr, "snapshot_info": snapshot});
    null(&mut caller, "VDI.revert", &revert);
    let gone = json!({"dbg": "t", "sr": site.sr, "vdi": snapshot["vdi"]});
    null(&mut caller, "VDI.destroy", &gone);
    null(&mut caller, "VDI.set_persistent", &with(json!({"persistent": false})));
    null(&mut caller, "VDI.add_tags", &with(json!({"key": "blue"})));
    null(&mut caller, "VDI.add_tags", &with(json!({"key": "blue"})));
    let introduce = json!({"dbg": "t", "sr": site.sr, "uuid": uuid().unwrap(), "sm_config": {},
        "location": vdi});
    let info = caller.result("VDI.introduce", &introduce).unwrap();
    assert_eq!((&info["persistent"], &info["tags"]), (&json!(false), &json!(["blue"])));
    null(&mut caller, "VDI.remove_tags", &with(json!({"key": "blue"})));
    let similar = caller.result("VDI.similar_content", &site.vdi(&vdi)).unwrap();
    assert_eq!(similar, json!([]));
    let sr = json!({"dbg": "t", "sr": site.sr});
    assert_eq!(caller.result("SR.scan", &sr).unwrap()[0]["tags"], json!([]));
    null(&mut caller, "SR.reset", &sr);
    assert_eq!(caller.result("SR.list", &json!({"dbg": "t"})).unwrap(), json!([]));
    site.end();
}
