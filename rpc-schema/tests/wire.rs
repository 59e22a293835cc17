//! Wire fidelity: upstream's own samples of every method, read and written again, are the same JSON
//! values. `encodings.rs` has what samples do not cover.
//!
//! `fixtures/` holds the samples, made from the interface definitions with upstream's codec; equal
//! ones are stored once, with the methods that they are samples of. `index.json` counts them all:
//! [requests, answers].

use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use zerotap_rpc_schema::smapi2::Health;
use zerotap_rpc_schema::smapi3::arguments::{from_object, from_words};
use zerotap_rpc_schema::smapi3::table::{SCRIPTS, Script};
use zerotap_rpc_schema::{StorageError, names, smapi3, table};

/// Which method, and why the daemon does not have it. Whatever is in neither table must be here.
const NOT_SERVED: &[(&str, &str, &str)] = &[
    ("smapi2", "DATA.MIRROR.", MUX),
    ("smapi2", "DATA.copy", MUX),
    ("smapi2", "DP.create", MUX),
    ("smapi2", "DP.destroy", MUX),
    ("smapi2", "DP.diagnostics", MUX),
    ("smapi2", "Policy.get_backend_vm", MUX),
    ("smapi2", "SR.update_snapshot_info_", MUX),
    ("smapi2", "TASK.", MUX),
    ("smapi2", "UPDATES.get", MUX),
    ("smapi2", "get_by_name", MUX),
    ("smapi2", "VDI.get_url", "upstream never sends it"),
    ("smapi2", "DATA.import_activate", MIGRATION),
    ("smapi2", "DATA.mirror", MIGRATION),
    ("smapi2", "DATA.stat", MIGRATION),
    ("smapi2", "VDI.compose", BLOCKS),
    ("smapi2", "VDI.data_destroy", BLOCKS),
    ("smapi2", "VDI.disable_cbt", BLOCKS),
    ("smapi2", "VDI.enable_cbt", BLOCKS),
    ("smapi2", "VDI.list_changed_blocks", BLOCKS),
    ("smapi3", "Data.copy", "upstream never runs it"),
    ("smapi3", "Data.cancel", "upstream never runs it"),
    ("smapi3", "Data.destroy", "upstream never runs it"),
    ("smapi3", "Data.ls", "upstream never runs it"),
    ("smapi3", "Data.mirror", MIGRATION),
    ("smapi3", "Data.stat", MIGRATION),
    ("smapi3", "Datapath.import_activate", MIGRATION),
    ("smapi3", "Volume.copy", "upstream never runs it"),
    ("smapi3", "Volume.compare", "upstream never runs it"),
    ("smapi3", "Volume.similar_content", "upstream never runs it"),
    ("smapi3", "Volume.compose", BLOCKS),
    ("smapi3", "Volume.data_destroy", BLOCKS),
    ("smapi3", "Volume.disable_cbt", BLOCKS),
    ("smapi3", "Volume.enable_cbt", BLOCKS),
    ("smapi3", "Volume.list_changed_blocks", BLOCKS),
];
const MUX: &str = "XAPI's own daemon answers it; it never reaches a backend";
const MIGRATION: &str = "storage migration into and out of an SR";
const BLOCKS: &str = "changed-block tracking";

/// The samples of one interface, and how its method is called on our socket.
struct Samples {
    api: &'static str,
    prefix: &'static str,
    requests: Vec<Sample>,
    answers: Vec<Sample>,
}

struct Sample {
    methods: Vec<String>,
    /// `params`, `result` or `error`.
    part: &'static str,
    value: Value,
}

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn samples(name: &str) -> Vec<Sample> {
    let read = |line: &str| {
        let mut line: Value = serde_json::from_str(line).expect("a sample");
        let part = ["params", "result", "error"].into_iter().find(|part| line.get(part).is_some());
        let part = part.expect("a sample has one part");
        let methods = serde_json::from_value(line["methods"].take()).expect("methods");
        Sample { methods, part, value: line[part].take() }
    };
    fixture(name).lines().map(read).collect()
}

fn all() -> [Samples; 2] {
    let of = |api, prefix, name: &str| Samples {
        api,
        prefix,
        requests: samples(&format!("{name}-requests.jsonl")),
        answers: samples(&format!("{name}-responses.jsonl")),
    };
    [of("smapi2", "", "smapiv2"), of("smapi3", smapi3::PREFIX, "smapiv3")]
}

fn rewrite(method: &str, part: &str, value: &Value) -> Option<serde_json::Result<Value>> {
    match part {
        "params" => table::rewrite_params(method, value)
            .or_else(|| smapi3::table::rewrite_params(method, value)),
        _ => table::rewrite_result(method, value)
            .or_else(|| smapi3::table::rewrite_result(method, value)),
    }
}

#[test]
fn samples_are_written_as_they_were_read() {
    let mut checked = 0;
    for samples in all() {
        for sample in samples.requests.iter().chain(&samples.answers) {
            if sample.part == "error" {
                continue;
            }
            for method in &sample.methods {
                let name = format!("{}{method}", samples.prefix);
                let Some(written) = rewrite(&name, sample.part, &sample.value) else { continue };
                let written = written.unwrap_or_else(|error| {
                    panic!("{name} {}: {error}: {}", sample.part, sample.value)
                });
                assert_eq!(written, sample.value, "{name} {}", sample.part);
                checked += 1;
            }
        }
    }
    assert!(checked > 1000, "only {checked} samples were checked");
}

#[test]
fn every_error_is_written_as_it_was_read() {
    let [smapi2, smapi3] = all();
    let errors: Vec<_> = smapi2.answers.iter().filter(|sample| sample.part == "error").collect();
    assert!(errors.len() > 30, "{}", errors.len());
    for sample in errors {
        let error: StorageError = serde_json::from_value(sample.value.clone()).expect("an error");
        assert_eq!(serde_json::to_value(&error).expect("JSON"), sample.value);
        assert!(!error.to_string().is_empty());
    }
    // SMAPIv3's are never on the wire: an executable answers {code, params, backtrace} instead.
    assert!(smapi3.answers.iter().any(|sample| sample.part == "error"));
}

#[test]
fn no_method_is_skipped_in_silence() {
    let index: BTreeMap<String, BTreeMap<String, [usize; 2]>> =
        serde_json::from_str(&fixture("index.json")).expect("the index");
    let served: Vec<_> = names().collect();
    for (samples, counted) in all().iter().zip(index.values()) {
        let count = |of: &[Sample], method: &str| {
            of.iter().flat_map(|sample| &sample.methods).filter(|name| *name == method).count()
        };
        for (method, expected) in counted {
            let excuse = NOT_SERVED.iter().find(|(api, what, _)| {
                *api == samples.api && (what == method || method.starts_with(what) && ends(what))
            });
            let is_served = served.contains(&format!("{}{method}", samples.prefix).as_str());
            match (is_served, excuse) {
                (true, None) => {
                    let here = [count(&samples.requests, method), count(&samples.answers, method)];
                    assert_eq!(here, *expected, "samples of {method}");
                }
                (false, Some(_)) => {}
                (true, Some(_)) => panic!("{method} is served: take it off NOT_SERVED"),
                (false, None) => panic!("{method} is neither served nor on NOT_SERVED"),
            }
        }
    }
    for (api, what, _) in NOT_SERVED {
        let of = &index[if *api == "smapi2" { "smapiv2" } else { "smapiv3" }];
        assert!(of.keys().any(|method| method.starts_with(what)), "{what} is no method");
    }
}

/// Whether a name of `NOT_SERVED` stands for all that begin with it.
fn ends(what: &str) -> bool {
    what.ends_with(['.', '_'])
}

proptest! {
    /// Key case, unknown keys and decimal strings change nothing of what a script is told.
    #[test]
    fn arguments_are_read_as_upstream_reads_them(shout: bool, digits: bool, extra: bool) {
        let [_, smapi3] = all();
        let mut read = 0;
        for sample in &smapi3.requests {
            for method in &sample.methods {
                let Some(script) = Script::called(&method.to_uppercase()) else { continue };
                let mut given = serde_json::Map::new();
                for (name, value) in sample.value.as_object().expect("an object") {
                    let name = if shout { name.to_uppercase() } else { name.clone() };
                    let text = value.is_i64() && digits;
                    given.insert(name, if text { value.to_string().into() } else { value.clone() });
                }
                if extra {
                    given.insert("of a later version".into(), json!({"deep": [1.5, null]}));
                }
                let told = from_object(script.fields, given);
                prop_assert_eq!(told.as_ref(), Ok(&sample.value), "{}", method);
                read += 1;
            }
        }
        prop_assert!(read >= 20, "only {} samples were read", read);
    }

    /// Whatever a script is given, no value of it comes back in a complaint.
    #[test]
    fn a_complaint_holds_no_value(secret in "[a-z]{12}", script in 0..SCRIPTS.len()) {
        let fields = SCRIPTS[script].fields;
        let names = fields.iter().map(|field| field.name.to_owned());
        let wrong = names.map(|name| (name, json!([secret]))).collect();
        if let Err(complaint) = from_object(fields, wrong) {
            prop_assert!(!complaint.contains(&secret), "{complaint}");
        }
        let words = vec![secret.clone(); 9];
        let complaint = from_words(fields, &words).expect_err("too many words");
        prop_assert!(!complaint.contains(&secret), "{complaint}");
    }
}

#[test]
fn a_script_takes_integers_as_upstream_does() {
    let script = Script::called("Volume.resize").expect("a method");
    let read = |size: &str| {
        let text = format!(r#"{{"dbg":"","sr":"s","key":"k","new_size":{size}}}"#);
        from_object(script.fields, serde_json::from_str(&text).expect("JSON"))
    };
    for good in ["1", "\"4096\"", "9223372036854775807", "-1"] {
        assert!(read(good).is_ok(), "{good}");
    }
    for bad in ["1.0", "null", "true", "9223372036854775808", "\"1.0\"", "[]", "\"\""] {
        let complaint = read(bad).expect_err(bad);
        assert!(complaint.contains("`new_size` must be an integer"), "{complaint}");
    }
    assert!(from_object(script.fields, serde_json::Map::new()).expect_err("none").contains("`sr`"));
}

#[test]
fn positions_are_those_of_the_interface_definition() {
    let read = |name: &str, words: &[&str]| {
        let words: Vec<_> = words.iter().map(ToString::to_string).collect();
        from_words(Script::called(name).expect("a method").fields, &words)
    };
    let created = read("Volume.create", &["dbg", "sr", "name", "", "4096", "true"]);
    let expected = json!({"dbg": "dbg", "sr": "sr", "name": "name", "description": "",
        "size": 4096, "sharable": true});
    assert_eq!(created, Ok(expected));
    let words = ["d", "u", "--configuration", "path", "/srv", "n", "", "--configuration", "a", "b"];
    let made = read("SR.create", &words);
    let expected = json!({"dbg": "d", "uuid": "u", "configuration": {"path": "/srv", "a": "b"},
        "name": "n", "description": ""});
    assert_eq!(made, Ok(expected));
    for (name, words) in [
        ("Volume.create", &["d", "s", "n", "", "big", "true"][..]),
        ("Volume.create", &["d", "s", "n", "", "1", "maybe"]),
        ("Volume.create", &["d", "s", "n", "", "1"]),
        ("Volume.stat", &["d", "s", "k", "more"]),
        ("SR.probe", &["d", "--configuration", "path"]),
        ("Plugin.ls", &[]),
    ] {
        assert!(read(name, words).is_err(), "{name} {words:?}");
    }
}

#[test]
fn records_are_read_as_upstream_reads_them() {
    let read = |json: Value| serde_json::from_value::<smapi3::Volume>(json);
    let mut volume = json!({"key": "k", "name": "n", "description": "", "read_write": true,
        "sharable": false, "virtual_size": 1, "physical_utilisation": 0, "uri": [], "keys": {},
        "volume_type": 7, "cbt_enabled": "perhaps", "of a later version": null});
    let tolerated = read(volume.clone()).expect("upstream takes the defaults");
    assert_eq!((tolerated.volume_type, tolerated.cbt_enabled), (None, None));
    volume["uuid"] = Value::Null;
    assert!(read(volume.clone()).is_err(), "upstream refuses a null");
    volume["uuid"] = json!("u");
    volume["virtual_size"] = json!(1.0);
    assert!(read(volume).is_err(), "upstream refuses a float");
    let health: Health = serde_json::from_value(json!("Healthy")).expect("SMAPIv2's has no text");
    assert_eq!(health, Health::Healthy);
    let shouted = json!(["HEALTHY", ""]);
    let health: smapi3::SrHealth = serde_json::from_value(shouted).expect("any case");
    assert_eq!(health, smapi3::SrHealth::Healthy(String::new()));
}
