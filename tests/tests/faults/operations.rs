//! Every operation that changes something: what must be there before, its call, what holds after.

use crate::life::{BYTES, FOREIGNER, Life, Stage};
use anyhow::ensure;
use serde_json::{Value, json};
use zerotap_tests::harness::Rpc;

/// An operation.
pub(crate) struct Operation {
    /// Its method.
    pub(crate) method: &'static str,
    /// How far a disk's life has come before it.
    pub(crate) before: Stage,
    /// What it is called with.
    pub(crate) params: fn(&Life) -> Value,
    /// What is true once it was answered.
    pub(crate) holds: fn(&Life, &Rpc) -> anyhow::Result<()>,
    /// What a call may be answered that is repeated although the first one was done; empty: it
    /// succeeds.
    pub(crate) repeated_may_fail_with: &'static str,
}

impl Operation {
    /// Whether workers have to do with it.
    pub(crate) fn serves(&self) -> bool {
        self.before >= Stage::Attached
    }
}

/// Methods that change nothing.
pub(crate) const READ_ONLY: [&str; 24] = [
    "Event.subscribe",
    "Event.unsubscribe",
    "VBD.stat_all",
    "Query.query",
    "Query.diagnostics",
    "SR.stat",
    "SR.list",
    "SR.scan",
    "SR.scan2",
    "SR.probe",
    "VDI.stat",
    "VDI.get_by_name",
    "VDI.introduce",
    "VDI.similar_content",
    "DP.attach_info",
    "DP.stat_vdi",
    "DATA.get_nbd_server",
    "DATA.MIRROR.get_nbd_server",
    "VBD.list",
    "VBD.stat",
    "Worker.list",
    "Host.status",
    "Task.list",
    "rpc.discover",
];

macro_rules! operation {
    ($method:literal, $before:ident, $params:expr, $holds:expr) => {
        operation!($method, $before, $params, $holds, "")
    };
    ($method:literal, $before:ident, $params:expr, $holds:expr, $excused:literal) => {
        Operation {
            method: $method,
            before: Stage::$before,
            params: $params,
            holds: $holds,
            repeated_may_fail_with: $excused,
        }
    };
}

/// The superstate is so.
fn superstate(life: &Life, rpc: &Rpc, wanted: &Value) -> anyhow::Result<()> {
    let stat = rpc.raw("DP.stat_vdi", &life.vdi(json!({})))?;
    ensure!(stat["superstate"] == *wanted, "{stat}, and not {wanted}");
    Ok(())
}

/// The VDI's record says so.
fn record(life: &Life, rpc: &Rpc, key: &str, wanted: &Value) -> anyhow::Result<()> {
    let stat = rpc.raw("VDI.stat", &life.vdi(json!({})))?;
    ensure!(stat[key] == *wanted, "{stat}, and not {key} = {wanted}");
    Ok(())
}

fn sr_is_attached(life: &Life, rpc: &Rpc, wanted: bool) -> anyhow::Result<()> {
    let listed = rpc.raw("SR.list", &json!({}))?;
    let attached = listed.as_array().is_some_and(|list| list.contains(&json!(life.sr)));
    ensure!(attached == wanted, "attached: {attached}");
    Ok(())
}

/// Whether there are copies, one from each call that was not killed before it took effect.
fn copied(life: &Life, rpc: &Rpc) -> anyhow::Result<()> {
    let copies = life.volumes(rpc)?.len() - 1;
    ensure!((1..=2).contains(&copies), "{copies} copies");
    Ok(())
}

/// All of them.
pub(crate) const OPERATIONS: &[Operation] = &[
    operation!(
        "SR.create",
        Nothing,
        |life| json!({"sr": life.sr, "name_label": "faults", "name_description": "",
            "device_config": {"path": life.dir}}),
        |life, rpc| sr_is_attached(life, rpc, true)
    ),
    operation!(
        "SR.attach",
        SrDetached,
        |life| json!({"sr": life.sr, "device_config": {"path": life.dir}}),
        |life, rpc| sr_is_attached(life, rpc, true)
    ),
    operation!("SR.detach", Vdi, |life| json!({"sr": life.sr}), |life, rpc| sr_is_attached(
        life, rpc, false
    )),
    operation!("SR.reset", Attached, |life| json!({"sr": life.sr}), |life, rpc| sr_is_attached(
        life, rpc, false
    )),
    operation!(
        "SR.destroy",
        Sr,
        |life| json!({"sr": life.sr}),
        |life, rpc| sr_is_attached(life, rpc, false),
        "is not attached"
    ),
    operation!(
        "SR.set_name_label",
        Sr,
        |life| json!({"sr": life.sr, "new_name_label": "new"}),
        |life, rpc| {
            let stat = rpc.raw("SR.stat", &json!({"sr": life.sr}))?;
            ensure!(stat["name_label"] == "new", "{stat}");
            Ok(())
        }
    ),
    operation!(
        "SR.set_name_description",
        Sr,
        |life| json!({"sr": life.sr, "new_name_description": "new"}),
        |life, rpc| {
            let stat = rpc.raw("SR.stat", &json!({"sr": life.sr}))?;
            ensure!(stat["name_description"] == "new", "{stat}");
            Ok(())
        }
    ),
    operation!("VDI.create", Sr, |life| life.create(), |life, rpc| record(
        life,
        rpc,
        "virtual_size",
        &json!(BYTES)
    )),
    operation!("VDI.destroy", Vdi, |life| life.vdi(json!({})), |life, rpc| {
        ensure!(life.volumes(rpc)?.is_empty(), "it is there");
        Ok(())
    }),
    operation!("VDI.resize", Vdi, |life| life.vdi(json!({"new_size": 2 * BYTES})), |life, rpc| {
        record(life, rpc, "virtual_size", &json!(2 * BYTES))
    }),
    operation!("VDI.snapshot", Vdi, |life| life.copy(), copied),
    operation!("VDI.clone", Vdi, |life| life.copy(), copied),
    operation!(
        "VDI.revert",
        Snapshot,
        |life| json!({"sr": life.sr, "snapshot_info": life.snapshot}),
        |life, _| life.holds_its_content()
    ),
    operation!(
        "VDI.epoch_begin",
        Vdi,
        |life| life.vdi(json!({"vm": "5", "persistent": false})),
        |life, _| life.is_in_an_epoch(true)
    ),
    operation!("VDI.epoch_end", Epoch, |life| life.vdi(json!({"vm": "5"})), |life, _| life
        .is_in_an_epoch(false)),
    operation!(
        "VDI.unlock",
        Foreign,
        |life| life.vdi(json!({"force_from": FOREIGNER, "reason": "it burned down"})),
        |life, _| {
            let owner = &life.record()?["owner"];
            ensure!(owner.is_null(), "it is still {owner}'s");
            Ok(())
        },
        "no host has it active"
    ),
    operation!(
        "VDI.set_name_label",
        Vdi,
        |life| life.vdi(json!({"new_name_label": "new"})),
        |life, rpc| record(life, rpc, "name_label", &json!("new"))
    ),
    operation!(
        "VDI.set_name_description",
        Vdi,
        |life| life.vdi(json!({"new_name_description": "new"})),
        |life, rpc| record(life, rpc, "name_description", &json!("new"))
    ),
    operation!(
        "VDI.set_content_id",
        Vdi,
        |life| life.vdi(json!({"content_id": "new"})),
        |life, rpc| record(life, rpc, "content_id", &json!("new"))
    ),
    operation!(
        "VDI.add_to_sm_config",
        Vdi,
        |life| life.vdi(json!({"key": "new", "value": "value"})),
        |life, rpc| record(life, rpc, "sm_config", &json!({"new": "value", "old": "value"}))
    ),
    operation!(
        "VDI.remove_from_sm_config",
        Vdi,
        |life| life.vdi(json!({"key": "old"})),
        |life, rpc| record(life, rpc, "sm_config", &json!({}))
    ),
    operation!(
        "VDI.set_persistent",
        Vdi,
        |life| life.vdi(json!({"persistent": false})),
        |life, rpc| record(life, rpc, "persistent", &json!(false))
    ),
    operation!("VDI.add_tags", Vdi, |life| life.vdi(json!({"key": "new"})), |life, rpc| record(
        life,
        rpc,
        "tags",
        &json!(["old", "new"])
    )),
    operation!("VDI.remove_tags", Vdi, |life| life.vdi(json!({"key": "old"})), |life, rpc| record(
        life,
        rpc,
        "tags",
        &json!([])
    )),
    operation!(
        "VDI.attach3",
        Vdi,
        |life| life.dp(json!({"vm": "5", "read_write": true})),
        |life, rpc| superstate(life, rpc, &json!(["Attached", "RW"]))
    ),
    operation!("VDI.attach", Vdi, |life| life.dp(json!({"read_write": true})), |life, rpc| {
        superstate(life, rpc, &json!(["Attached", "RW"]))
    }),
    operation!("VDI.attach2", Vdi, |life| life.dp(json!({"read_write": true})), |life, rpc| {
        superstate(life, rpc, &json!(["Attached", "RW"]))
    }),
    operation!("VDI.activate3", Attached, |life| life.dp(json!({"vm": "5"})), |life, rpc| {
        superstate(life, rpc, &json!(["Activated", "RW"]))
    }),
    operation!("VDI.activate", Attached, |life| life.dp(json!({})), |life, rpc| superstate(
        life,
        rpc,
        &json!(["Activated", "RW"])
    )),
    operation!(
        "VDI.activate_readonly",
        AttachedReadOnly,
        |life| life.dp(json!({"vm": "5"})),
        |life, rpc| superstate(life, rpc, &json!(["Activated", "RO"]))
    ),
    operation!(
        "VDI.resize",
        Active,
        |life| life.vdi(json!({"new_size": 2 * BYTES})),
        |life, rpc| record(life, rpc, "virtual_size", &json!(2 * BYTES))
    ),
    operation!("VDI.deactivate", Active, |life| life.dp(json!({"vm": "5"})), |life, rpc| {
        superstate(life, rpc, &json!(["Attached", "RW"]))
    }),
    operation!("VDI.detach", Attached, |life| life.dp(json!({"vm": "5"})), |life, rpc| superstate(
        life,
        rpc,
        &json!("Detached")
    )),
    operation!(
        "DP.destroy2",
        Active,
        |life| life.dp(json!({"vm": "5", "allow_leak": false})),
        |life, rpc| superstate(life, rpc, &json!("Detached"))
    ),
];
