//! `Event.subscribe`: changes of state over a WebSocket, one notification `Event.changed` each.
//!
//! A subscriber that reads slowly holds a few messages here and nothing more: the hub counts what
//! it misses.

use crate::rpc::Core;
use jsonrpsee::core::SubscriptionResult;
use jsonrpsee::{PendingSubscriptionSink, RpcModule};
use std::sync::Arc;
use zerotap_rpc_schema::Method;
use zerotap_rpc_schema::event::NOTIFICATION;
use zerotap_rpc_schema::table::{EventSubscribe, EventUnsubscribe};

pub(super) fn add_to(module: &mut RpcModule<Core>) {
    let registered = module.register_subscription(
        EventSubscribe::NAME,
        NOTIFICATION,
        EventUnsubscribe::NAME,
        |_, pending, core, _| send(pending, core),
    );
    registered.expect("a subscription is added once");
}

async fn send(pending: PendingSubscriptionSink, core: Arc<Core>) -> SubscriptionResult {
    // Before the answer: what changes once the caller has it is told.
    let mut listener = core.events.listen();
    let sink = pending.accept().await?;
    loop {
        let event = tokio::select! {
            event = listener.next() => event,
            () = sink.closed() => return Ok(()),
        };
        let Some(event) = event else { return Ok(()) };
        let text = serde_json::value::to_raw_value(&*event)?;
        // Waits for who reads slowly; an error says that it has gone.
        if sink.send(text).await.is_err() {
            return Ok(());
        }
    }
}
