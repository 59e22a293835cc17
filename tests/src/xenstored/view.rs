//! What one domain may see and change of a tree: permissions, quotas, inheritance.
//!
//! Called for the live tree and, inside a transaction, for its copy; reports what it looked at, so
//! that a transaction knows what it depends on, and what changed, so that watches fire.

use super::perms::{Access, DOM0, Domains, Perms};
use super::store::{Node, Store, parent};
use super::wire::Errno;
use std::collections::BTreeMap;

/// The most nodes that a guest may own.
pub const NODES_PER_DOMAIN_MAX: usize = 1000;
/// The longest value that a guest may write, bytes.
pub const VALUE_BYTES_MAX: usize = 2048;

/// A change that a client asked for; a transaction keeps these and plays them again at its end.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Write(String, Vec<u8>),
    Mkdir(String),
    Remove(String),
    SetPerms(String, Perms),
}

/// What watches learn: a path, and the permissions that decide who may.
#[derive(Debug)]
pub(super) struct Touched {
    pub(super) path: String,
    /// Only watches on this very path, not those above.
    pub(super) exact: bool,
    /// Before or after the change; either suffices.
    pub(super) perms: Vec<(Perms, u64)>,
}

/// A tree as `caller` may use it.
pub(super) struct View<'a> {
    pub(super) store: &'a mut Store,
    pub(super) domains: &'a Domains,
    pub(super) caller: u16,
    /// Paths looked at and their generations before any change, for the transaction.
    pub(super) seen: BTreeMap<String, Option<u64>>,
}

impl View<'_> {
    fn access(&self, node: &Node) -> Access {
        node.perms.access(self.caller, node.generation, self.domains)
    }

    /// Finds a node on which `may` holds. What is missing shows only to those who may use the
    /// nearest ancestor in the same way.
    fn find(&mut self, path: &str, may: fn(Access) -> bool) -> Result<&Node, Errno> {
        let place = if self.store.get(path).is_some() { path } else { self.store.ancestor(path) };
        for path in [path, place] {
            let generation = self.store.get(path).map(|node| node.generation);
            self.seen.entry(path.to_owned()).or_insert(generation);
        }
        let node = self.store.get(place).expect("found just now");
        match (may(self.access(node)), place == path) {
            (true, true) => Ok(node),
            (true, false) => Err(Errno::ENOENT),
            (false, _) => Err(Errno::EACCES),
        }
    }

    /// A node to read.
    pub(super) fn read(&mut self, path: &str) -> Result<&Node, Errno> {
        self.find(path, |access| access.read)
    }

    /// Makes one change; answers what watches should learn.
    pub(super) fn apply(&mut self, change: &Change) -> Result<Vec<Touched>, Errno> {
        match change {
            Change::Write(path, value) => self.write(path, value),
            Change::Mkdir(path) => match self.find(path, |access| access.write) {
                Ok(_) => Ok(Vec::new()),
                Err(Errno::ENOENT) => self.make(path, &[]),
                Err(errno) => Err(errno),
            },
            Change::Remove(path) => self.remove(path),
            Change::SetPerms(path, perms) => self.set_perms(path, perms),
        }
    }

    fn write(&mut self, path: &str, value: &[u8]) -> Result<Vec<Touched>, Errno> {
        if self.caller != DOM0 && value.len() > VALUE_BYTES_MAX {
            return Err(Errno::ENOSPC);
        }
        match self.find(path, |access| access.write) {
            Ok(node) => {
                let perms = node.perms.clone();
                self.store.put(path, value.to_vec(), perms);
                Ok(vec![self.touched(path)])
            }
            Err(Errno::ENOENT) => self.make(path, value),
            Err(errno) => Err(errno),
        }
    }

    /// Makes a node and the ancestors that it lacks; watches learn of the node alone.
    fn make(&mut self, path: &str, value: &[u8]) -> Result<Vec<Touched>, Errno> {
        let mut missing = vec![path];
        let top = self.store.ancestor(path);
        while parent(missing[missing.len() - 1]) != top {
            missing.push(parent(missing[missing.len() - 1]));
        }
        let owned = if self.caller == DOM0 { 0 } else { self.store.owned(self.caller) };
        if owned + missing.len() > NODES_PER_DOMAIN_MAX {
            return Err(Errno::ENOSPC);
        }
        let node = self.store.get(top).expect("an ancestor exists");
        let perms = node.perms.inherited(self.caller);
        for place in missing.into_iter().rev() {
            let value = if place == path { value.to_vec() } else { Vec::new() };
            self.store.put(place, value, perms.clone());
        }
        Ok(vec![self.touched(path)])
    }

    fn remove(&mut self, path: &str) -> Result<Vec<Touched>, Errno> {
        if path == "/" {
            return Err(Errno::EINVAL);
        }
        match self.find(path, |access| access.write).map(drop) {
            Ok(()) => {}
            // What is not there is removed already, if it could have been there.
            Err(Errno::ENOENT) if self.store.get(parent(path)).is_some() => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
        let touched = |(place, node): (String, Node)| Touched {
            exact: place != path,
            path: place,
            perms: vec![(node.perms, node.generation)],
        };
        let removed = self.store.remove(path);
        for (path, node) in &removed {
            self.seen.entry(path.clone()).or_insert(Some(node.generation));
        }
        // What is below goes first.
        Ok(removed.into_iter().rev().map(touched).collect())
    }

    fn set_perms(&mut self, path: &str, perms: &Perms) -> Result<Vec<Touched>, Errno> {
        let node = self.find(path, |access| access.owner)?;
        if perms.owner() != node.perms.owner() && self.caller != DOM0 {
            return Err(Errno::EPERM);
        }
        let node = self.store.get(path).expect("found just now");
        let before = (node.perms.clone(), node.generation);
        let value = node.value.clone();
        self.store.put(path, value, perms.clone());
        let mut touched = self.touched(path);
        touched.perms.push(before);
        Ok(vec![touched])
    }

    fn touched(&self, path: &str) -> Touched {
        let node = self.store.get(path).expect("it was changed just now");
        let perms = vec![(node.perms.clone(), node.generation)];
        Touched { path: path.to_owned(), exact: false, perms }
    }
}
