//! Which of many places comes first in time: [`Heap`], a binary heap that finds each place in itself.
//!
//! Invariant: `at[place]` is where the place stands in `order`, or [`ABSENT`].

const ABSENT: u32 = u32::MAX;

/// See the module's head. Takes all its memory when made.
#[derive(Clone, Debug)]
pub(super) struct Heap {
    /// Times and places; each time not before that of its parent.
    order: Vec<(u64, u32)>,
    at: Box<[u32]>,
}

impl Heap {
    /// For places below `capacity`.
    pub(super) fn with_capacity(capacity: usize) -> Heap {
        Heap { order: Vec::with_capacity(capacity), at: vec![ABSENT; capacity].into_boxed_slice() }
    }

    /// The place whose time is first.
    pub(super) fn first(&self) -> Option<u32> {
        self.order.first().map(|entry| entry.1)
    }

    /// Puts `place` in, or moves it, to `time`.
    pub(super) fn put(&mut self, place: u32, time: u64) {
        let at = match self.at[place as usize] {
            ABSENT => {
                self.order.push((time, place));
                self.order.len() - 1
            }
            at => {
                self.order[at as usize].0 = time;
                at as usize
            }
        };
        self.settle(at);
    }

    /// Takes `place` out if it is in.
    pub(super) fn remove(&mut self, place: u32) {
        let at = self.at[place as usize];
        if at == ABSENT {
            return;
        }
        self.at[place as usize] = ABSENT;
        self.order.swap_remove(at as usize);
        if (at as usize) < self.order.len() {
            self.settle(at as usize);
        }
    }

    /// Moves the entry at `at` up or down to where it belongs.
    fn settle(&mut self, mut at: usize) {
        while at > 0 && self.order[at].0 < self.order[(at - 1) / 2].0 {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
        loop {
            let children = [2 * at + 1, 2 * at + 2];
            let smaller =
                children.into_iter().filter(|&child| child < self.order.len()).min_by_key(|&child| self.order[child].0);
            match smaller {
                Some(child) if self.order[child].0 < self.order[at].0 => {
                    self.swap(at, child);
                    at = child;
                }
                _ => break,
            }
        }
        self.at[self.order[at].1 as usize] = at as u32;
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.order.swap(one, other);
        self.at[self.order[one].1 as usize] = one as u32;
        self.at[self.order[other].1 as usize] = other as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn the_first_is_the_earliest(steps in proptest::collection::vec((0u32..16, proptest::option::of(0u64..30)), 1..200)) {
            let (mut heap, mut model) = (Heap::with_capacity(16), BTreeMap::new());
            for (place, time) in steps {
                match time {
                    Some(time) => {
                        heap.put(place, time);
                        model.insert(place, time);
                    }
                    None => {
                        heap.remove(place);
                        model.remove(&place);
                    }
                }
                let earliest = model.values().min().copied();
                prop_assert_eq!(heap.first().map(|place| model[&place]), earliest);
                prop_assert_eq!(heap.order.len(), model.len());
                for (at, &(time, place)) in heap.order.iter().enumerate() {
                    prop_assert_eq!((heap.at[place as usize] as usize, model[&place]), (at, time));
                }
            }
        }
    }
}
