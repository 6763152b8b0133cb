//! A worker that sleeps misses nothing: every order in which it and those who hand it something can go on, tried by loom with
//! its own atomics in the place of the processor's (`src/worker/sleeper.rs`, the same file).

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

#[path = "../src/worker/sleeper.rs"]
mod sleeper;

use loom::sync::atomic::AtomicUsize;
use loom::sync::{Arc, Notify};
use loom::thread;
use sleeper::Sleeper;

use atomic::Ordering;

/// A ring, as far as it matters: how much is in it. Its writer's store and its reader's load are those of a ring of one writer
/// and one reader.
#[derive(Default)]
struct Ring(AtomicUsize);

struct Worker {
    sleeper: Sleeper,
    wake: Notify,
    rings: [Ring; 2],
}

fn worker() -> Arc<Worker> {
    Arc::new(Worker { sleeper: Sleeper::new(), wake: Notify::new(), rings: Default::default() })
}

/// Puts something into its ring, as `Links::send` and `Links::wake` do.
fn give(worker: &Worker, ring: usize) {
    worker.rings[ring].0.store(1, Ordering::Release);
    if worker.sleeper.is_to_be_woken() {
        worker.wake.notify();
    }
}

/// Sleeps until all `wanted` is there. When a wake-up gets lost nobody can go on, which loom tells.
fn receive(worker: &Worker, wanted: usize) {
    let there = || worker.rings.iter().map(|ring| ring.0.load(Ordering::Acquire)).sum::<usize>();
    let mut seen = 0;
    while seen < wanted {
        // What was seen before is no news.
        if worker.sleeper.fall_asleep(|| there() > seen) {
            worker.wake.wait();
        }
        worker.sleeper.wake_up();
        seen = there();
    }
}

#[test]
fn what_one_gives_wakes_a_sleeper() {
    loom::model(|| {
        let worker = worker();
        let giver = worker.clone();
        let giver = thread::spawn(move || give(&giver, 0));
        receive(&worker, 1);
        giver.join().expect("no panic");
    });
}

#[test]
fn what_two_give_wakes_a_sleeper() {
    // All orders of three threads are too many: those in which one is interrupted three times at most.
    let mut some = loom::model::Builder::new();
    some.preemption_bound = Some(3);
    some.check(|| {
        let worker = worker();
        let givers: Vec<_> = (0..2)
            .map(|ring| {
                let worker = worker.clone();
                thread::spawn(move || give(&worker, ring))
            })
            .collect();
        receive(&worker, 2);
        givers.into_iter().for_each(|giver| giver.join().expect("no panic"));
    });
}
