//! A [`Store`] in memory, for unit tests: nodes, watches, permissions, and an xenstored that can
//! go.

use super::{Batch, Change, Guard, Pending, Permissions, Sink, Store, StoreError, Watch};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

/// The store; clones share it.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    nodes: BTreeMap<String, String>,
    permissions: BTreeMap<String, Permissions>,
    domains: BTreeSet<u16>,
    watches: HashMap<u64, (String, Sink)>,
    last_watch: u64,
    away: bool,
    writes: Vec<(String, String)>,
}

impl Inner {
    fn ready(&self) -> Result<(), StoreError> {
        if self.away { Err(StoreError::Away("away".into())) } else { Ok(()) }
    }

    fn below<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a String> {
        let inside =
            move |node: &&String| node.starts_with(path) && node[path.len()..].starts_with('/');
        self.nodes.keys().filter(inside)
    }

    fn put(&mut self, path: &str, value: &str) {
        let mut parent = path;
        while let Some((up, _)) = parent.rsplit_once('/') {
            if up.is_empty() {
                break;
            }
            self.nodes.entry(up.to_owned()).or_default();
            parent = up;
        }
        self.nodes.insert(path.to_owned(), value.to_owned());
    }

    fn cut(&mut self, path: &str) {
        let gone: Vec<String> = self.below(path).cloned().collect();
        for node in gone {
            self.nodes.remove(&node);
        }
        self.nodes.remove(path);
    }

    /// The sinks to call for a change of `path`: calling needs the lock let go.
    fn sinks(&self, path: &str) -> Vec<(Sink, String)> {
        let within = |outer: &str, inner: &str| {
            inner == outer || (inner.starts_with(outer) && inner[outer.len()..].starts_with('/'))
        };
        let fired = self
            .watches
            .values()
            .filter(|(watched, _)| within(watched, path) || within(path, watched));
        fired.map(|(_, sink)| (sink.clone(), path.to_owned())).collect()
    }
}

impl Memory {
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    fn fire(&self, paths: &[&str]) {
        let sinks: Vec<_> = self.with(|i| paths.iter().flat_map(|path| i.sinks(path)).collect());
        for (sink, path) in sinks {
            sink(&path);
        }
    }

    /// Writes as a toolstack or a guest would, whether or not the store is away.
    pub fn set(&self, path: &str, value: &str) {
        self.with(|inner| inner.put(path, value));
        self.fire(&[path]);
    }

    /// Removes as a toolstack or a guest would.
    pub fn cut(&self, path: &str) {
        self.with(|inner| inner.cut(path));
        self.fire(&[path]);
    }

    /// A node's value, whether or not the store is away.
    pub fn get(&self, path: &str) -> Option<String> {
        self.with(|inner| inner.nodes.get(path).cloned())
    }

    /// A node's permissions, as they were set on it.
    pub fn permissions(&self, path: &str) -> Option<Permissions> {
        self.with(|inner| inner.permissions.get(path).copied())
    }

    /// Every write made through the trait, in order.
    pub fn writes(&self) -> Vec<(String, String)> {
        self.with(|inner| inner.writes.clone())
    }

    /// Makes a domain live, or die.
    pub fn domain(&self, domid: u16, alive: bool) {
        self.with(|i| if alive { i.domains.insert(domid) } else { i.domains.remove(&domid) });
        self.fire(&[if alive { "@introduceDomain" } else { "@releaseDomain" }]);
    }

    /// Makes xenstored go, or come back.
    pub fn away(&self, away: bool) {
        self.with(|inner| inner.away = away);
        if !away {
            let all: Vec<_> = self.with(|i| i.watches.values().cloned().collect());
            for (path, sink) in all {
                sink(&path);
            }
        }
    }

    fn apply(&self, batch: &Batch) -> Result<(), StoreError> {
        self.with(|inner| {
            inner.ready()?;
            for guard in &batch.guards {
                let (path, holds) = match guard {
                    Guard::Exists(path) => (path, inner.nodes.contains_key(path)),
                    Guard::Absent(path) => (path, !inner.nodes.contains_key(path)),
                    Guard::Equals(path, value) => (path, inner.nodes.get(path) == Some(value)),
                };
                if !holds {
                    return Err(StoreError::Changed(path.clone()));
                }
            }
            for change in &batch.changes {
                match change {
                    Change::Write(path, value) => {
                        inner.put(path, value);
                        inner.writes.push((path.clone(), value.clone()));
                    }
                    Change::Mkdir(path) if inner.nodes.contains_key(path) => {}
                    Change::Mkdir(path) => inner.put(path, ""),
                    Change::Remove(path) => inner.cut(path),
                    Change::Permit(path, permissions) => {
                        inner.permissions.insert(path.clone(), *permissions);
                    }
                }
            }
            Ok(())
        })?;
        for change in &batch.changes {
            if let Change::Write(path, _) | Change::Mkdir(path) | Change::Remove(path) = change {
                self.fire(&[path]);
            }
        }
        Ok(())
    }
}

impl Store for Memory {
    fn read<'a>(&'a self, path: &'a str) -> Pending<'a, String> {
        Box::pin(async move {
            self.with(|inner| {
                inner.ready()?;
                let missing = || StoreError::Missing(path.to_owned());
                inner.nodes.get(path).cloned().ok_or_else(missing)
            })
        })
    }

    fn write<'a>(&'a self, path: &'a str, value: &'a str) -> Pending<'a, ()> {
        Box::pin(async move { self.apply(Batch::default().write(path, value)) })
    }

    fn remove<'a>(&'a self, path: &'a str) -> Pending<'a, ()> {
        Box::pin(async move { self.apply(Batch::default().remove(path)) })
    }

    fn list<'a>(&'a self, path: &'a str) -> Pending<'a, Vec<String>> {
        Box::pin(async move {
            self.with(|inner| {
                inner.ready()?;
                let name = |node: &String| {
                    let name = node[path.len() + 1..].to_owned();
                    (!name.contains('/')).then_some(name)
                };
                Ok(inner.below(path).filter_map(name).collect())
            })
        })
    }

    fn transact<'a>(&'a self, batch: &'a Batch) -> Pending<'a, ()> {
        Box::pin(async move { self.apply(batch) })
    }

    fn snapshot<'a>(&'a self, paths: &'a [String]) -> Pending<'a, Vec<Option<String>>> {
        Box::pin(async move {
            self.with(|inner| {
                inner.ready()?;
                Ok(paths.iter().map(|path| inner.nodes.get(path).cloned()).collect())
            })
        })
    }

    fn introduced(&self, domid: u16) -> Pending<'_, bool> {
        Box::pin(async move {
            self.with(|inner| {
                inner.ready()?;
                Ok(inner.domains.contains(&domid))
            })
        })
    }

    fn watch(&self, path: &str, sink: Sink) -> Watch {
        let id = self.with(|inner| {
            inner.last_watch += 1;
            inner.watches.insert(inner.last_watch, (path.to_owned(), sink.clone()));
            inner.last_watch
        });
        sink(path);
        let memory = self.clone();
        Watch::new(move || {
            memory.with(|inner| inner.watches.remove(&id));
        })
    }

    fn alive(&self) -> bool {
        self.with(|inner| !inner.away)
    }
}
