//! Blocks of ports outside, each lent to one address inside: [`Blocks`], for carriers that have to know who had a port and
//! cannot log every connection (RFC 6888 section 4, RFC 7422). Linux does not have it.
//!
//! A block is one address's as long as one of its connections has a port of it. Taking a block and giving it back are told
//! ([`BlockEvent`]), once each; connections within are not. Memory is asked for at start; there is room for one block for
//! each connection, up to 65,536.

use core::fmt;

use hashbrown::HashMap;

use crate::wire::Addr;

/// Blocks that one address inside may have of one outside, at most.
pub const BLOCKS_MAX: u8 = 8;
/// Blocks there are, at most.
const ROOM_MAX: usize = 1 << 16;
/// Addresses outside, at most.
const OUTER_MAX: usize = 4096;
/// Events kept until they are fetched; more are lost, and counted.
const EVENTS_MAX: usize = 1024;

/// Ports of one address outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortBlock {
    /// The address.
    pub addr: Addr,
    /// First port.
    pub low: u16,
    /// Last port.
    pub high: u16,
}

/// A block was taken, or given back. Its `Display` is the line of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockEvent {
    /// Which.
    pub block: PortBlock,
    /// By whom.
    pub owner: Addr,
    /// Taken.
    pub taken: bool,
}

impl fmt::Display for BlockEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PortBlock { addr, low, high } = self.block;
        let what = if self.taken { "taken" } else { "free" };
        write!(f, "nat: port block {what}: inside={} outside={addr} ports={low}-{high}", self.owner)
    }
}

/// Who is lent blocks: an address, in its zone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Owner {
    pub(super) addr: Addr,
    pub(super) zone: u16,
}

/// What one owner has of one address outside.
#[derive(Clone, Copy, Debug)]
struct Own {
    blocks: [Lent; BLOCKS_MAX as usize],
    count: u8,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lent {
    low: u16,
    high: u16,
    /// Connections that use it.
    uses: u32,
}

/// Ports of a unit: blocks begin and end with one.
pub const BLOCK_UNIT: u16 = 64;
const UNITS: usize = 65_536 / BLOCK_UNIT as usize;

/// One bit for each unit of an address's ports: whether it is lent.
type Units = [u64; UNITS / 64];

/// The units from one port to another, both of the block.
fn units_of(low: u16, high: u16) -> core::ops::RangeInclusive<usize> {
    usize::from(low / BLOCK_UNIT)..=usize::from(high / BLOCK_UNIT)
}

/// See the module's head. No two blocks overlap, whatever the rules say of their sizes and ranges.
#[derive(Debug)]
pub(super) struct Blocks {
    /// By owner and address outside.
    own: HashMap<(Owner, Addr), Own>,
    /// By address outside.
    lent: HashMap<Addr, Units>,
    count: usize,
    events: Vec<BlockEvent>,
    events_lost: u64,
    room: usize,
}

impl Blocks {
    /// None lent, with room for so many connections.
    pub(super) fn new(connections: usize) -> Blocks {
        let room = connections.min(ROOM_MAX);
        Blocks {
            own: HashMap::with_capacity(room),
            lent: HashMap::with_capacity(room.min(OUTER_MAX)),
            count: 0,
            events: Vec::with_capacity(EVENTS_MAX.min(2 * room)),
            events_lost: 0,
            room,
        }
    }

    /// Bytes it takes once all of it is in use.
    pub(super) fn memory_bytes(&self) -> usize {
        self.own.allocation_size() + self.lent.allocation_size()
    }

    /// What `owner` has of the address `outer`.
    pub(super) fn of(&self, owner: Owner, outer: Addr) -> impl Iterator<Item = PortBlock> + use<> {
        let own = self.own.get(&(owner, outer)).copied();
        let lent = own.map(|own| own.blocks.into_iter().take(usize::from(own.count))).into_iter().flatten();
        lent.map(move |Lent { low, high, .. }| PortBlock { addr: outer, low, high })
    }

    /// A block of `size` ports (whole units) that nobody has, of the ports `low` to `high` of `outer`, the first after a random
    /// one. Looks at each unit once at most: some microseconds where few are left.
    pub(super) fn find(&self, outer: Addr, (low, high): (u16, u16), size: u16, random: u16) -> Option<PortBlock> {
        let (low, end) = (u32::from(low).next_multiple_of(u32::from(BLOCK_UNIT)), u32::from(high) + 1);
        let all = end.saturating_sub(low) / u32::from(size);
        let units = self.lent.get(&outer).copied().unwrap_or_default();
        if all == 0 || self.count >= self.room || !self.lent.contains_key(&outer) && self.lent.len() >= OUTER_MAX {
            return None;
        }
        let first = u32::from(random) % all;
        let at = |number: u32| (low + number % all * u32::from(size)) as u16;
        let free = |low: &u16| units_of(*low, *low + (size - 1)).all(|unit| units[unit / 64] >> (unit % 64) & 1 == 0);
        let low = (first..first + all).map(at).find(free)?;
        Some(PortBlock { addr: outer, low, high: low + (size - 1) })
    }

    /// One more connection of `owner` uses the block; the first takes it. `false`: another has ports of it, or there is no room.
    pub(super) fn hold(&mut self, owner: Owner, block: PortBlock) -> bool {
        let PortBlock { addr, low, high } = block;
        if let Some(own) = self.own.get_mut(&(owner, addr)) {
            let mut known = own.blocks[..usize::from(own.count)].iter_mut();
            if let Some(lent) = known.find(|lent| (lent.low, lent.high) == (low, high)) {
                lent.uses += 1;
                return true;
            }
            if own.count == BLOCKS_MAX {
                return false;
            }
        }
        let units = self.lent.entry(addr).or_default();
        let taken = units_of(low, high).any(|unit| units[unit / 64] >> (unit % 64) & 1 == 1);
        if taken || self.count >= self.room {
            return false;
        }
        units_of(low, high).for_each(|unit| units[unit / 64] |= 1 << (unit % 64));
        let own = self.own.entry((owner, addr)).or_insert(Own { blocks: Default::default(), count: 0 });
        own.blocks[usize::from(own.count)] = Lent { low, high, uses: 1 };
        own.count += 1;
        self.count += 1;
        self.tell(BlockEvent { block, owner: owner.addr, taken: true });
        true
    }

    /// A connection of `owner` with this port of `outer` uses its block no longer; the last gives it back.
    pub(super) fn release(&mut self, owner: Owner, outer: Addr, port: u16) {
        let Some(own) = self.own.get_mut(&(owner, outer)) else { return };
        let count = usize::from(own.count);
        let holds = |lent: &Lent| (lent.low..=lent.high).contains(&port);
        let Some(at) = own.blocks[..count].iter().position(holds) else { return };
        own.blocks[at].uses -= 1;
        if own.blocks[at].uses > 0 {
            return;
        }
        let Lent { low, high, .. } = own.blocks[at];
        own.blocks.copy_within(at + 1..count, at);
        own.count -= 1;
        if own.count == 0 {
            self.own.remove(&(owner, outer));
        }
        self.count -= 1;
        if let Some(units) = self.lent.get_mut(&outer) {
            units_of(low, high).for_each(|unit| units[unit / 64] &= !(1 << (unit % 64)));
            if *units == Units::default() {
                self.lent.remove(&outer);
            }
        }
        self.tell(BlockEvent { block: PortBlock { addr: outer, low, high }, owner: owner.addr, taken: false });
    }

    fn tell(&mut self, event: BlockEvent) {
        if self.events.len() < self.events.capacity() {
            self.events.push(event);
        } else {
            self.events_lost += 1;
        }
    }

    /// Events since they were last fetched, and how many found no room.
    #[inline]
    pub(super) fn events(&mut self) -> (&mut Vec<BlockEvent>, &mut u64) {
        (&mut self.events, &mut self.events_lost)
    }

    /// How often connections use them; slowly.
    pub(super) fn uses(&self) -> usize {
        let lent = self.own.values().flat_map(|own| &own.blocks[..usize::from(own.count)]);
        lent.map(|lent| lent.uses as usize).sum()
    }

    /// Blocks lent.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const OUTER: Addr = Addr::from_v4(9);

    fn block(low: u16) -> PortBlock {
        PortBlock { addr: OUTER, low, high: low + 63 }
    }

    fn owner(addr: u32) -> Owner {
        Owner { addr: Addr::from_v4(addr), zone: 0 }
    }

    #[test]
    fn blocks_of_other_sizes_and_ranges_do_not_overlap() {
        let mut blocks = Blocks::new(1000);
        let mut lent: Vec<PortBlock> = Vec::new();
        for number in 0..200u16 {
            let (size, low) = [(64, 1024), (1024, 1100), (512, 2000)][usize::from(number % 3)];
            let Some(found) = blocks.find(OUTER, (low, 9999), size, number * 31) else { continue };
            assert!(found.low >= low && found.high <= 9999 && found.high - found.low == size - 1);
            assert!(lent.iter().all(|other| found.high < other.low || found.low > other.high), "{found:?} {lent:?}");
            assert!(blocks.hold(owner(u32::from(number)), found));
            lent.push(found);
        }
        let overlapping = PortBlock { addr: OUTER, low: lent[0].low, high: lent[0].high.saturating_add(64) };
        assert!(lent.len() > 20 && !blocks.hold(owner(999), overlapping));
        // The same address in another zone is another customer.
        let elsewhere = Owner { zone: 7, ..owner(0) };
        assert_eq!((blocks.of(owner(0), OUTER).count(), blocks.of(elsewhere, OUTER).count()), (1, 0));
    }

    #[test]
    fn blocks_are_found_until_all_are_lent() {
        let mut blocks = Blocks::new(100);
        for number in 0..10 {
            let found = blocks.find(OUTER, (1024, 1024 + 639), 64, number as u16 * 7).expect("one is free");
            assert!(
                found.low >= 1024 && found.high <= 1024 + 639 && (found.low - 1024).is_multiple_of(64),
                "{found:?}"
            );
            assert!(blocks.hold(owner(number), found));
        }
        assert_eq!(blocks.find(OUTER, (1024, 1024 + 639), 64, 3), None);
        assert_eq!(blocks.find(OUTER, (1024, 1086), 64, 3), None, "no whole block");
        assert_eq!(blocks.events().0.len(), 10);
        assert_eq!(
            blocks.events().0[0].to_string(),
            "nat: port block taken: inside=0.0.0.0 outside=0.0.0.9 ports=1024-1087"
        );
    }

    proptest! {
        /// Beside a map of uses: whose blocks are, what is told, and nothing is left in the end.
        #[test]
        fn a_block_is_lent_to_one_and_told_twice(ops in proptest::collection::vec((any::<bool>(), 0u32..4, 0u16..12), 0..200)) {
            let mut blocks = Blocks::new(8);
            let mut model: BTreeMap<(u32, u16), u32> = BTreeMap::new();
            let mut told = 0;
            for (hold, who, number) in ops {
                let (addr, low) = (owner(who), 1024 + 64 * number);
                let used = model.get(&(who, low)).copied().unwrap_or(0);
                if hold {
                    let others = model.keys().any(|&(other, of)| of == low && other != who);
                    let own = model.keys().filter(|key| key.0 == who).count();
                    let fits = used > 0 || !others && own < usize::from(BLOCKS_MAX) && model.len() < 8;
                    prop_assert_eq!(blocks.hold(addr, block(low)), fits);
                    if fits {
                        told += usize::from(used == 0);
                        model.insert((who, low), used + 1);
                    }
                } else if used > 0 {
                    blocks.release(addr, OUTER, low + 5);
                    match used {
                        1 => {
                            told += 1;
                            model.remove(&(who, low))
                        }
                        _ => model.insert((who, low), used - 1),
                    };
                }
                prop_assert_eq!(blocks.len(), model.len());
                let mut own: Vec<u16> = blocks.of(addr, OUTER).map(|block| block.low).collect();
                own.sort_unstable();
                let expected: Vec<u16> = model.keys().filter(|key| key.0 == who).map(|key| key.1).collect();
                prop_assert_eq!(own, expected);
            }
            let lost = *blocks.events().1 as usize;
            prop_assert_eq!(blocks.events().0.len() + lost, told);
            for ((who, low), uses) in model {
                (0..uses).for_each(|_| blocks.release(owner(who), OUTER, low));
            }
            prop_assert!(blocks.len() == 0 && blocks.own.is_empty() && blocks.lent.is_empty());
        }
    }
}
