//! SMAPIv2's types and parameters, names as on the wire.
//!
//! Source: xen-api `ocaml/xapi-idl/storage/storage_interface.ml`. A record's optional field is
//! absent when there is nothing to say, never `null`; integers are never written as floats.
//! Parameters refuse unknown names; results tolerate them, as upstream's reader does.

use crate::variant::{present, variants};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// String pairs: device-config, sm-config, extra keys.
pub type Pairs = BTreeMap<String, String>;

/// `#[derive]`s and strictness that all parameter records share.
macro_rules! params {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* pub $field:ident: $type:ty, )*
        }
    )+) => {
        $(
            $(#[$meta])*
            #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
            #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
            #[serde(deny_unknown_fields)]
            pub struct $name {
                /// Free text that ends up in the log of both sides: a task's name, a trace.
                #[serde(default, skip_serializing_if = "String::is_empty")]
                pub dbg: String,
                $( $(#[$field_meta])* pub $field: $type, )*
            }
        )+
    };
}
pub(crate) use params;

/// Whether a use of a VDI may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Mode {
    /// Read-only.
    #[serde(rename = "RO")]
    ReadOnly,
    /// Read-write.
    #[serde(rename = "RW")]
    ReadWrite,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::ReadOnly => "RO",
            Mode::ReadWrite => "RW",
        })
    }
}

variants! {
    /// Where a VDI, or one datapath of it, stands.
    #[derive(Copy, Eq)]
    pub enum VdiState {
        /// Not in use.
        Detached = "Detached",
        /// Reserved for a use; no worker yet.
        Attached(mode: Mode) = "Attached",
        /// A worker serves it.
        Activated(mode: Mode) = "Activated",
    }
}

impl std::fmt::Display for VdiState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            VdiState::Detached => f.write_str("detached"),
            VdiState::Attached(mode) => write!(f, "attached {mode}"),
            VdiState::Activated(mode) => write!(f, "activated {mode}"),
        }
    }
}

/// A VDI as SMAPIv2 tells of it. Absent fields take upstream's defaults when read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[expect(missing_docs, reason = "the fields are upstream's; the ones with a unit say so")]
pub struct VdiInfo {
    /// The volume's key in its SR, XenAPI's `VDI.location`.
    #[serde(default)]
    pub vdi: String,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub uuid: Option<String>,
    #[serde(default)]
    pub content_id: String,
    pub name_label: String,
    #[serde(default)]
    pub name_description: String,
    #[serde(default = "default_ty")]
    pub ty: String,
    #[serde(default)]
    pub metadata_of_pool: String,
    #[serde(default)]
    pub is_a_snapshot: bool,
    /// ISO 8601, for example `19700101T00:00:00Z`.
    #[serde(default = "default_snapshot_time")]
    pub snapshot_time: String,
    #[serde(default)]
    pub snapshot_of: String,
    #[serde(default)]
    pub read_only: bool,
    #[serde(default)]
    pub cbt_enabled: bool,
    /// Bytes.
    #[serde(default)]
    pub virtual_size: i64,
    /// Bytes.
    #[serde(default)]
    pub physical_utilisation: i64,
    #[serde(default = "default_persistent")]
    pub persistent: bool,
    #[serde(default)]
    pub sharable: bool,
    /// In `VDI.create`: `allocation` = `sparse` (default) or `preallocated`; `device` = a block
    /// device that shall be the volume instead of a file.
    #[serde(default)]
    pub sm_config: Pairs,
    #[serde(default)]
    pub tags: Vec<String>,
}

fn default_ty() -> String {
    "user".into()
}
fn default_snapshot_time() -> String {
    "19700101T00:00:00Z".into()
}
fn default_persistent() -> bool {
    true
}

impl VdiInfo {
    /// A description for `VDI.create`: `size` in bytes.
    #[must_use]
    pub fn new(name_label: impl Into<String>, virtual_size: i64) -> Self {
        VdiInfo {
            vdi: String::new(),
            uuid: None,
            content_id: String::new(),
            name_label: name_label.into(),
            name_description: String::new(),
            ty: default_ty(),
            metadata_of_pool: String::new(),
            is_a_snapshot: false,
            snapshot_time: default_snapshot_time(),
            snapshot_of: String::new(),
            read_only: false,
            cbt_enabled: false,
            virtual_size,
            physical_utilisation: 0,
            persistent: true,
            sharable: false,
            sm_config: Pairs::new(),
            tags: Vec::new(),
        }
    }
}

/// How an SR is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[expect(missing_docs, reason = "upstream's names")]
pub enum Health {
    Healthy,
    Recovering,
    Unreachable,
    Unavailable,
}

/// An SR as SMAPIv2 tells of it. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[expect(missing_docs, reason = "upstream's names")]
pub struct SrInfo {
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub sr_uuid: Option<String>,
    pub name_label: String,
    pub name_description: String,
    pub total_space: i64,
    pub free_space: i64,
    pub clustered: bool,
    pub health: Health,
}

/// What the storage plugin is and can do. XAPI's reader has no defaults: all fields are always
/// sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[expect(missing_docs, reason = "upstream's names")]
pub struct QueryResult {
    pub driver: String,
    pub name: String,
    pub description: String,
    pub vendor: String,
    pub copyright: String,
    pub version: String,
    pub required_api_version: String,
    pub features: Vec<String>,
    /// device-config keys and what they mean.
    pub configuration: Pairs,
    pub required_cluster_stack: Vec<String>,
    pub supported_image_formats: Vec<String>,
    pub smapi_version: String,
}

/// What a toolstack writes into the backend directory of a guest's disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct XenDisk {
    /// The backend's `params` or `qemu-params`.
    pub params: String,
    /// The backend's `sm-data/*`.
    pub extra: Pairs,
    /// The backend kind: `qdisk` or `zerotap`.
    pub backend_type: String,
}

/// A path in dom0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Path {
    /// Absolute; a block device's begins with `/dev/`.
    pub path: String,
}

/// An NBD export.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Nbd {
    /// `nbd:unix:<socket>:exportname=<name>`.
    pub uri: String,
}

variants! {
    /// One way to use an attached VDI.
    pub enum Implementation {
        /// As a guest's disk.
        XenDisk(payload: XenDisk) = "XenDisk",
        /// As a block device in dom0.
        BlockDevice(payload: Path) = "BlockDevice",
        /// As a file in dom0.
        File(payload: Path) = "File",
        /// Over NBD.
        Nbd(payload: Nbd) = "Nbd",
    }
}

/// The answer to an attach: the ways to use the VDI, best first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Backend {
    /// Best first.
    pub implementations: Vec<Implementation>,
}

/// All datapaths of a VDI.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DpStat {
    /// The most that any datapath asks for.
    pub superstate: VdiState,
    /// Each datapath's own state.
    pub dps: BTreeMap<String, VdiState>,
}

/// One place that `SR.probe` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Probe {
    /// A device-config that leads there.
    pub configuration: Pairs,
    /// Whether the configuration suffices for `SR.attach`.
    pub complete: bool,
    /// The SR that is there already.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub sr: Option<SrInfo>,
    /// Anything else worth knowing.
    pub extra_info: Pairs,
}

variants! {
    /// The answer of `SR.probe`.
    pub enum ProbeResult {
        /// SMAPIv1's XML; read, never written.
        Raw(payload: String) = "Raw",
        /// What was found.
        Probe(payload: Vec<Probe>) = "Probe",
    }
}

params! {
    /// Nothing but `dbg`.
    pub struct NoParams {}
    /// An SR.
    pub struct SrParams {
        /// The SR's uuid.
        pub sr: String,
    }
    /// `SR.create`.
    pub struct SrCreateParams {
        /// The new SR's uuid, chosen by the caller.
        pub sr: String,
        /// For people.
        pub name_label: String,
        /// For people.
        pub name_description: String,
        /// A file SR takes `path`: an absolute directory.
        pub device_config: Pairs,
        /// Bytes; a file SR takes what the file system has and ignores it.
        #[serde(default)]
        pub physical_size: i64,
    }
    /// `SR.attach`.
    pub struct SrAttachParams {
        /// The SR's uuid.
        pub sr: String,
        /// As given to `SR.create`.
        pub device_config: Pairs,
    }
    /// `SR.probe`.
    pub struct SrProbeParams {
        /// The queue that XAPI reached the plugin by; ignored.
        #[serde(default)]
        pub queue: String,
        /// Where to look: `path`.
        pub device_config: Pairs,
        /// Ignored.
        #[serde(default)]
        pub sm_config: Pairs,
    }
    /// `SR.set_name_label`.
    pub struct SrNameLabelParams {
        /// The SR's uuid.
        pub sr: String,
        /// For people.
        pub new_name_label: String,
    }
    /// `SR.set_name_description`.
    pub struct SrNameDescriptionParams {
        /// The SR's uuid.
        pub sr: String,
        /// For people.
        pub new_name_description: String,
    }
    /// A VDI.
    pub struct VdiParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
    }
    /// `VDI.create`.
    pub struct VdiCreateParams {
        /// The SR's uuid.
        pub sr: String,
        /// What is wanted; the answer is what was made, never smaller.
        pub vdi_info: VdiInfo,
    }
    /// `VDI.snapshot` and `VDI.clone`.
    pub struct VdiCopyParams {
        /// The SR's uuid.
        pub sr: String,
        /// Its `vdi` is the source's key; names and snapshot fields are those of the new VDI.
        pub vdi_info: VdiInfo,
    }
    /// `VDI.revert`.
    pub struct VdiRevertParams {
        /// The SR's uuid.
        pub sr: String,
        /// Its `vdi` is the snapshot's key, its `snapshot_of` that of the VDI to revert.
        pub snapshot_info: VdiInfo,
    }
    /// `VDI.resize`.
    pub struct VdiResizeParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// Bytes.
        pub new_size: i64,
    }
    /// `VDI.set_name_label`.
    pub struct VdiNameLabelParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// For people.
        pub new_name_label: String,
    }
    /// `VDI.set_name_description`.
    pub struct VdiNameDescriptionParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// For people.
        pub new_name_description: String,
    }
    /// `VDI.set_content_id`.
    pub struct VdiContentIdParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// Equal ids mean equal content.
        pub content_id: String,
    }
    /// `VDI.add_to_sm_config`.
    pub struct VdiAddSmConfigParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// The key to set.
        pub key: String,
        /// Its value.
        pub value: String,
    }
    /// `VDI.remove_from_sm_config`.
    pub struct VdiRemoveSmConfigParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// The key to remove; success when it is not there.
        pub key: String,
    }
    /// `VDI.attach3`.
    pub struct VdiAttachParams {
        /// The caller's name for this use of the VDI, for example `vbd/5/xvda`.
        pub dp: String,
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// The domain's id as text; `0` for dom0, and a hint only.
        pub vm: String,
        /// Whether this use may write.
        pub read_write: bool,
    }
    /// One use of a VDI: activate, deactivate, detach, attach_info.
    pub struct DpParams {
        /// The caller's name for this use of the VDI.
        pub dp: String,
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// The domain's id as text; a hint only.
        pub vm: String,
    }
    /// `DP.destroy2`.
    pub struct DpDestroyParams {
        /// The caller's name for this use of the VDI.
        pub dp: String,
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// The domain's id as text; a hint only.
        pub vm: String,
        /// Forget the datapath even when its clean-up fails.
        pub allow_leak: bool,
    }
    /// `DP.stat_vdi`.
    pub struct DpStatParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// Upstream's unit argument: `null` or absent.
        #[serde(default)]
        pub unit: (),
    }
}
