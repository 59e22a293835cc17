//! xenstore as the rest of the daemon sees it: a few verbs behind the trait [`Store`].
//!
//! [`live::Live`] speaks to xenstored, `memory::Memory` stands in for it in unit tests. Nothing
//! here knows what a VBD is. Called by `vbd`.

mod link;
pub mod live;
#[cfg(test)]
pub mod memory;
mod raw;
#[cfg(test)]
pub mod tests;
mod wire;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// How long one call to xenstored may take; past it the connection counts as dead and is renewed.
pub const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// How often a transaction is tried again that collided with another writer's.
pub const COLLISIONS_MAX: u32 = 16;
/// The longest payload of a message, bytes (`XENSTORE_PAYLOAD_MAX`,
/// xen/include/public/io/xs_wire.h).
pub const PAYLOAD_BYTES_MAX: usize = 4096;

/// Why a call to xenstore failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No such node.
    #[error("xenstore has no {0}")]
    Missing(String),
    /// A [`Guard`] did not hold at this path: someone else wrote first.
    #[error("{0} in xenstore is not what it was")]
    Changed(String),
    /// The value at this path is not UTF-8.
    #[error("{0} in xenstore holds no text")]
    NotText(String),
    /// xenstored said no.
    #[error("xenstored refused to {what}: {code}")]
    Refused {
        /// What was asked, for example `write /a/b`.
        what: String,
        /// xenstored's word, for example `EACCES`.
        code: String,
    },
    /// xenstored is not there, or does not answer; and why.
    #[error("xenstored does not answer: {0}")]
    Away(String),
}

/// What a transaction insists on: checked inside it, so that nothing is written over news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The node exists.
    Exists(String),
    /// The node does not exist.
    Absent(String),
    /// The node has this value.
    Equals(String, String),
}

/// A change that a transaction makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Creates or overwrites a node.
    Write(String, String),
    /// Creates a node without a value; nothing happens if it is there.
    Mkdir(String),
    /// Removes a node and all below it; nothing happens if it is not there.
    Remove(String),
    /// Sets who may do what with a node.
    Permit(String, Permissions),
}

/// Permissions of a node: its owner and one reader beside it; all others may do nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    /// The owner's domain; it may read, write and change permissions.
    pub owner: u16,
    /// The domain that may read.
    pub reader: u16,
}

/// Changes that happen together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// All must hold.
    pub guards: Vec<Guard>,
    /// Made in this order.
    pub changes: Vec<Change>,
}

impl Batch {
    /// Adds a node to write.
    pub fn write(&mut self, path: impl Into<String>, value: impl std::fmt::Display) -> &mut Self {
        self.changes.push(Change::Write(path.into(), value.to_string()));
        self
    }

    /// Adds a directory to create.
    pub fn mkdir(&mut self, path: impl Into<String>, permissions: Permissions) -> &mut Self {
        let path = path.into();
        self.changes.push(Change::Mkdir(path.clone()));
        self.changes.push(Change::Permit(path, permissions));
        self
    }

    /// Adds a tree to remove.
    pub fn remove(&mut self, path: impl Into<String>) -> &mut Self {
        self.changes.push(Change::Remove(path.into()));
        self
    }

    /// Adds something to insist on.
    pub fn insist(&mut self, guard: Guard) -> &mut Self {
        self.guards.push(guard);
        self
    }
}

/// An answer that is not there yet.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// What a watch calls with the path that changed. It runs in the task that drains the watch, so it
/// must neither block nor collect: it filters the path and marks what has to be looked at again.
/// (Guests make events at will; XSA-349.)
pub type Sink = Arc<dyn Fn(&str) + Send + Sync>;

/// A watch; dropping it ends it.
pub struct Watch(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Watch {
    fn new(end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Watch(Some(Box::new(end)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

/// xenstore, with paths absolute and values text. Every call ends within [`CALL_DEADLINE`].
pub trait Store: Send + Sync {
    /// A node's value.
    fn read<'a>(&'a self, path: &'a str) -> Pending<'a, String>;
    /// Creates or overwrites a node.
    fn write<'a>(&'a self, path: &'a str, value: &'a str) -> Pending<'a, ()>;
    /// Removes a node and all below it; succeeds when it is not there.
    fn remove<'a>(&'a self, path: &'a str) -> Pending<'a, ()>;
    /// The names below a node, however many; none when it is not there.
    fn list<'a>(&'a self, path: &'a str) -> Pending<'a, Vec<String>>;
    /// Does a batch in one transaction.
    fn transact<'a>(&'a self, batch: &'a Batch) -> Pending<'a, ()>;
    /// Several nodes' values as they were at one moment; `None` for what is not there. What is no
    /// text comes as U+FFFD.
    fn snapshot<'a>(&'a self, paths: &'a [String]) -> Pending<'a, Vec<Option<String>>>;
    /// Whether xenstored knows the domain: it lives.
    fn introduced(&self, domid: u16) -> Pending<'_, bool>;
    /// Calls `sink` once now and whenever the node or one below it changes, and again after
    /// xenstored was away, since changes may have been missed.
    fn watch(&self, path: &str, sink: Sink) -> Watch;
    /// Whether xenstored answers.
    fn alive(&self) -> bool;
}

/// A node's value, or none when it is not there.
pub async fn read_if_there(store: &dyn Store, path: &str) -> Result<Option<String>, StoreError> {
    match store.read(path).await {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
