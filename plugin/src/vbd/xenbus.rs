//! XenBus states: how the two ends of a device tell each other how far they are.
//!
//! Source: xen/include/public/io/xenbus.h (`enum xenbus_state`).

/// A state, as either end writes it into its `state` node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not there, or going.
    Unknown = 0,
    /// Made by the toolstack.
    Initialising = 1,
    /// The backend has said what it offers and waits for the frontend's ring.
    InitWait = 2,
    /// The frontend has published its ring.
    Initialised = 3,
    /// I/O flows.
    Connected = 4,
    /// On the way out, I/O may still flow.
    Closing = 5,
    /// Nothing is held of the other end any more.
    Closed = 6,
    /// Not used by block devices.
    Reconfiguring = 7,
    /// Not used by block devices.
    Reconfigured = 8,
}

const ALL: [State; 9] = [
    State::Unknown,
    State::Initialising,
    State::InitWait,
    State::Initialised,
    State::Connected,
    State::Closing,
    State::Closed,
    State::Reconfiguring,
    State::Reconfigured,
];

impl State {
    /// Reads a `state` node. A guest may have written anything there.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        match value.as_bytes() {
            [digit @ b'0'..=b'8'] => Some(ALL[usize::from(digit - b'0')]),
            _ => None,
        }
    }

    /// For people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            State::Unknown => "unknown",
            State::Initialising => "initialising",
            State::InitWait => "init-wait",
            State::Initialised => "initialised",
            State::Connected => "connected",
            State::Closing => "closing",
            State::Closed => "closed",
            State::Reconfiguring => "reconfiguring",
            State::Reconfigured => "reconfigured",
        }
    }

    /// A `state` node in a word, whatever is in it.
    #[must_use]
    pub fn describe(node: Option<&str>) -> String {
        match (node, node.and_then(State::parse)) {
            (None, _) => "absent".to_owned(),
            (_, Some(state)) => state.word().to_owned(),
            (Some(_), None) => "garbage".to_owned(),
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", *self as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_digit_is_a_state() {
        for state in ALL {
            assert_eq!(State::parse(&state.to_string()), Some(state));
        }
        for garbage in ["", "9", "-1", "+4", "04", "4 ", "4\0", "four", "44444444444444444444"] {
            assert_eq!(State::parse(garbage), None, "{garbage:?}");
            assert_eq!(State::describe(Some(garbage)), "garbage");
        }
    }
}
