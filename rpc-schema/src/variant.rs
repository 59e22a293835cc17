//! SMAPI's wire form of a sum type, and the macro that declares one; and of an optional field.
//!
//! Upstream's codec (ocaml-rpc) writes a variant without a payload as `"Tag"` and one with a
//! payload as `["Tag", payload]`; two payloads become `["Tag", [a, b]]`. serde's own enum forms are
//! all different, so [`variants!`] writes the few lines that serde's derive would.
//! Tags are compared without case when read, as upstream does.

/// Declares an enum in SMAPI's variant form: `Name = "Tag"` or `Name(Payload) = "Tag"`.
macro_rules! variants {
    (@pattern $name:ident $variant:ident $payload:ty) => { $name::$variant(_) };
    (@pattern $name:ident $variant:ident) => { $name::$variant };
    (@write $serializer:ident $tag:literal $value:ident) => {
        serde::Serialize::serialize(&($tag, $value), $serializer)
    };
    (@write $serializer:ident $tag:literal) => { $serializer.serialize_str($tag) };
    (@read $name:ident $variant:ident $payload:ident $type:ty) => {
        serde_json::from_value::<$type>($payload)
            .map($name::$variant)
            .map_err(serde::de::Error::custom)
    };
    (@read $name:ident $variant:ident $payload:ident) => {{
        let _ = $payload;
        Ok($name::$variant)
    }};
    (@schema $generator:ident $tag:literal $type:ty) => {
        serde_json::json!({
            "type": "array", "minItems": 2, "maxItems": 2,
            "items": [{ "const": $tag }, $generator.subschema_for::<$type>()]
        })
    };
    (@schema $generator:ident $tag:literal) => { serde_json::json!({ "const": $tag }) };
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $(
                $(#[$variant_meta:meta])*
                $variant:ident $(($binding:ident: $type:ty))? = $tag:literal
            ),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $name { $( $(#[$variant_meta])* $variant $(($type))? ),+ }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $( $name::$variant $(($binding))? =>
                        variants!(@write serializer $tag $($binding)?), )+
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = serde::Deserialize::deserialize(deserializer)?;
                let (tag, payload) =
                    $crate::variant::split(value).map_err(serde::de::Error::custom)?;
                $( if tag.eq_ignore_ascii_case($tag) {
                    return variants!(@read $name $variant payload $($type)?);
                } )+
                let known = [$($tag),+].join(", ");
                let problem = format!("unknown variant `{tag}`, expected one of {known}");
                Err(serde::de::Error::custom(problem))
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> { stringify!($name).into() }
            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let _ = &generator;
                let choices = vec![$( variants!(@schema generator $tag $($type)?) ),+];
                schemars::Schema::try_from(serde_json::json!({ "oneOf": choices }))
                    .expect("an object is a schema")
            }
        }
    };
}
pub(crate) use variants;

/// Splits `"Tag"` or `["Tag", payload]` into tag and payload (`null` where there is none).
pub(crate) fn split(value: serde_json::Value) -> Result<(String, serde_json::Value), String> {
    use serde_json::Value;
    match value {
        Value::String(tag) => Ok((tag, Value::Null)),
        Value::Array(items) => match <[Value; 2]>::try_from(items) {
            Ok([Value::String(tag), payload]) => Ok((tag, payload)),
            Ok(_) => Err("a variant's tag is a string".into()),
            Err(items) => Err(format!("a variant has a tag and a payload, not {}", items.len())),
        },
        other => Err(format!("expected \"Tag\" or [\"Tag\", payload], found {other}")),
    }
}

/// Upstream's reader refuses `null` where a record's optional field is absent; so does ours.
pub(crate) fn present<'de, D: serde::Deserializer<'de>, T: serde::Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
