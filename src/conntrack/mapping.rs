//! Ports outside that belong to one address and port inside, whoever is talked to: [`Mappings`], for endpoint-independent
//! translation (RFC 4787 section 4.1), which Linux does not have.
//!
//! A mapping lives as long as a connection uses it, and is found from either side. Memory is asked for at start and used as
//! mappings come; there is room for one for each connection, up to a million.

use hashbrown::HashMap;

use super::blocks::Owner;
use crate::wire::Addr;

/// Mappings there are, at most.
const ROOM_MAX: usize = 1 << 20;

/// One side of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Side {
    /// Address.
    pub(super) addr: Addr,
    /// Port, in host order.
    pub(super) port: u16,
    /// Protocol of the port.
    pub(super) proto: u8,
    /// Zone of the connections.
    pub(super) zone: u16,
}

impl Side {
    /// Whom blocks of ports are lent to.
    pub(super) fn owner(self) -> Owner {
        Owner { addr: self.addr, zone: self.zone }
    }
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    inner: Side,
    /// Anyone outside may begin a connection through it (endpoint-independent filtering).
    open: bool,
    /// Its port is of a block that is lent to its owner, as long as it lives.
    in_block: bool,
    /// Connections that use it.
    uses: u32,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Mappings {
    by_outer: HashMap<Side, Mapping>,
    outer_of: HashMap<Side, Side>,
    room: usize,
}

impl Mappings {
    /// None, with room for so many.
    pub(super) fn new(connections: usize) -> Mappings {
        let room = connections.min(ROOM_MAX);
        Mappings { by_outer: HashMap::with_capacity(room), outer_of: HashMap::with_capacity(room), room }
    }

    /// Bytes it takes once all of it is in use.
    pub(super) fn memory_bytes(&self) -> usize {
        self.by_outer.allocation_size() + self.outer_of.allocation_size()
    }

    /// Whether there are none.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.by_outer.is_empty()
    }

    /// How often connections use them; slowly.
    pub(super) fn uses(&self) -> usize {
        self.by_outer.values().map(|mapping| mapping.uses as usize).sum()
    }

    /// What is outside for what is inside.
    pub(super) fn outer(&self, inner: &Side) -> Option<Side> {
        self.outer_of.get(inner).copied()
    }

    /// Whom a port outside belongs to.
    pub(super) fn inner(&self, outer: &Side) -> Option<Side> {
        self.by_outer.get(outer).map(|mapping| mapping.inner)
    }

    /// Whom a connection that begins outside is for.
    pub(super) fn open(&self, outer: &Side) -> Option<Side> {
        self.by_outer.get(outer).filter(|mapping| mapping.open).map(|mapping| mapping.inner)
    }

    /// How many are of ports in blocks; slowly.
    pub(super) fn in_blocks(&self) -> usize {
        self.by_outer.values().filter(|mapping| mapping.in_block).count()
    }

    /// Whether a mapping is there.
    pub(super) fn has(&self, outer: &Side) -> bool {
        self.by_outer.contains_key(outer)
    }

    /// One more connection uses the mapping, which begins with the first: only that one's `open` and `in_block` (its port is of a
    /// block) count. `false`: the port is another's, or there is no room.
    pub(super) fn hold(&mut self, inner: Side, outer: Side, open: bool, in_block: bool) -> bool {
        if self.by_outer.len() == self.room && !self.by_outer.contains_key(&outer) {
            return false;
        }
        let mapping = self.by_outer.entry(outer).or_insert(Mapping { inner, open, in_block, uses: 0 });
        let holds = mapping.inner == inner;
        if holds {
            mapping.uses += 1;
            mapping.open |= open;
            self.outer_of.insert(inner, outer);
        }
        holds
    }

    /// One connection less uses it; the last takes it along. True when a block has a port less in use by that.
    pub(super) fn release(&mut self, inner: Side, outer: Side) -> bool {
        let Some(mapping) = self.by_outer.get_mut(&outer).filter(|mapping| mapping.inner == inner) else {
            return false;
        };
        mapping.uses -= 1;
        let ends_in_block = mapping.uses == 0 && mapping.in_block;
        if mapping.uses == 0 {
            self.by_outer.remove(&outer);
            // It may have another by now, of a newer rule.
            if self.outer_of.get(&inner) == Some(&outer) {
                self.outer_of.remove(&inner);
            }
        }
        ends_in_block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_lives_as_long_as_it_is_used() {
        let side = |addr: u32, port: u16| Side { addr: Addr::from_v4(addr), port, proto: 17, zone: 0 };
        let (inner, outer) = (side(1, 5000), side(9, 6000));
        let mut mappings = Mappings::new(4);
        assert!(mappings.hold(inner, outer, false, false));
        assert_eq!(
            (mappings.outer(&inner), mappings.inner(&outer), mappings.open(&outer)),
            (Some(outer), Some(inner), None)
        );
        assert!(mappings.hold(inner, outer, true, false));
        assert_eq!(mappings.open(&outer), Some(inner));
        // Another's claim on it is none.
        assert!(!mappings.hold(side(2, 5000), outer, true, false));
        mappings.release(side(2, 5000), outer);
        mappings.release(inner, outer);
        assert_eq!(mappings.outer(&inner), Some(outer));
        mappings.release(inner, outer);
        assert!(mappings.is_empty() && mappings.outer(&inner).is_none());
        let taken: Vec<bool> = (0..6).map(|at| mappings.hold(side(at, 1), side(at, 2), false, false)).collect();
        assert_eq!(taken, [true, true, true, true, false, false]);
    }
}
