//! RPC parameters: JSON to each method's own type, strictly and tolerantly, and a command line's
//! words to SMAPIv3's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use zerotap_fuzz::rpc::read_tolerantly;
use zerotap_rpc_schema::smapi3::arguments::{from_object, from_words};
use zerotap_rpc_schema::{Method, smapi3, table};

fuzz_target!(|input: (u8, &str)| {
    let (number, text) = input;
    let number = usize::from(number);
    let script = &smapi3::table::SCRIPTS[number % smapi3::table::SCRIPTS.len()];
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if let Ok(object) = from_words(script.fields, &words) {
        smapi3_takes(script.name, &object);
    }
    let Ok(value) = serde_json::from_str::<Value>(text) else { return };
    if let Value::Object(given) = &value
        && let Ok(object) = from_object(script.fields, given.clone())
    {
        smapi3_takes(script.name, &object);
    }
    let method = table::NAMES[number % table::NAMES.len()];
    if let Some(Ok(once)) = table::rewrite_params(method, &value) {
        let twice = table::rewrite_params(method, &once).expect("the same method");
        assert_eq!(twice.expect("what we wrote"), once, "{method}");
    }
    // Types of every shape: strings, flags, numbers, maps, options, whole records.
    tolerant_is_no_stricter::<table::VdiCreate>(&value);
    tolerant_is_no_stricter::<table::VdiAttach>(&value);
    tolerant_is_no_stricter::<table::VdiResize>(&value);
    tolerant_is_no_stricter::<table::SrCreate>(&value);
    tolerant_is_no_stricter::<table::VbdPlug>(&value);
    tolerant_is_no_stricter::<table::DpDestroy>(&value);
    tolerant_is_no_stricter::<table::VdiIntroduce>(&value);
});

/// What the reader of arguments lets through, the daemon's own types take.
fn smapi3_takes(name: &str, object: &Value) {
    let method = format!("{}{name}", smapi3::PREFIX);
    let taken = smapi3::table::rewrite_params(&method, object).expect("a script has a method");
    taken.unwrap_or_else(|error| panic!("{method}: {error}"));
}

fn tolerant_is_no_stricter<M: Method>(value: &Value) {
    let tolerant = read_tolerantly::<M>(value.clone());
    // A field in capitals is one that is unknown to the strict reader, which may pass it over.
    if !has_capitals(value)
        && let Ok(strict) = serde_json::from_value::<M::Params>(value.clone())
    {
        let tolerant = tolerant.unwrap_or_else(|error| panic!("{}: {error}", M::NAME));
        let json = |params| serde_json::to_value(params).expect("parameters are JSON");
        assert_eq!(json(tolerant), json(strict), "{}", M::NAME);
    }
}

/// Whether a key anywhere in it has capitals.
fn has_capitals(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(has_capitals),
        Value::Object(pairs) => pairs.iter().any(|(key, value)| {
            key.bytes().any(|byte| byte.is_ascii_uppercase()) || has_capitals(value)
        }),
        _ => false,
    }
}
