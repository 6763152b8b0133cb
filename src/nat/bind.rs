//! The prepared connection's translation is decided: [`bind`], [`bind_null`], and beyond Linux [`bind_opened`].

use super::{address, ports};
use crate::conntrack::{ConnRef, Conntrack, Direction, Manip, PortBlock, Tuple};
use crate::rules::{Blocks, Independence, NatPorts, NatRange};
use crate::time::Instant;
use crate::wire::proto;

/// Gives the prepared connection an address and port of `range` at one end (`nf_nat_setup_info`). Does nothing for any other
/// packet. `random` gives 16 random bits, others each time; it is told the first of
/// the ports that are counted from. When no tuple is free the connection has one that is taken, and
/// will not be confirmed.
pub fn bind(
    conntrack: &mut Conntrack,
    manip: Manip,
    range: &NatRange,
    random: &mut dyn FnMut(u16) -> u16,
    now: Instant,
) {
    let at_home = manip == Manip::Source && conntrack.chooses_ports();
    bind_within(conntrack, manip, range, at_home, random, now);
}

/// [`bind`]; `at_home`: rather to something whose replies come to this worker by themselves.
fn bind_within(
    conntrack: &mut Conntrack,
    manip: Manip,
    range: &NatRange,
    at_home: bool,
    random: &mut dyn FnMut(u16) -> u16,
    now: Instant,
) {
    if conntrack.is_bound(manip) {
        return;
    }
    let Some(current) = conntrack.prepared_tuple() else { return };
    conntrack.only_own_homes(at_home);
    let mut found = pick(conntrack, current, manip, range, random, now);
    conntrack.only_own_homes(false);
    if at_home && !found.1 {
        // None whose replies would come to this worker: then what Linux would take, at the worker that they come to.
        found = pick(conntrack, current, manip, range, random, now);
    }
    let (tuple, free) = found;
    conntrack.set_exhausted(!free);
    conntrack.bind(manip, &tuple);
}

/// The same for a connection that has come from another worker, which could not know whether what it chose was taken:
/// if it is, another is chosen, whose replies come here.
pub fn bind_again(conntrack: &mut Conntrack, range: &NatRange, random: &mut dyn FnMut(u16) -> u16, now: Instant) {
    let Some(chosen) = conntrack.prepared_tuple().filter(|chosen| conntrack.is_taken(chosen, now)) else { return };
    let Some(original) = conntrack.tuple(ConnRef::Prepared, Direction::Original) else { return };
    let current = Tuple { src: original.src, sport: original.sport, ..chosen };
    conntrack.only_own_homes(true);
    let (tuple, free) = pick(conntrack, current, Manip::Source, range, random, now);
    conntrack.only_own_homes(false);
    conntrack.set_exhausted(!free);
    conntrack.bind(Manip::Source, &tuple);
}

/// A tuple, and whether it is free.
fn pick(
    conntrack: &mut Conntrack,
    current: Tuple,
    manip: Manip,
    range: &NatRange,
    random: &mut dyn FnMut(u16) -> u16,
    now: Instant,
) -> (Tuple, bool) {
    let has_ports = matches!(current.proto, proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP);
    match range.independence {
        Independence::Mapping | Independence::Filtering if manip == Manip::Source && has_ports => {
            mapped_tuple(conntrack, current, range, random, now)
        }
        _ => fresh_tuple(conntrack, current, manip, range, random, now),
    }
}

/// Translates the destination of a packet that comes in through a port that somebody has opened by endpoint-independent
/// filtering. Does nothing where nobody has.
pub fn bind_opened(conntrack: &mut Conntrack, random: &mut dyn FnMut(u16) -> u16, now: Instant) {
    let Some(to) = conntrack.prepared_tuple().and_then(|tuple| conntrack.opened_destination(&tuple)) else { return };
    let ports = Some(NatPorts { low: to.dport, high: to.dport, base: None });
    let range = NatRange { addresses: Some((to.dst, to.dst)), ports, ..NatRange::default() };
    bind(conntrack, Manip::Destination, &range, random, now);
    conntrack.use_mapping();
}

/// What the source has been given already, whoever it talked to; else what it will always be given from now on. All ports of
/// a client are given the same address (RFC 4787, REQ-2).
fn mapped_tuple(
    conntrack: &mut Conntrack,
    current: Tuple,
    range: &NatRange,
    random: &mut dyn FnMut(u16) -> u16,
    now: Instant,
) -> (Tuple, bool) {
    // A rule of another range has its own.
    let within = |tuple: &Tuple| is_in_range(tuple, range);
    let (tuple, free) = match conntrack.mapped_source(&current).filter(within) {
        Some(tuple) => (tuple, !conntrack.is_taken(&tuple, now)),
        None => {
            let range = NatRange { persistent: true, ..*range };
            fresh_tuple(conntrack, current, Manip::Source, &range, random, now)
        }
    };
    if free {
        conntrack.map_source(range.independence == Independence::Filtering);
    }
    (tuple, free)
}

/// No rule wants it translated: it keeps its address, and its port where that is free (`nf_nat_alloc_null_binding`).
pub fn bind_null(conntrack: &mut Conntrack, manip: Manip, random: &mut dyn FnMut(u16) -> u16, now: Instant) {
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
    bind_within(conntrack, manip, &range, false, random, now);
}

/// A tuple for a connection that has none yet: of a block of its client's, where the rule lends blocks.
fn fresh_tuple(
    conntrack: &mut Conntrack,
    current: Tuple,
    manip: Manip,
    range: &NatRange,
    random: &mut dyn FnMut(u16) -> u16,
    now: Instant,
) -> (Tuple, bool) {
    match range.blocks {
        Some(blocks) if ports::has_number(&current) => tuple_of_block(conntrack, current, blocks, range, random, now),
        _ => unique_tuple(conntrack, current, manip, range, random, now),
    }
}

/// A port of the first block of the client's that has one; else of one more block, if it may have that and one is free.
fn tuple_of_block(
    conntrack: &mut Conntrack,
    current: Tuple,
    blocks: Blocks,
    range: &NatRange,
    random: &mut dyn FnMut(u16) -> u16,
    now: Instant,
) -> (Tuple, bool) {
    let mut tuple = current;
    if let Some(addresses) = range.addresses {
        address::choose(&mut tuple, conntrack.prepared_zone().id, Manip::Source, addresses, true);
    }
    let all = range.ports.map_or((1024, u16::MAX), |ports| (ports.low, ports.high));
    let of_the_rule = |block: &PortBlock| all.0 <= block.low && block.high <= all.1;
    let mut own = 0;
    for block in conntrack.blocks_of_source(tuple.src).filter(of_the_rule) {
        own += 1;
        if let Some(tuple) = port_of_block(conntrack, tuple, block, range, random, now) {
            return (tuple, true);
        }
    }
    if own < blocks.most
        && let Some(block) = conntrack.find_block(tuple.src, all, blocks.size, random(0))
        && let Some(tuple) = port_of_block(conntrack, tuple, block, range, random, now)
    {
        return (tuple, true);
    }
    (tuple, false)
}

/// `tuple` with a port of the block that is free: its own, if that is one.
fn port_of_block(
    conntrack: &mut Conntrack,
    mut tuple: Tuple,
    block: PortBlock,
    range: &NatRange,
    random: &mut dyn FnMut(u16) -> u16,
    now: Instant,
) -> Option<Tuple> {
    let ports = NatPorts { low: block.low, high: block.high, base: None };
    let keeps = ports::is_within(&tuple, Manip::Source, &ports) && !conntrack.is_taken(&tuple, now);
    let within = NatRange { ports: Some(ports), ..*range };
    if keeps || ports::choose(conntrack, &mut tuple, &within, Manip::Source, random, now) {
        conntrack.use_block(block);
        return Some(tuple);
    }
    None
}

/// `get_unique_tuple`, and whether what it gives is free.
fn unique_tuple(
    conntrack: &mut Conntrack,
    current: Tuple,
    manip: Manip,
    range: &NatRange,
    random: &mut dyn FnMut(u16) -> u16,
    now: Instant,
) -> (Tuple, bool) {
    let is_random = range.random || range.random_fully;
    if manip == Manip::Source && !is_random {
        if is_in_range(&current, range) {
            if !conntrack.is_taken(&current, now) {
                return (current, true);
            }
        } else if let Some(tuple) = conntrack.mapping_of_source(&current, |tuple| is_in_range(tuple, range))
            && !conntrack.is_taken(&tuple, now)
        {
            return (tuple, true);
        }
    }
    let mut tuple = current;
    if let Some(addresses) = range.addresses {
        address::choose(&mut tuple, conntrack.prepared_zone().id, manip, addresses, range.persistent);
    }
    if !is_random {
        match &range.ports {
            Some(NatPorts { base: Some(_), .. }) => {}
            Some(only) if ports::is_within(&tuple, manip, only) => {
                // Linux does not ask whether the only port there is is taken; the connection will be refused if it is.
                if only.low == only.high {
                    let free = !conntrack.is_taken(&tuple, now);
                    return (tuple, free);
                }
                if !conntrack.is_taken(&tuple, now) {
                    return (tuple, true);
                }
            }
            Some(_) => {}
            None if !conntrack.is_taken(&tuple, now) => return (tuple, true),
            None => {}
        }
    }
    let free = ports::choose(conntrack, &mut tuple, range, manip, random, now);
    (tuple, free)
}

/// Whether a source is what `range` would make of it already (`nf_in_range`).
fn is_in_range(tuple: &Tuple, range: &NatRange) -> bool {
    let within = |(first, last): (_, _)| (first..=last).contains(&tuple.src);
    range.addresses.is_none_or(within) && range.ports.is_none_or(|ports| ports::is_within(tuple, Manip::Source, &ports))
}
