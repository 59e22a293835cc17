//! SMAPIv3's keys of a volume, which are SMAPIv2's fields under other names.
//!
//! xapi-storage-script keeps what SMAPIv3 has no field for as string keys (`vdi-type`,
//! `_sm_config_<k>` …, xen-api `ocaml/xapi-storage-script/main.ml`). The record has the fields, so
//! that a volume looks the same through either door; a key of no meaning to us is kept as it is.
//! Pure. Called by the file SR and by the VDI's actor.

use crate::sr::record::Record;
use zerotap_rpc_schema::smapi2::{Pairs, VdiInfo};

const TYPE: &str = "vdi-type";
const CONTENT_ID: &str = "content_id";
const IS_A_SNAPSHOT: &str = "is_a_snapshot";
const SNAPSHOT_TIME: &str = "snapshot_time";
const SNAPSHOT_OF: &str = "snapshot_of";
const SM_CONFIG: &str = "_sm_config_";
const TAG: &str = "tags";

impl Record {
    /// All keys of the volume.
    #[must_use]
    pub fn keys(&self) -> Pairs {
        let mut keys = self.keys.clone();
        let mut tell = |key: &str, value: &str| keys.insert(key.into(), value.into());
        tell(TYPE, &self.ty);
        if !self.content_id.is_empty() {
            tell(CONTENT_ID, &self.content_id);
        }
        if self.is_a_snapshot {
            tell(IS_A_SNAPSHOT, "true");
        }
        if self.snapshot_time != VdiInfo::new("", 0).snapshot_time {
            tell(SNAPSHOT_TIME, &self.snapshot_time);
        }
        if !self.snapshot_of.is_empty() {
            tell(SNAPSHOT_OF, &self.snapshot_of);
        }
        for (key, value) in &self.sm_config {
            tell(&format!("{SM_CONFIG}{key}"), value);
        }
        for tag in &self.tags {
            tell(&format!("{TAG}{tag}"), "");
        }
        keys
    }

    /// Volume.set.
    pub fn set_key(&mut self, key: &str, value: String) {
        self.unset_key(key);
        match key {
            TYPE => self.ty = value,
            CONTENT_ID => self.content_id = value,
            IS_A_SNAPSHOT => self.is_a_snapshot = value == "true",
            SNAPSHOT_TIME => self.snapshot_time = value,
            SNAPSHOT_OF => self.snapshot_of = value,
            _ if key.starts_with(SM_CONFIG) => {
                self.sm_config.insert(key[SM_CONFIG.len()..].into(), value);
            }
            // A tag's value says nothing; should one ever, it is kept as it is.
            _ if key.starts_with(TAG) && value.is_empty() => self.tags.push(key[4..].into()),
            _ => {
                self.keys.insert(key.into(), value);
            }
        }
    }

    /// Volume.unset: back to what a volume has that was never told. Succeeds when it is not set.
    pub fn unset_key(&mut self, key: &str) {
        let fresh = VdiInfo::new("", 0);
        match key {
            TYPE => self.ty = fresh.ty,
            CONTENT_ID => self.content_id = fresh.content_id,
            IS_A_SNAPSHOT => self.is_a_snapshot = fresh.is_a_snapshot,
            SNAPSHOT_TIME => self.snapshot_time = fresh.snapshot_time,
            SNAPSHOT_OF => self.snapshot_of = fresh.snapshot_of,
            _ => {
                if let Some(key) = key.strip_prefix(SM_CONFIG) {
                    self.sm_config.remove(key);
                } else if let Some(tag) = key.strip_prefix(TAG) {
                    self.tags.retain(|held| held != tag);
                }
                self.keys.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record::new("k".into(), 4096, None, VdiInfo::new("disk", 4096))
    }

    #[test]
    fn what_is_set_is_told_until_it_is_unset() {
        let fresh = record();
        let cases = [
            (TYPE, "system"),
            (CONTENT_ID, "c"),
            (IS_A_SNAPSHOT, "true"),
            (SNAPSHOT_TIME, "20260101T00:00:00Z"),
            (SNAPSHOT_OF, "other"),
            ("_sm_config_base_mirror", "m"),
            ("tagsgold", ""),
            ("tagssilver", "with a value"),
            ("clone-on-boot", "temporary"),
        ];
        for (key, value) in cases {
            let mut changed = fresh.clone();
            for _ in 0..2 {
                changed.set_key(key, value.into());
            }
            assert_eq!(changed.keys().get(key).map(String::as_str), Some(value), "{key}");
            changed.unset_key(key);
            assert_eq!(changed, fresh, "{key}");
        }
    }

    #[test]
    fn smapiv2_sees_what_smapiv3_keeps() {
        let mut record = record();
        record.set_key("_sm_config_a", "b".into());
        record.set_key("tagsgold", String::new());
        record.set_key("vdi-type", "suspend".into());
        record.set_key("anything", "else".into());
        let info = record.info(0);
        assert_eq!(info.sm_config.get("a").map(String::as_str), Some("b"));
        assert_eq!((info.ty.as_str(), info.tags), ("suspend", vec!["gold".to_string()]));
        let json = serde_json::to_value(&record).expect("JSON");
        assert_eq!(serde_json::from_value::<Record>(json).expect("ours"), record);
    }
}
