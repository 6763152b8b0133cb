//! [`NeighbourTable`]: next hop to link-layer address, as the kernel knows it.
//!
//! Immutable and small (the kernel itself keeps at most some thousand entries); made anew whenever a neighbour changes,
//! without touching the prefix table. Which hosts are neighbours is up to those on the link, so the hash is keyed.

use crate::device::PortId;
use crate::wire::{Addr, Mac};

/// What is known of a next hop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Neighbour {
    /// Frames go to this address (kernel states reachable, stale, delay, probe, permanent, noarp).
    Reachable(Mac),
    /// It did not answer (kernel state failed).
    Failed,
    /// Nobody asked yet, or the answer is still out (kernel states none, incomplete, or no entry).
    Unknown,
}

#[derive(Clone, Copy)]
struct Slot {
    next_hop: Addr,
    port: PortId,
    neighbour: Neighbour,
}

const EMPTY: Slot = Slot { next_hop: Addr::ZERO, port: PortId::LAN, neighbour: Neighbour::Unknown };

/// The neighbours of both ports. Open addressing, at most half full.
#[derive(Clone)]
pub struct NeighbourTable {
    slots: Box<[Slot]>,
    secret: [u64; 2],
    len: usize,
}

impl NeighbourTable {
    /// The table of these neighbours; those [`Neighbour::Unknown`] are left out. A later one replaces an earlier one.
    pub fn build(secret: [u64; 2], neighbours: impl IntoIterator<Item = (PortId, Addr, Neighbour)>) -> NeighbourTable {
        let known: Vec<_> = neighbours.into_iter().filter(|(_, _, it)| *it != Neighbour::Unknown).collect();
        let size = (known.len() * 2).next_power_of_two().max(16);
        let mut table = NeighbourTable { slots: vec![EMPTY; size].into_boxed_slice(), secret, len: 0 };
        for (port, next_hop, neighbour) in known {
            let at = table.find(port, next_hop);
            table.len += usize::from(table.slots[at].neighbour == Neighbour::Unknown);
            table.slots[at] = Slot { next_hop, port, neighbour };
        }
        table
    }

    /// What is known of `next_hop` on `port`.
    #[inline]
    pub fn get(&self, port: PortId, next_hop: Addr) -> Neighbour {
        self.slots[self.find(port, next_hop)].neighbour
    }

    /// The slot of this next hop, or the free one where it belongs. There is one: the table is never more than half full.
    #[inline]
    fn find(&self, port: PortId, next_hop: Addr) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = self.hash(port, next_hop) as usize & mask;
        loop {
            let slot = &self.slots[at];
            if slot.neighbour == Neighbour::Unknown || (slot.next_hop == next_hop && slot.port == port) {
                return at;
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    fn hash(&self, port: PortId, next_hop: Addr) -> u64 {
        let (hi, lo) = next_hop.words();
        super::mix(hi ^ self.secret[0], lo ^ self.secret[1] ^ u64::from(port.0) << 56)
    }

    /// How many neighbours are reachable or failed.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every neighbour that is reachable or failed, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (PortId, Addr, Neighbour)> + '_ {
        let known = self.slots.iter().filter(|slot| slot.neighbour != Neighbour::Unknown);
        known.map(|slot| (slot.port, slot.next_hop, slot.neighbour))
    }
}

impl core::fmt::Debug for NeighbourTable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn equals_a_hash_map(
            list in proptest::collection::vec((0u8..2, 0u32..40, 0u8..3), 0..120),
            secret: [u64; 2],
        ) {
            let list: Vec<_> = list.into_iter().map(|(port, addr, state)| {
                let neighbour = match state {
                    0 => Neighbour::Failed,
                    n => Neighbour::Reachable(Mac([2, 0, 0, 0, n, addr as u8])),
                };
                (PortId(port), Addr::from_v4(addr), neighbour)
            }).collect();
            let table = NeighbourTable::build(secret, list.iter().copied());
            let map: HashMap<_, _> = list.iter().map(|&(port, addr, it)| ((port, addr), it)).collect();
            for port in PortId::ALL {
                for addr in (0..50).map(Addr::from_v4) {
                    let expected = map.get(&(port, addr)).copied().unwrap_or(Neighbour::Unknown);
                    prop_assert_eq!(table.get(port, addr), expected);
                }
            }
            prop_assert_eq!(table.len(), map.len());
            prop_assert_eq!(table.iter().count(), map.len());
        }
    }
}
