//! SMAPIv3's types, names as on the wire; its methods are in [`table`].
//!
//! Source: xen-api `ocaml/xapi-storage/generator/lib/{plugin,control,data}.ml`, version 5.0.0. An
//! optional field is absent when there is nothing to say, never `null`; integers are never floats.
//! `backend`, an attach's answer, is SMAPIv2's to the byte.

pub mod arguments;
pub mod params;
pub mod table;

use crate::smapi2::Pairs;
use crate::variant::{present, variants};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

/// What stands before a SMAPIv3 method's name on the daemon's socket: SR.create and others are
/// SMAPIv2's methods too, with other parameters.
pub const PREFIX: &str = "SMAPIv3.";
/// The only API version that every reader accepts.
pub const API_VERSION: &str = "5.0";

/// What the plugin is and can do. XAPI's reader has no defaults: all fields are always sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "PluginQueryResult"))]
#[expect(missing_docs, reason = "upstream's names")]
pub struct QueryResult {
    /// XenAPI's `SR.type`.
    pub plugin: String,
    pub name: String,
    pub description: String,
    pub vendor: String,
    pub copyright: String,
    pub version: String,
    /// [`API_VERSION`].
    pub required_api_version: String,
    pub features: Vec<String>,
    /// device-config keys and what they mean.
    pub configuration: Pairs,
    pub required_cluster_stack: Vec<String>,
}

variants! {
    /// How an SR is, with a text for people. (SMAPIv2's `Health` has none.)
    pub enum SrHealth {
        /// All is well.
        Healthy(text: String) = "Healthy",
        /// On its way back.
        Recovering(text: String) = "Recovering",
        /// Cannot be reached from here.
        Unreachable(text: String) = "Unreachable",
        /// Lost.
        Unavailable(text: String) = "Unavailable",
    }
}

/// An SR. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[expect(missing_docs, reason = "upstream's names")]
pub struct SrStat {
    /// The plugin's own handle, as `SR.attach` answered it.
    pub sr: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub uuid: Option<String>,
    pub description: String,
    pub free_space: i64,
    pub total_space: i64,
    /// `xeno+shm:///<uid>` of statistics; others are ignored.
    pub datasources: Vec<String>,
    pub clustered: bool,
    pub health: SrHealth,
}

variants! {
    /// What a volume holds.
    #[derive(Copy, Eq)]
    pub enum VolumeType {
        /// A disk's content.
        Data = "Data",
        /// Changed-block bitmaps alone.
        CbtMetadata = "CBT_Metadata",
        /// Both.
        DataAndCbt = "Data_and_CBT_Metadata",
    }
}

/// A volume. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[expect(missing_docs, reason = "upstream's names")]
pub struct Volume {
    /// Unique in the SR; XenAPI's `VDI.location`.
    pub key: String,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub uuid: Option<String>,
    pub name: String,
    pub description: String,
    pub read_write: bool,
    pub sharable: bool,
    pub virtual_size: i64,
    pub physical_utilisation: i64,
    /// Best first; what the Datapath methods take.
    pub uri: Vec<String>,
    /// What XAPI keeps with the volume: `vdi-type`, `_sm_config_*` and so on.
    pub keys: Pairs,
    /// Absent: [`VolumeType::Data`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "or_default")]
    pub volume_type: Option<VolumeType>,
    /// Absent: no.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "or_default")]
    pub cbt_enabled: Option<bool>,
}

/// One place that `SR.probe` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProbeResult {
    /// A device-config that leads there; with `sr_uuid` when an SR is there already.
    pub configuration: Pairs,
    /// Whether the configuration suffices for `SR.attach`.
    pub complete: bool,
    /// The SR that is there already.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub sr: Option<SrStat>,
    /// Anything else worth knowing.
    pub extra_info: Pairs,
}

/// Upstream's reader takes the default when an optional field that has one holds anything else.
fn or_default<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}
