//! What a completion belongs to, as 64 bits that travel through the kernel.

/// Who waits for a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// Nobody waits for it.
    None,
    /// A request's data or flush.
    Request {
        /// In which of the device's slots.
        slot: u16,
    },
    /// The device's event channel is readable, and this was read.
    Event,
    /// The device's event wait was cancelled.
    Cancelled,
    /// A control connection, the listener (`u16::MAX`) or a queue's mailbox is readable.
    Control {
        /// Which connection.
        connection: u16,
    },
    /// An NBD client, or with `u16::MAX` the listener: one of its requests, or its socket.
    Nbd {
        /// Which client.
        client: u16,
        /// Which request, or which direction of the socket.
        lane: u16,
    },
}

impl Tag {
    pub(super) fn encode(self) -> u64 {
        let (kind, high, low) = match self {
            Tag::None => (0, 0, 0),
            Tag::Request { slot } => (1, slot, 0),
            Tag::Event => (2, 0, 0),
            Tag::Cancelled => (3, 0, 0),
            Tag::Control { connection } => (4, connection, 0),
            Tag::Nbd { client, lane } => (5, client, lane),
        };
        kind << 32 | u64::from(high) << 16 | u64::from(low)
    }

    #[expect(clippy::cast_possible_truncation, reason = "each field is cut to its own bits")]
    pub(super) fn decode(bits: u64) -> Self {
        let (high, low) = ((bits >> 16) as u16, bits as u16);
        match bits >> 32 {
            1 => Tag::Request { slot: high },
            2 => Tag::Event,
            3 => Tag::Cancelled,
            4 => Tag::Control { connection: high },
            5 => Tag::Nbd { client: high, lane: low },
            _ => Tag::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tag;

    #[test]
    fn tags_survive_the_kernel() {
        for tag in [
            Tag::None,
            Tag::Request { slot: 511 },
            Tag::Event,
            Tag::Cancelled,
            Tag::Control { connection: u16::MAX },
            Tag::Nbd { client: 15, lane: u16::MAX },
        ] {
            assert_eq!(Tag::decode(tag.encode()), tag);
        }
    }
}
