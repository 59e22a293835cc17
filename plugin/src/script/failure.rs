//! The only failure that xapi-storage-script understands: `{code, params, backtrace}`.
//!
//! All three keys, and all three of the backtrace, are needed; without one of them XAPI shows
//! SCRIPT_FAILED and nothing of the reason (xen-api `ocaml/xapi-storage-script/lib.ml`). SMAPIv2's
//! variants are not read there: each becomes a SR_BACKEND_FAILURE that a user can read. Pure.

use serde_json::{Value, json};
use std::panic::Location;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;

/// What is known to xapi-storage-script by the first of `params`, whatever the code: it asks that
/// host instead.
const ELSEWHERE: &str = "Activated_on_another_host";
/// SMAPIv1's number for what is not implemented.
const UNIMPLEMENTED: u16 = 38;

/// A failed call.
#[derive(Debug)]
pub(super) struct Failed {
    code: String,
    params: Vec<String>,
    text: String,
    place: &'static Location<'static>,
}

impl Failed {
    /// A failure with a text for people.
    #[track_caller]
    pub(super) fn backend(number: u16, text: impl Into<String>) -> Failed {
        let text = text.into();
        let params = vec![String::new(), text.clone(), String::new()];
        let place = Location::caller();
        Failed { code: format!("SR_BACKEND_FAILURE_{number}"), params, text, place }
    }

    /// For people.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// What stands on stdout.
    pub(super) fn object(&self) -> Value {
        json!({
            "code": self.code,
            "params": self.params,
            "backtrace": {
                "error": self.text,
                "files": [self.place.file()],
                "lines": [self.place.line()],
            },
        })
    }
}

impl From<StorageError> for Failed {
    #[track_caller]
    fn from(error: StorageError) -> Failed {
        let text = error.to_string();
        match error {
            StorageError::Backend((code, params)) => {
                let readable = params.iter().find(|text| !text.is_empty()).cloned();
                let text = readable.unwrap_or_else(|| code.clone());
                Failed { code, params, text, place: Location::caller() }
            }
            StorageError::ActivatedOnAnotherHost(host) => Failed {
                params: vec![ELSEWHERE.into(), host],
                ..Failed::backend(number::VDI_IN_USE, text)
            },
            StorageError::SrNotAttached(_) => Failed::backend(number::SR_UNAVAILABLE, text),
            StorageError::VdiDoesNotExist(_) => Failed::backend(number::VDI_MISSING, text),
            StorageError::IllegalTransition(_) => Failed::backend(number::VDI_IN_USE, text),
            StorageError::Unimplemented(_) => Failed::backend(UNIMPLEMENTED, text),
            _ => Failed::backend(number::GENERAL, text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerotap_rpc_schema::smapi2::{Mode, VdiState};

    #[test]
    fn every_error_becomes_the_object_that_upstream_reads() {
        let illegal = (VdiState::Detached, VdiState::Activated(Mode::ReadOnly));
        let cases = [
            (StorageError::backend(44, "full"), "44"),
            (StorageError::SrNotAttached("s".into()), "47"),
            (StorageError::VdiDoesNotExist("v".into()), "144"),
            (StorageError::IllegalTransition(illegal), "24"),
            (StorageError::Unimplemented("m".into()), "38"),
            (StorageError::Internal("i".into()), "202"),
        ];
        for (error, number) in cases {
            let object = Failed::from(error).object();
            assert_eq!(object["code"], format!("SR_BACKEND_FAILURE_{number}"));
            assert_eq!(object["params"][0], "");
            assert!(object["params"][1].as_str().is_some_and(|text| !text.is_empty()));
            assert_eq!(object["params"][1], object["backtrace"]["error"]);
            let of = |key: &str| object["backtrace"][key].as_array().map(Vec::len);
            assert_eq!((of("files"), of("lines")), (Some(1), Some(1)));
        }
    }

    #[test]
    fn another_host_is_named_so_that_xapi_asks_it() {
        let elsewhere = StorageError::ActivatedOnAnotherHost("h".into());
        let object = Failed::from(elsewhere).object();
        assert_eq!(object["params"], json!(["Activated_on_another_host", "h"]));
    }
}
