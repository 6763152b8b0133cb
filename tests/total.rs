//! Several workers never have more connections than there may be: every order in which they can begin and end some, tried by
//! loom with its own atomics in the place of the processor's (`src/conntrack/total.rs`, the same file).

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering};
}

#[path = "../src/conntrack/total.rs"]
mod total;

use loom::sync::Arc;
use loom::thread;
use total::Total;

#[test]
fn two_that_begin_at_once_do_not_both_take_the_last_place() {
    loom::model(|| {
        let total = Arc::new(Total::new());
        assert!(total.reserve(2));
        let begin = |total: Arc<Total>| move || total.reserve(2);
        let workers = [thread::spawn(begin(total.clone())), thread::spawn(begin(total.clone()))];
        let begun = workers.map(|worker| worker.join().expect("no panic"));
        assert_eq!(begun.iter().filter(|&&begun| begun).count(), 1);
        assert_eq!(total.get(), 2);
    });
}

#[test]
fn a_place_that_becomes_free_may_be_taken_and_none_gets_lost() {
    loom::model(|| {
        let total = Arc::new(Total::new());
        assert!(total.reserve(1));
        let other = total.clone();
        let other = thread::spawn(move || other.reserve(1));
        total.release();
        let begun = other.join().expect("no panic");
        assert_eq!(total.get(), usize::from(begun));
        assert_eq!(total.reserve(1), !begun);
    });
}

#[test]
fn the_place_of_one_that_gives_way_is_its_successors() {
    loom::model(|| {
        let total = Arc::new(Total::new());
        assert!(total.reserve(1));
        let other = total.clone();
        let other = thread::spawn(move || other.reserve(1));
        total.hold();
        total.release();
        assert!(!other.join().expect("no panic"));
        assert_eq!(total.get(), 1);
    });
}
