//! Source keys of enhanced GRE: [`Keymap`] (nf_conntrack_proto_gre.c's `gre_keymap`).
//!
//! A packet of PPTP's tunnel has the call number of its receiver and no other. What number the sender goes by is known from
//! the control connection only, whose helper notes it here, one entry for each direction; without an entry it is 0.

use std::collections::BTreeMap;

use super::expect::MasterId;
use super::tuple::{Direction, Tuple};
use crate::wire::Addr;

/// Source, destination, and the call number in the packet.
type Key = (Addr, Addr, u16);

/// Whose entry it is, and the source key it tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    master: MasterId,
    direction: Direction,
    source: u16,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Keymap {
    /// Oldest first where several are the same; the oldest counts.
    entries: BTreeMap<Key, Vec<Entry>>,
    /// The keys of each control connection, by direction.
    masters: BTreeMap<u32, [Option<Key>; 2]>,
}

fn key_of(tuple: &Tuple) -> Key {
    (tuple.src, tuple.dst, tuple.dport)
}

impl Keymap {
    /// Whether there are no entries.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The source key of a packet with this tuple (`gre_keymap_lookup`).
    pub(super) fn source(&self, tuple: &Tuple) -> u16 {
        self.entries.get(&key_of(tuple)).and_then(|entries| entries.first()).map_or(0, |entry| entry.source)
    }

    /// Notes a direction of a control connection's call (`nf_ct_gre_keymap_add`). `false`: it has another already.
    #[must_use]
    pub(super) fn add(&mut self, master: MasterId, direction: Direction, tuple: &Tuple) -> bool {
        let key = key_of(tuple);
        let own = &mut self.masters.entry(master.0).or_default()[direction.index()];
        if let Some(known) = own {
            return *known == key;
        }
        *own = Some(key);
        self.entries.entry(key).or_default().push(Entry { master, direction, source: tuple.sport });
        true
    }

    /// A control connection's call is over (`nf_ct_gre_keymap_destroy`).
    pub(super) fn remove(&mut self, master: MasterId) {
        for key in self.masters.remove(&master.0).into_iter().flatten().flatten() {
            if let Some(entries) = self.entries.get_mut(&key) {
                entries.retain(|entry| entry.master != master);
                if entries.is_empty() {
                    self.entries.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entry_tells_and_goes_with_its_connection() {
        let tuple = |sport, dport| Tuple { sport, dport, proto: 47, ..Tuple::default() };
        let mut keys = Keymap::default();
        assert!(keys.add(MasterId(1), Direction::Original, &tuple(7, 9)));
        assert!(keys.add(MasterId(1), Direction::Original, &tuple(8, 9)), "again");
        assert!(!keys.add(MasterId(1), Direction::Original, &tuple(7, 10)), "another call");
        assert!(keys.add(MasterId(2), Direction::Reply, &tuple(5, 9)));
        assert_eq!((keys.source(&tuple(0, 9)), keys.source(&tuple(0, 10))), (7, 0));
        keys.remove(MasterId(1));
        assert_eq!(keys.source(&tuple(0, 9)), 5);
        keys.remove(MasterId(2));
        assert!(keys.is_empty() && keys.masters.is_empty());
    }
}
