//! The OpenRPC 1.3 document, read off the method table. `rpc.discover` answers with it and
//! `rpc-schema/openrpc.json` is its golden copy: a change of the interface shows in review.

use crate::method::Method;
use crate::{smapi3, table};
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

/// The whole interface as an OpenRPC 1.3 document (<https://spec.open-rpc.org>).
#[must_use]
pub fn document() -> Value {
    let mut generator = SchemaSettings::draft07()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let mut methods = table::describe(&mut generator);
    methods.extend(smapi3::table::describe(&mut generator));
    let mut document = json!({
        "openrpc": "1.3.2",
        "info": {
            "title": "zerotap",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Storage repositories and virtual disks of a Xen host: \
                SMAPIv2's names and named parameters as JSON-RPC 2.0, and SMAPIv3's behind the \
                prefix `SMAPIv3.`.",
        },
        "methods": methods,
        "components": { "schemas": generator.definitions() },
    });
    leave_out_null(&mut document);
    document
}

/// What may be absent is never null, on the wire as in upstream's reader; schemars says otherwise
/// of every `Option`.
fn leave_out_null(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(leave_out_null),
        Value::Object(object) => {
            let required = object.get("required").cloned();
            let is_required = |name: &str| {
                let names = required.as_ref().and_then(Value::as_array);
                names.is_some_and(|names| names.iter().any(|it| it == name))
            };
            if let Some(Value::Object(properties)) = object.get_mut("properties") {
                let optional = properties.iter_mut().filter(|(name, _)| !is_required(name));
                optional.for_each(|(_, schema)| never_null(schema));
            }
            // A parameter of a method.
            if object.get("required") == Some(&Value::Bool(false)) {
                object.get_mut("schema").into_iter().for_each(never_null);
            }
            object.values_mut().for_each(leave_out_null);
        }
        _ => {}
    }
}

/// Takes `null` from what a schema allows beside something else.
fn never_null(schema: &mut Value) {
    let Value::Object(schema) = schema else { return };
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [one] = &types[..] {
            schema["type"] = one.clone();
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| choice["type"] != "null");
        // Beside `$ref` draft 7 reads nothing else; `allOf` is how it is said with a description.
        if choices.len() == 1
            && let Some(only) = schema.remove("anyOf")
        {
            schema.insert("allOf".into(), only);
        }
    }
}

pub(crate) fn entry<M: Method>(generator: &mut SchemaGenerator) -> Value
where
    M::Params: schemars::JsonSchema,
    M::Output: schemars::JsonSchema,
{
    let object = <M::Params as schemars::JsonSchema>::json_schema(generator).to_value();
    let required: Vec<&str> = object["required"]
        .as_array()
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let params: Vec<Value> = object["properties"]
        .as_object()
        .map(|properties| {
            properties
                .iter()
                .map(|(name, schema)| {
                    json!({
                        "name": name,
                        "required": required.contains(&name.as_str()),
                        "schema": schema,
                    })
                })
                .collect()
        })
        .unwrap_or_default();
    json!({
        "name": M::NAME,
        "summary": M::SUMMARY,
        "paramStructure": "by-name",
        "params": params,
        "result": { "name": "result", "schema": generator.subschema_for::<M::Output>() },
    })
}
