//! Whether a worker sleeps ([`Sleeper`]), such that nothing is put into its rings without waking it.
//!
//! Who is about to sleep says so, and then looks into its rings once more; who has put something into a ring looks afterwards
//! whether its reader sleeps. Between the two steps of either stands a fence, so one of them sees the other. `tests/sleeper.rs`
//! has every order tried, under a checker whose atomics take the place of these.

use super::atomic::{AtomicBool, Ordering, fence};

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Sleeper {
    asleep: AtomicBool,
}

impl Sleeper {
    /// Awake.
    pub(crate) fn new() -> Sleeper {
        Sleeper { asleep: AtomicBool::new(false) }
    }

    /// Says that its owner sleeps from now on, and whether it may: not if there is news.
    pub(crate) fn fall_asleep(&self, has_news: impl FnOnce() -> bool) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !has_news()
    }

    /// Its owner is awake.
    pub(crate) fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// For who has put something into a ring of its owner's: whether that has to be woken.
    pub(crate) fn is_to_be_woken(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed)
    }
}
