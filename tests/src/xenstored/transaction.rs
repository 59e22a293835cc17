//! An open transaction: a copy of the tree, what was looked at, what was changed.

use super::store::Store;
use super::view::Change;
use std::collections::BTreeMap;

/// One transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    /// The tree as it was at the start, plus the transaction's own changes.
    pub(super) store: Store,
    /// In order; played again on the live tree at the end.
    pub(super) changes: Vec<Change>,
    /// The generation that each node had at the start when looked at, absent nodes too.
    seen: BTreeMap<String, Option<u64>>,
    started: u64,
}

impl Transaction {
    pub(super) fn new(live: &Store) -> Transaction {
        let started = live.generation();
        Transaction { store: live.clone(), changes: Vec::new(), seen: BTreeMap::new(), started }
    }

    /// Remembers what was looked at, unless the transaction itself had changed it.
    pub(super) fn note(&mut self, seen: BTreeMap<String, Option<u64>>) {
        for (path, generation) in seen {
            if generation.is_none_or(|generation| generation <= self.started) {
                self.seen.entry(path).or_insert(generation);
            }
        }
    }

    /// Whether a node that it looked at was not there at the start.
    pub(super) fn was_absent(&self, path: &str) -> bool {
        self.seen.get(path) == Some(&None)
    }

    /// Whether something that it looked at has changed since.
    pub(super) fn conflicts(&self, live: &Store) -> bool {
        let now = |path: &str| live.get(path).map(|node| node.generation);
        self.seen.iter().any(|(path, then)| now(path) != *then)
    }
}
