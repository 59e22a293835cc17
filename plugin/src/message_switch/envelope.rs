//! JSON-RPC 1.0, as XAPI speaks it over the switch: a call read from its envelope, an answer put
//! into one. Pure: no I/O.
//!
//! Source: ocaml-rpc `src/lib/jsonrpc.ml`. Its servers always answer `id` 0, and its clients never
//! match ids. A call in JSON-RPC 2.0's form (`params` an object) is taken too, as upstream takes
//! it; the answer is 1.0 all the same, for a 2.0 answer's `error` must have another form.

use serde_json::{Map, Value};
use zerotap_rpc_schema::StorageError;

/// A call.
#[derive(Debug, PartialEq)]
pub(super) struct Call {
    /// The method's name.
    pub(super) method: String,
    /// The named parameters.
    pub(super) params: Map<String, Value>,
}

/// Reads a call.
///
/// # Errors
/// `Internal_error` with what is wrong, as upstream's servers answer it.
pub(super) fn read(payload: &str) -> Result<Call, StorageError> {
    let wrong = |problem: &str| {
        let text = format!("this is no JSON-RPC call: {problem}");
        Err(StorageError::Internal(text))
    };
    let mut call = match serde_json::from_str(payload) {
        Ok(Value::Object(call)) => call,
        Ok(_) => return wrong("a call is an object"),
        Err(problem) => return wrong(&problem.to_string()),
    };
    let Some(Value::String(method)) = call.remove("method") else {
        return wrong("`method` is a string");
    };
    let params = match call.remove("params") {
        Some(Value::Array(items)) => match <[Value; 1]>::try_from(items) {
            Ok([one]) => one,
            Err(items) if items.is_empty() => Value::Null,
            Err(_) => return wrong("parameters are named, in one object"),
        },
        other => other.unwrap_or_default(),
    };
    match params {
        Value::Object(params) => Ok(Call { method, params }),
        Value::Null => Ok(Call { method, params: Map::new() }),
        _ => wrong("parameters are named, in one object"),
    }
}

/// The answer: `result` is JSON.
#[must_use]
pub(super) fn write(outcome: &Result<String, StorageError>) -> String {
    match outcome {
        Ok(result) => format!(r#"{{"result":{result},"error":null,"id":0}}"#),
        Err(error) => {
            let error = serde_json::to_string(error).expect("an error of strings is JSON");
            format!(r#"{{"result":null,"error":{error},"id":0}}"#)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn calls_of_both_versions_are_read() {
        let expected =
            Call { method: "SR.stat".into(), params: Map::from_iter([("sr".into(), json!("a"))]) };
        for payload in [
            r#"{"method":"SR.stat","params":[{"sr":"a"}],"id":1970}"#,
            r#"{"jsonrpc":"2.0","method":"SR.stat","params":{"sr":"a"},"id":"x"}"#,
        ] {
            assert_eq!(read(payload).as_ref(), Ok(&expected), "{payload}");
        }
        for payload in [r#"{"method":"X","params":[]}"#, r#"{"method":"X"}"#] {
            assert!(read(payload).expect("a call").params.is_empty(), "{payload}");
        }
    }

    #[test]
    fn what_is_no_call_is_told_so() {
        for payload in [
            "",
            "{",
            "[]",
            "7",
            r#"{"params":[{}]}"#,
            r#"{"method":7,"params":[{}]}"#,
            r#"{"method":"X","params":["a"]}"#,
            r#"{"method":"X","params":[{},{}]}"#,
        ] {
            let error = read(payload).expect_err("refused");
            assert!(error.to_string().contains("no JSON-RPC call"), "{payload}: {error}");
        }
    }

    #[test]
    fn answers_are_upstreams_to_the_byte() {
        assert_eq!(write(&Ok("null".into())), r#"{"result":null,"error":null,"id":0}"#);
        assert_eq!(
            write(&Err(StorageError::Unimplemented("X".into()))),
            r#"{"result":null,"error":["Unimplemented","X"],"id":0}"#
        );
        assert_eq!(
            write(&Err(StorageError::backend(24, "held"))),
            concat!(
                r#"{"result":null,"error":["Backend_error",["SR_BACKEND_FAILURE_24","#,
                r#"["","held",""]]],"id":0}"#
            )
        );
    }
}
