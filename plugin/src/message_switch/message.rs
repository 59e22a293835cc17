//! Messages as the switch hands them over, in the order in which they were sent. Pure: no I/O.
//!
//! Source: xen-api `ocaml/message-switch/core/protocol.ml`.

use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

/// A call that waits in our queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// The switch's number of it, which grows.
    pub(super) id: i64,
    /// Where the caller waits for the answer; absent where nobody does.
    pub(super) reply_queue: Option<String>,
    /// The call.
    pub(super) payload: String,
}

/// What names a message for good: a switch that lost its queues counts anew.
pub(super) type Key = (i64, String);

impl Message {
    /// The message's name.
    pub(super) fn key(&self) -> Key {
        let reply_queue = self.reply_queue.as_deref().unwrap_or_default();
        let bytes = reply_queue.bytes().chain([0]).chain(self.payload.bytes());
        (self.id, format!("{:032x}", fnv(bytes)))
    }
}

/// What a volume is named that a message makes and whose caller names none: made again, it is the
/// same.
pub(super) fn volume_name(key: &Key) -> Uuid {
    let digest = u128::from_str_radix(&key.1, 16).expect("a digest is 128 bits in hexadecimal");
    let bytes = (digest ^ u128::from(key.0.cast_unsigned())).to_be_bytes();
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// FNV-1a of 128 bits: equal on every machine and in every version.
fn fnv(bytes: impl Iterator<Item = u8>) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

#[derive(Deserialize)]
struct Transfer {
    messages: Vec<((String, i64), Entry)>,
    next: String,
}

#[derive(Deserialize)]
struct Entry {
    payload: String,
    kind: (String, Value),
}

/// The answer to a transfer: messages, oldest first (the switch tells the newest first), and where
/// the next transfer goes on.
///
/// # Errors
/// What is not as the protocol says.
pub(super) fn read(body: &[u8]) -> Result<(Vec<Message>, String), String> {
    let transfer: Transfer = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let message = |((_, id), entry): ((String, i64), Entry)| {
        let reply_queue = match entry.kind {
            (kind, Value::String(queue)) if kind == "Request" => Some(queue),
            _ => None,
        };
        Message { id, reply_queue, payload: entry.payload }
    };
    let mut messages: Vec<Message> = transfer.messages.into_iter().map(message).collect();
    messages.sort_by_key(|message| message.id);
    Ok((messages, transfer.next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_newest_first_and_are_read_oldest_first() {
        let body = br#"{"messages":[[["q",9],{"payload":"b","kind":["Request","r"]}],
            [["q",7],{"payload":"a","kind":["Response",["q",3]]}]],"next":"9"}"#;
        let (messages, next) = read(body).expect("as upstream writes it");
        assert_eq!(next, "9");
        let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
        assert_eq!(ids, [7, 9]);
        assert_eq!(messages[0].reply_queue, None);
        assert_eq!(messages[1].reply_queue.as_deref(), Some("r"));
        assert!(read(b"{}").is_err());
    }

    #[test]
    fn a_name_is_of_id_caller_and_payload() {
        let message = |id, queue: &str, payload: &str| {
            Message { id, reply_queue: Some(queue.into()), payload: payload.into() }.key()
        };
        assert_eq!(message(1, "r", "p"), message(1, "r", "p"));
        for other in [message(2, "r", "p"), message(1, "rp", ""), message(1, "r", "q")] {
            assert_ne!(message(1, "r", "p"), other);
        }
        // The test vector of the algorithm's authors for "a".
        assert_eq!(fnv([b'a'].into_iter()), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }
}
