//! The tree of nodes. Knows paths, values and generations; asks nobody for permission.

use super::perms::Perms;
use std::collections::{BTreeMap, BTreeSet};

/// The longest absolute path.
const PATH_BYTES_MAX: usize = 3072;

/// One node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Vec<u8>,
    pub(super) perms: Perms,
    /// Of the last change: value, permissions or list of children.
    pub(super) generation: u64,
    pub(super) children: BTreeSet<String>,
}

/// All nodes by absolute path.
#[derive(Debug, Clone)]
pub(super) struct Store {
    nodes: BTreeMap<String, Node>,
    generation: u64,
}

impl Store {
    pub(super) fn new() -> Store {
        let root = Node {
            value: Vec::new(),
            perms: Perms::root(),
            generation: 0,
            children: BTreeSet::new(),
        };
        Store { nodes: BTreeMap::from([("/".to_owned(), root)]), generation: 0 }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes all that is written from now on newer than all that was.
    pub(super) fn advance(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// The nearest ancestor that exists; the root always does.
    pub(super) fn ancestor<'a>(&self, path: &'a str) -> &'a str {
        let mut path = parent(path);
        while !self.nodes.contains_key(path) {
            path = parent(path);
        }
        path
    }

    /// How many nodes a domain owns.
    pub(super) fn owned(&self, domid: u16) -> usize {
        self.nodes.values().filter(|node| node.perms.owner() == domid).count()
    }

    /// The topmost nodes that a domain owns.
    pub(super) fn owned_paths(&self, domid: u16) -> Vec<String> {
        let of =
            |(path, node): (&String, &Node)| (node.perms.owner() == domid).then(|| path.clone());
        self.nodes.iter().filter_map(of).collect()
    }

    /// Makes or changes a node whose parent exists.
    pub(super) fn put(&mut self, path: &str, value: Vec<u8>, perms: Perms) {
        let generation = self.advance();
        if let Some(node) = self.nodes.get_mut(path) {
            *node = Node { value, perms, generation, children: std::mem::take(&mut node.children) };
            return;
        }
        let parent = self.nodes.get_mut(parent(path)).expect("parents are made first");
        parent.children.insert(name(path).to_owned());
        parent.generation = generation;
        let node = Node { value, perms, generation, children: BTreeSet::new() };
        self.nodes.insert(path.to_owned(), node);
    }

    /// Removes a node with all below it; gives what was removed, the node itself first.
    pub(super) fn remove(&mut self, path: &str) -> Vec<(String, Node)> {
        let generation = self.advance();
        if let Some(parent) = self.nodes.get_mut(parent(path)) {
            parent.children.remove(name(path));
            parent.generation = generation;
        }
        let below = self.nodes.keys().filter(|key| is_at_or_below(key, path));
        let paths: Vec<String> = below.cloned().collect();
        let take = |path: String| self.nodes.remove(&path).map(|node| (path, node));
        paths.into_iter().filter_map(take).collect()
    }
}

/// Whether `path` is `top` or lies below it.
pub(super) fn is_at_or_below(path: &str, top: &str) -> bool {
    top == "/"
        || path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The path of the node above; the root is above itself.
pub(super) fn parent(path: &str) -> &str {
    match path.rfind('/') {
        None | Some(0) => "/",
        Some(at) => &path[..at],
    }
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Whether this is an absolute path that a node can have.
pub(super) fn is_valid(path: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-/_@".contains(c);
    path.starts_with('/')
        && path.len() <= PATH_BYTES_MAX
        && path.chars().all(allowed)
        && !path.contains("//")
        && (path == "/" || !path.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removal_takes_the_subtree_and_nothing_beside_it() {
        let mut store = Store::new();
        for path in ["/a", "/a/b", "/a/b/c", "/ab"] {
            store.put(path, Vec::new(), Perms::root());
        }
        let removed: Vec<_> = store.remove("/a").into_iter().map(|(path, _)| path).collect();
        assert_eq!(removed, ["/a", "/a/b", "/a/b/c"]);
        assert!(store.get("/ab").is_some());
        assert!(!store.get("/").unwrap().children.contains("a"));
    }

    #[test]
    fn paths_are_checked_as_the_genuine_daemon_does() {
        for good in ["/", "/a", "/local/domain/0/backend/vbd/5/51712"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", "a", "/a/", "//a", "/a//b", "/a b", "/a.b", "/ä"] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
