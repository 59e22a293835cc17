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
    json!({
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
    })
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
