//! An open transaction: a copy of the tree, what was looked at, what was changed.

use super::store::Store;
use super::view::Change;
use std::collections::{BTreeMap, BTreeSet};

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
    pub(super) fn note(&mut self, paths: BTreeSet<String>) {
        for path in paths {
            let generation = self.store.get(&path).map(|node| node.generation);
            if generation.is_none_or(|generation| generation <= self.started) {
                self.seen.entry(path).or_insert(generation);
            }
        }
    }

    /// Whether something that it looked at has changed since.
    pub(super) fn conflicts(&self, live: &Store) -> bool {
        let now = |path: &str| live.get(path).map(|node| node.generation);
        self.seen.iter().any(|(path, then)| now(path) != *then)
    }
}
