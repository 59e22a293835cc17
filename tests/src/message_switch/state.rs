//! The queues, sessions and messages of the stand-in, and what its protocol answers. No I/O.
//!
//! After xen-api `ocaml/message-switch/switch/*.ml`, as measured on the genuine one.

use super::http::Request;
use super::judge;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A message in a queue.
#[derive(Debug, Clone)]
pub(super) struct Message {
    queue: String,
    payload: String,
    kind: Value,
    /// Delivered once more, whatever the receiver has seen.
    again: bool,
    /// An answer to it was posted.
    answered: bool,
}

/// All that the switch knows.
#[derive(Debug, Default)]
pub(super) struct State {
    next_id: i64,
    queues: BTreeSet<String>,
    /// Queues that go with their session.
    transient: HashMap<String, String>,
    connections: HashMap<String, usize>,
    pub(super) messages: BTreeMap<i64, Message>,
    /// Acknowledged ones, for [`State::deliver_again`].
    acknowledged: BTreeMap<i64, Message>,
    /// While it is set, nothing is handed to servers.
    pub(super) held: bool,
    pub(super) violations: Vec<String>,
}

/// What a request comes to.
pub(super) enum Outcome {
    /// Status and body.
    Answer(u16, String),
    /// A transfer that found nothing yet: ask again until its time-out, seconds.
    Wait { timeout: f64, empty: String },
}

fn ok(body: impl Into<String>) -> Outcome {
    Outcome::Answer(200, body.into())
}

impl State {
    /// Forgets what does not survive a restart; with `keep` queues and messages do.
    pub(super) fn restart(&mut self, keep: bool) {
        self.connections.clear();
        let transient = std::mem::take(&mut self.transient);
        if keep {
            for queue in transient.keys() {
                self.remove_queue(queue);
            }
        } else {
            *self = State { violations: std::mem::take(&mut self.violations), ..State::default() };
        }
    }

    fn remove_queue(&mut self, queue: &str) {
        self.queues.remove(queue);
        self.messages.retain(|_, message| message.queue != queue);
    }

    /// A connection has ended.
    pub(super) fn disconnected(&mut self, token: &str) {
        let Some(count) = self.connections.get_mut(token) else { return };
        *count -= 1;
        if *count == 0 {
            self.connections.remove(token);
            let queues: Vec<String> = self
                .transient
                .iter()
                .filter(|(_, owner)| *owner == token)
                .map(|(queue, _)| queue.clone())
                .collect();
            for queue in queues {
                self.transient.remove(&queue);
                self.remove_queue(&queue);
            }
        }
    }

    /// Hands messages out once more, acknowledged or not.
    pub(super) fn deliver_again(&mut self, ids: &[i64]) {
        for id in ids {
            if let Some(message) = self.acknowledged.remove(id) {
                self.messages.insert(*id, message);
            }
            if let Some(message) = self.messages.get_mut(id) {
                message.again = true;
            }
        }
    }

    /// How many messages wait in a queue.
    pub(super) fn waiting(&self, queue: &str) -> usize {
        self.messages.values().filter(|message| message.queue == queue).count()
    }

    pub(super) fn serve(&mut self, session: &mut Option<String>, request: &Request) -> Outcome {
        let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
        let method = request.method.as_str();
        if let ("GET", ["login", token]) = (method, &path[..]) {
            *self.connections.entry((*token).into()).or_default() += 1;
            *session = Some((*token).into());
            return ok("");
        }
        let Some(token) = session.clone() else {
            self.violations.push(format!("{method} {path:?} before login"));
            return Outcome::Answer(404, "Please log in.".into());
        };
        match (method, &path[..]) {
            ("GET", ["persistent", queue]) => {
                self.queues.insert((*queue).into());
                ok(*queue)
            }
            ("GET", ["transient", queue]) => {
                self.queues.insert((*queue).into());
                self.transient.insert((*queue).into(), token);
                ok(*queue)
            }
            ("POST", ["transfer"]) => self.transfer(&request.body),
            ("POST", ["request", queue, reply]) => {
                ok(self.send(queue, &request.body, &json!(["Request", reply])))
            }
            ("POST", ["response", reply, queue, id]) => self.respond(reply, queue, id, request),
            ("GET", ["ack", queue, id]) => self.acknowledge(queue, id),
            _ => {
                self.violations.push(format!("there is no {method} {path:?}"));
                Outcome::Answer(404, "Not found".into())
            }
        }
    }

    fn send(&mut self, queue: &str, payload: &str, kind: &Value) -> String {
        if !self.queues.contains(queue) {
            return "[]".into();
        }
        let id = self.next_id;
        self.next_id += 1;
        let (queue, payload) = (queue.to_owned(), payload.to_owned());
        let body = json!([[queue, id]]).to_string();
        let kind = kind.clone();
        let message = Message { queue, payload, kind, again: false, answered: false };
        self.messages.insert(id, message);
        body
    }

    fn transfer(&mut self, body: &str) -> Outcome {
        let Ok(asked) = serde_json::from_str::<Value>(body) else {
            self.violations.push(format!("a transfer of {body}"));
            return Outcome::Answer(500, "no JSON".into());
        };
        let queues: Option<Vec<String>> = serde_json::from_value(asked["queues"].clone()).ok();
        let from = match asked.get("from") {
            None => Some(-1),
            Some(from) => from.as_str().and_then(|from| from.parse().ok()),
        };
        let timeout = asked["timeout"].as_f64().filter(|_| asked["timeout"].is_f64());
        let (Some(queues), Some(from), Some(timeout)) = (queues, from, timeout) else {
            self.violations.push(format!("a transfer of {body}"));
            return Outcome::Answer(500, "a field is missing or of the wrong type".into());
        };
        let servers = queues.iter().any(|queue| !self.transient.contains_key(queue));
        let mut found = Vec::new();
        if !(self.held && servers) {
            for (id, message) in &mut self.messages {
                if queues.contains(&message.queue) && (*id > from || message.again) {
                    message.again = false;
                    let entry = json!({"payload": message.payload, "kind": message.kind});
                    found.push(json!([[message.queue, id], entry]));
                }
            }
        }
        // Newest first, as the genuine one.
        found.reverse();
        let highest = found.first().and_then(|found| found[0][1].as_i64());
        let next = highest.map_or(from, |highest| highest.max(from)).to_string();
        let body = json!({"messages": found, "next": next}).to_string();
        if found.is_empty() { Outcome::Wait { timeout, empty: body } } else { ok(body) }
    }

    fn respond(&mut self, reply: &str, queue: &str, id: &str, request: &Request) -> Outcome {
        if let Err(problem) = judge::envelope(&request.body) {
            self.violations.push(format!("{problem}: {}", request.body));
        }
        let Ok(number) = id.parse::<i64>() else {
            self.violations.push(format!("an answer to message {id:?}"));
            return Outcome::Answer(500, "int_of_string".into());
        };
        match self.messages.get_mut(&number) {
            Some(message) if message.kind == json!(["Request", reply]) => message.answered = true,
            _ => self.violations.push(format!("an answer to {number}, which is not for {reply}")),
        }
        ok(self.send(reply, &request.body, &json!(["Response", [queue, number]])))
    }

    fn acknowledge(&mut self, queue: &str, id: &str) -> Outcome {
        let number = id.parse().unwrap_or(-1);
        match self.messages.remove(&number) {
            Some(message) if message.queue == queue => {
                let request = message.kind[0] == "Request";
                if request && !message.answered {
                    self.violations.push(format!("message {id} acknowledged, not answered"));
                }
                self.acknowledged.insert(number, message);
            }
            other => {
                self.violations
                    .push(format!("message {queue}/{id} acknowledged, and is {other:?}"));
            }
        }
        ok("")
    }
}
