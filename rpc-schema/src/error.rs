//! The error that every storage call may answer, in SMAPIv2's wire form.
//!
//! XAPI shows a user only [`StorageError::Backend`]; it turns all else into INTERNAL_ERROR. Text
//! that people should read therefore goes there: what was asked, what is wrong, what to do.
//! Source: xen-api `ocaml/xapi-idl/storage/storage_interface.ml` (`Errors.error`) and
//! `ocaml/xapi/storage_utils.ml` (`transform_storage_exn`).

use crate::smapi2::VdiState;
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
        /// The VDI is active on the host of this uuid.
        ActivatedOnAnotherHost(payload: String) = "Activated_on_another_host",
        /// A fault of zerotap itself.
        Internal(payload: String) = "Internal_error",
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
            StorageError::Backend((code, params)) => {
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
        }
    }
}

impl std::error::Error for StorageError {}
