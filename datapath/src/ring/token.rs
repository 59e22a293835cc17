//! A request's token: the frontend's cookie, which must be answered exactly once.

/// What an answer needs. Dropping one without [`Token::redeem`] or [`Token::abandon`] would lose a
/// request of the guest's, which then waits for ever: it panics in debug builds.
#[derive(Debug)]
#[must_use = "a request is answered or abandoned on purpose"]
pub struct Token {
    id: u64,
    operation: u8,
    place: u16,
    settled: bool,
}

impl Token {
    /// The token of a request just taken off the ring, which stands at `place` in its journal.
    pub fn new(id: u64, operation: u8, place: u16) -> Self {
        Token { id, operation, place, settled: false }
    }

    /// The cookie, the operation byte and the place in the journal, to be answered at once.
    #[must_use]
    pub fn redeem(mut self) -> (u64, u8, u16) {
        self.settled = true;
        (self.id, self.operation, self.place)
    }

    /// Gives the request up: its ring is gone, nobody waits for the answer.
    pub fn abandon(mut self) {
        self.settled = true;
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let excused = self.settled || std::thread::panicking();
        debug_assert!(excused, "request {:#x} was dropped without an answer", self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "dropped without an answer")]
    fn a_dropped_token_panics() {
        drop(Token::new(7, 0, 0));
    }

    #[test]
    fn a_settled_one_does_not() {
        assert_eq!(Token::new(7, 1, 2).redeem(), (7, 1, 2));
        Token::new(8, 0, 0).abandon();
    }
}
