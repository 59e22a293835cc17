//! SMAPIv3's parameters, fields in the order of the interface definition: that of positions.

use super::arguments::{Argument, Arguments, Field};
use crate::smapi2::{Pairs, params};
use serde::{Deserialize, Serialize};

/// [`params!`](crate::smapi2), and the order of the fields.
macro_rules! arguments {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* pub $field:ident: $type:ty, )*
        }
    )+) => {
        $(
            params! {
                $(#[$meta])*
                pub struct $name { $( $(#[$field_meta])* pub $field: $type, )* }
            }
            impl Arguments for $name {
                const FIELDS: &'static [Field] = &[
                    $( Field { name: stringify!($field), kind: <$type as Argument>::KIND }, )*
                ];
            }
        )+
    };
}

arguments! {
    /// Nothing but `dbg`.
    pub struct NoArguments {}
    /// `SR.probe` and `SR.attach`.
    pub struct ConfigurationParams {
        /// The device-config: `path`.
        pub configuration: Pairs,
    }
    /// `SR.create`.
    pub struct SrCreateParams {
        /// The new SR's uuid, chosen by the caller.
        pub uuid: String,
        /// The device-config: `path`.
        pub configuration: Pairs,
        /// For people.
        pub name: String,
        /// For people.
        pub description: String,
    }
    /// An SR.
    pub struct SrParams {
        /// The handle that `SR.attach` answered.
        pub sr: String,
    }
    /// `SR.set_name`.
    pub struct SrNameParams {
        /// The SR's handle.
        pub sr: String,
        /// For people.
        pub new_name: String,
    }
    /// `SR.set_description`.
    pub struct SrDescriptionParams {
        /// The SR's handle.
        pub sr: String,
        /// For people.
        pub new_description: String,
    }
    /// `Volume.create`.
    pub struct VolumeCreateParams {
        /// The SR's handle.
        pub sr: String,
        /// For people.
        pub name: String,
        /// For people.
        pub description: String,
        /// Bytes; what is made is never smaller.
        pub size: i64,
        /// Whether several domains may write at the same time.
        pub sharable: bool,
    }
    /// A volume.
    pub struct VolumeParams {
        /// The SR's handle.
        pub sr: String,
        /// The volume's key.
        pub key: String,
    }
    /// `Volume.set_name`.
    pub struct VolumeNameParams {
        /// The SR's handle.
        pub sr: String,
        /// The volume's key.
        pub key: String,
        /// For people.
        pub new_name: String,
    }
    /// `Volume.set_description`.
    pub struct VolumeDescriptionParams {
        /// The SR's handle.
        pub sr: String,
        /// The volume's key.
        pub key: String,
        /// For people.
        pub new_description: String,
    }
    /// `Volume.set`.
    pub struct VolumeSetParams {
        /// The SR's handle.
        pub sr: String,
        /// The volume's key.
        pub key: String,
        /// What to keep with the volume.
        pub k: String,
        /// Its value.
        pub v: String,
    }
    /// `Volume.unset`.
    pub struct VolumeUnsetParams {
        /// The SR's handle.
        pub sr: String,
        /// The volume's key.
        pub key: String,
        /// What to keep no longer; success when it is not there.
        pub k: String,
    }
    /// `Volume.revert`.
    pub struct VolumeRevertParams {
        /// The SR's handle.
        pub sr: String,
        /// The key of the volume whose content it gets.
        pub snapshot: String,
        /// The key of the volume to revert.
        pub key: String,
    }
    /// `Volume.resize`.
    pub struct VolumeResizeParams {
        /// The SR's handle.
        pub sr: String,
        /// The volume's key.
        pub key: String,
        /// Bytes.
        pub new_size: i64,
    }
    /// `Datapath.open`.
    pub struct DatapathOpenParams {
        /// One of the volume's `uri`.
        pub uri: String,
        /// Whether what the guest writes is kept.
        pub persistent: bool,
    }
    /// `Datapath.close`.
    pub struct DatapathCloseParams {
        /// One of the volume's `uri`.
        pub uri: String,
    }
    /// One use of a volume.
    pub struct DatapathParams {
        /// One of the volume's `uri`.
        pub uri: String,
        /// Who uses it: a domain's id, or `u0_<datapath>` for dom0. A hint: it may be empty.
        pub domain: String,
    }
}
