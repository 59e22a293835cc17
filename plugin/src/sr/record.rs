//! One volume's record: what its SR remembers of it, and how SMAPIv2 tells of it.
//!
//! Pure: no I/O. A record is validated once, when it is read; after that every field may be relied
//! upon. Unknown fields are refused: a newer version's record must not lose what we don't know.

use crate::sr::rules::{ALLOCATION, PREALLOCATED};
use serde::{Deserialize, Serialize};
use zerotap_rpc_schema::smapi2::{Pairs, VdiInfo};

/// The version of the record's layout.
const VERSION: u32 = 1;
/// Sizes are multiples of this many bytes, so that any disk's sector divides them.
pub const SIZE_STEP: i64 = 4096;
/// What follows a volume's key in that of the copy which a guest uses for one boot.
const BOOT_SUFFIX: &str = ".boot";
/// The longest key, in characters: with our suffixes still a file name.
const KEY_CHARS_MAX: usize = 128;

/// How a volume's data is laid out. Never guessed from the data, which guests control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Byte n of the disk is byte n of the data.
    Raw,
}

/// Which host may write to the volume (`owner.rs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The host's uuid.
    pub host: String,
    /// That host's boot.
    pub boot_id: String,
    /// Which activation of the volume it is.
    pub epoch: u64,
    /// Since when, RFC 3339.
    pub since: String,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// The volume's name in its SR; its files are called by it.
    pub key: String,
    /// XenAPI's uuid of the VDI.
    pub uuid: String,
    /// For people.
    pub name_label: String,
    /// For people.
    #[serde(default)]
    pub name_description: String,
    /// The data's layout.
    pub format: Format,
    /// What the guest sees, bytes.
    pub virtual_size: i64,
    /// The block device that is the volume; absent where `<key>.raw` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// XenAPI's VDI type.
    pub ty: String,
    /// No use may write.
    #[serde(default)]
    pub read_only: bool,
    /// Several uses may write.
    #[serde(default)]
    pub sharable: bool,
    /// Whether XenAPI wants the content kept over a reboot of the guest.
    #[serde(default = "persistent")]
    pub persistent: bool,
    /// Equal ids mean equal content.
    #[serde(default)]
    pub content_id: String,
    /// XenAPI's `metadata_of_pool`.
    #[serde(default)]
    pub metadata_of_pool: String,
    /// The volume below this one; absent for one that stands alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Whether it is a snapshot.
    #[serde(default)]
    pub is_a_snapshot: bool,
    /// When it was taken, ISO 8601.
    pub snapshot_time: String,
    /// Of which volume, a key; empty for none.
    #[serde(default)]
    pub snapshot_of: String,
    /// What callers keep with the volume.
    #[serde(default)]
    pub sm_config: Pairs,
    /// XenAPI's tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// SMAPIv3's keys that mean nothing to us (`keys.rs`).
    #[serde(default, skip_serializing_if = "Pairs::is_empty")]
    pub keys: Pairs,
    /// How often a host has taken it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epoch: u64,
    /// Who has it active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

fn persistent() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "it is what serde calls")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Whether `key` can name a volume: it becomes part of file names and of xenstore values.
#[must_use]
pub fn is_key(key: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !key.is_empty() && key.len() <= KEY_CHARS_MAX && !key.starts_with('.') && key.chars().all(plain)
}

/// The key of the copy that a guest uses instead of `key` while what it writes is to be forgotten.
#[must_use]
pub fn boot_key(key: &str) -> String {
    format!("{key}{BOOT_SUFFIX}")
}

/// The key of the volume that `key` is such a copy of; any other is itself.
#[must_use]
pub fn base_key(key: &str) -> &str {
    key.strip_suffix(BOOT_SUFFIX).unwrap_or(key)
}

/// Whether a volume is such a copy: no VDI of XAPI's, whose keys are uuids.
#[must_use]
pub fn is_boot_key(key: &str) -> bool {
    key.ends_with(BOOT_SUFFIX)
}

/// `size` rounded up to whole steps; `None` when it is no size or there is no such number.
#[must_use]
pub fn round_up(size: i64) -> Option<i64> {
    let steps = (size > 0).then_some(size)?.checked_add(SIZE_STEP - 1)? / SIZE_STEP;
    steps.checked_mul(SIZE_STEP)
}

impl Record {
    /// A new volume as `wanted`, with a key and a size of its own.
    #[must_use]
    pub fn new(key: String, virtual_size: i64, device: Option<String>, wanted: VdiInfo) -> Record {
        Record {
            version: VERSION,
            uuid: key.clone(),
            key,
            name_label: wanted.name_label,
            name_description: wanted.name_description,
            format: Format::Raw,
            virtual_size,
            device,
            ty: wanted.ty,
            read_only: wanted.read_only,
            sharable: wanted.sharable,
            persistent: wanted.persistent,
            content_id: wanted.content_id,
            metadata_of_pool: wanted.metadata_of_pool,
            parent: None,
            is_a_snapshot: wanted.is_a_snapshot,
            snapshot_time: wanted.snapshot_time,
            snapshot_of: wanted.snapshot_of,
            sm_config: wanted.sm_config,
            tags: wanted.tags,
            keys: Pairs::new(),
            epoch: 0,
            owner: None,
        }
    }

    /// Finds what can't be true of the volume that `key` names.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self, key: &str) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("it has layout version {}, known is {VERSION}", self.version));
        }
        if self.key != key {
            return Err(format!("it is the record of {}", self.key));
        }
        if self.virtual_size <= 0 {
            return Err(format!("it says that the disk has {} bytes", self.virtual_size));
        }
        Ok(())
    }

    /// Whether its space was all allocated when it was made, and is to stay so.
    #[must_use]
    pub fn is_preallocated(&self) -> bool {
        self.sm_config.get(ALLOCATION).is_some_and(|value| value == PREALLOCATED)
    }

    /// The file that holds the data, where no block device does.
    #[must_use]
    pub fn data_file(key: &str) -> String {
        format!("{key}.raw")
    }

    /// As SMAPIv2 tells of it; `physical_utilisation` in bytes.
    #[must_use]
    pub fn info(&self, physical_utilisation: i64) -> VdiInfo {
        VdiInfo {
            vdi: self.key.clone(),
            uuid: Some(self.uuid.clone()),
            content_id: self.content_id.clone(),
            name_label: self.name_label.clone(),
            name_description: self.name_description.clone(),
            ty: self.ty.clone(),
            metadata_of_pool: self.metadata_of_pool.clone(),
            is_a_snapshot: self.is_a_snapshot,
            snapshot_time: self.snapshot_time.clone(),
            snapshot_of: self.snapshot_of.clone(),
            read_only: self.read_only,
            cbt_enabled: false,
            virtual_size: self.virtual_size,
            physical_utilisation,
            persistent: self.persistent,
            sharable: self.sharable,
            sm_config: self.sm_config.clone(),
            tags: self.tags.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_and_never_overflow() {
        assert_eq!(round_up(1), Some(4096));
        assert_eq!(round_up(4096), Some(4096));
        assert_eq!(round_up(0), None);
        assert_eq!(round_up(-4096), None);
        assert_eq!(round_up(i64::MAX), None);
    }

    #[test]
    fn a_key_is_a_plain_file_name() {
        assert!(is_key("7b1c-A_z.9"));
        let long = "k".repeat(KEY_CHARS_MAX + 1);
        for bad in ["", ".", "..", "a/b", ".hidden", "a b", "ä", "a\0", &long] {
            assert!(!is_key(bad), "{bad}");
        }
    }

    #[test]
    fn a_record_of_a_newer_version_is_refused_not_trimmed() {
        let record = Record::new("k".into(), 4096, None, VdiInfo::new("disk", 4096));
        let mut json = serde_json::to_value(&record).expect("a record is JSON");
        assert_eq!(serde_json::from_value::<Record>(json.clone()).expect("ours"), record);
        json["lease"] = 1.into();
        assert!(serde_json::from_value::<Record>(json).is_err());
    }
}
