//! The method table: the whole JSON-RPC interface, one row a method.
//!
//! WHEN CHANGING IT: add the handler in `plugin/src/rpc` (a test compares the names), renew the
//! golden document with `UPDATE_EXPECT=1 cargo test -p zerotap-rpc-schema`, and tell of it in
//! CHANGELOG.md.

use crate::admin::{
    HostStatus, Task, Unlocked, Vbd, VbdParams, VbdPlugParams, VbdStat, VbdUnplugParams,
    VdiUnlockParams, Worker,
};
use crate::further::{
    AttachInfo, VdiEpochBeginParams, VdiEpochEndParams, VdiGetByNameParams, VdiIntroduceParams,
    VdiOldActivateParams, VdiOldAttachParams, VdiPersistentParams, VdiTagParams,
};
use crate::method::methods;
use crate::smapi2::{
    Backend, DpDestroyParams, DpParams, DpStat, DpStatParams, NoParams, Pairs, ProbeResult,
    QueryResult, SrAttachParams, SrCreateParams, SrInfo, SrNameDescriptionParams,
    SrNameLabelParams, SrParams, SrProbeParams, VdiAddSmConfigParams, VdiAttachParams,
    VdiContentIdParams, VdiCopyParams, VdiCreateParams, VdiInfo, VdiNameDescriptionParams,
    VdiNameLabelParams, VdiParams, VdiRemoveSmConfigParams, VdiResizeParams, VdiRevertParams,
};

methods! {
    /// What this storage plugin is and can do.
    "Query.query" => QueryQuery(NoParams) -> QueryResult;
    /// A report for people: SRs, datapaths, workers, VBDs, foreign files.
    "Query.diagnostics" => QueryDiagnostics(NoParams) -> String;

    /// Make a new SR and attach it.
    "SR.create" => SrCreate(SrCreateParams) -> Pairs;
    /// Make an SR usable on this host.
    "SR.attach" => SrAttach(SrAttachParams) -> ();
    /// Undo SR.attach. Succeeds when it is not attached; refused while a VDI is active.
    "SR.detach" => SrDetach(SrParams) -> ();
    /// Remove an attached SR that has no volumes.
    "SR.destroy" => SrDestroy(SrParams) -> ();
    /// Name, space and health of an SR.
    "SR.stat" => SrStat(SrParams) -> SrInfo;
    /// The attached SRs' uuids, at once.
    "SR.list" => SrList(NoParams) -> Vec<String>;
    /// All VDIs of an SR and the SR itself; complete, or an error.
    "SR.scan2" => SrScan2(SrParams) -> (Vec<VdiInfo>, SrInfo);
    /// Look for SRs at a place.
    "SR.probe" => SrProbe(SrProbeParams) -> ProbeResult;
    /// Rename an SR.
    "SR.set_name_label" => SrSetNameLabel(SrNameLabelParams) -> ();
    /// Describe an SR.
    "SR.set_name_description" => SrSetNameDescription(SrNameDescriptionParams) -> ();

    /// Make a VDI; the answer says what was made.
    "VDI.create" => VdiCreate(VdiCreateParams) -> VdiInfo;
    /// Remove a VDI that nothing uses. Succeeds when it is not there.
    "VDI.destroy" => VdiDestroy(VdiParams) -> ();
    /// What a VDI is.
    "VDI.stat" => VdiStat(VdiParams) -> VdiInfo;
    /// Keep a VDI's content of this moment in a new VDI.
    "VDI.snapshot" => VdiSnapshot(VdiCopyParams) -> VdiInfo;
    /// Make a writable VDI with another's content.
    "VDI.clone" => VdiClone(VdiCopyParams) -> VdiInfo;
    /// Give a VDI that is not active the content of its snapshot, which stays.
    "VDI.revert" => VdiRevert(VdiRevertParams) -> ();
    /// Grow a VDI, which a guest may use meanwhile; the answer is the new size in bytes.
    "VDI.resize" => VdiResize(VdiResizeParams) -> i64;
    /// Rename a VDI.
    "VDI.set_name_label" => VdiSetNameLabel(VdiNameLabelParams) -> ();
    /// Describe a VDI.
    "VDI.set_name_description" => VdiSetNameDescription(VdiNameDescriptionParams) -> ();
    /// Set a VDI's content id.
    "VDI.set_content_id" => VdiSetContentId(VdiContentIdParams) -> ();
    /// Set a key of a VDI's sm-config.
    "VDI.add_to_sm_config" => VdiAddToSmConfig(VdiAddSmConfigParams) -> ();
    /// Remove a key of a VDI's sm-config.
    "VDI.remove_from_sm_config" => VdiRemoveFromSmConfig(VdiRemoveSmConfigParams) -> ();
    /// Reserve a VDI for a use (a datapath); the answer is how to use it, final from now on.
    "VDI.attach3" => VdiAttach(VdiAttachParams) -> Backend;
    /// Start to serve an attached VDI.
    "VDI.activate3" => VdiActivate(DpParams) -> ();
    /// Start to serve an attached VDI, read-only.
    "VDI.activate_readonly" => VdiActivateReadonly(DpParams) -> ();
    /// Stop to serve. Succeeds when it is not active.
    "VDI.deactivate" => VdiDeactivate(DpParams) -> ();
    /// End a use. Succeeds when there is none.
    "VDI.detach" => VdiDetach(DpParams) -> ();

    /// Deactivate and detach a datapath, whatever its state.
    "DP.destroy2" => DpDestroy(DpDestroyParams) -> ();
    /// The answer of VDI.attach3 once more.
    "DP.attach_info" => DpAttachInfo(DpParams) -> Backend;
    /// A VDI's superstate and datapaths.
    "DP.stat_vdi" => DpStatVdi(DpStatParams) -> DpStat;

    /// All VDIs of an SR; complete, or an error.
    "SR.scan" => SrScan(SrParams) -> Vec<VdiInfo>;
    /// What XAPI calls after an attach that failed: SR.detach.
    "SR.reset" => SrReset(SrParams) -> ();
    /// The first VDI of a name.
    "VDI.get_by_name" => VdiGetByName(VdiGetByNameParams) -> VdiInfo;
    /// What the volume at a location is; it must be there.
    "VDI.introduce" => VdiIntroduce(VdiIntroduceParams) -> VdiInfo;
    /// VDIs of similar content: none is known.
    "VDI.similar_content" => VdiSimilarContent(VdiParams) -> Vec<VdiInfo>;
    /// Say whether the content is kept over a reboot of the guest.
    "VDI.set_persistent" => VdiSetPersistent(VdiPersistentParams) -> ();
    /// Add a tag.
    "VDI.add_tags" => VdiAddTags(VdiTagParams) -> ();
    /// Remove a tag. Succeeds when there is none.
    "VDI.remove_tags" => VdiRemoveTags(VdiTagParams) -> ();
    /// A guest starts: what it writes is kept, or forgotten when it has ended.
    "VDI.epoch_begin" => VdiEpochBegin(VdiEpochBeginParams) -> ();
    /// A guest has ended.
    "VDI.epoch_end" => VdiEpochEnd(VdiEpochEndParams) -> ();
    /// VDI.attach3 for dom0, in the answer of old.
    "VDI.attach" => VdiOldAttach(VdiOldAttachParams) -> AttachInfo;
    /// VDI.attach3 for dom0.
    "VDI.attach2" => VdiAttach2(VdiOldAttachParams) -> Backend;
    /// VDI.activate3 without a domain.
    "VDI.activate" => VdiOldActivate(VdiOldActivateParams) -> ();
    /// The socket of an attached VDI's NBD server.
    "DATA.get_nbd_server" => DataGetNbdServer(DpParams) -> String;
    /// The same, as older XAPIs call it.
    "DATA.MIRROR.get_nbd_server" => DataMirrorGetNbdServer(DpParams) -> String;

    /// Take a VDI from another host that is dead and had it active; refused while it lives.
    "VDI.unlock" => VdiUnlock(VdiUnlockParams) -> Unlocked;
    /// Every VBD with a backend directory of ours.
    "VBD.list" => VbdList(NoParams) -> Vec<Vbd>;
    /// One VBD: state, ring, counters, latencies, since when, held by whom.
    "VBD.stat" => VbdStatMethod(VbdParams) -> VbdStat;
    /// Every VBD as VBD.stat tells of it, in bounded time; `age_ms` says how old figures are.
    "VBD.stat_all" => VbdStatAll(NoParams) -> Vec<VbdStat>;
    /// Give a domain a disk: what a toolstack does, for hosts without XAPI.
    "VBD.plug" => VbdPlug(VbdPlugParams) -> Vbd;
    /// Take the disk away again. Succeeds when there is none.
    "VBD.unplug" => VbdUnplug(VbdUnplugParams) -> ();
    /// What lasts and is under way: copies of VDIs' data, and how far each is.
    "Task.list" => TaskList(NoParams) -> Vec<Task>;
    /// Every datapath worker.
    "Worker.list" => WorkerList(NoParams) -> Vec<Worker>;
    /// Have a worker of the installed program take a VDI over, under its guests' I/O.
    "Worker.upgrade" => WorkerUpgrade(VdiParams) -> Worker;
    /// The daemon, its host, and what is degraded.
    "Host.status" => HostStatusMethod(NoParams) -> HostStatus;
    /// Over a WebSocket: every change of state, a notification Event.changed each.
    "Event.subscribe" => EventSubscribe(NoParams) -> serde_json::Value;
    /// End a subscription: its id is the one parameter, by position.
    "Event.unsubscribe" => EventUnsubscribe(NoParams) -> bool;
    /// This interface as an OpenRPC 1.3 document.
    "rpc.discover" => RpcDiscover(NoParams) -> serde_json::Value;
}
