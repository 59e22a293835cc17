//! The error that every storage call may answer, in SMAPIv2's wire form.
//!
//! XAPI shows a user only [`StorageError::Backend`]; it turns all else into INTERNAL_ERROR. Text
//! that people should read therefore goes there: what was asked, what is wrong, what to do.
//! Source: xen-api `ocaml/xapi-idl/storage/storage_interface.ml` (`Errors.error`) and
//! `ocaml/xapi/storage_utils.ml` (`transform_storage_exn`).

use crate::smapi2::{Health, VdiState};
use crate::variant::variants;

/// SMAPIv1's numbers, which XAPI's clients know (sm `drivers/XE_SR_ERRORCODES.xml`).
#[expect(missing_docs, reason = "the names are upstream's and say what there is to say")]
pub mod number {
    pub const SR_IN_USE: u16 = 16;
    pub const VDI_IN_USE: u16 = 24;
    pub const SR_NOT_EMPTY: u16 = 39;
    pub const SR_SCAN: u16 = 40;
    pub const SR_EXISTS: u16 = 42;
    pub const SR_NO_SPACE: u16 = 44;
    pub const VDI_UNAVAILABLE: u16 = 46;
    pub const SR_UNAVAILABLE: u16 = 47;
    pub const VDI_LOAD: u16 = 65;
    pub const VDI_CREATE: u16 = 78;
    pub const VDI_SIZE: u16 = 79;
    pub const VDI_DELETE: u16 = 80;
    pub const VDI_SNAPSHOT: u16 = 82;
    pub const CONFIG_MISSING: u16 = 90;
    pub const CONFIG_INVALID: u16 = 91;
    pub const VDI_RESIZE: u16 = 110;
    pub const BAD_REQUEST: u16 = 143;
    pub const VDI_MISSING: u16 = 144;
    pub const IO_ERROR: u16 = 200;
    pub const GENERAL: u16 = 202;
    pub const WORKER_FAILED: u16 = 453;
}

variants! {
    /// Why a storage call failed.
    pub enum StorageError {
        /// Code (`SR_BACKEND_FAILURE_<n>`) and parameters (`["", text, ""]`).
        Backend(payload: (String, Vec<String>)) = "Backend_error",
        /// The same, with a backtrace in JSON as the first parameter; read, never written.
        BackendWithBacktrace(payload: (String, Vec<String>)) = "Backend_error_with_backtrace",
        /// The SR of this uuid is not attached on this host.
        SrNotAttached(payload: String) = "Sr_not_attached",
        /// No VDI of this key.
        VdiDoesNotExist(payload: String) = "Vdi_does_not_exist",
        /// From and to: a move that the automaton does not have.
        IllegalTransition(payload: (VdiState, VdiState)) = "Illegal_transition",
        /// Class and id of something that is not there.
        DoesNotExist(payload: (String, String)) = "Does_not_exist",
        /// The SR of this uuid is attached already.
        SrAttached(payload: String) = "Sr_attached",
        /// This method is not implemented.
        Unimplemented(payload: String) = "Unimplemented",
        /// The SR of this uuid is in this state.
        SrUnhealthy(payload: (String, Health)) = "Sr_unhealthy",
        /// The VDI is active on the host of this uuid.
        ActivatedOnAnotherHost(payload: String) = "Activated_on_another_host",
        /// The call was given up on its caller's wish.
        Cancelled(payload: String) = "Cancelled",
        /// Ask the host of this address instead: none or one, upstream's option.
        Redirect(payload: Vec<String>) = "Redirect",
        /// This key is there already.
        DuplicatedKey(payload: String) = "Duplicated_key",
        /// XAPI's own: no plugin has this SR attached.
        NoStoragePlugin(payload: String) = "No_storage_plugin_for_sr",
        /// XAPI's own: two VDIs that should be equal have these content ids.
        ContentIdsDiffer(payload: (String, String)) = "Content_ids_do_not_match",
        /// device-config lacks this key.
        MissingConfiguration(payload: String) = "Missing_configuration_parameter",
        /// XAPI's own: a storage migration could not begin.
        MigrationPreparation(payload: String) = "Migration_preparation_failure",
        /// XAPI's own: a storage migration lost its descriptor.
        MigrationDescriptor(payload: String) = "Migration_mirror_fd_failure",
        /// XAPI's own: a storage migration's snapshot failed.
        MigrationSnapshot(payload: String) = "Migration_mirror_snapshot_failure",
        /// XAPI's own: a storage migration's copy failed.
        MigrationCopy(payload: String) = "Migration_mirror_copy_failure",
        /// XAPI's own: a storage migration failed.
        MigrationMirror(payload: String) = "Migration_mirror_failure",
        /// A fault of zerotap itself.
        Internal(payload: String) = "Internal_error",
        /// Whatever upstream's reader does not know.
        Unknown = "Unknown_error",
    }
}

impl StorageError {
    /// An error for a person: `text` says what was asked, what is wrong and what to do.
    pub fn backend(number: u16, text: impl Into<String>) -> Self {
        let code = format!("SR_BACKEND_FAILURE_{number}");
        StorageError::Backend((code, vec![String::new(), text.into(), String::new()]))
    }

    /// The JSON-RPC error code: the number of a backend failure, otherwise 1000.
    #[must_use]
    pub fn code(&self) -> i32 {
        match self {
            StorageError::Backend((code, _)) => code
                .strip_prefix("SR_BACKEND_FAILURE_")
                .and_then(|number| number.parse().ok())
                .unwrap_or(1000),
            _ => 1000,
        }
    }
}

impl std::fmt::Display for StorageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StorageError::Backend((code, params))
            | StorageError::BackendWithBacktrace((code, params)) => {
                match params.iter().find(|text| !text.is_empty()) {
                    Some(text) => write!(f, "{text} [{code}]"),
                    None => write!(f, "{code}"),
                }
            }
            StorageError::SrNotAttached(sr) => {
                write!(f, "SR {sr} is not attached on this host: attach it first (SR.attach)")
            }
            StorageError::VdiDoesNotExist(vdi) => {
                write!(f, "there is no VDI {vdi} in this SR: SR.scan2 lists those that are")
            }
            StorageError::IllegalTransition((from, to)) => {
                write!(f, "the VDI cannot go from {from} to {to}")
            }
            StorageError::DoesNotExist((class, id)) => write!(f, "there is no {class} {id}"),
            StorageError::SrAttached(sr) => write!(f, "SR {sr} is attached already"),
            StorageError::Unimplemented(method) => write!(f, "{method} is not implemented"),
            StorageError::ActivatedOnAnotherHost(host) => {
                write!(f, "the VDI is active on host {host}: deactivate it there first")
            }
            StorageError::Internal(text) => write!(f, "internal error: {text}"),
            StorageError::SrUnhealthy((sr, health)) => write!(f, "SR {sr} is {health:?}"),
            StorageError::Unknown => f.write_str("unknown error"),
            StorageError::Redirect(hosts) => write!(f, "ask host {} instead", hosts.join("")),
            StorageError::ContentIdsDiffer((one, other)) => {
                write!(f, "the content ids {one} and {other} differ")
            }
            StorageError::NoStoragePlugin(sr) => write!(f, "no storage plugin serves SR {sr}"),
            StorageError::DuplicatedKey(key) => write!(f, "{key} is there already"),
            StorageError::MissingConfiguration(key) => write!(f, "device-config lacks {key}"),
            StorageError::Cancelled(text)
            | StorageError::MigrationPreparation(text)
            | StorageError::MigrationDescriptor(text)
            | StorageError::MigrationSnapshot(text)
            | StorageError::MigrationCopy(text)
            | StorageError::MigrationMirror(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for StorageError {}
