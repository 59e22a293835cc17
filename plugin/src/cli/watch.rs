//! `zerotap watch`: every change of state as it happens, a line each, until interrupted.

use super::context::{Context, write};
use super::failure::Failure;
use super::table;
use jsonrpsee::client_transport::ws::{Url, WsTransportClientBuilder};
use jsonrpsee::core::client::{ClientBuilder, Subscription, SubscriptionClientT};
use jsonrpsee::core::params::ObjectParams;
use zerotap_rpc_schema::Method;
use zerotap_rpc_schema::event::{Change, Event};
use zerotap_rpc_schema::table::{EventSubscribe, EventUnsubscribe};

pub(crate) async fn run(context: &Context) -> Result<(), Failure> {
    let broken = |problem: String| Failure::plain(format!("cannot watch: {problem}"));
    let stream = context.client.connect().await?;
    let url = Url::parse("ws://localhost/").expect("a constant");
    let transport = WsTransportClientBuilder::default().build_with_stream(url, stream).await;
    let (sender, receiver) = transport.map_err(|error| broken(error.to_string()))?;
    let client = ClientBuilder::default().build_with_tokio(sender, receiver);
    let (subscribe, unsubscribe) = (EventSubscribe::NAME, EventUnsubscribe::NAME);
    let events = client.subscribe(subscribe, ObjectParams::new(), unsubscribe).await;
    let mut events: Subscription<Event> = events.map_err(|error| broken(error.to_string()))?;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        match event {
            Some(Ok(event)) if context.json => {
                let line = serde_json::to_string(&event).expect("wire types have string keys");
                write(&(line + "\n"))?;
            }
            Some(Ok(event)) => write(&line(&event))?,
            Some(Err(error)) => return Err(broken(error.to_string())),
            None => return Err(broken("the daemon has stopped. Start it and watch again".into())),
        }
    }
}

fn line(event: &Event) -> String {
    let text = match &event.change {
        Change::Sr { sr, state } => format!("SR {sr} {state}"),
        Change::Datapath { sr, vdi, dp, domain, from, to } => {
            format!("VDI {sr}/{vdi}: datapath {dp} of domain {domain}: {from} -> {to}")
        }
        Change::Vbd { domid, device, sr, vdi, state, frontend_state, worker, trouble } => {
            let worker = worker.as_ref().map(|id| format!(", worker {id}")).unwrap_or_default();
            let trouble = trouble.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
            format!(
                "VBD {device} of domain {domid} ({sr}/{vdi}): {state}, frontend \
                 {frontend_state}{worker}{trouble}"
            )
        }
        Change::Worker { sr, vdi, worker, pid, state, why } => {
            let why = why.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
            format!("worker {worker} (pid {pid}) of VDI {sr}/{vdi}: {state}{why}")
        }
        Change::Lagged { missed } => {
            format!("{missed} events were missed: this reader is too slow. See zerotap status")
        }
    };
    table::plain(&format!("{}  {text}", event.at)).replace('\n', " ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_that_no_name_breaks() {
        let change = Change::Worker {
            sr: "s".into(),
            vdi: "v\nx".into(),
            worker: "w".into(),
            pid: 7,
            state: "died".into(),
            why: Some("signal 9 ended it".into()),
        };
        let event = Event { at: "2026-01-01T00:00:00.001Z".into(), change };
        let wanted = "2026-01-01T00:00:00.001Z  worker w (pid 7) of VDI s/v x: died: signal 9 \
                      ended it\n";
        assert_eq!(line(&event), wanted);
        let lagged = Event { at: "t".into(), change: Change::Lagged { missed: 3 } };
        assert!(line(&lagged).starts_with("t  3 events were missed"));
    }
}
