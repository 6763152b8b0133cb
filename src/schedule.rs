//! Where workers meet: what several of them use at once is used behind a [`point`], and under locks taken by [`lock`], [`read`] and
//! [`write`].
//!
//! In a run a point is nothing, and a lock is the standard library's. In this crate's own tests a scheduler may have been put in
//! the processor's place ([`testing`]): then it decides at each point who goes on, so that every order in which workers can meet
//! has its chance, and comes again when it is asked for (`src/sim/many/tests/schedules.rs`). Who holds one of
//! these locks waits for no other but in one order (`conntrack::published`), and nobody stays away from work because another
//! panicked: nothing that they guard can be left half done.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Another worker may go on here; to stand before each use of something that is not one worker's own.
#[inline(always)]
pub fn point() {
    #[cfg(test)]
    testing::point();
}

/// Takes a lock.
#[inline(always)]
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    #[cfg(test)]
    testing::wait_until(|| !matches!(mutex.try_lock(), Err(std::sync::TryLockError::WouldBlock)));
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a lock for reading.
#[inline(always)]
pub fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    #[cfg(test)]
    testing::wait_until(|| !matches!(lock.try_read(), Err(std::sync::TryLockError::WouldBlock)));
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a lock for writing.
#[inline(always)]
pub fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    #[cfg(test)]
    testing::wait_until(|| !matches!(lock.try_write(), Err(std::sync::TryLockError::WouldBlock)));
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// A scheduler in the processor's place.
#[cfg(test)]
pub(crate) mod testing {
    use std::cell::Cell;

    thread_local! {
        static BY_SHUTTLE: Cell<bool> = const { Cell::new(false) };
    }

    /// While this lives, shuttle decides at each point who goes on, of those that it runs on this thread of the system's.
    #[derive(Debug)]
    pub(crate) struct ByShuttle(());

    impl ByShuttle {
        pub(crate) fn new() -> ByShuttle {
            BY_SHUTTLE.set(true);
            ByShuttle(())
        }
    }

    impl Drop for ByShuttle {
        fn drop(&mut self) {
            BY_SHUTTLE.set(false);
        }
    }

    pub(super) fn point() {
        if BY_SHUTTLE.get() && !std::thread::panicking() {
            // Shuttle chooses before each thing that threads do to one another. This one changes nothing: none of them parks.
            shuttle::thread::current().unpark();
        }
    }

    /// What is not so yet, another has to bring about.
    pub(super) fn wait_until(is_so: impl Fn() -> bool) {
        point();
        while BY_SHUTTLE.get() && !is_so() {
            shuttle::thread::yield_now();
        }
    }
}
