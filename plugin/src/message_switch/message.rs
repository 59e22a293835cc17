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

/// What names a message: its id, and a digest of all else that is known of it. A switch counts anew
/// when it is started, but a caller of XAPI's never says the same twice: its reply queue is called
/// by its process, and each of its calls has a number (ocaml-rpc `src/lib/jsonrpc.ml`, `new_id`).
pub(super) type Key = (i64, String);

impl Message {
    /// The message's name in a boot of the host: with the host processes begin anew, too, and may
    /// say what others said before.
    pub(super) fn key(&self, boot_id: &str) -> Key {
        let reply_queue = self.reply_queue.as_deref().unwrap_or_default();
        let parts = [boot_id, reply_queue, &self.payload];
        let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
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
    // A caller's text is taken as it is by the switch. One that is no UTF-8 makes no sense; it must
    // not keep the others from being read.
    let body = String::from_utf8_lossy(body);
    let transfer: Transfer = serde_json::from_str(&body).map_err(|error| error.to_string())?;
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
        let mut odd = body.to_vec();
        let at = odd.windows(3).position(|bytes| bytes == b"\"a\"").expect("a payload");
        odd[at + 1] = 0xff;
        let (messages, _) = read(&odd).expect("the others are in there, too");
        assert_eq!(messages[0].payload, "\u{fffd}");
    }

    #[test]
    fn a_name_is_of_boot_id_caller_and_payload() {
        let message = |boot: &str, id, queue: &str, payload: &str| {
            Message { id, reply_queue: Some(queue.into()), payload: payload.into() }.key(boot)
        };
        let one = message("b", 1, "r", "p");
        assert_eq!(message("b", 1, "r", "p"), one);
        for other in [
            message("c", 1, "r", "p"),
            message("b", 2, "r", "p"),
            message("b", 1, "rp", ""),
            message("b", 1, "r", "q"),
            message("br", 1, "", "p"),
        ] {
            assert_ne!(other, one);
            assert_ne!(volume_name(&other), volume_name(&one), "two volumes of one name are one");
        }
        // The test vector of the algorithm's authors for "a".
        assert_eq!(fnv([b'a'].into_iter()), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }
}
