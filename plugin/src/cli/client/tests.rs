//! A client against sockets that are absent, dead, rude, slow, or answer well.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi2::{NoParams, SrParams};
use zerotap_rpc_schema::table::{SrDetach, SrList, SrStat};

fn no_params() -> NoParams {
    NoParams { dbg: String::new() }
}

/// A server that reads a request and answers each connection with `answer`, byte for byte.
fn serve(answer: String) -> (tempfile::TempDir, Client) {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("rpc.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (dir, Client::new(socket))
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_result_comes_back_typed() {
    let body = r#"{"jsonrpc":"2.0","id":1,"result":["a","b"]}"#;
    let (_dir, client) = serve(http("200 OK", body));
    let list = client.call::<SrList>(&no_params()).await.expect("a list");
    assert_eq!(list, ["a", "b"]);
}

#[tokio::test]
async fn a_null_result_is_a_result() {
    let (_dir, client) = serve(http("200 OK", r#"{"jsonrpc":"2.0","id":1,"result":null}"#));
    let params = SrParams { dbg: String::new(), sr: "s".into() };
    client.call::<SrDetach>(&params).await.expect("nothing");
}

#[tokio::test]
async fn a_storage_error_is_read_from_data() {
    let error = StorageError::backend(number::SR_NO_SPACE, "no room for 1 GiB");
    let body = json!({ "jsonrpc": "2.0", "id": 1, "error": {
        "code": 44, "message": "Backend_error", "data": error } });
    let (_dir, client) = serve(http("200 OK", &body.to_string()));
    let params = SrParams { dbg: String::new(), sr: "s".into() };
    match client.call::<SrStat>(&params).await {
        Err(CallError::Storage { error: found, .. }) => assert_eq!(found, error),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_error_without_a_variant_keeps_message_and_data() {
    let body = r#"{"jsonrpc":"2.0","id":1,"error":
        {"code":-32602,"message":"Invalid params","data":"missing field `sr`"}}"#;
    let (_dir, client) = serve(http("200 OK", body));
    let error = client.call::<SrList>(&no_params()).await.expect_err("an error");
    assert_eq!(error.to_string(), "SR.list: Invalid params: missing field `sr` [-32602]");
}

#[tokio::test]
async fn a_missing_socket_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let client = Client::new(dir.path().join("none.sock"));
    match client.call::<SrList>(&no_params()).await {
        Err(CallError::Connect { socket, source }) => {
            assert!(socket.ends_with("none.sock"));
            assert_eq!(source.kind(), io::ErrorKind::NotFound);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_socket_that_nobody_serves_any_more_refuses() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("rpc.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    let error = Client::new(socket).call::<SrList>(&no_params()).await.expect_err("an error");
    let refused = |source: &io::Error| source.kind() == io::ErrorKind::ConnectionRefused;
    assert!(matches!(&error, CallError::Connect { source, .. } if refused(source)), "{error:?}");
}

#[tokio::test]
async fn a_connection_cut_short_is_told_from_a_failed_call() {
    let (_dir, client) = serve("HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{\"js".into());
    let error = client.call::<SrList>(&no_params()).await.expect_err("an error");
    assert!(matches!(error, CallError::Broken { .. }), "{error:?}");
}

#[tokio::test]
async fn another_protocol_is_not_understood() {
    for (status, body) in
        [("413 Payload Too Large", "too big"), ("200 OK", "hello"), ("200 OK", "{}")]
    {
        let (_dir, client) = serve(http(status, body));
        let error = client.call::<SrList>(&no_params()).await.expect_err("an error");
        assert!(matches!(error, CallError::Garbled { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_silent_daemon_meets_the_deadline() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("rpc.sock");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let error =
        Client::new(socket).call_within::<SrList>(&no_params(), 0).await.expect_err("an error");
    assert!(matches!(error, CallError::Late { seconds: 0, .. }), "{error:?}");
}
