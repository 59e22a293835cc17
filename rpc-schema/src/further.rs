//! SMAPIv2's calls that XAPI makes seldom, and those that upstream's own tools and tests make.
//! Types and parameters only; the rest is in `smapi2.rs`.
//!
//! Source: xen-api `ocaml/xapi-idl/storage/storage_interface.ml`.

use crate::smapi2::{Pairs, params};
use serde::{Deserialize, Serialize};

/// The answer of the old `VDI.attach`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AttachInfo {
    /// The backend's `params`.
    pub params: String,
    /// Whether whoever opens it should use O_DIRECT.
    pub o_direct: bool,
    /// Why not.
    pub o_direct_reason: String,
    /// The backend's `sm-data/*`.
    pub xenstore_data: Pairs,
}

params! {
    /// The old `VDI.attach` and `VDI.attach2`: a use in dom0.
    pub struct VdiOldAttachParams {
        /// The caller's name for this use of the VDI.
        pub dp: String,
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// Whether this use may write.
        pub read_write: bool,
    }
    /// The old `VDI.activate`.
    pub struct VdiOldActivateParams {
        /// The caller's name for this use of the VDI.
        pub dp: String,
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
    }
    /// `VDI.get_by_name`.
    pub struct VdiGetByNameParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's name_label.
        pub name: String,
    }
    /// `VDI.introduce`.
    pub struct VdiIntroduceParams {
        /// The SR's uuid.
        pub sr: String,
        /// XenAPI's uuid for it; the volume keeps its own.
        pub uuid: String,
        /// Ignored: the volume has its own.
        #[serde(default)]
        pub sm_config: Pairs,
        /// The VDI's key.
        pub location: String,
    }
    /// `VDI.set_persistent`.
    pub struct VdiPersistentParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// Whether the content is kept over a reboot of the guest.
        pub persistent: bool,
    }
    /// `VDI.epoch_begin`: a guest starts.
    pub struct VdiEpochBeginParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// The domain's id as text; a hint only.
        pub vm: String,
        /// Whether what the guest writes is kept.
        pub persistent: bool,
    }
    /// `VDI.epoch_end`: a guest has ended.
    pub struct VdiEpochEndParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// The domain's id as text; a hint only.
        pub vm: String,
    }
    /// `VDI.add_tags` and `VDI.remove_tags`.
    pub struct VdiTagParams {
        /// The SR's uuid.
        pub sr: String,
        /// The VDI's key.
        pub vdi: String,
        /// The tag.
        pub key: String,
    }
}
