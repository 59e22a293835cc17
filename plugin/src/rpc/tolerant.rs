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
    use serde_json::json;
    use zerotap_rpc_schema::smapi2::{NoParams, VdiCreateParams, VdiResizeParams};

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
}
