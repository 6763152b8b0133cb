//! The prepared connection's translation is decided: [`bind`], [`bind_null`], and beyond Linux [`bind_opened`].

use super::{address, ports};
use crate::conntrack::{ConnRef, Conntrack, Direction, Manip, PortBlock, Tuple};
use crate::rules::{Blocks, Independence, NatPorts, NatRange};
use crate::time::Instant;
use crate::wire::proto;

/// 16 random bits, others each time; it is told the first of the ports that are counted from.
pub type Random<'a> = dyn FnMut(u16) -> u16 + 'a;

/// What is looked for: an end of the prepared connection's tuple such that nobody has the tuple.
pub(super) struct Search<'a> {
    pub(super) conntrack: &'a mut Conntrack,
    pub(super) manip: Manip,
    pub(super) range: NatRange,
    pub(super) random: &'a mut Random<'a>,
    pub(super) now: Instant,
}

/// Gives the prepared connection an address and port of `range` at one end (`nf_nat_setup_info`). Does nothing for any other
/// packet. When no tuple is free the connection has one that is taken, and will not be confirmed.
pub fn bind<'a>(
    conntrack: &'a mut Conntrack,
    manip: Manip,
    range: &NatRange,
    random: &'a mut Random<'a>,
    now: Instant,
) {
    let at_home = manip == Manip::Source && conntrack.chooses_ports();
    Search { conntrack, manip, range: *range, random, now }.bind(at_home);
}

/// The same for a connection that has come from another worker, which could not know whether what it chose was taken:
/// if it is, another is chosen, whose replies come here.
pub fn bind_again<'a>(conntrack: &'a mut Conntrack, range: &NatRange, random: &'a mut Random<'a>, now: Instant) {
    let Some(chosen) = conntrack.prepared_tuple().filter(|chosen| conntrack.is_taken(chosen, now)) else { return };
    let Some(original) = conntrack.tuple(ConnRef::Prepared, Direction::Original) else { return };
    let current = Tuple { src: original.src, sport: original.sport, ..chosen };
    let mut search = Search { conntrack, manip: Manip::Source, range: *range, random, now };
    let found = search.pick_at_home(current);
    search.settle(found);
}

/// Translates the destination of a packet that comes in through a port that somebody has opened by endpoint-independent
/// filtering. Does nothing where nobody has.
pub fn bind_opened<'a>(conntrack: &'a mut Conntrack, random: &'a mut Random<'a>, now: Instant) {
    let Some(to) = conntrack.prepared_tuple().and_then(|tuple| conntrack.opened_destination(&tuple)) else { return };
    let ports = Some(NatPorts { low: to.dport, high: to.dport, base: None });
    let range = NatRange { addresses: Some((to.dst, to.dst)), ports, ..NatRange::default() };
    let mut search = Search { conntrack, manip: Manip::Destination, range, random, now };
    search.bind(false);
    search.conntrack.use_mapping();
}

/// No rule wants it translated: it keeps its address, and its port where that is free (`nf_nat_alloc_null_binding`).
pub fn bind_null<'a>(conntrack: &'a mut Conntrack, manip: Manip, random: &'a mut Random<'a>, now: Instant) {
    let Some(current) = conntrack.prepared_tuple() else { return };
    let own = match manip {
        Manip::Source => current.src,
        // A destination without a range of ports stays as it is, free or not; only identifiers are looked for. (The lookup
        // that need not be is a cache miss for each new connection.)
        Manip::Destination if !matches!(current.proto, proto::ICMP | proto::ICMPV6 | proto::GRE) => {
            return conntrack.bind(manip, &current);
        }
        Manip::Destination => current.dst,
    };
    let range = NatRange { addresses: Some((own, own)), ..NatRange::default() };
    // Nobody has asked for another port: the connection goes where its replies come rather than lose its own.
    Search { conntrack, manip, range, random, now }.bind(false);
}

impl Search<'_> {
    /// `at_home`: rather to something whose replies come to this worker by themselves.
    fn bind(&mut self, at_home: bool) {
        if self.conntrack.is_bound(self.manip) {
            return;
        }
        let Some(current) = self.conntrack.prepared_tuple() else { return };
        let found = match at_home {
            true => self.pick_at_home(current),
            false => self.pick(current),
        };
        // None whose replies would come to this worker: then what Linux would take, at the worker that they come to.
        let found = if at_home && !found.1 { self.pick(current) } else { found };
        self.settle(found);
    }

    fn settle(&mut self, (tuple, free): (Tuple, bool)) {
        self.conntrack.set_exhausted(!free);
        self.conntrack.bind(self.manip, &tuple);
    }

    /// A tuple whose reply has its home here, and whether it is free.
    fn pick_at_home(&mut self, current: Tuple) -> (Tuple, bool) {
        self.conntrack.only_own_homes(true);
        let found = self.pick(current);
        self.conntrack.only_own_homes(false);
        found
    }

    /// A tuple, and whether it is free.
    fn pick(&mut self, current: Tuple) -> (Tuple, bool) {
        match self.range.independence {
            Independence::Mapping | Independence::Filtering
                if self.manip == Manip::Source && proto::has_ports(current.proto) =>
            {
                self.mapped_tuple(current)
            }
            _ => self.fresh_tuple(current),
        }
    }

    /// What the source has been given already, whoever it talked to; else what it will always be given from now on. All ports
    /// of a client are given the same address (RFC 4787, REQ-2).
    fn mapped_tuple(&mut self, current: Tuple) -> (Tuple, bool) {
        // A rule of another range has its own.
        let mapped = self.conntrack.mapped_source(&current).filter(|tuple| self.is_in_range(tuple));
        let (tuple, free) = match mapped {
            Some(tuple) => (tuple, !self.is_taken(&tuple)),
            None => {
                self.range.persistent = true;
                self.fresh_tuple(current)
            }
        };
        if free {
            self.conntrack.map_source(self.range.independence == Independence::Filtering);
        }
        (tuple, free)
    }

    /// A tuple for a connection that has none yet: of a block of its client's, where the rule lends blocks.
    fn fresh_tuple(&mut self, current: Tuple) -> (Tuple, bool) {
        match self.range.blocks {
            Some(blocks) if ports::has_number(&current) => self.tuple_of_block(current, blocks),
            _ => self.unique_tuple(current),
        }
    }

    /// A port of the first block of the client's that has one; else of one more block, if it may have that and one is free.
    fn tuple_of_block(&mut self, current: Tuple, blocks: Blocks) -> (Tuple, bool) {
        let mut tuple = current;
        if let Some(addresses) = self.range.addresses {
            address::choose(&mut tuple, self.conntrack.prepared_zone().id, Manip::Source, addresses, true);
        }
        let all = self.range.ports.map_or((1024, u16::MAX), |ports| (ports.low, ports.high));
        let of_the_rule = |block: &PortBlock| all.0 <= block.low && block.high <= all.1;
        let mut own = 0;
        for block in self.conntrack.blocks_of_source(tuple.src).filter(of_the_rule) {
            own += 1;
            if let Some(tuple) = self.port_of_block(tuple, block) {
                return (tuple, true);
            }
        }
        if own < blocks.most
            && let Some(block) = self.conntrack.find_block(tuple.src, all, blocks.size, (self.random)(0))
            && let Some(tuple) = self.port_of_block(tuple, block)
        {
            return (tuple, true);
        }
        (tuple, false)
    }

    /// `tuple` with a port of the block that is free: its own, if that is one.
    fn port_of_block(&mut self, mut tuple: Tuple, block: PortBlock) -> Option<Tuple> {
        let ports = NatPorts { low: block.low, high: block.high, base: None };
        let keeps = ports::is_within(&tuple, Manip::Source, &ports) && !self.is_taken(&tuple);
        let all = self.range.ports.replace(ports);
        let found = keeps || self.choose_port(&mut tuple);
        self.range.ports = all;
        if found {
            self.conntrack.use_block(block);
        }
        found.then_some(tuple)
    }

    /// `get_unique_tuple`, and whether what it gives is free.
    fn unique_tuple(&mut self, current: Tuple) -> (Tuple, bool) {
        let is_random = self.range.random || self.range.random_fully;
        if self.manip == Manip::Source && !is_random {
            if self.is_in_range(&current) {
                if !self.is_taken(&current) {
                    return (current, true);
                }
            } else if let Some(tuple) = self.conntrack.mapping_of_source(&current, |tuple| self.is_in_range(tuple))
                && !self.is_taken(&tuple)
            {
                return (tuple, true);
            }
        }
        let mut tuple = current;
        if let Some(addresses) = self.range.addresses {
            let zone = self.conntrack.prepared_zone().id;
            address::choose(&mut tuple, zone, self.manip, addresses, self.range.persistent);
        }
        if !is_random {
            let keeps = match self.range.ports {
                None => true,
                Some(only) => only.base.is_none() && ports::is_within(&tuple, self.manip, &only),
            };
            let free = keeps && !self.is_taken(&tuple);
            // Linux does not ask whether the only port there is is taken; the connection will be refused if it is.
            if free || keeps && self.range.ports.is_some_and(|only| only.low == only.high) {
                return (tuple, free);
            }
        }
        let free = self.choose_port(&mut tuple);
        (tuple, free)
    }

    fn is_taken(&mut self, tuple: &Tuple) -> bool {
        self.conntrack.is_taken(tuple, self.now)
    }

    /// Whether a source is what the range would make of it already (`nf_in_range`).
    fn is_in_range(&self, tuple: &Tuple) -> bool {
        let NatRange { addresses, ports, .. } = self.range;
        let within = |(first, last): (_, _)| (first..=last).contains(&tuple.src);
        addresses.is_none_or(within) && ports.is_none_or(|ports| ports::is_within(tuple, Manip::Source, &ports))
    }
}
