//! How often each method was called, how that ended and how long it took.
//!
//! Methods come from the table, so there are only so many. Called by `rpc/methods.rs`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use zerotap_rpc_schema::Histogram;

/// One method's calls.
#[derive(Debug, Clone, Default)]
pub struct Calls {
    /// Answered with a result.
    pub succeeded: u64,
    /// Answered with an error.
    pub failed: u64,
    /// Not answered: the client hung up first. What it ordered is done all the same.
    pub abandoned: u64,
    /// From the parameters to the answer.
    pub duration: Histogram,
}

/// All methods' calls.
#[derive(Debug, Default)]
pub struct CallCounts(Mutex<BTreeMap<&'static str, Calls>>);

impl CallCounts {
    /// A call begins; it ends when the answer is dropped.
    #[must_use]
    pub fn begin(&self, method: &'static str) -> Call<'_> {
        Call { counts: self, method, began: Instant::now(), succeeded: None }
    }

    /// What was counted.
    #[must_use]
    pub fn all(&self) -> BTreeMap<&'static str, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A call under way.
#[derive(Debug)]
pub struct Call<'a> {
    counts: &'a CallCounts,
    method: &'static str,
    began: Instant,
    succeeded: Option<bool>,
}

impl Call<'_> {
    /// It has an answer.
    pub fn end<T, E>(mut self, answer: Result<T, E>) -> Result<T, E> {
        self.succeeded = Some(answer.is_ok());
        answer
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut all = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = all.entry(self.method).or_default();
        match self.succeeded {
            Some(true) => calls.succeeded += 1,
            Some(false) => calls.failed += 1,
            None => calls.abandoned += 1,
        }
        let took_us = self.began.elapsed().as_micros();
        calls.duration.record(u64::try_from(took_us).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_counts_once_however_it_ends() {
        let counts = CallCounts::default();
        let good: Result<u8, ()> = Ok(1);
        assert_eq!(counts.begin("a").end(good), Ok(1));
        assert_eq!(counts.begin("a").end(Err::<(), _>(2)), Err(2));
        drop(counts.begin("a"));
        let calls = &counts.all()["a"];
        assert_eq!((calls.succeeded, calls.failed, calls.abandoned), (1, 1, 1));
        assert_eq!(calls.duration.count(), 3);
    }
}
