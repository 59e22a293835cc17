//! The OpenRPC document is a golden file: a change of the interface shows in review.
#![cfg(feature = "schema")]

#[test]
fn the_document_is_the_golden_one() {
    let document = serde_json::to_string_pretty(&zerotap_rpc_schema::openrpc::document()).unwrap();
    expect_test::expect_file!["../openrpc.json"].assert_eq(&(document + "\n"));
}
