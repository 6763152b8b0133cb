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

/// What one address inside has of one outside.
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

/// See the module's head.
#[derive(Debug)]
pub(super) struct Blocks {
    /// By address inside and outside.
    own: HashMap<(Addr, Addr), Own>,
    /// Address and first port outside of what is lent, with the last port.
    lent: HashMap<(Addr, u16), u16>,
    /// How many of an address are lent.
    count: HashMap<Addr, u32>,
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
            lent: HashMap::with_capacity(room),
            count: HashMap::with_capacity(room.min(1024)),
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
    pub(super) fn of(&self, owner: Addr, outer: Addr) -> impl Iterator<Item = PortBlock> + use<> {
        let own = self.own.get(&(owner, outer)).copied();
        let lent = own.map(|own| own.blocks.into_iter().take(usize::from(own.count))).into_iter().flatten();
        lent.map(move |Lent { low, high, .. }| PortBlock { addr: outer, low, high })
    }

    /// A block of `size` ports that nobody has, of the ports `low` to `high` of `outer`, the first after a random one.
    pub(super) fn find(&self, outer: Addr, (low, high): (u16, u16), size: u16, random: u16) -> Option<PortBlock> {
        let all = (u32::from(high) - u32::from(low) + 1) / u32::from(size);
        // Where all are lent nobody searches. (An address whose rules have blocks of two sizes may be searched for nothing.)
        if all == 0 || self.lent.len() >= self.room || self.count.get(&outer).is_some_and(|&count| count >= all) {
            return None;
        }
        let first = u32::from(random) % all;
        let at = |number: u32| low + (number % all * u32::from(size)) as u16;
        let free = |low: &u16| !self.lent.contains_key(&(outer, *low));
        let low = (first..first + all).map(at).find(free)?;
        Some(PortBlock { addr: outer, low, high: low + (size - 1) })
    }

    /// One more connection of `owner` uses the block; the first takes it. `false`: another has it, or there is no room.
    pub(super) fn hold(&mut self, owner: Addr, block: PortBlock) -> bool {
        let PortBlock { addr, low, high } = block;
        let own = self.own.entry((owner, addr)).or_insert(Own { blocks: Default::default(), count: 0 });
        let mut known = own.blocks[..usize::from(own.count)].iter_mut();
        if let Some(lent) = known.find(|lent| lent.low == low) {
            lent.uses += 1;
            return true;
        }
        if own.count == BLOCKS_MAX || self.lent.len() >= self.room || self.lent.contains_key(&(addr, low)) {
            if own.count == 0 {
                self.own.remove(&(owner, addr));
            }
            return false;
        }
        own.blocks[usize::from(own.count)] = Lent { low, high, uses: 1 };
        own.count += 1;
        self.lent.insert((addr, low), high);
        *self.count.entry(addr).or_insert(0) += 1;
        self.tell(BlockEvent { block, owner, taken: true });
        true
    }

    /// A connection of `owner` with this port of `outer` uses its block no longer; the last gives it back.
    pub(super) fn release(&mut self, owner: Addr, outer: Addr, port: u16) {
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
        self.lent.remove(&(outer, low));
        if let Some(count) = self.count.get_mut(&outer) {
            *count -= 1;
            if *count == 0 {
                self.count.remove(&outer);
            }
        }
        self.tell(BlockEvent { block: PortBlock { addr: outer, low, high }, owner, taken: false });
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
        self.lent.len()
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

    #[test]
    fn blocks_are_found_until_all_are_lent() {
        let mut blocks = Blocks::new(100);
        for owner in 0..10 {
            let found = blocks.find(OUTER, (1024, 1024 + 639), 64, owner as u16 * 7).expect("one is free");
            assert!(found.low >= 1024 && found.high <= 1024 + 639 && (found.low - 1024) % 64 == 0, "{found:?}");
            assert!(blocks.hold(Addr::from_v4(owner), found));
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
            for (hold, owner, number) in ops {
                let (addr, low) = (Addr::from_v4(owner), 1024 + 64 * number);
                let used = model.get(&(owner, low)).copied().unwrap_or(0);
                if hold {
                    let others = model.keys().any(|&(other, of)| of == low && other != owner);
                    let own = model.keys().filter(|key| key.0 == owner).count();
                    let fits = used > 0 || !others && own < usize::from(BLOCKS_MAX) && model.len() < 8;
                    prop_assert_eq!(blocks.hold(addr, block(low)), fits);
                    if fits {
                        told += usize::from(used == 0);
                        model.insert((owner, low), used + 1);
                    }
                } else if used > 0 {
                    blocks.release(addr, OUTER, low + 5);
                    match used {
                        1 => {
                            told += 1;
                            model.remove(&(owner, low))
                        }
                        _ => model.insert((owner, low), used - 1),
                    };
                }
                prop_assert_eq!(blocks.len(), model.len());
                let mut own: Vec<u16> = blocks.of(addr, OUTER).map(|block| block.low).collect();
                own.sort_unstable();
                let expected: Vec<u16> = model.keys().filter(|key| key.0 == owner).map(|key| key.1).collect();
                prop_assert_eq!(own, expected);
            }
            let lost = *blocks.events().1 as usize;
            prop_assert_eq!(blocks.events().0.len() + lost, told);
            for ((owner, low), uses) in model {
                (0..uses).for_each(|_| blocks.release(Addr::from_v4(owner), OUTER, low));
            }
            prop_assert!(blocks.len() == 0 && blocks.own.is_empty() && blocks.count.is_empty());
        }
    }
}
