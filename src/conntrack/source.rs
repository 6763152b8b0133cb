//! Which connections began at an address and port: [`Sources`], Linux's `nf_nat_bysource`.
//!
//! Address translation asks it for the mapping that a client's port has already, so that all its connections from there look
//! alike from outside. It holds every confirmed connection whose source translation has been decided (SRC_NAT_DONE), also
//! those that were left as they are. Records are chained by number, the youngest first, as in Linux; nothing is
//! allocated after start, and memory is used from the first connection on. To take one out costs nothing but three
//! chain links, however many share the source.

use super::conn::ConnId;
use crate::arch;

/// See the module's head. Numbers in the arrays are one more than a record's, 0 is none: memory that is all zero is empty.
#[derive(Debug)]
pub(super) struct Sources {
    heads: Vec<u32>,
    /// By record number: the next of its chain, and the one before.
    links: Vec<[u32; 2]>,
    len: usize,
}

impl Sources {
    /// Of no connection, with room for `capacity`.
    pub(super) fn new(capacity: usize) -> Sources {
        Sources { heads: vec![0; capacity], links: vec![[0; 2]; capacity], len: 0 }
    }

    /// Connections in it.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes it takes once all of it is in use.
    pub(super) fn memory_bytes(&self) -> usize {
        3 * self.heads.len() * size_of::<u32>()
    }

    fn chain(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.heads.len() as u128) >> 64) as usize
    }

    /// Asks for what [`Sources::of`] reads first to be brought close.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        arch::prefetch(&self.heads[self.chain(hash)]);
    }

    /// Puts a connection first. `hash` is that of its source.
    pub(super) fn insert(&mut self, id: ConnId, hash: u64) {
        let chain = self.chain(hash);
        let head = std::mem::replace(&mut self.heads[chain], id.0 + 1);
        self.links[id.index()] = [head, 0];
        if let Some(second) = head.checked_sub(1) {
            self.links[second as usize][1] = id.0 + 1;
        }
        self.len += 1;
    }

    /// Takes a connection out that is in it.
    pub(super) fn remove(&mut self, id: ConnId, hash: u64) {
        let [next, previous] = self.links[id.index()];
        match previous.checked_sub(1) {
            Some(previous) => self.links[previous as usize][0] = next,
            None => {
                let chain = self.chain(hash);
                assert!(self.heads[chain] == id.0 + 1, "a connection leaves the chain it is in");
                self.heads[chain] = next;
            }
        }
        if let Some(next) = next.checked_sub(1) {
            self.links[next as usize][1] = previous;
        }
        self.len -= 1;
    }

    /// The connections whose source may have this hash, the youngest first.
    pub(super) fn of(&self, hash: u64) -> impl Iterator<Item = ConnId> + '_ {
        let mut at = self.heads[self.chain(hash)];
        std::iter::from_fn(move || {
            let id = ConnId(at.checked_sub(1)?);
            at = self.links[id.index()][0];
            Some(id)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_as_lists(ops in proptest::collection::vec((any::<bool>(), 0u32..40), 0..300)) {
            let mut sources = Sources::new(40);
            let hash = |number: u32| u64::from(number % 5) << 61;
            let mut model: Vec<u32> = Vec::new();
            for (insert, number) in ops {
                let is_in = model.contains(&number);
                if insert && !is_in {
                    sources.insert(ConnId(number), hash(number));
                    model.insert(0, number);
                } else if !insert && is_in {
                    sources.remove(ConnId(number), hash(number));
                    model.retain(|&other| other != number);
                }
                prop_assert_eq!(sources.len(), model.len());
                for class in 0..5 {
                    let found: Vec<u32> = sources.of(hash(class)).map(|id| id.0).collect();
                    let home = sources.chain(hash(class));
                    let expected: Vec<u32> =
                        model.iter().copied().filter(|&number| sources.chain(hash(number)) == home).collect();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }
}
