//! Small reads that came together and are adjacent reach the image as one. No I/O.
//!
//! A client that reads in order, many requests at a time, is answered many at a time, and so asks.
//! Each read by itself would cost the disk as much as all of them. Nothing is waited for here: what
//! one turn took from the socket is looked at, no more.
//!
//! Called by a connection.

use super::REQUESTS_MAX;
use super::export::Export;
use super::transmission::{Command, Request};

/// Longer reads gain nothing, bytes.
const SMALL_BYTES_MAX: u32 = 16 << 10;

/// A small read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Read {
    slot: u16,
    start: u64,
    end: u64,
}

/// The small reads of one turn.
#[derive(Debug)]
pub(super) struct Gather(Vec<Read>);

impl Gather {
    pub(super) fn new() -> Gather {
        Gather(Vec::with_capacity(REQUESTS_MAX))
    }

    /// Takes a request if it is a small read of whole sectors.
    pub(super) fn take(&mut self, slot: u16, request: &Request, export: &Export) -> bool {
        let (start, end) = export.widen(request.offset, u64::from(request.length));
        let whole = start == request.offset && end == start + u64::from(request.length);
        let small = request.length <= SMALL_BYTES_MAX;
        let taken = request.command == Command::Read && whole && small;
        if taken {
            self.0.push(Read { slot, start, end });
        }
        taken
    }

    /// From here on, runs come out in order.
    pub(super) fn sort(&mut self) {
        // Descending: they are taken from the end.
        self.0.sort_unstable_by_key(|read| std::cmp::Reverse(read.start));
    }

    /// The next one, and whether the one behind it begins where it ends.
    pub(super) fn next(&mut self) -> Option<(u16, bool)> {
        let read = self.0.pop()?;
        Some((read.slot, self.0.last().is_some_and(|behind| behind.start == read.end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_reads_come_out_as_runs() {
        let read = |slot: u16, start: u64| Read { slot, start, end: start + 4096 };
        let mut gather = Gather(vec![
            read(4, 8192),
            read(1, 40960),
            read(2, 4096),
            read(9, 40960),
            read(3, 45056),
            read(7, 0),
        ]);
        gather.sort();
        let came: Vec<_> = std::iter::from_fn(|| gather.next()).collect();
        let (twins, rest) = (&came[3..5], [&came[..3], &came[5..]].concat());
        assert_eq!(rest, [(7, true), (2, true), (4, false), (3, false)]);
        // Two of the same place: one of them leads on.
        assert_eq!(twins.iter().map(|(_, leads)| *leads).collect::<Vec<_>>(), [false, true]);
    }
}
