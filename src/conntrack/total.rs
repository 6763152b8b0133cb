//! How many connections all workers have together: [`Total`], never more than there may be.
//!
//! One is counted before it is put into a table, so that workers which confirm at the same moment cannot both take the last
//! place. `tests/total.rs` has every order tried, under a checker whose atomics take the place of these.

use super::atomic::{AtomicUsize, Ordering};

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Total(AtomicUsize);

impl Total {
    /// None yet.
    pub(crate) fn new() -> Total {
        Total(AtomicUsize::new(0))
    }

    /// One more is to be, of at most `max`; `false`: there are as many.
    pub(crate) fn reserve(&self, max: usize) -> bool {
        let one_more = |total: usize| (total < max).then_some(total + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// One more is to be in the place of one that is counted, and goes before it comes: nobody else gets the place between.
    pub(crate) fn hold(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One that was counted is no more, or is not to be.
    pub(crate) fn release(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many there are.
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
