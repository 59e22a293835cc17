//! Wire fidelity of whatever values there are: what upstream's reader refuses is never written (no
//! `null` where a field is absent, no float where an integer is due, no field left out that has no
//! default there), and what was written is read as the same.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Debug;
use zerotap_rpc_schema::further::AttachInfo;
use zerotap_rpc_schema::smapi2::{
    Backend, DpStat, Health, Implementation, Mode, Nbd, Pairs, Path, Probe, ProbeResult,
    QueryResult, SrInfo, VdiInfo, VdiState, XenDisk,
};
use zerotap_rpc_schema::{StorageError, smapi3};

/// What upstream's reader refuses wherever it stands in a result that is not `unit`.
fn assert_clean(value: &Value, place: &str) {
    match value {
        Value::Null => panic!("null at {place}"),
        Value::Number(number) => assert!(number.is_i64(), "{number} at {place}"),
        Value::Array(items) => items.iter().for_each(|item| assert_clean(item, place)),
        Value::Object(fields) => {
            for (name, value) in fields {
                assert_clean(value, &format!("{place}.{name}"));
            }
        }
        _ => {}
    }
}

/// Writes a value and reads it again. A record has so many `fields`, one more for each optional
/// field that has a value; none for what is no record.
fn faithful<T>(value: &T, fields: Option<usize>) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let json = serde_json::to_value(value).expect("JSON");
    assert_clean(&json, std::any::type_name::<T>());
    prop_assert_eq!(json.as_object().map(serde_json::Map::len), fields, "{}", json);
    let text = serde_json::to_string(value).expect("JSON");
    prop_assert_eq!(&serde_json::from_str::<T>(&text).expect("ours"), value, "{}", text);
    Ok(())
}

fn text() -> impl Strategy<Value = String> {
    ".{0,12}"
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    vec(text(), 0..3)
}

fn pairs() -> impl Strategy<Value = Pairs> {
    btree_map(text(), text(), 0..4)
}

fn modes() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::ReadOnly), Just(Mode::ReadWrite)]
}

fn states() -> impl Strategy<Value = VdiState> {
    prop_oneof![
        Just(VdiState::Detached),
        modes().prop_map(VdiState::Attached),
        modes().prop_map(VdiState::Activated),
    ]
}

fn healths() -> impl Strategy<Value = Health> {
    prop_oneof![
        Just(Health::Healthy),
        Just(Health::Recovering),
        Just(Health::Unreachable),
        Just(Health::Unavailable),
    ]
}

fn implementations() -> impl Strategy<Value = Implementation> {
    let path = || text().prop_map(|path| Path { path });
    prop_oneof![
        (text(), pairs(), text()).prop_map(|(params, extra, backend_type)| {
            Implementation::XenDisk(XenDisk { params, extra, backend_type })
        }),
        path().prop_map(Implementation::BlockDevice),
        path().prop_map(Implementation::File),
        text().prop_map(|uri| Implementation::Nbd(Nbd { uri })),
    ]
}

prop_compose! {
    fn vdi_infos()(
        [vdi, content_id, name_label, name_description, ty, metadata_of_pool, snapshot_time,
            snapshot_of] in prop::array::uniform8(text()),
        [is_a_snapshot, read_only, cbt_enabled, persistent, sharable] in any::<[bool; 5]>(),
        [virtual_size, physical_utilisation] in any::<[i64; 2]>(),
        uuid in option::of(text()), sm_config in pairs(), tags in texts(),
    ) -> VdiInfo {
        VdiInfo {
            vdi, uuid, content_id, name_label, name_description, ty, metadata_of_pool,
            is_a_snapshot, snapshot_time, snapshot_of, read_only, cbt_enabled, virtual_size,
            physical_utilisation, persistent, sharable, sm_config, tags,
        }
    }
}

prop_compose! {
    fn sr_infos()(
        sr_uuid in option::of(text()), [name_label, name_description] in [text(), text()],
        [total_space, free_space] in any::<[i64; 2]>(), clustered: bool, health in healths(),
    ) -> SrInfo {
        SrInfo { sr_uuid, name_label, name_description, total_space, free_space, clustered, health }
    }
}

prop_compose! {
    fn volumes()(
        [key, name, description] in [text(), text(), text()], uuid in option::of(text()),
        [read_write, sharable] in any::<[bool; 2]>(),
        [virtual_size, physical_utilisation] in any::<[i64; 2]>(),
        uri in texts(), keys in pairs(), cbt_enabled in option::of(any::<bool>()),
        volume_type in option::of(prop_oneof![
            Just(smapi3::VolumeType::Data),
            Just(smapi3::VolumeType::CbtMetadata),
            Just(smapi3::VolumeType::DataAndCbt),
        ]),
    ) -> smapi3::Volume {
        smapi3::Volume {
            key, uuid, name, description, read_write, sharable, virtual_size,
            physical_utilisation, uri, keys, volume_type, cbt_enabled,
        }
    }
}

prop_compose! {
    fn sr_stats()(
        [sr, name, description, words] in [text(), text(), text(), text()],
        uuid in option::of(text()), [free_space, total_space] in any::<[i64; 2]>(),
        datasources in texts(), clustered: bool, health in 0..4usize,
    ) -> smapi3::SrStat {
        use smapi3::SrHealth::{Healthy, Recovering, Unavailable, Unreachable};
        let health = [Healthy, Recovering, Unreachable, Unavailable][health](words);
        smapi3::SrStat {
            sr, name, uuid, description, free_space, total_space, datasources, clustered, health,
        }
    }
}

proptest! {
    #[test]
    fn what_smapi2_tells_of_volumes(info in vdi_infos(), more in vec(vdi_infos(), 0..3)) {
        faithful(&info, Some(17 + usize::from(info.uuid.is_some())))?;
        faithful(&more, None)?;
    }

    #[test]
    fn what_smapi2_tells_of_repositories(
        sr in sr_infos(), listed in vec(vdi_infos(), 0..3), configuration in pairs(),
        complete: bool, there in option::of(sr_infos()), extra_info in pairs(),
    ) {
        faithful(&sr, Some(6 + usize::from(sr.sr_uuid.is_some())))?;
        faithful(&(listed, sr), None)?;
        let with = usize::from(there.is_some());
        let probe = Probe { configuration, complete, sr: there, extra_info };
        faithful(&probe, Some(3 + with))?;
        faithful(&ProbeResult::Probe(vec![probe]), None)?;
    }

    #[test]
    fn what_smapi2_tells_of_uses(
        implementations in vec(implementations(), 0..4), superstate in states(),
        dps in btree_map(text(), states(), 0..4), old in (text(), any::<bool>(), text(), pairs()),
    ) {
        for one in &implementations {
            faithful(one, None)?;
        }
        faithful(&Backend { implementations }, Some(1))?;
        faithful(&DpStat { superstate, dps }, Some(2))?;
        let (params, o_direct, o_direct_reason, xenstore_data) = old;
        faithful(&AttachInfo { params, o_direct, o_direct_reason, xenstore_data }, Some(4))?;
    }

    /// XAPI's reader has no defaults for it.
    #[test]
    fn what_the_plugin_is(
        words in prop::array::uniform8(text()), features in texts(), configuration in pairs(),
        required_cluster_stack in texts(), supported_image_formats in texts(),
    ) {
        let [driver, name, description, vendor, copyright, version, api, smapi_version] = words;
        let three = smapi3::QueryResult {
            plugin: driver.clone(), name: name.clone(), description: description.clone(),
            vendor: vendor.clone(), copyright: copyright.clone(), version: version.clone(),
            required_api_version: api.clone(), features: features.clone(),
            configuration: configuration.clone(),
            required_cluster_stack: required_cluster_stack.clone(),
        };
        faithful(&three, Some(10))?;
        let two = QueryResult {
            driver, name, description, vendor, copyright, version, required_api_version: api,
            features, configuration, required_cluster_stack, supported_image_formats,
            smapi_version,
        };
        faithful(&two, Some(12))?;
    }

    #[test]
    fn what_smapi3_tells(
        volume in volumes(), stat in sr_stats(), configuration in pairs(), complete: bool,
        sr in option::of(sr_stats()), extra_info in pairs(),
    ) {
        let optional = [
            volume.uuid.is_some(), volume.volume_type.is_some(), volume.cbt_enabled.is_some(),
        ];
        faithful(&volume, Some(9 + optional.into_iter().filter(|there| *there).count()))?;
        faithful(&stat, Some(8 + usize::from(stat.uuid.is_some())))?;
        let with = usize::from(sr.is_some());
        faithful(&smapi3::ProbeResult { configuration, complete, sr, extra_info }, Some(3 + with))?;
    }

    #[test]
    fn errors(
        words in texts(), [one, other] in [text(), text()], [from, to] in [states(), states()],
        health in healths(), number: u16,
    ) {
        for error in [
            StorageError::backend(number, one.clone()),
            StorageError::Backend((one.clone(), words.clone())),
            StorageError::IllegalTransition((from, to)),
            StorageError::DoesNotExist((one.clone(), other)),
            StorageError::SrUnhealthy((one.clone(), health)),
            StorageError::Redirect(words.into_iter().take(1).collect()),
            StorageError::Internal(one),
            StorageError::Unknown,
        ] {
            faithful(&error, None)?;
        }
    }
}
