//! Changes of state, told to whoever listens.
//!
//! Telling never waits, and costs nothing but memory of a fixed size: who listens too slowly loses
//! the oldest and learns how many. Called where states change; read by `rpc/events.rs`.

use std::sync::Arc;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use zerotap_rpc_schema::event::{Change, Event};

/// Events that a listener may be behind.
pub const EVENTS_KEPT_MAX: usize = 1024;

/// Where changes are told. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events(broadcast::Sender<Arc<Event>>);

impl Default for Events {
    fn default() -> Self {
        Events(broadcast::channel(EVENTS_KEPT_MAX).0)
    }
}

impl Events {
    /// Tells of a change.
    pub fn tell(&self, change: Change) {
        // Most often nobody listens.
        let _ = self.0.send(Arc::new(Event { at: now(), change }));
    }

    /// Listens from now on.
    #[must_use]
    pub fn listen(&self) -> Listener {
        Listener(self.0.subscribe())
    }
}

/// A listener.
#[derive(Debug)]
pub struct Listener(broadcast::Receiver<Arc<Event>>);

impl Listener {
    /// The next event; `None` when the daemon stops.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(missed)) => {
                Some(Arc::new(Event { at: now(), change: Change::Lagged { missed } }))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_slow_learns_how_much_was_missed_and_costs_no_more() {
        let events = Events::default();
        let (mut quick, mut slow) = (events.listen(), events.listen());
        let told = |n: usize| Change::Sr { sr: n.to_string(), state: "attached".into() };
        for n in 0..EVENTS_KEPT_MAX + 5 {
            events.tell(told(n));
            assert_eq!(quick.next().await.expect("told").change, told(n));
        }
        assert_eq!(slow.next().await.expect("told").change, Change::Lagged { missed: 5 });
        assert_eq!(slow.next().await.expect("told").change, told(5));
        drop(events);
        assert_eq!(quick.next().await, None);
    }
}
