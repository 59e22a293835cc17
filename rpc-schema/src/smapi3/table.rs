//! SMAPIv3's method table: each row is a method of the daemon (behind [`super::PREFIX`]), a file
//! that `zerotap smapi install` makes, and the features that XAPI may count on because of it.
//!
//! WHEN CHANGING IT: add the handler in `plugin/src/rpc/smapi3.rs`; a method that is not here has
//! no file, and XAPI then does not offer what needs it. Renew the golden document.

use super::arguments::{Arguments, Field};
use super::params::{
    ConfigurationParams, DatapathCloseParams, DatapathOpenParams, DatapathParams, NoArguments,
    SrCreateParams, SrDescriptionParams, SrNameParams, SrParams, VolumeCreateParams,
    VolumeDescriptionParams, VolumeNameParams, VolumeParams, VolumeResizeParams,
    VolumeRevertParams, VolumeSetParams, VolumeUnsetParams,
};
use super::{ProbeResult, QueryResult, SrStat, Volume};
use crate::method::methods;
use crate::smapi2::{Backend, Pairs};

/// One SMAPIv3 method as an executable.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    /// SMAPIv3's name, for example `Volume.create`.
    pub name: &'static str,
    /// Its parameters after `dbg`, in order.
    pub fields: &'static [Field],
    /// What XAPI may count on because of it.
    pub features: &'static [&'static str],
}

/// What XAPI may count on beyond single methods.
const FEATURES: &[&str] = &["LARGE_VDI", "THIN_PROVISIONING"];

macro_rules! scripts {
    (@features $features:expr) => { &$features };
    (@features) => { &[] };
    ($( #[doc = $doc:literal] $name:literal => $type:ident($params:ty) -> $output:ty
        $(, gives $features:expr)?; )+) => {
        methods! {
            $( #[doc = $doc] concat!("SMAPIv3.", $name) => $type($params) -> $output; )+
        }
        /// Every executable.
        pub const SCRIPTS: &[Script] = &[ $( Script {
            name: $name,
            fields: <$params as Arguments>::FIELDS,
            features: scripts!(@features $($features)?),
        } ),+ ];
    };
}

scripts! {
    /// What this storage plugin is and can do.
    "Plugin.query" => PluginQuery(NoArguments) -> QueryResult;
    /// The attached SRs' handles.
    "Plugin.ls" => PluginLs(NoArguments) -> Vec<String>;
    /// A report for people.
    "Plugin.diagnostics" => PluginDiagnostics(NoArguments) -> String;

    /// Look for SRs at a place.
    "SR.probe" => SrProbe(ConfigurationParams) -> Vec<ProbeResult>, gives ["SR_PROBE"];
    /// Make a new SR and attach it; the answer becomes the PBD's device-config.
    "SR.create" => SrCreate(SrCreateParams) -> Pairs, gives ["SR_CREATE"];
    /// Make an SR usable on this host; the answer is its handle, the SR's uuid.
    "SR.attach" => SrAttach(ConfigurationParams) -> String, gives ["SR_ATTACH"];
    /// Undo SR.attach. Succeeds when it is not attached; refused while a volume is active.
    "SR.detach" => SrDetach(SrParams) -> (), gives ["SR_DETACH"];
    /// Remove an attached SR that has no volumes.
    "SR.destroy" => SrDestroy(SrParams) -> (), gives ["SR_DELETE"];
    /// Name, space and health of an SR.
    "SR.stat" => SrStatMethod(SrParams) -> SrStat, gives ["SR_UPDATE"];
    /// Rename an SR.
    "SR.set_name" => SrSetName(SrNameParams) -> ();
    /// Describe an SR.
    "SR.set_description" => SrSetDescription(SrDescriptionParams) -> ();
    /// All volumes of an SR; complete, or an error.
    "SR.ls" => SrLs(SrParams) -> Vec<Volume>, gives ["SR_SCAN"];

    /// Make a volume; the answer says what was made.
    "Volume.create" => VolumeCreate(VolumeCreateParams) -> Volume, gives ["VDI_CREATE"];
    /// Remove a volume that nothing uses. Succeeds when it is not there.
    "Volume.destroy" => VolumeDestroy(VolumeParams) -> (), gives ["VDI_DELETE"];
    /// Rename a volume.
    "Volume.set_name" => VolumeSetName(VolumeNameParams) -> ();
    /// Describe a volume.
    "Volume.set_description" => VolumeSetDescription(VolumeDescriptionParams) -> ();
    /// Keep a key and its value with a volume.
    "Volume.set" => VolumeSet(VolumeSetParams) -> ();
    /// Keep a key no longer.
    "Volume.unset" => VolumeUnset(VolumeUnsetParams) -> ();
    /// Keep a volume's content of this moment in a new volume.
    "Volume.snapshot" => VolumeSnapshot(VolumeParams) -> Volume, gives ["VDI_SNAPSHOT"];
    /// Make a writable volume with another's content.
    "Volume.clone" => VolumeClone(VolumeParams) -> Volume, gives ["VDI_CLONE"];
    /// Give a volume that is not active the content of its snapshot, which stays.
    "Volume.revert" => VolumeRevert(VolumeRevertParams) -> (), gives ["VDI_REVERT"];
    /// Grow a volume, which a guest may use meanwhile.
    "Volume.resize" => VolumeResize(VolumeResizeParams) -> (),
        gives ["VDI_RESIZE", "VDI_RESIZE_ONLINE"];
    /// What a volume is.
    "Volume.stat" => VolumeStat(VolumeParams) -> Volume, gives ["VDI_UPDATE"];

    /// A guest starts: what it writes is kept, or forgotten when it has ended.
    "Datapath.open" => DatapathOpen(DatapathOpenParams) -> (), gives ["NONPERSISTENT"];
    /// A guest has ended.
    "Datapath.close" => DatapathClose(DatapathCloseParams) -> ();
    /// Reserve a volume for a domain; the answer is how to use it, final from now on.
    "Datapath.attach" => DatapathAttach(DatapathParams) -> Backend, gives ["VDI_ATTACH"];
    /// Start to serve an attached volume.
    "Datapath.activate" => DatapathActivate(DatapathParams) -> (), gives ["VDI_ACTIVATE"];
    /// Start to serve an attached volume, read-only.
    "Datapath.activate_readonly" => DatapathActivateReadonly(DatapathParams) -> (),
        gives ["VDI_ACTIVATE_READONLY"];
    /// Stop to serve. Succeeds when it is not active.
    "Datapath.deactivate" => DatapathDeactivate(DatapathParams) -> (), gives ["VDI_DEACTIVATE"];
    /// End a use. Succeeds when there is none.
    "Datapath.detach" => DatapathDetach(DatapathParams) -> (), gives ["VDI_DETACH"];
}

impl Script {
    /// The method that an executable's file name means, upper or lower case.
    #[must_use]
    pub fn called(name: &str) -> Option<&'static Script> {
        SCRIPTS.iter().find(|script| script.name.eq_ignore_ascii_case(name))
    }

    /// What its file is called. Upstream's own tools ask for `Plugin.Query` to the letter
    /// (xen-api `python3/bin/static-vdis`), and find all else whatever the case.
    #[must_use]
    pub fn file(&self) -> &'static str {
        if self.name == "Plugin.query" { "Plugin.Query" } else { self.name }
    }

    /// The interface that it belongs to, for example `Volume`.
    #[must_use]
    pub fn interface(&self) -> &'static str {
        self.name.split('.').next().unwrap_or_default()
    }
}

/// Everything that XAPI may count on, in SMAPI's words.
#[must_use]
pub fn features() -> Vec<String> {
    let of_methods = SCRIPTS.iter().flat_map(|script| script.features);
    of_methods.chain(FEATURES).map(ToString::to_string).collect()
}
