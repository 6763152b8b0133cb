//! What one worker says reaches the others in time, and no two say the same: every order tried by loom, with its own atomics and
//! locks in the place of the processor's and the system's (`src/conntrack/published.rs`, the same file).

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering};
    pub(crate) use loom::sync::{Mutex, RwLock};
    use loom::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    pub(crate) fn point() {}

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().expect("no panic")
    }

    pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
        lock.read().expect("no panic")
    }

    pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
        lock.write().expect("no panic")
    }
}

#[path = "../src/conntrack/published.rs"]
mod published;

use atomic::{AtomicUsize, Ordering};
use loom::sync::Arc;
use loom::thread;
use published::Published;

/// A helper's worker publishes what is expected; then the packet leaves that announces it (through a ring whose reader sees all
/// that was done before). Whoever has the answer finds it.
#[test]
fn what_is_published_before_a_packet_leaves_is_found_by_who_gets_the_answer() {
    loom::model(|| {
        let (published, left) = (Arc::new(Published::new(2)), Arc::new(AtomicUsize::new(0)));
        let (its, gone) = (published.clone(), left.clone());
        let helper = thread::spawn(move || {
            its.publish(0, [21].into_iter());
            gone.store(1, Ordering::Release);
        });
        if left.load(Ordering::Acquire) == 1 {
            assert_eq!(published.find(1, |said| *said == 21), Some(0));
        }
        helper.join().expect("no panic");
        assert_eq!(published.find(1, |said| *said == 21), Some(0));
        assert_eq!(published.find(0, |said| *said == 21), None, "to himself nobody says anything");
    });
}

/// Nobody has to be told: who looks by himself may come too early, but what he finds is whole, and is there.
#[test]
fn what_is_replaced_is_one_or_the_other() {
    loom::model(|| {
        let published = Arc::new(Published::new(2));
        published.publish(0, [1, 2].into_iter());
        let its = published.clone();
        let helper = thread::spawn(move || its.publish(0, [2].into_iter()));
        assert_eq!(published.find(1, |said| *said == 2), Some(0), "it is there before and afterwards");
        helper.join().expect("no panic");
        assert_eq!(published.find(1, |said| *said == 1), None);
    });
}

#[test]
fn of_two_that_claim_the_same_one_has_it() {
    loom::model(|| {
        let published = Arc::new(Published::new(2));
        let its = published.clone();
        let other = thread::spawn(move || its.claim(1, 5001, |said| *said == 5001));
        let have = [published.claim(0, 5001, |said| *said == 5001), other.join().expect("no panic")];
        assert_eq!(have.iter().filter(|&&has| has).count(), 1, "{have:?}");
        let said = [1, 0].map(|but| published.find(but, |said| *said == 5001).is_some());
        assert_eq!(said, have, "what was refused is not said");
    });
}
