//! A xenstore of bytes in memory that answers at once: what the daemon's reading is given by the
//! target `xenstore`. Nothing is written through it but whole batches.

use crate::xenstore::{Batch, Change, Guard, Pending, Sink, Store, StoreError, Watch};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, PoisonError};

/// Nodes by their paths, in the same order in each run of an input.
pub type Nodes = HashMap<String, Vec<u8>, BuildHasherDefault<PathHasher>>;

/// Paths differ at their ends; what is cheap to compute leaves time for what is tested.
#[derive(Default)]
pub struct PathHasher(u64);

impl Hasher for PathHasher {
    fn write(&mut self, path: &[u8]) {
        let end = path.last_chunk().map_or(0, |end| u128::from_le_bytes(*end));
        let folded = (end ^ end >> 64) as u64 ^ path.len() as u64;
        self.0 = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// What ends a string.
    fn write_u8(&mut self, _: u8) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A tree of bytes that answers at once.
#[derive(Default)]
pub struct Tree {
    nodes: Mutex<Nodes>,
    /// Whether the guest's domain lives.
    pub introduced: bool,
}

impl Tree {
    /// Does something with all nodes.
    pub fn with<T>(&self, body: impl FnOnce(&mut Nodes) -> T) -> T {
        body(&mut self.nodes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does a batch; false when a guard does not hold.
    #[must_use]
    pub fn apply(&self, batch: Batch) -> bool {
        self.with(|nodes| {
            let holds = |guard: &Guard| match guard {
                Guard::Exists(path) => nodes.contains_key(path),
                Guard::Absent(path) => !nodes.contains_key(path),
                Guard::Equals(path, value) => {
                    nodes.get(path).is_some_and(|it| it == value.as_bytes())
                }
            };
            let all = batch.guards.iter().all(holds);
            for change in batch.changes.into_iter().filter(|_| all) {
                match change {
                    Change::Write(path, value) => drop(nodes.insert(path, value.into_bytes())),
                    Change::Remove(path) => drop(nodes.remove(&path)),
                    Change::Mkdir(_) | Change::Permit(..) => {}
                }
            }
            all
        })
    }
}

impl Store for Tree {
    fn read<'a>(&'a self, path: &'a str) -> Pending<'a, String> {
        let value = self.with(|nodes| nodes.get(path).cloned());
        let text = value.ok_or(StoreError::Missing(String::new()));
        let text = text
            .and_then(|it| String::from_utf8(it).map_err(|_| StoreError::NotText(String::new())));
        Box::pin(std::future::ready(text))
    }

    fn snapshot<'a>(&'a self, paths: &'a [String]) -> Pending<'a, Vec<Option<String>>> {
        let value = |nodes: &Nodes, path| {
            let value: Vec<u8> = nodes.get::<String>(path).cloned()?;
            Some(String::from_utf8(value).unwrap_or_else(|_| "\u{fffd}".to_owned()))
        };
        let values = self.with(|nodes| paths.iter().map(|path| value(nodes, path)).collect());
        Box::pin(std::future::ready(Ok(values)))
    }

    fn introduced(&self, _: u16) -> Pending<'_, bool> {
        let introduced = self.introduced;
        Box::pin(async move { Ok(introduced) })
    }

    fn write<'a>(&'a self, _: &'a str, _: &'a str) -> Pending<'a, ()> {
        unreachable!("reading writes nothing")
    }

    fn remove<'a>(&'a self, _: &'a str) -> Pending<'a, ()> {
        unreachable!("reading removes nothing")
    }

    fn list<'a>(&'a self, _: &'a str) -> Pending<'a, Vec<String>> {
        unreachable!("a device lists nothing")
    }

    fn transact<'a>(&'a self, _: &'a Batch) -> Pending<'a, ()> {
        unreachable!("reading changes nothing")
    }

    fn watch(&self, _: &str, _: Sink) -> Watch {
        unreachable!("reading watches nothing")
    }

    fn alive(&self) -> bool {
        true
    }
}
