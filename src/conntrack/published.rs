//! What each of several workers says to all the others ([`Published`]): a list each, that only its owner changes.
//!
//! A count beside each list spares the others its lock while there is nothing in it. What must go with all that others say is
//! said one at a time ([`Published::claim`]): if two looked at the others' lists first, and then both put it into their own, both
//! would have it. `tests/published.rs` has every order tried, under a checker whose atomics and locks take the place of these.

use super::atomic::{AtomicUsize, Mutex, Ordering, RwLock, lock, point, read, write};

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Published<T> {
    places: Box<[Place<T>]>,
    claim: Mutex<()>,
}

#[derive(Debug)]
struct Place<T> {
    count: AtomicUsize,
    said: RwLock<Vec<T>>,
}

impl<T> Published<T> {
    /// Of so many workers; nobody says anything.
    pub(crate) fn new(workers: usize) -> Published<T> {
        let place = |_| Place { count: AtomicUsize::new(0), said: RwLock::new(Vec::new()) };
        Published { places: (0..workers).map(place).collect(), claim: Mutex::new(()) }
    }

    /// From now on `worker` says this, and nothing else.
    pub(crate) fn publish(&self, worker: usize, all: impl Iterator<Item = T>) {
        self.change(worker, |said| {
            said.clear();
            said.extend(all);
        });
    }

    /// From now on `worker` says this, too, unless it clashes with what another says; whether it does.
    pub(crate) fn claim(&self, worker: usize, one: T, clashes: impl Fn(&T) -> bool) -> bool {
        let _one_at_a_time = lock(&self.claim);
        let free = self.find(worker, clashes).is_none();
        if free {
            self.change(worker, |said| said.push(one));
        }
        free
    }

    /// Who says something like this, but `worker`.
    pub(crate) fn find(&self, worker: usize, is_it: impl Fn(&T) -> bool) -> Option<usize> {
        self.places.iter().enumerate().filter(|(other, _)| *other != worker).find_map(|(other, place)| {
            point();
            if place.count.load(Ordering::Acquire) == 0 {
                return None;
            }
            read(&place.said).iter().any(&is_it).then_some(other)
        })
    }

    fn change(&self, worker: usize, change: impl FnOnce(&mut Vec<T>)) {
        let place = &self.places[worker];
        let mut said = write(&place.said);
        change(&mut said);
        point();
        place.count.store(said.len(), Ordering::Release);
    }
}
