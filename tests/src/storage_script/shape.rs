//! What upstream's reader accepts, byte rule by byte rule: a judge of answers that shares nothing
//! with our own types.
//!
//! Source: xen-api `ocaml/xapi-storage/generator/lib/{plugin,control}.ml` as ocaml-rpc's codec
//! reads them. Stricter where it tolerates: an unknown key, a key in another case or a decimal
//! string would be a slip of ours.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value};

/// A type of the interface.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    /// `null`, the answer of what answers nothing.
    Unit,
    /// A string.
    Text,
    /// A number without a fraction, in 64 bits.
    Int,
    /// `true` or `false`.
    Bool,
    /// An array of one type.
    List(&'static Shape),
    /// An object of strings.
    Pairs,
    /// An object: required fields, then optional ones, absent and never `null`.
    Record(&'static [(&'static str, Shape)], &'static [(&'static str, Shape)]),
    /// `["Tag", payload]`.
    Variant(&'static [(&'static str, Shape)]),
    /// `"Tag"`.
    Tag(&'static [&'static str]),
}
use Shape::{Bool, Int, List, Pairs, Record, Tag, Text, Unit, Variant};

const QUERY_RESULT: Shape = Record(
    &[
        ("plugin", Text),
        ("name", Text),
        ("description", Text),
        ("vendor", Text),
        ("copyright", Text),
        ("version", Text),
        ("required_api_version", Text),
        ("features", List(&Text)),
        ("configuration", Pairs),
        ("required_cluster_stack", List(&Text)),
    ],
    &[],
);
const HEALTH: Shape = Variant(&[
    ("Healthy", Text),
    ("Recovering", Text),
    ("Unreachable", Text),
    ("Unavailable", Text),
]);
const SR_STAT: Shape = Record(
    &[
        ("sr", Text),
        ("name", Text),
        ("description", Text),
        ("free_space", Int),
        ("total_space", Int),
        ("datasources", List(&Text)),
        ("clustered", Bool),
        ("health", HEALTH),
    ],
    &[("uuid", Text)],
);
const PROBE_RESULT: Shape = Record(
    &[("configuration", Pairs), ("complete", Bool), ("extra_info", Pairs)],
    &[("sr", SR_STAT)],
);
const VOLUME: Shape = Record(
    &[
        ("key", Text),
        ("name", Text),
        ("description", Text),
        ("read_write", Bool),
        ("sharable", Bool),
        ("virtual_size", Int),
        ("physical_utilisation", Int),
        ("uri", List(&Text)),
        ("keys", Pairs),
    ],
    &[
        ("uuid", Text),
        ("volume_type", Tag(&["Data", "CBT_Metadata", "Data_and_CBT_Metadata"])),
        ("cbt_enabled", Bool),
    ],
);
const PATH: Shape = Record(&[("path", Text)], &[]);
const BACKEND: Shape = Record(
    &[(
        "implementations",
        List(&Variant(&[
            ("XenDisk", Record(&[("params", Text), ("extra", Pairs), ("backend_type", Text)], &[])),
            ("BlockDevice", PATH),
            ("File", PATH),
            ("Nbd", Record(&[("uri", Text)], &[])),
        ])),
    )],
    &[],
);
/// The error object.
pub const FAILURE: Shape = Record(
    &[
        ("code", Text),
        ("params", List(&Text)),
        (
            "backtrace",
            Record(&[("error", Text), ("files", List(&Text)), ("lines", List(&Int))], &[]),
        ),
    ],
    &[],
);

/// What a method answers; none when nobody ever runs it.
#[must_use]
pub fn answer(method: &str) -> Option<Shape> {
    Some(match method {
        "Plugin.query" => QUERY_RESULT,
        "Plugin.ls" => List(&Text),
        "Plugin.diagnostics" | "SR.attach" => Text,
        "SR.probe" => List(&PROBE_RESULT),
        "SR.create" => Pairs,
        "SR.stat" => SR_STAT,
        "SR.ls" => List(&VOLUME),
        "Volume.create" | "Volume.stat" | "Volume.snapshot" | "Volume.clone" => VOLUME,
        "Datapath.attach" => BACKEND,
        "SR.detach" | "SR.destroy" | "SR.set_name" | "SR.set_description" => Unit,
        "Volume.destroy" | "Volume.revert" | "Volume.resize" => Unit,
        "Volume.set_name" | "Volume.set_description" | "Volume.set" | "Volume.unset" => Unit,
        "Datapath.open" | "Datapath.close" | "Datapath.activate" => Unit,
        "Datapath.activate_readonly" | "Datapath.deactivate" | "Datapath.detach" => Unit,
        _ => return None,
    })
}

impl Shape {
    /// Judges a value.
    ///
    /// # Errors
    /// Where it is not what upstream reads.
    pub fn check(&self, value: &Value) -> Result<()> {
        match (self, value) {
            (Unit, Value::Null) | (Text, Value::String(_)) | (Bool, Value::Bool(_)) => Ok(()),
            (Int, Value::Number(number)) if number.is_i64() => Ok(()),
            (List(of), Value::Array(items)) => {
                items.iter().try_for_each(|item| of.check(item)).context("in a list")
            }
            (Pairs, Value::Object(pairs)) => {
                pairs.values().try_for_each(|value| Text.check(value)).context("in pairs")
            }
            (Record(required, optional), Value::Object(fields)) => {
                check_record(required, optional, fields)
            }
            (Variant(tags), Value::Array(parts)) => {
                let [Value::String(tag), payload] = &parts[..] else { bail!("{value}") };
                let known = tags.iter().find(|(name, _)| name == tag);
                known.with_context(|| format!("tag {tag}"))?.1.check(payload)
            }
            (Tag(tags), Value::String(tag)) if tags.contains(&tag.as_str()) => Ok(()),
            _ => bail!("{value} is no {self:?}"),
        }
    }
}

fn check_record(
    required: &[(&str, Shape)],
    optional: &[(&str, Shape)],
    fields: &Map<String, Value>,
) -> Result<()> {
    for (name, shape) in required {
        let value = fields.get(*name).with_context(|| format!("{name} is missing"))?;
        shape.check(value).with_context(|| (*name).to_owned())?;
    }
    for (name, shape) in optional {
        if let Some(value) = fields.get(*name) {
            shape.check(value).with_context(|| (*name).to_owned())?;
        }
    }
    let mut names = required.iter().chain(optional).map(|(name, _)| *name);
    let unknown = fields.keys().find(|field| !names.clone().any(|name| name == *field));
    ensure!(unknown.is_none(), "nobody reads {unknown:?} of {:?}", names.by_ref().next());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_judge_is_strict() {
        let stat = json!({"sr": "s", "name": "", "description": "", "free_space": 1,
            "total_space": 2, "datasources": [], "clustered": false, "health": ["Healthy", ""]});
        SR_STAT.check(&stat).expect("good");
        for (key, bad) in [
            ("uuid", Value::Null),
            ("free_space", json!(1.0)),
            ("free_space", json!("1")),
            ("health", json!("Healthy")),
            ("health", json!(["Fine", ""])),
            ("clustered", json!(0)),
            ("more", json!("")),
        ] {
            let mut stat = stat.clone();
            stat[key] = bad;
            SR_STAT.check(&stat).expect_err(key);
        }
        Unit.check(&json!({})).expect_err("not null");
        Pairs.check(&json!([["k", "v"]])).expect_err("pairs are an object");
    }
}
