//! What workers build on rings of one writer and one reader: every order, and every delay of a store that the memory model allows,
//! tried by loom.
//!
//! The rings in use are rtrb's, whose atomics are the processor's and cannot be exchanged; arc-swap's neither. So [`Ring`] is
//! rtrb 0.4's `push` and `pop` line by line (positions, the copies that spare loads, the orderings), and [`Published`] is what a
//! `Cache` of arc-swap does: it compares with a relaxed load, and takes the new value with a stronger one only when that differs.
//! (The crates' own code runs under Miri: `src/worker/links.rs`.) A ring's place is a cell, and loom tells if one thread uses it
//! without knowing that the other has left it.

use loom::cell::Cell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// Entries of a ring.
const CAPACITY: usize = 2;

#[derive(Default)]
struct Shared {
    head: AtomicUsize,
    tail: AtomicUsize,
    slots: [Cell<usize>; CAPACITY],
}

struct Producer {
    ring: Arc<Shared>,
    head: usize,
    tail: usize,
}

struct Consumer {
    ring: Arc<Shared>,
    head: usize,
    tail: usize,
}

fn ring() -> (Producer, Consumer) {
    let ring = Arc::<Shared>::default();
    (Producer { ring: ring.clone(), head: 0, tail: 0 }, Consumer { ring, head: 0, tail: 0 })
}

impl Producer {
    fn push(&mut self, value: usize) -> bool {
        if self.tail - self.head == CAPACITY {
            self.head = self.ring.head.load(Ordering::Acquire);
            if self.tail - self.head == CAPACITY {
                return false;
            }
        }
        self.ring.slots[self.tail % CAPACITY].set(value);
        self.tail += 1;
        self.ring.tail.store(self.tail, Ordering::Release);
        true
    }
}

impl Consumer {
    fn pop(&mut self) -> Option<usize> {
        if self.head == self.tail {
            self.tail = self.ring.tail.load(Ordering::Acquire);
            if self.head == self.tail {
                return None;
            }
        }
        let value = self.ring.slots[self.head % CAPACITY].get();
        self.head += 1;
        self.ring.head.store(self.head, Ordering::Release);
        Some(value)
    }

    fn next(&mut self) -> usize {
        loop {
            match self.pop() {
                Some(value) => return value,
                None => thread::yield_now(),
            }
        }
    }
}

/// What a worker is given it has whole and in order, and a place is used again only when it is empty.
#[test]
fn a_ring_gives_what_was_put_in_also_when_its_places_are_used_again() {
    let mut some = loom::model::Builder::new();
    some.preemption_bound = Some(3);
    some.check(|| {
        let (mut producer, mut consumer) = ring();
        let giver = thread::spawn(move || {
            for value in 1..=CAPACITY + 1 {
                while !producer.push(value) {
                    thread::yield_now();
                }
            }
        });
        for value in 1..=CAPACITY + 1 {
            assert_eq!(consumer.next(), value);
        }
        giver.join().expect("no panic");
    });
}

/// A letter to a tuple's home goes into one ring; then the packet goes to its owner through another, leaves there, and is answered
/// at the home. The home, which reads its letters before it takes the answer for something new, has the letter.
#[test]
fn a_letter_is_there_before_what_the_packet_behind_it_causes() {
    loom::model(|| {
        let (mut letters_out, mut letters) = ring();
        let (mut parcels_out, mut parcels) = ring();
        let (mut answers_out, mut answers) = ring();
        let first = thread::spawn(move || {
            assert!(letters_out.push(7));
            assert!(parcels_out.push(1));
        });
        let owner = thread::spawn(move || {
            if let Some(packet) = parcels.pop() {
                assert!(answers_out.push(packet));
            }
        });
        // It has looked before, so that it knows an older state of its ring.
        let before = letters.pop();
        if answers.pop().is_some() {
            assert_eq!(before.or_else(|| letters.pop()), Some(7));
        }
        owner.join().expect("no panic");
        first.join().expect("no panic");
    });
}

/// The control thread's value; which one it is, is what it says.
struct Published(AtomicUsize);

/// `arc_swap::Cache`.
struct Cache {
    published: Arc<Published>,
    known: usize,
}

impl Published {
    fn store(&self, value: usize) {
        self.0.swap(value, Ordering::SeqCst);
    }
}

impl Cache {
    fn load(&mut self) -> usize {
        if self.published.0.load(Ordering::Relaxed) != self.known {
            self.known = self.published.0.load(Ordering::SeqCst);
        }
        self.known
    }
}

/// A policy is published and then a question is asked; who answers it has that policy in force (`Worker::answer`), though the cache
/// looks without any order of its own: the question's ring gives it.
#[test]
fn a_question_is_answered_by_the_rules_that_were_published_before_it() {
    loom::model(|| {
        let published = Arc::new(Published(AtomicUsize::new(1)));
        let (mut questions, mut asked) = ring();
        let mut cache = Cache { published: published.clone(), known: 1 };
        let worker = thread::spawn(move || {
            let before = cache.load();
            let question = asked.pop();
            let in_force = cache.load();
            assert!(before <= in_force, "an older policy came into force");
            if question.is_some() {
                assert_eq!(in_force, 2, "the question was answered by old rules");
            }
        });
        published.store(2);
        assert!(questions.push(1));
        worker.join().expect("no panic");
    });
}

/// A worker that is told to stop stops, and what it has counted until then is seen by who has waited for it (`Crew::finish`): the
/// flag and the pulse need no order.
#[test]
fn who_is_told_to_stop_stops_and_has_left_everything() {
    loom::model(|| {
        let (stop, pulse) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (told, beat) = (stop.clone(), pulse.clone());
        let worker = thread::spawn(move || {
            let mut bursts = 0;
            while told.load(Ordering::Relaxed) == 0 {
                bursts += 1;
                beat.store(bursts, Ordering::Relaxed);
                thread::yield_now();
            }
            bursts
        });
        let seen = pulse.load(Ordering::Relaxed);
        stop.store(1, Ordering::Relaxed);
        let bursts = worker.join().expect("no panic");
        assert!(seen <= bursts);
        assert_eq!(pulse.load(Ordering::Relaxed), bursts);
    });
}
