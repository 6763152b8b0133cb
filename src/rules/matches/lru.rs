//! A table of bounded size whose entries are also in order of use: [`LruTable`].
//!
//! All memory is asked for when it is made, so an entry comes and goes without the allocator, without moving others, and
//! without a pause for rehashing: chains of slot numbers, keyed by a secret since attackers choose the keys. Memory that no
//! entry has needed yet is only address space.
//!
//! Invariant: each used slot is in exactly one chain and once in the order; each other one below `slots.len()` is free.

/// What entries are found by.
pub(super) trait Key: Copy + Eq {
    /// All of it, in words.
    fn words(&self) -> [u64; 8];
}

/// Number of an entry, while it is there.
pub(super) type SlotNumber = u32;

const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
    /// Next in the chain, or in the list of the free.
    next: u32,
    older: u32,
    newer: u32,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct LruTable<K, V> {
    /// First slot of each chain, plus one; 0 for none, since zeroes are memory that is not touched.
    chains: Box<[u32]>,
    slots: Vec<Slot<K, V>>,
    capacity: usize,
    len: usize,
    free: u32,
    oldest: u32,
    newest: u32,
    secret: [u64; 2],
}

/// `a * b` in 128 bits, its halves xored.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl<K: Key, V> LruTable<K, V> {
    /// A table for `capacity` entries (1 to 2^24).
    ///
    /// # Panics
    /// For a capacity out of range.
    pub(super) fn new(capacity: usize, secret: [u64; 2]) -> LruTable<K, V> {
        assert!((1..=1 << 24).contains(&capacity), "capacity {capacity} out of range");
        LruTable {
            chains: vec![0; capacity.next_power_of_two()].into_boxed_slice(),
            slots: Vec::with_capacity(capacity),
            capacity,
            len: 0,
            free: NONE,
            oldest: NONE,
            newest: NONE,
            secret,
        }
    }

    /// Entries in it.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no room for another.
    pub(super) fn is_full(&self) -> bool {
        self.len == self.capacity
    }

    fn chain(&self, key: &K) -> usize {
        let [first, second] = self.secret;
        let mix = |state: u64, word: u64| fold(state ^ word, second ^ 0x9e37_79b9_7f4a_7c15).rotate_left(23);
        let hash = fold(key.words().into_iter().fold(first, mix) ^ second, first ^ 0xbf58_476d_1ce4_e5b9);
        hash as usize & (self.chains.len() - 1)
    }

    /// The entry with this key.
    pub(super) fn find(&self, key: &K) -> Option<SlotNumber> {
        let mut at = self.chains[self.chain(key)].wrapping_sub(1);
        while at != NONE {
            let slot = &self.slots[at as usize];
            if slot.key == *key {
                return Some(at);
            }
            at = slot.next;
        }
        None
    }

    /// A new entry, the newest; `None` when the table is full. The key must not be there.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<SlotNumber> {
        if self.is_full() {
            return None;
        }
        let chain = self.chain(&key);
        let slot = Slot { key, value, next: self.chains[chain].wrapping_sub(1), older: NONE, newer: NONE };
        let at = match self.free {
            NONE => {
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
            at => {
                self.free = self.slots[at as usize].next;
                self.slots[at as usize] = slot;
                at
            }
        };
        self.chains[chain] = at + 1;
        self.link_newest(at);
        self.len += 1;
        Some(at)
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, at: SlotNumber) {
        let (chain, next) = (self.chain(&self.slots[at as usize].key), self.slots[at as usize].next);
        let mut before = self.chains[chain].wrapping_sub(1);
        if before == at {
            self.chains[chain] = next.wrapping_add(1);
        } else {
            while self.slots[before as usize].next != at {
                before = self.slots[before as usize].next;
            }
            self.slots[before as usize].next = next;
        }
        self.unlink(at);
        self.slots[at as usize].next = self.free;
        self.free = at;
        self.len -= 1;
    }

    /// Removes all entries.
    pub(super) fn clear(&mut self) {
        while let Some(at) = self.oldest() {
            self.remove(at);
        }
    }

    /// Makes an entry the newest.
    pub(super) fn touch(&mut self, at: SlotNumber) {
        if self.newest != at {
            self.unlink(at);
            self.link_newest(at);
        }
    }

    /// The entry that was not touched for longest.
    pub(super) fn oldest(&self) -> Option<SlotNumber> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// An entry's key.
    pub(super) fn key(&self, at: SlotNumber) -> &K {
        &self.slots[at as usize].key
    }

    /// An entry's value.
    pub(super) fn value(&self, at: SlotNumber) -> &V {
        &self.slots[at as usize].value
    }

    /// An entry's value, to be changed.
    pub(super) fn value_mut(&mut self, at: SlotNumber) -> &mut V {
        &mut self.slots[at as usize].value
    }

    /// All entries, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = SlotNumber> {
        core::iter::successors(self.oldest(), |&at| {
            let newer = self.slots[at as usize].newer;
            (newer != NONE).then_some(newer)
        })
    }

    fn link_newest(&mut self, at: u32) {
        let newest = self.newest;
        let slot = &mut self.slots[at as usize];
        (slot.older, slot.newer) = (newest, NONE);
        match newest {
            NONE => self.oldest = at,
            newest => self.slots[newest as usize].newer = at,
        }
        self.newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let (older, newer) = (self.slots[at as usize].older, self.slots[at as usize].newer);
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Number(u64);

    impl Key for Number {
        fn words(&self) -> [u64; 8] {
            [self.0, 0, 0, 0, 0, 0, 0, 0]
        }
    }

    #[test]
    fn it_is_full_at_its_capacity_and_a_removed_slot_is_used_again() {
        let mut table = LruTable::new(3, [1, 2]);
        for key in 0..3 {
            assert!(table.insert(Number(key), key).is_some());
        }
        assert!(table.is_full() && table.insert(Number(3), 3).is_none());
        let one = table.find(&Number(1)).expect("there");
        table.remove(one);
        assert_eq!(table.find(&Number(1)), None);
        assert_eq!(table.insert(Number(3), 3), Some(one));
    }

    proptest! {
        /// Against a list in order of use.
        #[test]
        fn it_does_what_a_list_does(steps in prop::collection::vec((0u8..4, 0u64..24), 0..400)) {
            let mut table = LruTable::new(16, [3, 4]);
            let mut list: Vec<u64> = Vec::new();
            for (step, key) in steps {
                let found = table.find(&Number(key));
                prop_assert_eq!(found.is_some(), list.contains(&key));
                match (step, found) {
                    (0 | 1, None) => {
                        let room = list.len() < 16;
                        prop_assert_eq!(table.insert(Number(key), key).is_some(), room);
                        if room {
                            list.push(key);
                        }
                    }
                    (2, Some(at)) => {
                        table.remove(at);
                        list.retain(|&one| one != key);
                    }
                    (3, Some(at)) => {
                        table.touch(at);
                        list.retain(|&one| one != key);
                        list.push(key);
                    }
                    _ => {}
                }
                let order: Vec<u64> = table.iter().map(|at| *table.value(at)).collect();
                prop_assert_eq!(&order, &list);
                prop_assert_eq!(table.len(), list.len());
            }
            table.clear();
            prop_assert_eq!((table.len(), table.oldest()), (0, None));
        }
    }
}
