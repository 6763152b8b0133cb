//! The ways that packets of known connections went before: [`Shortcuts`].
//!
//! Where a packet goes and whether it may depends, for most packets, on things that are the same for every packet of
//! its connection and direction: addresses, ports, interfaces, conntrack state, the rules, the routes. So what the path
//! decided for one is kept as a [`Shortcut`], its number in the connection's record, and the next packet that looks alike
//! takes it: no prefix lookup, no address checks, no rules, no neighbour lookup. It is exact, not an approximation: conntrack
//! still sees every packet; what differs between packets (the incoming port, TTL, length, options, state, status) is
//! compared every time; a verdict that rests on anything else is not kept ([`Trace`]); and rule counters are counted per
//! trace and added to the rules when they are read. A property test holds a shard with shortcuts against one without.
//!
//! Measured (callgrind, one established UDP flow under the default policy): 1820 instructions a packet before, about 1100
//! with it and with the changes to parsing and lookup of the same day (`bench/record/2026-11-21-shortcuts-and-table.md`);
//! 808 since (`bench/record/2026-11-21-known-connections.md`), 847 now that TCP flags and marks are compared and new flows
//! looked for (`bench/record/2026-11-21-rules.md`).
//!
//! Life cycle: shortcuts hold for one generation of [`Policy`] and one number of [`Routing::ways`]; when either changes all are
//! forgotten at once, by moving on to numbers never used before, so nobody has to visit the connections. [`Traces`] live as long
//! as the policy, and go with what was counted in its [`super::Ledger`]. Should the numbers run out, every record is cleared, a
//! few per burst, and they start again; meanwhile nothing is remembered. All memory is taken at start; when it is full,
//! packets go the long way.

use hashbrown::HashMap;

use crate::conntrack::{Conntrack, CtInfo, Tracked};
use crate::device::PortId;
use crate::packet::Packet;
use crate::rules::{Counter, RuleCounters, Trace};
use crate::snapshot::{Policy, Routing};
use crate::wire::{Family, Mac};

/// Shortcuts of one generation, at most.
const SHORTCUTS: usize = 16_384;
/// Traces of one policy, at most.
const TRACES: usize = 1024;
/// Records cleared per burst when numbers have run out.
const SWEEP: usize = 4096;

/// What was decided for a packet, and what another must have in common with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Shortcut {
    /// The port it came in by.
    pub(super) in_port: PortId,
    /// The port it left by.
    pub(super) out_port: PortId,
    /// Longest IP packet that may go this way.
    pub(super) mtu: u16,
    /// The next hop's link-layer address.
    pub(super) neighbour: Mac,
    /// Its conntrack state.
    pub(super) info: CtInfo,
    /// All bits, where the rules read its connection's status.
    pub(super) status_mask: u16,
    /// What it was.
    pub(super) status: u16,
    /// TCP flags that the rules read.
    pub(super) flags_mask: u8,
    /// What they were.
    pub(super) flags: u8,
    /// The connection's mark, where the rules read or wrote it.
    pub(super) conn_mark: Option<u32>,
    /// The way through the rules; without one they are asked every time.
    pub(super) trace: Option<u16>,
}

impl Shortcut {
    /// Whether the packet itself may go this way.
    #[inline(always)]
    pub(super) fn takes(&self, packet: &Packet) -> bool {
        self.in_port == packet.port
            && packet.ttl > 1
            && packet.l3_len <= self.mtu
            && packet.tcp_flags & self.flags_mask == self.flags
    }

    /// Whether conntrack says of it what it said then.
    #[inline(always)]
    pub(super) fn agrees(&self, tracked: &Tracked, conntrack: &Conntrack) -> bool {
        tracked.info == self.info
            && tracked.status.0 & self.status_mask == self.status
            && self.conn_mark.is_none_or(|mark| mark == conntrack.conn(tracked.conn).map_or(0, |conn| conn.mark()))
    }
}

/// Ways through the rules of one policy, and how many packets took each.
#[derive(Debug)]
pub(super) struct Traces {
    list: Vec<(Family, Trace)>,
    known: HashMap<(Family, Trace), u16>,
    uses: Vec<Counter>,
}

impl Traces {
    /// None yet, with room for all there may be.
    pub(super) fn new() -> Traces {
        // Written once, so that whoever uses them first need not wait for the memory's pages.
        let mut list = vec![(Family::V4, Trace::default()); TRACES];
        let mut uses = vec![Counter { packets: 1, bytes: 1 }; TRACES];
        list.clear();
        uses.clear();
        Traces { list, known: HashMap::with_capacity(TRACES), uses }
    }

    /// The number of a way through the rules; `None` when it may not be kept, or there is no room.
    fn learn(&mut self, family: Family, trace: &Trace) -> Option<u16> {
        if !trace.holds_for_the_flow() {
            return None;
        }
        if let Some(&number) = self.known.get(&(family, *trace)) {
            return Some(number);
        }
        if self.list.len() == TRACES {
            return None;
        }
        let number = self.list.len() as u16;
        self.list.push((family, *trace));
        self.known.insert((family, *trace), number);
        self.uses.push(Counter::default());
        Some(number)
    }

    /// Adds what was counted per trace to the rules.
    pub(super) fn add_uses(&self, family: Family, counters: &mut RuleCounters) {
        for ((of, trace), uses) in self.list.iter().zip(&self.uses) {
            if *of == family {
                trace.count(uses, counters);
            }
        }
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Shortcuts {
    /// Number of the first shortcut in `list`; numbers below are of earlier generations. 0 is none.
    first: u32,
    list: Vec<Shortcut>,
    /// Every connection asks here up to three times. (hashbrown's own hash: with the standard library's, hashing was a
    /// quarter of what the first packets of a connection cost.)
    known: HashMap<Shortcut, u32>,
    /// Of the policy in force; whoever changes it brings new ones.
    pub(super) traces: Traces,
    policy: u64,
    ways: u64,
    /// The next record to clear, while numbers start again.
    sweep: Option<usize>,
    off: bool,
}

impl Shortcuts {
    pub(super) fn new() -> Shortcuts {
        Shortcuts {
            first: 1,
            list: Vec::with_capacity(SHORTCUTS),
            known: HashMap::with_capacity(SHORTCUTS),
            traces: Traces::new(),
            policy: 0,
            ways: 0,
            sweep: None,
            off: false,
        }
    }

    /// From now on every packet goes the long way; for tests and comparisons.
    pub(super) fn turn_off(&mut self) {
        self.off = true;
        self.forget();
    }

    /// Forgets what other rules or routes than these said.
    #[inline]
    pub(super) fn follow(&mut self, policy: &Policy, routing: &Routing, conntrack: &mut Conntrack) {
        if self.policy != policy.generation || self.ways != routing.ways {
            self.renew(policy, routing);
        }
        if let Some(from) = self.sweep {
            self.sweep = conntrack.clear_shortcuts(from, SWEEP);
        }
    }

    #[cold]
    fn renew(&mut self, policy: &Policy, routing: &Routing) {
        self.forget();
        (self.policy, self.ways) = (policy.generation, routing.ways);
    }

    fn forget(&mut self) {
        self.first += self.list.len() as u32;
        self.list.clear();
        self.known.clear();
        if self.first > u32::MAX - SHORTCUTS as u32 {
            self.first = 1;
            self.sweep = Some(0);
        }
    }

    /// The shortcut with this number, if it still holds.
    #[inline]
    pub(super) fn get(&self, number: u32) -> Option<&Shortcut> {
        if self.sweep.is_some() {
            return None;
        }
        self.list.get(number.wrapping_sub(self.first) as usize)
    }

    /// One more packet, of `bytes`, took a way through the rules.
    #[inline(always)]
    pub(super) fn count(&mut self, trace: u16, bytes: u16) {
        self.traces.uses[usize::from(trace)].count(bytes);
    }

    /// The number of a way through the rules; `None` when it may not be kept, or there is no room.
    pub(super) fn learn_trace(&mut self, family: Family, trace: &Trace) -> Option<u16> {
        self.traces.learn(family, trace)
    }

    /// The number of a shortcut; 0 when there is no room.
    pub(super) fn learn(&mut self, shortcut: &Shortcut) -> u32 {
        if let Some(&number) = self.known.get(shortcut) {
            return number;
        }
        if self.off || self.sweep.is_some() || self.list.len() == SHORTCUTS {
            return 0;
        }
        let number = self.first + self.list.len() as u32;
        self.list.push(*shortcut);
        self.known.insert(*shortcut, number);
        number
    }

    /// How many are known.
    #[cfg(test)]
    pub(super) fn learned(&self) -> usize {
        self.list.len()
    }

    /// As after a long time: the numbers are nearly used up.
    #[cfg(test)]
    pub(super) fn age(&mut self) {
        self.forget();
        self.first = u32::MAX - SHORTCUTS as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shortcut(mtu: u16) -> Shortcut {
        let (in_port, out_port, neighbour) = (PortId::LAN, PortId::WAN, Mac([2; 6]));
        Shortcut {
            in_port,
            out_port,
            mtu,
            neighbour,
            info: CtInfo::Established,
            status_mask: 0,
            status: 0,
            flags_mask: 0,
            flags: 0,
            conn_mark: None,
            trace: None,
        }
    }

    #[test]
    fn a_number_is_good_for_one_generation() {
        let mut shortcuts = Shortcuts::new();
        let number = shortcuts.learn(&shortcut(1500));
        assert_eq!((shortcuts.learn(&shortcut(1500)), shortcuts.get(number)), (number, Some(&shortcut(1500))));
        assert_eq!((shortcuts.get(0), shortcuts.get(number + 1)), (None, None));
        shortcuts.forget();
        assert_eq!(shortcuts.get(number), None);
        assert!(shortcuts.learn(&shortcut(1400)) > number);
        assert_eq!(shortcuts.get(number), None);
    }

    #[test]
    fn room_is_bounded() {
        let mut shortcuts = Shortcuts::new();
        let room = (shortcuts.list.capacity(), shortcuts.known.capacity());
        for mtu in 0..=u16::MAX {
            let number = shortcuts.learn(&shortcut(mtu));
            assert_eq!(number == 0, usize::from(mtu) >= SHORTCUTS);
        }
        assert_eq!((shortcuts.list.capacity(), shortcuts.known.capacity()), room);
    }
}
