//! The prepared connection's translation is decided: [`bind`], [`bind_null`].

use super::{address, ports};
use crate::conntrack::{Conntrack, Manip, Tuple};
use crate::rules::{NatPorts, NatRange};
use crate::time::Instant;

/// Gives the prepared connection an address and port of `range` at one end (`nf_nat_setup_info`). Does nothing for any other
/// packet. `random` gives 16 random bits, others each time. When no tuple is free the connection has one that is taken, and
/// will not be confirmed.
pub fn bind(conntrack: &mut Conntrack, manip: Manip, range: &NatRange, random: &mut dyn FnMut() -> u16, now: Instant) {
    if conntrack.is_bound(manip) {
        return;
    }
    let Some(current) = conntrack.prepared_tuple() else { return };
    let (tuple, free) = unique_tuple(conntrack, current, manip, range, random, now);
    conntrack.set_exhausted(!free);
    conntrack.bind(manip, &tuple);
}

/// No rule wants it translated: it keeps its address, and its port where that is free (`nf_nat_alloc_null_binding`).
pub fn bind_null(conntrack: &mut Conntrack, manip: Manip, random: &mut dyn FnMut() -> u16, now: Instant) {
    let Some(current) = conntrack.prepared_tuple() else { return };
    let own = match manip {
        Manip::Source => current.src,
        Manip::Destination => current.dst,
    };
    bind(conntrack, manip, &NatRange { addresses: Some((own, own)), ..NatRange::default() }, random, now);
}

/// `get_unique_tuple`, and whether what it gives is free.
fn unique_tuple(
    conntrack: &mut Conntrack,
    current: Tuple,
    manip: Manip,
    range: &NatRange,
    random: &mut dyn FnMut() -> u16,
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
