//! How a method of the table becomes a handler: parameters in, SMAPIv2's errors out, for the
//! JSON-RPC door (strict) and, by name, for the queue (tolerant).
//!
//! Knows no method by name; `smapi2.rs`, `smapi3.rs` and `admin.rs` add theirs. The whole table is
//! served, no more and no less: a test says so.

use crate::rpc::peer::Peer;
use crate::rpc::tcp::Remote;
use crate::rpc::{Core, tolerant};
use futures_util::future::BoxFuture;
use jsonrpsee::types::ErrorObjectOwned;
use jsonrpsee::types::error::INVALID_PARAMS_CODE;
use jsonrpsee::{Methods, RpcModule};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument;
use uuid::Uuid;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::{Method, StorageError, deadline_of};

/// The longest part of a caller's `dbg` that is logged, in characters.
const DBG_CHARS_MAX: usize = 200;

type Call = Box<
    dyn Fn(Arc<Core>, Uuid, Map<String, Value>) -> BoxFuture<'static, Result<String, StorageError>>
        + Send
        + Sync,
>;

/// The methods while they are put together.
pub struct Table {
    module: RpcModule<Core>,
    by_name: HashMap<&'static str, Call>,
}

/// The methods for who has names and values.
pub struct Calls {
    core: Arc<Core>,
    by_name: HashMap<&'static str, Call>,
}

impl Calls {
    /// Calls a method with named parameters, read tolerantly; the result is JSON. It may be
    /// dropped: what it began goes on. `names`: what a volume is named that it makes.
    ///
    /// # Errors
    /// `Unimplemented` for a name that the table has not; parameters that make no sense; the
    /// method's own.
    pub fn call(
        &self,
        method: &str,
        names: Uuid,
        params: Map<String, Value>,
    ) -> BoxFuture<'static, Result<String, StorageError>> {
        match self.by_name.get(method) {
            Some(call) => call(Arc::clone(&self.core), names, params),
            None => {
                let error = StorageError::Unimplemented(method.into());
                Box::pin(std::future::ready(Err(error)))
            }
        }
    }
}

/// Every method of the table, served by `core`.
///
/// # Panics
/// Two handlers have the same name; a test would have told.
#[must_use]
pub fn all(core: Arc<Core>) -> Methods {
    table(core).module.into()
}

/// The same methods by name.
///
/// # Panics
/// As [`all`].
#[must_use]
pub fn calls(core: Arc<Core>) -> Calls {
    Calls { by_name: table(Arc::clone(&core)).by_name, core }
}

fn table(core: Arc<Core>) -> Table {
    let mut table = Table { module: RpcModule::from_arc(core), by_name: HashMap::new() };
    super::smapi2::add_to(&mut table);
    super::smapi3::add_to(&mut table);
    super::further::add_to(&mut table);
    super::admin::add_to(&mut table);
    super::events::add_to(&mut table.module);
    table
}

impl Table {
    /// Serves method `M` with `handler`, in a span that names the caller.
    pub fn add<M, H, F>(&mut self, handler: H)
    where
        M: Method,
        H: Fn(Arc<Core>, M::Params) -> F + Copy + Send + Sync + 'static,
        F: Future<Output = Result<M::Output, StorageError>> + Send + 'static,
    {
        self.add_for_peer::<M, _, _>(move |core, _, params| handler(core, params));
    }

    /// The same, for a handler that must know who asks.
    pub fn add_for_peer<M, H, F>(&mut self, handler: H)
    where
        M: Method,
        H: Fn(Arc<Core>, Peer, M::Params) -> F + Copy + Send + Sync + 'static,
        F: Future<Output = Result<M::Output, StorageError>> + Send + 'static,
    {
        let registered = self.module.register_async_method(
            M::NAME,
            move |params, core, extensions| async move {
                let remote = extensions.get::<Remote>().copied();
                let from = remote.map(|Remote(from)| tracing::field::display(from));
                if let Some(remote) = remote {
                    remote.admit(M::NAME)?;
                }
                let peer = extensions.get::<Peer>().copied();
                let peer =
                    peer.unwrap_or(Peer { uid: u32::MAX, gid: u32::MAX, pid: 0, names: None });
                let counted = core.calls.begin(M::NAME);
                let (params, dbg) = match parse::<M::Params>(M::NAME, params.as_str()) {
                    Ok(parsed) => parsed,
                    Err(refusal) => return counted.end(Err(refusal)),
                };
                let span = tracing::info_span!(
                    "call",
                    method = M::NAME,
                    uid = peer.uid,
                    pid = peer.pid,
                    from,
                    dbg
                );
                let work = handler(Arc::clone(&core), peer, params).instrument(span);
                let answer = in_time(M::NAME, deadline_of(M::NAME), work).await;
                counted.end(answer).map_err(|error| to_object(&error))
            },
        );
        registered.expect("a method is added once");
        let call: Call = Box::new(move |core, names, params| {
            let dbg = dbg_of(&params);
            let params = match tolerant::read::<M::Params>(Value::Object(params)) {
                Ok(params) => params,
                Err(problem) => {
                    let text = format!("cannot call {}: {problem}", M::NAME);
                    let error = StorageError::backend(number::BAD_REQUEST, text);
                    return Box::pin(std::future::ready(Err(error)));
                }
            };
            let span = tracing::info_span!("call", method = M::NAME, queue = true, dbg);
            let ours = Peer { uid: 0, gid: 0, pid: 0, names: Some(names) };
            let work = handler(Arc::clone(&core), ours, params).instrument(span);
            Box::pin(async move {
                let counted = core.calls.begin(M::NAME);
                let output = in_time(M::NAME, deadline_of(M::NAME), work).await;
                let output = counted.end(output)?;
                let text = serde_json::to_string(&output);
                text.map_err(|error| StorageError::Internal(error.to_string()))
            })
        });
        self.by_name.insert(M::NAME, call);
    }
}

/// Gives the caller an answer in time, whatever becomes of the work: handlers may be dropped.
async fn in_time<T>(
    method: &str,
    deadline: Duration,
    work: impl Future<Output = Result<T, StorageError>>,
) -> Result<T, StorageError> {
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| {
        let text = format!(
            "{method} has not finished within {} s. It goes on; ask again later, Host.status tells \
             what holds it up",
            deadline.as_secs()
        );
        Err(StorageError::backend(number::GENERAL, text))
    })
}

/// What the caller calls its task. A trace context may follow, after a newline (xen-api
/// `xapi-idl/lib/debug_info.ml`).
fn dbg_of(params: &Map<String, Value>) -> String {
    let dbg = params.get("dbg").and_then(Value::as_str).unwrap_or_default();
    dbg.lines().next().unwrap_or_default().chars().take(DBG_CHARS_MAX).collect()
}

/// An error as JSON-RPC carries it: SMAPIv2's variant is in `data`.
fn to_object(error: &StorageError) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(error.code(), error.to_string(), Some(error))
}

/// Reads named parameters; the caller's `dbg` comes along for the log.
fn parse<P: DeserializeOwned>(
    method: &str,
    text: Option<&str>,
) -> Result<(P, String), ErrorObjectOwned> {
    let refuse = |problem: String| {
        let text = format!("cannot call {method}: {problem}");
        let error = StorageError::backend(number::BAD_REQUEST, text.clone());
        ErrorObjectOwned::owned(INVALID_PARAMS_CODE, text, Some(error))
    };
    let value = match text {
        None => Value::Object(Map::new()),
        Some(text) => serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?,
    };
    let object = match value {
        Value::Object(object) => object,
        Value::Null => Map::new(),
        _ => {
            let problem = "its parameters are named: give an object, not an array. rpc.discover \
                           tells the names";
            return Err(refuse(problem.into()));
        }
    };
    let dbg = dbg_of(&object);
    match serde_json::from_value(Value::Object(object.clone())) {
        Ok(params) => Ok((params, dbg)),
        Err(error) => {
            let place = culprit::<P>(&object, &error.to_string());
            let place = place.map(|name| format!("parameter `{name}`: ")).unwrap_or_default();
            Err(refuse(format!("{place}{error}")))
        }
    }
}

/// Which parameter has the wrong type: serde's errors don't say. Without it, the error is another.
fn culprit<P: DeserializeOwned>(object: &Map<String, Value>, error: &str) -> Option<String> {
    if error.starts_with("missing field") || error.starts_with("unknown field") {
        return None;
    }
    let differs = |name: &&String| {
        let mut without = object.clone();
        without.remove(name.as_str());
        let result = serde_json::from_value::<P>(Value::Object(without));
        result.err().is_none_or(|other| other.to_string() != error)
    };
    object.keys().find(differs).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerotap_rpc_schema::smapi2::{NoParams, VdiResizeParams};

    fn refusal(text: &str) -> String {
        let error = parse::<VdiResizeParams>("VDI.resize", Some(text)).expect_err("refused");
        assert_eq!(error.code(), INVALID_PARAMS_CODE);
        assert!(error.data().is_some_and(|data| data.get().contains("SR_BACKEND_FAILURE_143")));
        error.message().into()
    }

    #[test]
    fn what_is_wrong_with_parameters_is_named() {
        let good = r#"{"dbg":"task\n{\"traceparent\":1}","sr":"a","vdi":"b","new_size":4096}"#;
        let (params, dbg) = parse::<VdiResizeParams>("VDI.resize", Some(good)).expect("good");
        assert_eq!((params.new_size, dbg.as_str()), (4096, "task"));
        let unknown = refusal(r#"{"sr":"a","vdi":"b","size":4096}"#);
        assert!(unknown.contains("`size`") && unknown.contains("`new_size`"), "{unknown}");
        assert!(refusal(r#"{"sr":"a","vdi":"b"}"#).contains("missing field `new_size`"));
        let wrong = refusal(r#"{"sr":"a","vdi":"b","new_size":"big"}"#);
        assert!(wrong.contains("parameter `new_size`") && wrong.contains("i64"), "{wrong}");
        assert!(refusal(r#"{"sr":"a","vdi":7,"new_size":1}"#).contains("parameter `vdi`"));
        assert!(refusal(r#"{"sr":"a","vdi":"b","new_size":1.0}"#).contains("`new_size`"));
        assert!(refusal(r#"["a","b",4096]"#).contains("named"));
        assert!(refusal("7").contains("named"));
    }

    #[tokio::test]
    async fn a_call_that_hangs_is_answered_in_time() {
        let hangs = std::future::pending::<Result<(), StorageError>>();
        let error =
            in_time("VDI.deactivate", Duration::from_millis(1), hangs).await.expect_err("late");
        assert!(error.to_string().contains("VDI.deactivate") && error.code() == 202, "{error}");
        let quick = in_time("SR.list", deadline_of("SR.list"), std::future::ready(Ok(7)));
        assert_eq!(quick.await, Ok(7));
    }

    #[test]
    fn no_parameters_may_be_left_out() {
        for text in [None, Some("null"), Some("{}"), Some(r#"{"dbg":"x"}"#)] {
            assert!(parse::<NoParams>("SR.list", text).is_ok(), "{text:?}");
        }
        assert!(parse::<NoParams>("SR.list", Some("[]")).is_err());
    }
}
