//! What is under way and lasts, with how far it is: copies of volumes' data.
//!
//! It only remembers: a task is listed for as long as its worker thread holds it, also when nobody
//! waits for it any more. Filled by the VDI's actor, read by the RPC handlers.

use crate::sr::copy::Progress;
use crate::state::now;
use crate::vdi::VdiId;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// One of them.
#[derive(Debug)]
pub struct Task {
    /// The VDI whose data is copied.
    pub vdi: VdiId,
    /// What was asked: `copy`, `revert`.
    pub operation: &'static str,
    /// Since when, RFC 3339.
    pub since: String,
    /// How far it is.
    pub progress: Progress,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Tasks(Mutex<Vec<Weak<Task>>>);

impl Tasks {
    /// A new one, listed until it is dropped.
    pub(super) fn begin(&self, vdi: &VdiId, operation: &'static str) -> Arc<Task> {
        let (vdi, progress) = (vdi.clone(), Progress::default());
        let task = Arc::new(Task { vdi, operation, since: now(), progress });
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| task.strong_count() > 0);
        tasks.push(Arc::downgrade(&task));
        task
    }

    /// Those under way, the oldest first.
    pub(super) fn list(&self) -> Vec<Arc<Task>> {
        let tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.iter().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_listed_while_it_is_held() {
        let tasks = Tasks::default();
        let first = tasks.begin(&VdiId::new("sr", "a"), "copy");
        let second = tasks.begin(&VdiId::new("sr", "b"), "revert");
        let listed = || tasks.list().iter().map(|task| task.vdi.vdi.clone()).collect::<Vec<_>>();
        assert_eq!(listed(), ["a", "b"]);
        drop(first);
        assert_eq!(listed(), ["b"]);
        drop(second);
        assert!(listed().is_empty());
    }
}
