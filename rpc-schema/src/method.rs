//! What a JSON-RPC method is, and the macro that turns one table into types and documents.

use serde::{Deserializer, Serialize, de::DeserializeOwned};

#[cfg(feature = "schema")]
/// What a type must offer to be documented.
pub trait Documented: schemars::JsonSchema {}
#[cfg(feature = "schema")]
impl<T: schemars::JsonSchema> Documented for T {}

#[cfg(not(feature = "schema"))]
/// What a type must offer to be documented: nothing in a build without schemas.
pub trait Documented {}
#[cfg(not(feature = "schema"))]
impl<T> Documented for T {}

/// A JSON-RPC method: its wire name, what it takes and what it gives back.
pub trait Method {
    /// The name on the wire, for example `VDI.attach3`.
    const NAME: &'static str;
    /// One line for people.
    const SUMMARY: &'static str;
    /// The named parameters. Unknown ones are refused.
    type Params: Serialize + DeserializeOwned + Documented + Send + 'static;
    /// The result.
    type Output: Serialize + DeserializeOwned + Documented + Clone + Send + Sync + 'static;
}

/// Reads a value of type `T` and writes it again.
pub(crate) fn rewrite<'de, T: Serialize + DeserializeOwned>(
    value: impl Deserializer<'de, Error = serde_json::Error>,
) -> serde_json::Result<serde_json::Value> {
    serde_json::to_value(T::deserialize(value)?)
}

/// One row a method: `/// summary`, then `"wire name" => Type(Params) -> Output;`.
macro_rules! methods {
    ($( #[doc = $doc:literal] $name:expr => $type:ident($params:ty) -> $output:ty; )+) => {
        $(
            #[doc = $doc]
            #[derive(Debug)]
            pub enum $type {}
            impl $crate::method::Method for $type {
                const NAME: &'static str = $name;
                const SUMMARY: &'static str = $doc.trim_ascii();
                type Params = $params;
                type Output = $output;
            }
        )+

        /// The wire name of every method, in the order of the table.
        pub const NAMES: &[&str] = &[$($name),+];

        /// Reads a method's parameters and writes them again; none for a method of another table.
        /// What comes back is what a peer would see of them: wire fidelity is judged by it.
        pub fn rewrite_params<'de>(
            method: &str,
            params: impl serde::Deserializer<'de, Error = serde_json::Error>,
        ) -> Option<serde_json::Result<serde_json::Value>> {
            $( if method == $name {
                return Some($crate::method::rewrite::<$params>(params));
            } )+
            None
        }

        /// The same of a method's result.
        pub fn rewrite_result(
            method: &str,
            result: &serde_json::Value,
        ) -> Option<serde_json::Result<serde_json::Value>> {
            $( if method == $name {
                return Some($crate::method::rewrite::<$output>(result));
            } )+
            None
        }

        #[cfg(feature = "schema")]
        pub(crate) fn describe(
            generator: &mut schemars::SchemaGenerator,
        ) -> Vec<serde_json::Value> {
            vec![$( $crate::openrpc::entry::<$type>(generator) ),+]
        }
    };
}
pub(crate) use methods;
