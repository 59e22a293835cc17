//! Parameters as XAPI's own reader takes them: keys in any case, unknown ones passed over, a
//! decimal string where an integer is due. What is wrong otherwise is still refused.
//!
//! Source: ocaml-rpc `src/lib/rpcmarshal.ml`. Pure. Used for the queue, whose callers are
//! upstream's; our own door is strict, so that a slip of the pen is told of.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};

/// Reads `value` as a `T`, tolerantly.
///
/// # Errors
/// What serde says.
pub(super) fn read<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    T::deserialize(Tolerant(value))
}

struct Tolerant(Value);

impl<'de> IntoDeserializer<'de, Error> for Tolerant {
    type Deserializer = Tolerant;
    fn into_deserializer(self) -> Tolerant {
        self
    }
}

macro_rules! integers {
    ($($method:ident)+) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.0 {
                Value::String(text) => match text.parse::<i64>() {
                    Ok(number) => visitor.visit_i64(number),
                    Err(_) => Value::String(text).$method(visitor),
                },
                other => other.$method(visitor),
            }
        }
    )+ };
}

impl<'de> Deserializer<'de> for Tolerant {
    type Error = Error;

    integers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Tolerant)))
            }
            Value::Object(pairs) => {
                let pairs = pairs.into_iter().map(|(key, value)| (key, Tolerant(value)));
                visitor.visit_map(MapDeserializer::new(pairs))
            }
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Value::Object(pairs) = self.0 else {
            return self.0.deserialize_struct(name, fields, visitor);
        };
        let known = pairs.into_iter().filter_map(|(key, value)| {
            let field = fields.iter().find(|field| field.eq_ignore_ascii_case(&key))?;
            Some((*field, Tolerant(value)))
        });
        visitor.visit_map(MapDeserializer::new(known))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Map, json};
    use zerotap_rpc_schema::smapi2::{NoParams, VdiCreateParams, VdiResizeParams};
    use zerotap_rpc_schema::table;

    #[test]
    fn reads_as_upstream_does() {
        let told = json!({"DBG": "t", "Sr": "a", "vdi": "b", "new_size": "4096", "extra": [1]});
        let params: VdiResizeParams = read(told).expect("tolerable");
        assert_eq!((params.sr.as_str(), params.new_size, params.dbg.as_str()), ("a", 4096, "t"));
        let big = json!({"sr": "a", "vdi": "b", "new_size": i64::MAX});
        assert_eq!(read::<VdiResizeParams>(big).expect("an int64").new_size, i64::MAX);
        let info = json!({"Name_Label": "n", "virtual_size": "7", "sm_config": {"Key": "v"}});
        let told = json!({"sr": "a", "vdi_info": info});
        let params: VdiCreateParams = read(told).expect("nested records are records");
        assert_eq!((params.vdi_info.virtual_size, params.vdi_info.persistent), (7, true));
        assert_eq!(params.vdi_info.sm_config["Key"], "v", "a map's keys are the caller's");
        assert!(read::<NoParams>(json!({"whatever": null})).is_ok());
    }

    #[test]
    fn what_upstream_refuses_is_refused() {
        for wrong in [
            json!({"sr": "a", "vdi": "b", "new_size": 1.0}),
            json!({"sr": "a", "vdi": "b", "new_size": "1.0"}),
            json!({"sr": null, "vdi": "b", "new_size": 1}),
            json!({"sr": "a", "vdi": "b"}),
            json!("a"),
            json!([]),
        ] {
            assert!(read::<VdiResizeParams>(wrong.clone()).is_err(), "{wrong}");
        }
        let pairs = json!({"sr": "a", "vdi_info": {"name_label": "n", "sm_config": [["k", "v"]]}});
        assert!(read::<VdiCreateParams>(pairs).is_err(), "pairs are an object");
    }

    /// Upstream's samples of what it sends: the methods that are served, and their parameters.
    fn samples() -> Vec<(String, Value)> {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../rpc-schema/fixtures/smapiv2-requests.jsonl");
        let text = std::fs::read_to_string(path).expect("the samples");
        let each = text.lines().flat_map(|line| {
            let line: Value = serde_json::from_str(line).expect("a sample");
            let methods: Vec<String> =
                serde_json::from_value(line["methods"].clone()).expect("methods");
            methods.into_iter().map(move |method| (method, line["params"].clone()))
        });
        each.filter(|(method, _)| table::NAMES.contains(&method.as_str())).collect()
    }

    /// The records in a call's parameters: themselves, and those that are parameters.
    const RECORDS: [&str; 2] = ["vdi_info", "snapshot_info"];

    /// Has each field of the records in `params` told by `retell`, by name and value; `more` fields
    /// are added to each.
    fn retold(
        params: &Value,
        retell: &mut impl FnMut(&str, &Value) -> (String, Value),
        more: &Map<String, Value>,
    ) -> Value {
        let mut object = more.clone();
        for (name, value) in params.as_object().expect("a record") {
            let (name_told, told) = match RECORDS.contains(&name.as_str()) {
                true => (retell(name, &Value::Null).0, retold(value, retell, more)),
                false => retell(name, value),
            };
            object.insert(name_told, told);
        }
        Value::Object(object)
    }

    proptest! {
        /// Key case, decimal strings and fields of a later version change nothing.
        #[test]
        fn every_call_is_read_as_upstream_reads_it(
            shout in any::<u64>(), digits in any::<u64>(), more in any::<bool>(),
        ) {
            let later = json!({"of a later version": [1.5, null]});
            let more = later.as_object().filter(|_| more).cloned().unwrap_or_default();
            let (samples, mut at) = (samples(), 0);
            assert!(samples.len() > 100, "{}", samples.len());
            for (method, params) in samples {
                let mut retell = |name: &str, value: &Value| {
                    at += 1;
                    let odd = |bits: u64| bits.rotate_left(at) & 1 == 1;
                    let name = if odd(shout) { name.to_uppercase() } else { name.into() };
                    let text = value.is_i64() && odd(digits);
                    (name, if text { value.to_string().into() } else { value.clone() })
                };
                let told = Tolerant(retold(&params, &mut retell, &more));
                let read = table::rewrite_params(&method, told).expect("served");
                prop_assert_eq!(read.expect("tolerable"), params, "{}", method);
            }
        }
    }

    /// No `null` for a field that is absent, no float for an integer, wherever it stands. (Where a
    /// field has a default upstream takes that without a word; a caller of ours is told.)
    #[test]
    fn what_upstream_refuses_of_any_call_is_refused() {
        let mut refused = 0;
        for (method, params) in samples() {
            let mut fields = 0;
            retold(
                &params,
                &mut |name, value| {
                    fields += 1;
                    (name.into(), value.clone())
                },
                &Map::new(),
            );
            for spoiled in 0..fields {
                let mut at = 0;
                let (mut was, mut place) = (Value::Null, String::new());
                let mut spoil = |name: &str, value: &Value| {
                    at += 1;
                    if at - 1 != spoiled {
                        return (name.into(), value.clone());
                    }
                    (was, place) = (value.clone(), name.into());
                    let float = value.as_i64().map(|_| json!(1.0));
                    (name.into(), float.unwrap_or_default())
                };
                let told = Tolerant(retold(&params, &mut spoil, &Map::new()));
                // `unit` is written null, and records were looked into.
                if was.is_null() {
                    continue;
                }
                let read = table::rewrite_params(&method, told).expect("served");
                assert!(read.is_err(), "{method}: {place}");
                refused += 1;
            }
        }
        assert!(refused > 500, "{refused}");
    }
}
