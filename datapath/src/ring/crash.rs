//! Lets a test die at any store into shared memory, as a process that is killed does.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local! {
    static STORES_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

struct Died;

/// Runs `act` and kills it once `left` stores are made; counts them. `None` when it died.
pub(crate) fn until<T>(left: &mut Option<u32>, act: impl FnOnce() -> T) -> Option<T> {
    STORES_LEFT.set(*left);
    let ended = catch_unwind(AssertUnwindSafe(act));
    *left = STORES_LEFT.take();
    match ended {
        Ok(result) => Some(result),
        Err(payload) if payload.is::<Died>() => None,
        Err(payload) => resume_unwind(payload),
    }
}

/// A store is about to be made.
pub(super) fn point() {
    match STORES_LEFT.get() {
        Some(0) => {
            STORES_LEFT.set(None);
            // Without the hook: nothing went wrong.
            resume_unwind(Box::new(Died));
        }
        left => STORES_LEFT.set(left.map(|left| left - 1)),
    }
}
